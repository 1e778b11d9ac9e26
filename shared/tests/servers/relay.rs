//! A TCP relay in front of a real server, to take connections away from both sides.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A running relay. Its threads end with their connections, and with it.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_refusing: AtomicBool,
    is_over: AtomicBool,
    links: Mutex<Vec<Link>>,
}

struct Link {
    sockets: [TcpStream; 2],
    is_frozen: Arc<AtomicBool>,
}

impl Relay {
    /// Relays connections to `target`, `host:port`.
    pub(crate) fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let (target, accepting) = (target.to_owned(), Arc::clone(&state));
        thread::spawn(move || accept(&listener, &target, &accepting));
        Self { address, state }
    }

    /// `host:port` for clients.
    pub(crate) fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Cuts all connections and every new one.
    pub(crate) fn refuse(&self) {
        self.state.is_refusing.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Ends [`Relay::refuse`].
    pub(crate) fn accept(&self) {
        self.state.is_refusing.store(false, Ordering::SeqCst);
    }

    /// Makes the present connections half-open: they stay, but nothing passes any more. New ones work.
    pub(crate) fn freeze(&self) {
        for link in self.state.links.lock().expect("the links").iter() {
            link.is_frozen.store(true, Ordering::SeqCst);
        }
    }

    /// Cuts all connections; new ones work.
    pub(crate) fn cut(&self) {
        for link in self.state.links.lock().expect("the links").drain(..) {
            for socket in link.sockets {
                // The other side may have closed it already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, target: &str, state: &Arc<State>) {
    for client in listener.incoming() {
        if state.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if state.is_refusing.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect(target) else { continue };
        let is_frozen = Arc::new(AtomicBool::new(false));
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (from, to) = (from.try_clone().expect("a copy"), to.try_clone().expect("a copy"));
            let is_frozen = Arc::clone(&is_frozen);
            thread::spawn(move || pump(from, to, &is_frozen));
        }
        let link = Link { sockets: [client, server], is_frozen };
        state.links.lock().expect("the links").push(link);
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, is_frozen: &AtomicBool) {
    let mut buffer = [0; 16 * 1024];
    from.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if is_frozen.load(Ordering::SeqCst) {
            // What arrives is swallowed, as on a path that lost its state.
            continue;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    if !is_frozen.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Both);
    }
}
