//! One simulated world: a gateway of two reactors, its clock, its NATS and everybody around it; and what must hold.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::address::Transport;
use gateway::bus::BusParts;
use gateway::bus::link::NatsServer;
use gateway::clock::Clock;
use gateway::control::plan::Plan;
use gateway::directory::Directory;
use gateway::driver::Kind;
use gateway::driver::memory::Network;
use gateway::limits::Limits;
use gateway::listener::{Listener, Security, Service};
use gateway::mailbox::{Mail, Mailbox};
use gateway::meter::Meters;
use gateway::reactor::{Opened, Reactor, Report, Setup};
use gateway::wire::Protocol;
use proto::Message;
use proto::wire::{BatchView, NO_TOKEN, PROBE, is_batch};
use shared::config::{Binary, Config};
use shared::nats::ConnectOptions;
use shared::server::{METADATA_PROTOCOL, PROTOCOL_BATCHES, Server, ServerTable};
use tokio::sync::mpsc;

use crate::backend::{Backends, GATE, mark_of};
use crate::nats::{Nats, Published};
use crate::player::{Player, Stage};

const REACTORS: usize = 2;
const PLAYERS_MAX: usize = 40;
/// The last one is as Go's are; the others take batches.
const SERVERS: [&str; 3] = ["room-1", "room-2", "room-3"];
/// Steps after a leap of the clock in which there is no other: a network that stands still for long is another game.
const STEPS_BETWEEN_LEAPS: usize = 150;
/// Steps in which a healed world must come to rest.
const STEPS_TO_REST: usize = 6_000;

