//! A real reactor with real sockets, stepped by the test, which plays the clients and the NATS server in between.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use client::address::Transport;
use client::framing::{append_message, append_packet};
use gateway::bus::BusParts;
use gateway::bus::link::NatsServer;
use gateway::clock::Clock;
use gateway::control::plan::Plan;
use gateway::directory::Directory;
use gateway::driver::{Driver, Kind, Options};
use gateway::limits::Limits;
use gateway::listener::{Listener, Security, Service};
use gateway::mailbox::{Mail, Mailbox};
use gateway::meter::Meters;
use gateway::reactor::{Opened, Reactor, Setup};
use gateway::wire::Protocol;
use proto::wire::{BATCH_HEADER, BatchView, put_batch_entry_head};
use shared::config::{Binary, Config};
use shared::dictionary::Dictionary;
use shared::message::{Head, MessageType};
use shared::nats::ConnectOptions;
use shared::packet::{self, BODY_BYTES_MAX, PacketType};
use shared::server::{METADATA_PROTOCOL, PROTOCOL_BATCHES, Server, ServerTable};
use tokio::sync::mpsc;

/// Steps until something that must come has come.
const STEPS_MAX: usize = 1_000;

/// The drivers that there are. Where the ring is forbidden there is one.
pub(crate) fn drivers() -> Vec<Kind> {
    let has_ring = Driver::open(Kind::Uring, &Options::default()).is_ok();
    std::iter::once(Kind::Epoll).chain(has_ring.then_some(Kind::Uring)).collect()
}

/// One reactor, its clients and its NATS server.
pub(crate) struct World {
    pub(crate) reactor: Reactor,
    mailbox: Arc<Mailbox>,
    pub(crate) nats: Nats,
    clients: Vec<TcpStream>,
    /// Makes the reactor turn once.
    turn: fn(&mut Reactor) -> bool,
    /// Keep what the reactor reports to.
    _reports: mpsc::Receiver<gateway::reactor::Report>,
    _meters: Meters,
}

impl World {
    pub(crate) fn open(driver: Kind, clients: usize, turn: fn(&mut Reactor) -> bool) -> Self {
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
        let clients: Vec<TcpStream> = (0..clients)
            .map(|_| {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                client.set_nonblocking(true).unwrap();
                client.set_nodelay(true).unwrap();
                client
            })
            .collect();
        let service = Service { protocol: Protocol::Tcp, security: Security::Plain };
        let listeners = vec![Listener { socket: OwnedFd::from(listener), service }];
        assert!(mailbox.send(Mail::Listen(listeners)).is_ok());
        let nats = Nats::connect(&mailbox);
        Self { reactor, mailbox, nats, clients, turn, _reports: reports, _meters: meters }
    }

    fn step(&mut self) {
        assert!((self.turn)(&mut self.reactor));
        self.nats.serve();
    }

    /// Steps until the client has been sent something.
    fn received(&mut self, client: usize) -> Vec<u8> {
        let mut bytes = vec![0; 4_096];
        for _ in 0..STEPS_MAX {
            match self.clients[client].read(&mut bytes) {
                Ok(count) => {
                    assert_ne!(count, 0, "the gateway has closed the connection");
                    bytes.truncate(count);
                    return bytes;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            self.step();
        }
        panic!("the client is sent nothing");
    }

    /// Lets all clients shake hands.
    pub(crate) fn greet(&mut self) {
        let server = Server {
            id: "room-1".to_owned(),
            server_type: "room".to_owned(),
            metadata: [(METADATA_PROTOCOL.to_owned(), PROTOCOL_BATCHES.to_owned())].into(),
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
        for client in 0..self.clients.len() {
            let mut out = Vec::new();
            append_packet(Transport::Tcp, PacketType::Handshake, b"{\"sys\":{}}", &mut out)
                .unwrap();
            self.clients[client].write_all(&out).unwrap();
            assert_eq!(self.received(client).first(), Some(&1), "the handshake is answered");
            out.clear();
            append_packet(Transport::Tcp, PacketType::HandshakeAck, b"", &mut out).unwrap();
            self.clients[client].write_all(&out).unwrap();
        }
    }

    /// Every client asks `count` times at once, from `id` on, and takes its answers.
    pub(crate) fn request(&mut self, id: u64, count: u64, out: &mut Vec<u8>) {
        let kind = MessageType::Request;
        let route = "room.room.echo";
        out.clear();
        for id in id..id + count {
            let head = Head { kind, id, route, is_compressed: false, is_error: false };
            let dictionary = Dictionary::default();
            append_message(Transport::Tcp, &head, &[b'x'; 64], &dictionary, out).unwrap();
        }
        for client in &mut self.clients {
            client.write_all(out).unwrap();
        }
        for client in 0..self.clients.len() {
            let mut answers = 0;
            let mut unread = Vec::new();
            while answers < count {
                unread.extend(self.received(client));
                while let Ok(Some((packet, bytes))) = packet::decode(&unread, BODY_BYTES_MAX) {
                    // A heartbeat may come in between.
                    if packet.kind == PacketType::Data {
                        assert!(packet.body.ends_with(b"hello"), "{:?}", packet.body);
                        answers += 1;
                    }
                    unread.drain(..bytes);
                }
            }
        }
    }
}

/// As much of a NATS server as one reactor needs, with a backend that answers `hello`.
pub(crate) struct Nats {
    socket: TcpStream,
    unread: Vec<u8>,
    inbox: String,
    pongs: usize,
    /// Requests that came together with others.
    pub(crate) batched: u64,
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
        Self { socket, unread: Vec::new(), inbox: String::new(), pongs: 0, batched: 0 }
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
                    let payload = &self.unread[end + 2..whole - 2];
                    let (subject, answer) = match BatchView::decode(payload) {
                        Ok(batch) => {
                            self.batched += batch.len() as u64;
                            let inbox = reply.rsplit_once('.').unwrap().0;
                            (format!("{inbox}.b"), answers(batch))
                        }
                        Err(_) => (reply.to_owned(), ANSWER.to_vec()),
                    };
                    let head = format!("MSG {subject} {} {}\r\n", self.inbox, answer.len());
                    let all = [head.as_bytes(), &answer, b"\r\n"].concat();
                    self.socket.write_all(&all).unwrap();
                }
                _ => {}
            }
            self.unread.drain(..whole);
        }
    }
}

/// An encoded response that says `hello`.
const ANSWER: &[u8] = b"\n\x05hello";

fn answers(batch: BatchView<'_>) -> Vec<u8> {
    let mut out = BATCH_HEADER.to_vec();
    for (token, _) in batch.entries() {
        put_batch_entry_head(token, ANSWER.len(), &mut out);
        out.extend_from_slice(ANSWER);
    }
    out
}
