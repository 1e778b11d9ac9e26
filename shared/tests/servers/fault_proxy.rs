//! A TCP proxy that does on purpose what networks do by accident: refuses, cuts, stands still, loses, forgets, stalls one
//! way.
//!
//! It sits between our processes and a real server. Nothing is changed or reordered: TCP would not let it happen. What
//! is lost is sent again after a while, as the kernel does it. Other crates include this file with `#[path]`; it needs
//! the standard library and `fastrand`.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long a lost segment takes to be sent again; the kernel's shortest.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// How often a direction that stands still looks whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// A running proxy. It ends when it is dropped, with its connections.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_refusing: AtomicBool,
    is_still: AtomicBool,
    /// The direction towards the client stands still, the other one does not.
    is_deaf: AtomicBool,
    loss_percent: AtomicU8,
    is_over: AtomicBool,
    links: Mutex<Vec<Link>>,
}

struct Link {
    sockets: [TcpStream; 2],
    /// The path has forgotten the connection.
    is_forgotten: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

impl FaultProxy {
    /// A proxy on a free port of loopback.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let accepting = state.clone();
        thread::spawn(move || accept(&listener, server, &accepting));
        Self { address, state }
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
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

    /// Cuts all connections, and every new one until it is switched off.
    pub(crate) fn refuse(&self, is_refusing: bool) {
        self.state.is_refusing.store(is_refusing, Ordering::SeqCst);
        if is_refusing {
            self.cut();
        }
    }

    /// Makes the present connections half-open: they stay, but what is sent is swallowed for ever. New ones work.
    pub(crate) fn forget(&self) {
        for link in self.state.links.lock().expect("the links").iter() {
            link.is_forgotten.store(true, Ordering::SeqCst);
        }
    }

    /// Nothing passes any more, in either direction, and nobody is told; what waits goes on when it is switched off.
    pub(crate) fn stand_still(&self, is_still: bool) {
        self.state.is_still.store(is_still, Ordering::SeqCst);
    }

    /// Nothing reaches the client any more: to the server it looks like one that does not read.
    pub(crate) fn stall_client(&self, is_deaf: bool) {
        self.state.is_deaf.store(is_deaf, Ordering::SeqCst);
    }

    /// So many of a hundred segments are lost, each time that they are sent; 100 is a partition.
    pub(crate) fn lose(&self, percent: u8) {
        self.state.loss_percent.store(percent.min(100), Ordering::SeqCst);
    }

    /// The network is well again.
    pub(crate) fn heal(&self) {
        self.refuse(false);
        self.stand_still(false);
        self.stall_client(false);
        self.lose(0);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, state: &Arc<State>) {
    for client in listener.incoming() {
        if state.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if state.is_refusing.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect(server) else { continue };
        let copies = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
        let (Some((client_in, server_out)), Some((client_out, server_in))) = (copies(), copies())
        else {
            continue;
        };
        let is_forgotten = Arc::new(AtomicBool::new(false));
        let ways = [(client_in, server_out, Way::ToServer), (server_in, client_out, Way::ToClient)];
        for (from, to, way) in ways {
            let (state, is_forgotten) = (state.clone(), is_forgotten.clone());
            thread::spawn(move || pump(from, to, way, &is_forgotten, &state));
        }
        let mut links = state.links.lock().expect("the links");
        // Those that have ended by themselves are not kept for ever.
        links.retain(|Link { sockets: [client, _], .. }| {
            client.take_error().is_ok() && client.peer_addr().is_ok()
        });
        links.push(Link { sockets: [client, server], is_forgotten });
    }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    way: Way,
    is_forgotten: &AtomicBool,
    state: &State,
) {
    let mut buffer = [0; 16 * 1024];
    // So that a direction that has nothing to say still sees its end.
    if from.set_read_timeout(Some(Duration::from_millis(250))).is_err() {
        return;
    }
    loop {
        if state.is_over.load(Ordering::SeqCst) {
            break;
        }
        if state.stands_still(way) {
            thread::sleep(LOOK);
            continue;
        }
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        while fastrand::u8(..100) < state.loss_percent.load(Ordering::SeqCst)
            && !state.is_over.load(Ordering::SeqCst)
        {
            thread::sleep(RETRANSMISSION);
        }
        while state.stands_still(way) && !state.is_over.load(Ordering::SeqCst) {
            thread::sleep(LOOK);
        }
        if is_forgotten.load(Ordering::SeqCst) {
            continue;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // The end passes only where bytes would pass.
    while state.stands_still(way) && !state.is_over.load(Ordering::SeqCst) {
        thread::sleep(LOOK);
    }
    if !is_forgotten.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}

impl State {
    fn stands_still(&self, way: Way) -> bool {
        self.is_still.load(Ordering::SeqCst)
            || way == Way::ToClient && self.is_deaf.load(Ordering::SeqCst)
    }
}
