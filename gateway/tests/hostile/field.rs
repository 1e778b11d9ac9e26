//! The field of an attack: a gateway for each driver, well-behaved clients on it, and the count of its sockets.
//!
//! Attacks of one process take turns, because the sockets of the process are counted. Those on a process of their own go on
//! beside one another, but not beside these: the sockets of their clients would be counted too.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use client::address::Transport;
use client::raw::RawClient;
use client::upgrade::UpgradeRequest;
use gateway::control::plan::Plan;
use gateway::gateway::Gateway;
use shared::close::CloseReason;
use socket2::{Domain, Socket, Type};

use crate::local::{self, DRIVERS};
use crate::metrics;
pub(crate) use crate::metrics::eventually;
use crate::tls::{self, Identity};

/// Longer than anything here takes, even on a machine with other work.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Between two requests of a well-behaved client: it must not be a flood itself.
const PACE: Duration = Duration::from_millis(5);
/// The slowest answer that a well-behaved client may get. Promised is a second; the machine of a test may have a dozen
/// other things to do, and what this has to find is an attack that holds up a turn, which shows far above both.
const SLOWEST: Duration = Duration::from_secs(10);
/// Fewer answers to a well-behaved client prove nothing; a short attack is waited out for them.
const ANSWERS_MIN: u64 = 3;

/// What a proxy says in front of each well-behaved client, where that is asked for.
pub(crate) const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 51234 3250\r\n";

static TURN: RwLock<()> = RwLock::new(());

/// Waits until no attack goes on in this process, and keeps others from beginning.
pub(crate) fn turn() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no sockets are counted, and keeps that from beginning.
pub(crate) fn beside() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// One attacked gateway.
pub(crate) struct Field {
    gateway: Gateway,
    /// What every connection begins with.
    header: &'static [u8],
    /// What its certificate is, where it speaks TLS.
    identity: Option<Identity>,
}

impl Field {
    /// Where TCP clients connect.
    pub(crate) fn tcp_address(&self) -> SocketAddr {
        match self.identity {
            None => local::tcp(&self.gateway),
            Some(_) => self.gateway.addresses().tls[0],
        }
    }

    /// Where WebSocket clients connect.
    pub(crate) fn ws_address(&self) -> SocketAddr {
        match self.identity {
            None => local::ws(&self.gateway),
            Some(_) => self.gateway.addresses().wss[0],
        }
    }

    /// What it counts.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.gateway.addresses().admin[0]
    }

    /// What it says of itself.
    pub(crate) fn metrics(&self) -> String {
        metrics::metrics(self.gateway.addresses().admin[0])
    }

    /// How many connections ended for this reason so far.
    pub(crate) fn ended(&self, reason: CloseReason) -> u64 {
        metrics::closed_total(&self.metrics(), reason)
    }

    /// A fresh TCP connection.
    pub(crate) fn tcp(&self) -> RawClient {
        self.begun(self.tcp_address())
    }

    /// A fresh TCP connection from another address of this machine, so that limits of an address spare the
    /// well-behaved clients.
    pub(crate) fn tcp_from(&self, address: [u8; 4]) -> RawClient {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&self.tcp_address().into()).unwrap();
        patient(RawClient::over(socket.into(), Transport::Tcp).unwrap())
    }

    /// A fresh WebSocket connection.
    pub(crate) fn ws(&self) -> RawClient {
        let client = self.begun(self.ws_address());
        client.upgrade(&UpgradeRequest::new("game", "/?token=secret")).unwrap()
    }

    /// A connection with everything behind it that lies in front of packets or an upgrade.
    fn begun(&self, address: SocketAddr) -> RawClient {
        let mut client = patient(RawClient::connect_tcp(address).unwrap());
        client.send_bytes(self.header).unwrap();
        match &self.identity {
            None => client,
            Some(identity) => client.secure(identity.client(), tls::NAME).unwrap(),
        }
    }

    /// What TLS clients trust; only where the gateway speaks TLS.
    pub(crate) fn identity(&self) -> &Identity {
        self.identity.as_ref().expect("the attack is one on TLS")
    }

    /// One of each, without a handshake.
    pub(crate) fn fresh(&self) -> [RawClient; 2] {
        [self.tcp(), self.ws()]
    }

    /// One of each, ready for requests.
    pub(crate) fn established(&self) -> [RawClient; 2] {
        let mut clients = self.fresh();
        for client in &mut clients {
            client.establish().unwrap();
        }
        clients
    }
}