/// What happened in a game.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) answers: u64,
    pub(crate) errors: u64,
    pub(crate) pushes: u64,
    pub(crate) pushes_to_many: u64,
    pub(crate) kicks: u64,
    pub(crate) ends: u64,
    players: u64,
    binds: u64,
    cuts: u64,
    moves: u64,
    leaps: u64,
    batches: u64,
    probes: u64,
    digest: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.errors += other.errors;
        self.pushes += other.pushes;
        self.pushes_to_many += other.pushes_to_many;
        self.kicks += other.kicks;
        self.ends += other.ends;
        self.players += other.players;
        self.binds += other.binds;
        self.cuts += other.cuts;
        self.moves += other.moves;
        self.leaps += other.leaps;
        self.batches += other.batches;
        self.probes += other.probes;
        self.digest(&[other.digest]);
    }

    /// Whether everything that is to be tested has happened, and often.
    pub(crate) fn is_eventful(&self) -> bool {
        let rare =
            [self.kicks, self.binds, self.cuts, self.moves, self.leaps, self.batches, self.probes];
        self.answers > 1_000
            && self.errors > 100
            && self.pushes > 100
            && self.pushes_to_many > 50
            && rare.iter().all(|n| *n > 10)
    }

    /// Folds what somebody saw into a number that is the same when the game is (FNV-1a).
    pub(crate) fn digest(&mut self, seen: &[u64]) {
        for number in seen {
            self.digest = (self.digest ^ number).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn takes_batches(server: &str) -> bool {
    server != SERVERS[SERVERS.len() - 1]
}

pub(crate) struct World {
    random: fastrand::Rng,
    elapsed_us: &'static AtomicU64,
    network: Network,
    reactors: Vec<Reactor>,
    mailboxes: Arc<[Arc<Mailbox>]>,
    reports: mpsc::Receiver<Report>,
    directory: Arc<Directory>,
    meters: Meters,
    listeners: Vec<(RawFd, Transport)>,
    nats: Nats,
    is_nats_up: bool,
    /// Reactors that want a connection to NATS.
    wanting: Vec<usize>,
    /// Servers in etcd, and servers that listen.
    listed: Vec<bool>,
    alive: Vec<bool>,
    backends: Backends,
    players: Vec<Player>,
    quiet_steps: usize,
    revision: u64,
    totals: Totals,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        // The product draws from the thread's generator; so do the masks of the players' frames.
        fastrand::seed(seed);
        let settings = [
            ("pitaya.server.id", GATE),
            ("pitaya.server.type", "connector"),
            ("pitaya.gateway.threads", "2"),
            ("pitaya.gateway.inflight.target", "12"),
            ("pitaya.gateway.inflight.connection", "40"),
            ("pitaya.gateway.queue.maxrequests", "30"),
            ("pitaya.gateway.outbox.maxbytes", "65536"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = Config::load(Binary::Gateway, None, std::iter::empty(), &settings).unwrap();
        let plan = Plan::new(&config, None).unwrap();
        let elapsed_us: &'static AtomicU64 = Box::leak(Box::default());
        let network = Network::new(seed);
        let directory = Arc::new(Directory::default());
        let limits = Arc::new(Limits::new(REACTORS));
        let (send_report, reports) = mpsc::channel(4_096);
        let (meters, cores) = Meters::new(REACTORS, &plan.metrics).unwrap();
        let opened: Vec<Opened> = cores
            .into_iter()
            .enumerate()
            .map(|(reactor, meter)| {
                let setup = Setup {
                    reactor,
                    rules: plan.rules.clone(),
                    directory: directory.clone(),
                    limits: limits.clone(),
                    clock: Clock::simulated(elapsed_us),
                    bus: BusParts {
                        nats: Some(plan.cluster.as_ref().unwrap().transport.bus_tls()),
                        local: None,
                    },
                    driver: Kind::Auto,
                    reports: send_report.clone(),
                    meter,
                };
                Opened::over(setup, network.driver())
            })
            .collect();
        let mailboxes: Arc<[Arc<Mailbox>]> = opened.iter().map(Opened::mailbox).collect();
        let reactors =
            opened.into_iter().map(|opened| opened.into_reactor(mailboxes.clone())).collect();
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            elapsed_us,
            network,
            reactors,
            mailboxes,
            reports,
            directory,
            meters,
            listeners: Vec::new(),
            nats: Nats::default(),
            is_nats_up: true,
            wanting: Vec::new(),
            listed: vec![true; SERVERS.len()],
            alive: vec![true; SERVERS.len()],
            backends: Backends::default(),
            players: Vec::new(),
            quiet_steps: 0,
            revision: 0,
            totals: Totals::default(),
        };
        world.listen();
        world.list_servers();
        world
    }

    fn listen(&mut self) {
        for mailbox in self.mailboxes.iter() {
            let mut listeners = Vec::new();
            for protocol in [Protocol::Tcp, Protocol::WebSocket] {
                let (socket, number) = self.network.listener().unwrap();
                let transport = match protocol {
                    Protocol::Tcp => Transport::Tcp,
                    Protocol::WebSocket => Transport::WebSocket,
                };
                self.listeners.push((number, transport));
                let service = Service { protocol, security: Security::Plain };
                listeners.push(Listener { socket, service });
            }
            assert!(mailbox.send(Mail::Listen(listeners)).is_ok());
        }
    }

    fn list_servers(&mut self) {
        self.revision += 1;
        let listed = SERVERS.iter().zip(&self.listed).filter(|(_, is_listed)| **is_listed);
        let servers = listed.map(|(id, _)| {
            let batches = (METADATA_PROTOCOL.to_owned(), PROTOCOL_BATCHES.to_owned());
            Arc::new(Server {
                id: (*id).to_owned(),
                server_type: "room".to_owned(),
                metadata: takes_batches(id).then_some(batches).into_iter().collect(),
                frontend: false,
                hostname: String::new(),
            })
        });
        let table = Arc::new(ServerTable::new(servers, self.revision));
        for mailbox in self.mailboxes.iter() {
            assert!(mailbox.send(Mail::Servers(table.clone())).is_ok());
        }
    }

    fn now_ms(&self) -> u64 {
        self.elapsed_us.load(Ordering::Relaxed) / 1_000
    }

    /// Plays the whole game: chaos, healing, leaving.
    pub(crate) fn play(mut self, steps: usize) -> Totals {
        for step in 0..steps {
            self.disturb();
            self.step();
            if step % 50 == 0 {
                self.check_accounts();
            }
        }
        self.heal();
        self.rest("every request has its answer", |world| {
            world.players.iter().all(|player| !player.is_owed() || player.waiting() == 0)
        });
        self.push_to_everybody();
        self.leave();
        self.totals.binds = self.backends.binds;
        self.totals
    }

    /// What chance does to the world in this step.
    fn disturb(&mut self) {
        self.quiet_steps += 1;
        let random = &mut self.random;
        match random.u16(..1_000) {
            0..40 => self.connect(),
            40..80 => {
                let now_ms = self.now_ms();
                self.backends.push(now_ms, &mut self.random);
            }
            80..84 => {
                let which = random.bool().then(|| random.usize(..3));
                self.nats.cut(which, random.bool());
                self.totals.cuts += 1;
            }
            84..86 => self.is_nats_up = !self.is_nats_up,
            86..88 => self.nats.is_frozen = !self.nats.is_frozen,
            88 => self.nats.lame_duck(),
            89..93 => {
                let server = random.usize(..SERVERS.len());
                self.listed[server] = !self.listed[server];
                self.list_servers();
            }
            93..97 => {
                let server = random.usize(..SERVERS.len());
                self.alive[server] = !self.alive[server];
            }
            97..99 => {
                let from = random.usize(..REACTORS);
                assert!(self.mailboxes[from].send(Mail::MoveTo(1 - from)).is_ok());
                self.totals.moves += 1;
            }
            99..102 if self.quiet_steps > STEPS_BETWEEN_LEAPS => {
                let leap_ms = [500, 2_000, 6_000][random.usize(..3)];
                self.elapsed_us.fetch_add(leap_ms * 1_000, Ordering::Relaxed);
                self.quiet_steps = 0;
                self.totals.leaps += 1;
                let now_ms = self.now_ms();
                self.players.iter_mut().for_each(|player| player.handle_leap(now_ms));
            }
            _ => {}
        }
        // Away for a while, not for good.
        if !self.is_nats_up && self.random.u8(..100) == 0 {
            self.is_nats_up = true;
        }
        if self.nats.is_frozen && self.random.u8(..100) == 0 {
            self.nats.is_frozen = false;
        }
        for server in 0..SERVERS.len() {
            if !self.alive[server] && self.random.u8(..100) == 0 {
                self.alive[server] = true;
            }
            if !self.listed[server] && self.random.u8(..100) == 0 {
                self.listed[server] = true;
                self.list_servers();
            }
        }
        let now_ms = self.now_ms();
        for player in &mut self.players {
            player.act(now_ms, &mut self.random);
        }
    }

    fn connect(&mut self) {
        let live = self.players.iter().filter(|player| player.stage != Stage::Over).count();
        if live >= PLAYERS_MAX {
            return;
        }
        let (listener, transport) = self.listeners[self.random.usize(..self.listeners.len())];
        let number = self.players.len();
        let address = SocketAddr::from(([127, 0, 0, 1], 1_024 + (number % 60_000) as u16));
        let peer = self.network.connect(listener, address).unwrap();
        let now_ms = self.now_ms();
        self.players.push(Player::new(number, peer, transport, now_ms));
        self.totals.players += 1;
    }

    /// Time passes, reactors turn, messages travel; then everything must be as promised.
    fn step(&mut self) {
        let us = self.random.u64(..9_000);
        self.elapsed_us.fetch_add(us, Ordering::Relaxed);
        let first = self.random.usize(..REACTORS);
        for turn in 0..REACTORS {
            let reactor = &mut self.reactors[(first + turn) % REACTORS];
            for _ in 0..self.random.usize(..3) {
                assert!(reactor.step(), "a reactor has stopped");
                reactor.check_invariants();
            }
        }
        self.serve_reports();
        self.carry();
        let now_ms = self.now_ms();
        for player in &mut self.players {
            player.receive(now_ms, &self.backends, &mut self.totals);
        }
    }

    fn serve_reports(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            if let Report::BusWanted { reactor } = report {
                self.wanting.push(reactor);
            }
        }
        if !self.is_nats_up {
            self.nats.cut(None, false);
            return;
        }
        if self.random.u8(..4) == 0
            && let Some(reactor) = self.wanting.pop()
        {
            let address = SocketAddr::from(([127, 0, 0, 1], 4_222));
            let (socket, peer) = self.network.open(address).unwrap();
            self.nats.connected(peer);
            let server = NatsServer {
                options: Arc::new(ConnectOptions::default()),
                host: "nats".to_owned(),
                address: "nats:4222".to_owned(),
            };
            assert!(self.mailboxes[reactor].send(Mail::BusConnected { socket, server }).is_ok());
        }
    }

    /// Carries messages between reactors and backends.
    fn carry(&mut self) {
        let now_ms = self.now_ms();
        for message in self.nats.step(&mut self.random) {
            if let Some(server) = message.subject.strip_prefix("pitaya/servers/room/") {
                self.carry_requests(server, &message, now_ms);
            } else if message.subject.starts_with("_SIM.") {
                self.backends.handle_answer(&message);
            } else {
                self.nats.deliver(&message);
            }
        }
        if !self.nats.is_frozen {
            for message in self.backends.due(now_ms) {
                self.nats.deliver(&message);
            }
        }
    }

    /// Takes a batch apart. When it met nobody there is one word about it, not one for each request.
    fn carry_requests(&mut self, server: &str, message: &Published, now_ms: u64) {
        if !is_batch(&message.payload) {
            if !self.carry_request(server, message, now_ms) {
                self.refuse(message);
            }
            return;
        }
        assert!(takes_batches(server), "{server} has not asked for batches");
        if message.payload == PROBE {
            self.totals.probes += 1;
            if !self.is_alive(server) {
                self.refuse(message);
            }
            return;
        }
        let batch = BatchView::decode(&message.payload).expect("a whole batch");
        assert!(batch.len() > 1, "one request travels alone");
        self.totals.batches += 1;
        let reply = message.reply.as_deref().expect("a batch has a reply subject");
        let inbox = reply.rsplit_once('.').unwrap().0;
        let mut is_refused = false;
        for (token, request) in batch.entries() {
            let reply = if token == NO_TOKEN {
                "_DISCARD.x".to_owned()
            } else {
                format!("{inbox}.{token}")
            };
            let (subject, payload) = (message.subject.clone(), request.to_vec());
            let message = Published { subject, reply: Some(reply), payload };
            is_refused |= !self.carry_request(server, &message, now_ms);
        }
        if is_refused {
            self.refuse(message);
        }
    }

    fn is_alive(&self, server: &str) -> bool {
        let number = SERVERS.iter().position(|id| *id == server).expect("a server of ours");
        self.alive[number]
    }

    fn refuse(&self, message: &Published) {
        if let Some(reply) = message.reply.as_deref().filter(|reply| reply.starts_with("_INBOX.")) {
            self.nats.no_responders(reply);
        }
    }

    /// False when nobody was there.
    fn carry_request(&mut self, server: &str, message: &Published, now_ms: u64) -> bool {
        let request = proto::Request::decode(&message.payload[..]).expect("a request");
        let (session, data) = (request.session.unwrap().id, request.msg.unwrap().data);
        let mark = mark_of(&data);
        if let Some((player, _)) = mark {
            let known = *self.backends.sessions.entry(player).or_insert(session);
            assert_eq!(known, session, "player {player} speaks for another session");
        }
        if self.is_alive(server) {
            self.backends.handle_request(server, message, now_ms, &mut self.random);
            return true;
        }
        if let Some((_, number)) = mark {
            self.backends.undelivered.insert((session, number));
        }
        false
    }

    /// Everything is well again, and stays so.
    fn heal(&mut self) {
        self.is_nats_up = true;
        self.nats.is_frozen = false;
        self.listed.fill(true);
        self.alive.fill(true);
        self.backends.is_calm = true;
        self.list_servers();
    }

    fn rest(&mut self, what: &str, is_reached: impl Fn(&mut Self) -> bool) {
        for _ in 0..STEPS_TO_REST {
            if is_reached(self) {
                return;
            }
            self.step();
        }
        panic!("a healed world does not come to rest: {what}");
    }

    /// Whoever is bound gets its pushes again, whatever has happened.
    fn push_to_everybody(&mut self) {
        self.rest("NATS is back", |world| {
            world.nats.links() >= REACTORS
                && world.reactors.iter_mut().all(|it| !it.census().is_moving)
        });
        // Binds that were under way are confirmed, kicks have arrived.
        (0..500).for_each(|_| self.step());
        let now_ms = self.now_ms();
        let mut expected = Vec::new();
        let mut bound = Vec::new();
        for (uid, session) in self.backends.bound.clone() {
            let is_it = |player: &&Player| {
                player.is_owed() && self.backends.sessions.get(&player.number) == Some(&session)
            };
            if let Some(player) = self.players.iter().find(is_it) {
                expected.push((player.number, self.backends.push_to(&uid, now_ms, 10)));
                bound.push(uid);
            }
        }
        self.rest("every bound player has its push", |world| {
            expected.iter().all(|(player, push)| world.players[*player].newest_push == *push)
        });
        let now_ms = self.now_ms();
        let push = self.backends.push_to_many(&bound, now_ms);
        self.rest("every bound player has the push to all", |world| {
            expected.iter().all(|(player, _)| world.players[*player].newest_push == push)
        });
    }

    /// Everybody leaves; then nothing may be left, and the accounts must balance to the last unit.
    fn leave(&mut self) {
        for player in self.players.iter_mut().filter(|player| player.stage != Stage::Over) {
            player.leave(false);
        }
        self.rest("nobody is left", |world| {
            world.reactors.iter_mut().all(|reactor| {
                let census = reactor.census();
                census.clients + census.pending + census.waiting == 0
            })
        });
        (0..200).for_each(|_| self.step());
        assert_eq!((self.directory.connections(), self.directory.bound()), (0, 0));
        // Two listeners a reactor, a connection to NATS each, and perhaps the one with the server's own subjects apart.
        let sockets: usize = self.reactors.iter_mut().map(|reactor| reactor.census().sockets).sum();
        let links = self.nats.links();
        assert_eq!(sockets, 2 * REACTORS + links, "sockets are left");
        assert!((REACTORS..=REACTORS + 1).contains(&links), "{links} connections to NATS");
        // Each connection has its inbox and the pushes to many; one has the server's two subjects.
        assert_eq!(self.nats.subscriptions(), 2 * links + 2, "subscriptions are left");
        self.check_accounts();
        for mailbox in self.mailboxes.iter() {
            assert!(mailbox.send(Mail::Stop { grace_ms: 100 }).is_ok());
        }
        for reactor in &mut self.reactors {
            for _ in 0..1_000 {
                self.elapsed_us.fetch_add(5_000, Ordering::Relaxed);
                if !reactor.step() {
                    break;
                }
            }
            assert!(!reactor.step(), "it does not stop");
        }
    }

    /// Opened is closed and live; requests are answered, failed, dropped and pending. Nothing else, at any time.
    fn check_accounts(&mut self) {
        let census: Vec<_> = self.reactors.iter_mut().map(Reactor::census).collect();
        let clients: usize = census.iter().map(|census| census.clients).sum();
        if clients != self.directory.connections() {
            // A parcel is on its way between the reactors; what is in it cannot be counted.
            return;
        }
        let text = self.meters.render();
        let sum = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            });
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
        };
        let open: usize = census.iter().map(|census| census.open).sum();
        let closed = sum("pitaya_acceptor_closed_total");
        assert_eq!(sum("pitaya_acceptor_accepted_total"), closed + open as u64, "connections");
        let under_way: usize = census.iter().map(|census| census.pending + census.waiting).sum();
        let ended = sum("pitaya_handler_requests_replied_total")
            + sum("pitaya_handler_requests_failed_total")
            + sum("pitaya_handler_requests_dropped_total");
        assert_eq!(sum("pitaya_handler_requests_total"), ended + under_way as u64, "requests");
    }
}
