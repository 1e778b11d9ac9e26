//! A relay in front of NATS that a test passes connections through one by one.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::world::SOON;

/// Connections that came and are not passed yet stay open and hear nothing.
pub(crate) struct Proxy {
    address: SocketAddr,
    server: SocketAddr,
    arrivals: Receiver<TcpStream>,
    passed: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, arrivals) = channel();
        // Ends with the process; a listener cannot be interrupted without a timeout.
        thread::spawn(move || {
            for socket in listener.incoming() {
                if sender.send(socket.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { address, server, arrivals, passed: Arc::default() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes the first connections of two reactors.
    pub(crate) fn pass_all(&self) {
        for _ in 0..2 {
            self.pass(self.arrival());
        }
    }

    /// Lets one connection through to the server; returns what its client says first, read by read.
    pub(crate) fn pass(&self, client: TcpStream) -> Receiver<Vec<u8>> {
        let server = TcpStream::connect(self.server).unwrap();
        let (said, hear) = channel();
        let (nobody, _) = channel();
        let both = || (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (from, to) = both();
        thread::spawn(move || relay(from, to, &said));
        let (to, from) = both();
        thread::spawn(move || relay(from, to, &nobody));
        self.passed.lock().unwrap().push(client);
        hear
    }

    /// Cuts everything, then passes only the connection whose client writes `line` to the server; the other one of the
    /// two stays unheard and is returned.
    pub(crate) fn pass_only(&self, line: &[u8]) -> TcpStream {
        loop {
            for socket in self.passed.lock().unwrap().drain(..) {
                let _ = socket.shutdown(Shutdown::Both);
            }
            let (first, second) = (self.arrival(), self.arrival());
            let hear = self.pass(first);
            let mut said = Vec::new();
            let is_meant = loop {
                said.extend(hear.recv_timeout(SOON).expect("the client speaks"));
                let has = |line: &[u8]| said.windows(line.len()).any(|window| window == line);
                // The barrier behind the subscriptions is the second PING.
                if said.windows(6).filter(|window| window == b"PING\r\n").count() >= 2 {
                    break has(line);
                }
            };
            if is_meant {
                return second;
            }
            let _ = second.shutdown(Shutdown::Both);
        }
    }

    fn arrival(&self) -> TcpStream {
        self.arrivals.recv_timeout(SOON).expect("a connection")
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, said: &Sender<Vec<u8>>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Whoever listened may have heard enough.
        let _ = said.send(buffer[..count].to_vec());
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
