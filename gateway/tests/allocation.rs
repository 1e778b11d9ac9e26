//! A warm reactor forwards requests and brings back their answers without allocating, on either driver.
//!
//! A real reactor with real sockets, stepped by the test, which plays the client and the NATS server in between. One
//! test in a binary of its own: what is counted is what the process allocates during a step.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use client::address::Transport;
use client::framing::{append_message, append_packet};
use gateway::bus::BusParts;
use gateway::bus::link::NatsServer;
use gateway::clock::Clock;
use gateway::control::plan::Plan;
use gateway::directory::Directory;
use gateway::driver::Kind;
use gateway::limits::Limits;
use gateway::listener::{Listener, Security, Service};
use gateway::mailbox::{Mail, Mailbox};
use gateway::meter::Meters;
use gateway::reactor::{Opened, Reactor, Setup};
use gateway::wire::Protocol;
use shared::config::{Binary, Config};
use shared::dictionary::Dictionary;
use shared::message::{Head, MessageType};
use shared::nats::ConnectOptions;
use shared::packet::PacketType;
use shared::server::{Server, ServerTable};
use tokio::sync::mpsc;

struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if IS_COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here and there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` or `realloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`; the caller keeps the contract about the size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests before counting: every slot that rotates has been used then, and every buffer has grown.
const WARMUP: u64 = 500;
const COUNTED: u64 = 2_000;
/// Steps until something that must come has come.
const STEPS_MAX: usize = 1_000;

/// One reactor, its one client and its NATS server.
struct World {
    reactor: Reactor,
    mailbox: Arc<Mailbox>,
    nats: Nats,
    client: TcpStream,
    /// Keep what the reactor reports to.
    _reports: mpsc::Receiver<gateway::reactor::Report>,
    _meters: Meters,
}

impl World {
    fn open(driver: Kind) -> Self {
        let settings = [("pitaya.server.id", "gate-1"), ("pitaya.gateway.threads", "1")];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(Binary::Gateway, None, std::iter::empty(), &settings).unwrap();
        let plan = Plan::new(&config, None).unwrap();
        let (send_report, reports) = mpsc::channel(64);
        let (meters, mut cores) = Meters::new(1, &plan.metrics).unwrap();
        let setup = Setup {
            reactor: 0,
            rules: plan.rules.clone(),
            directory: Arc::new(Directory::default()),
            limits: Arc::new(Limits::new(1)),
            clock: Clock::start(),
            bus: BusParts {
                nats: Some(plan.cluster.as_ref().unwrap().transport.bus_tls()),
                local: None,
            },
            driver,
            reports: send_report,
            meter: cores.remove(0),
        };
        let opened = Opened::open(setup).unwrap();
        let mailbox = opened.mailbox();
        let reactor = opened.into_reactor(vec![mailbox.clone()].into());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let service = Service { protocol: Protocol::Tcp, security: Security::Plain };
        let listeners = vec![Listener { socket: OwnedFd::from(listener), service }];
        assert!(mailbox.send(Mail::Listen(listeners)).is_ok());
        let nats = Nats::connect(&mailbox);
        client.set_nonblocking(true).unwrap();
        client.set_nodelay(true).unwrap();
        Self { reactor, mailbox, nats, client, _reports: reports, _meters: meters }
    }

    fn step(&mut self) {
        IS_COUNTING.store(true, Ordering::Relaxed);
        let is_running = self.reactor.step();
        IS_COUNTING.store(false, Ordering::Relaxed);
        assert!(is_running);
        self.nats.serve();
    }

    /// Steps until the client has been sent something.
    fn received(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 4_096];
        for _ in 0..STEPS_MAX {
            self.step();
            match self.client.read(&mut bytes) {
                Ok(count) => {
                    assert_ne!(count, 0, "the gateway has closed the connection");
                    bytes.truncate(count);
                    return bytes;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        panic!("the client is sent nothing");
    }

    fn greet(&mut self) {
        let server = Server {
            id: "room-1".to_owned(),
            server_type: "room".to_owned(),
            metadata: std::collections::BTreeMap::new(),
            frontend: false,
            hostname: String::new(),
        };
        let table = Arc::new(ServerTable::new([Arc::new(server)], 1));
        assert!(self.mailbox.send(Mail::Servers(table)).is_ok());
        for _ in 0..STEPS_MAX {
            if self.nats.pongs > 1 {
                break;
            }
            self.step();
        }
        let mut out = Vec::new();
        append_packet(Transport::Tcp, PacketType::Handshake, b"{\"sys\":{}}", &mut out).unwrap();
        self.client.write_all(&out).unwrap();
        assert_eq!(self.received().first(), Some(&1), "the handshake is answered");
        out.clear();
        append_packet(Transport::Tcp, PacketType::HandshakeAck, b"", &mut out).unwrap();
        self.client.write_all(&out).unwrap();
    }

    fn request(&mut self, id: u64, out: &mut Vec<u8>) {
        let kind = MessageType::Request;
        let route = "room.room.echo";
        let head = Head { kind, id, route, is_compressed: false, is_error: false };
        out.clear();
        append_message(Transport::Tcp, &head, &[b'x'; 64], &Dictionary::default(), out).unwrap();
        self.client.write_all(out).unwrap();
        let mut answer = self.received();
        // A heartbeat may come before it.
        while answer.first() == Some(&3) {
            answer.drain(..4);
            if answer.is_empty() {
                answer = self.received();
            }
        }
        assert_eq!(answer.first(), Some(&4), "an answer is data");
        assert!(answer.ends_with(b"hello"), "{answer:?}");
    }
}

/// As much of a NATS server as one reactor needs, with a backend that answers `hello`.
struct Nats {
    socket: TcpStream,
    unread: Vec<u8>,
    inbox: String,
    pongs: usize,
}

impl Nats {
    fn connect(mailbox: &Mailbox) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut socket = listener.accept().unwrap().0;
        socket.write_all(b"INFO {\"max_payload\":65536,\"headers\":true}\r\n").unwrap();
        socket.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let server = NatsServer {
            options: Arc::new(ConnectOptions::default()),
            host: "nats".to_owned(),
            address: "nats:4222".to_owned(),
        };
        let mail = Mail::BusConnected { socket: theirs.into(), server };
        assert!(mailbox.send(mail).is_ok());
        Self { socket, unread: Vec::new(), inbox: String::new(), pongs: 0 }
    }

    fn serve(&mut self) {
        let mut bytes = [0; 4_096];
        while let Ok(count @ 1..) = self.socket.read(&mut bytes) {
            self.unread.extend_from_slice(&bytes[..count]);
        }
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
            let line = String::from_utf8(self.unread[..end].to_vec()).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let mut whole = end + 2;
            match words[..] {
                ["PING"] => {
                    self.socket.write_all(b"PONG\r\n").unwrap();
                    self.pongs += 1;
                }
                ["SUB", subject, sid] if subject.starts_with("_INBOX.") => {
                    sid.clone_into(&mut self.inbox);
                }
                ["PUB", _, reply, bytes] => {
                    whole += bytes.parse::<usize>().unwrap() + 2;
                    if self.unread.len() < whole {
                        return;
                    }
                    let answer = format!("MSG {reply} {} 7\r\n\n\x05hello\r\n", self.inbox);
                    self.socket.write_all(answer.as_bytes()).unwrap();
                }
                _ => {}
            }
            self.unread.drain(..whole);
        }
    }
}

#[test]
fn a_warm_reactor_forwards_without_allocating() {
    let mut drivers = vec![Kind::Epoll];
    // Where the ring is forbidden there is one driver.
    if gateway::driver::Driver::open(Kind::Uring, &gateway::driver::Options::default()).is_ok() {
        drivers.push(Kind::Uring);
    }
    for driver in drivers {
        let mut world = World::open(driver);
        world.greet();
        let mut out = Vec::new();
        for id in 1..=WARMUP {
            world.request(id, &mut out);
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for id in 1..=COUNTED {
            world.request(WARMUP + id, &mut out);
        }
        let during = ALLOCATIONS.load(Ordering::Relaxed) - before;
        // The tick may allocate now and then; one allocation a request would be thousands.
        assert!(during < COUNTED / 50, "{driver:?}: {during} allocations in {COUNTED} requests");
    }
}