fn patient(mut client: RawClient) -> RawClient {
    client.set_timeout(LONG);
    client
}

/// Attacks a gateway on each driver, both at once, while clients play on them.
///
/// Panics when the attack does, when a well-behaved client misses an answer, when sockets are left, or when the gateway
/// does not serve afterwards.
pub(crate) fn under_attack(settings: &[(&str, &str)], attack: impl Fn(&Field) + Sync) {
    attacked(settings, false, |_| {}, attack);
}

/// The same, with TLS on all ports and under all well-behaved clients.
pub(crate) fn under_attack_secured(settings: &[(&str, &str)], attack: impl Fn(&Field) + Sync) {
    attacked(settings, true, |_| {}, attack);
}

/// The same, on gateways whose plan was changed.
pub(crate) fn under_attack_of(
    settings: &[(&str, &str)],
    change: impl Fn(&mut Plan),
    attack: impl Fn(&Field) + Sync,
) {
    attacked(settings, false, change, attack);
}

fn attacked(
    settings: &[(&str, &str)],
    is_secured: bool,
    change: impl Fn(&mut Plan),
    attack: impl Fn(&Field) + Sync,
) {
    let _turn = turn();
    // One reactor: whatever an attack holds up, it holds up for the well-behaved clients too.
    let mut all = vec![("pitaya.gateway.threads", "1")];
    all.extend_from_slice(settings);
    let expects_header = settings.contains(&("pitaya.acceptor.proxyprotocol", "true"));
    let header: &[u8] = if expects_header { HEADER } else { b"" };
    let fields = DRIVERS.map(|driver| {
        let identity = is_secured.then(Identity::new);
        let secured = identity.as_ref().map(Identity::settings);
        let secured = secured.iter().flatten().map(|(key, value)| (*key, value.as_str()));
        let all: Vec<(&str, &str)> = all.iter().copied().chain(secured).collect();
        Field { gateway: local::start_changed(driver, &all, &change), header, identity }
    });
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let good = fields.each_ref().map(Field::established);
        let sockets_before = sockets();
        let good = good.into_iter().flatten().map(|client| scope.spawn(|| play(client, &is_over)));
        let good: Vec<_> = good.collect();
        let attacks = fields.each_ref().map(|field| scope.spawn(|| attack(field)));
        let outcomes = attacks.map(thread::ScopedJoinHandle::join);
        let is_good = outcomes.iter().all(Result::is_ok);
        let left = if is_good { sockets_left(sockets_before) } else { 0 };
        is_over.store(true, Ordering::Relaxed);
        for client in good {
            let answers = client.join().unwrap();
            assert!(answers >= ANSWERS_MIN, "a well-behaved client got {answers} answers only");
        }
        for outcome in outcomes {
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        assert_eq!(left, 0, "sockets are left after the attack");
    });
    for field in fields {
        for mut client in field.established() {
            assert_eq!(client.request("room.test.echo", b"after").unwrap().payload, b"after");
        }
        field.gateway.stop();
    }
}

/// Asks and is answered until the attack is over; returns how often.
fn play(mut client: RawClient, is_over: &AtomicBool) -> u64 {
    let mut answers = 0u64;
    while answers < ANSWERS_MIN || !is_over.load(Ordering::Relaxed) {
        let since = Instant::now();
        let answer = client.request("room.test.echo", &answers.to_be_bytes()).unwrap();
        assert!(since.elapsed() < SLOWEST, "an answer took {:?}", since.elapsed());
        assert!(!answer.is_error && answer.payload == answers.to_be_bytes(), "{}", answer.text());
        answers += 1;
        thread::sleep(PACE);
    }
    answers
}

/// How many sockets there are above `before` when all closes had their time.
fn sockets_left(before: usize) -> usize {
    let deadline = Instant::now() + LONG;
    loop {
        let left = sockets().saturating_sub(before);
        if left == 0 || Instant::now() >= deadline {
            return left;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Descriptors of this process that are sockets.
fn sockets() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Ends a connection with a reset.
pub(crate) fn reset(socket: &TcpStream) {
    socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
}
