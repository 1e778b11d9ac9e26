//! One thread of a load run: one poll, all its players, and the plan of who sends when.
//!
//! A turn handles every event, then what time has made due. A player writes once a turn: after its own event, or after
//! the plan gave it requests. The loop holds no lock; it talks to the coordinator through atomics alone.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use super::alarm::Alarm;
use super::company::{Cause, Company};
use super::options::{Mode, Share};
use super::pace::Pace;
use super::player::Player;
use super::tally::{Tally, Window, count};

const EVENTS_MAX: usize = 1024;
const READ_BYTES: usize = 64 * 1024;
/// Between two looks at heartbeats and timeouts.
const SWEEP_NS: u64 = 100_000_000;
/// Between two looks at whether the load starts.
const WAIT_NS: u64 = 5_000_000;
/// Connects under way at one time, so as not to overflow the server's queue of new connections.
const CONNECTING_MAX: u32 = 512;
/// Connections from one address to one server: the kernel has some 28000 ports for them.
const CONNECTIONS_PER_SOURCE: u32 = 20_000;
const ALARM: Token = Token(usize::MAX);

/// What the coordinator and the threads tell each other.
#[derive(Debug)]
pub(crate) struct Control {
    /// The run's clock begins here.
    pub(crate) origin: Instant,
    /// Threads whose connects have all succeeded or failed.
    pub(crate) settled: AtomicU64,
    /// When the load starts; `u64::MAX` until that is known.
    pub(crate) start_ns: AtomicU64,
    /// Give up now.
    pub(crate) is_stopping: AtomicBool,
    pub(crate) connected: AtomicU64,
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            settled: AtomicU64::new(0),
            start_ns: AtomicU64::new(u64::MAX),
            is_stopping: AtomicBool::new(false),
            connected: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

/// What a thread is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) target: SocketAddr,
    pub(crate) share: Share,
    /// Connections of all threads; decides whether several source addresses are needed.
    pub(crate) connections_total: u32,
    pub(crate) mode: Mode,
    pub(crate) warmup_ns: u64,
    pub(crate) duration_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Waiting,
    Running { to_ns: u64 },
    Draining,
    Done,
}

/// One thread's loop.
pub(crate) struct EventLoop<'a> {
    control: &'a Control,
    plan: Plan,
    poll: Poll,
    alarm: Alarm,
    company: Company,
    players: Vec<Option<Player>>,
    /// Players with room, in turn; open loop only.
    free: VecDeque<usize>,
    /// Players that the plan gave something in this turn.
    given: Vec<usize>,
    buffer: Vec<u8>,
    phase: Phase,
    connects: Pace,
    /// Connects under way.
    connecting: u32,
    requests: Pace,
    sweep_due_ns: u64,
    published: [u64; 3],
}

impl<'a> EventLoop<'a> {
    pub(crate) fn new(control: &'a Control, plan: Plan, company: Company) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Alarm::new(poll.registry(), ALARM)?;
        let now_ns = control.now_ns();
        Ok(Self {
            control,
            plan,
            poll,
            alarm,
            company,
            players: Vec::with_capacity(plan.share.connections as usize),
            free: VecDeque::new(),
            given: Vec::new(),
            buffer: vec![0; READ_BYTES],
            phase: Phase::Connecting,
            connects: Pace::new(now_ns, plan.share.connect_rate),
            connecting: 0,
            requests: Pace::new(u64::MAX, 0),
            sweep_due_ns: now_ns + SWEEP_NS,
            published: [0; 3],
        })
    }

    /// Runs to the end of the load.
    pub(crate) fn run(mut self) -> io::Result<Tally> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while self.phase != Phase::Done && !self.control.is_stopping.load(Ordering::Relaxed) {
            let timeout = self.wait()?;
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                if event.token() != ALARM {
                    self.handle_event(event);
                }
            }
            let now_ns = self.control.now_ns();
            self.connect_due(now_ns);
            self.issue_due(now_ns);
            if now_ns >= self.sweep_due_ns {
                self.sweep_due_ns = now_ns + SWEEP_NS;
                self.sweep(now_ns);
            }
            self.handle_phase(now_ns);
            self.publish();
        }
        // The last failures of the drain are counted where everything else is.
        self.publish();
        Ok(self.company.tally)
    }

    /// How long the poll may wait.
    fn wait(&mut self) -> io::Result<Option<Duration>> {
        let now_ns = self.control.now_ns();
        let mut due_ns = self.sweep_due_ns;
        let mut is_precise = false;
        match self.phase {
            Phase::Connecting if self.may_connect() => due_ns = due_ns.min(self.connects.due_ns()),
            Phase::Waiting => due_ns = due_ns.min(now_ns + WAIT_NS),
            Phase::Running { to_ns } => {
                due_ns = due_ns.min(to_ns);
                if !self.free.is_empty() {
                    due_ns = due_ns.min(self.requests.due_ns());
                    is_precise = true;
                }
            }
            Phase::Connecting | Phase::Draining | Phase::Done => {}
        }
        let wait = Duration::from_nanos(due_ns.saturating_sub(now_ns));
        if is_precise { self.alarm.arm(wait) } else { Ok(Some(wait)) }
    }

    fn handle_event(&mut self, event: &mio::event::Event) {
        let slot = event.token().0;
        let Some(Some(player)) = self.players.get_mut(slot) else { return };
        let was_ready = player.is_ready();
        let control = self.control;
        let mut result = Ok(());
        if event.is_writable() || event.is_error() {
            result = player.handle_writable(&mut self.company);
        }
        if result.is_ok() && (event.is_readable() || event.is_read_closed()) {
            result = player.handle_readable(
                &mut self.company,
                &mut self.buffer,
                event.is_read_closed() || event.is_error(),
                || control.now_ns(),
            );
        }
        if player.is_ready() && !was_ready {
            self.connecting -= 1;
        }
        let result = result.and_then(|()| self.refill(slot));
        if let Err(cause) = result {
            self.remove(slot, &cause);
        }
    }

    /// Gives a player what it has room for, or notes that it has room, and writes.
    fn refill(&mut self, slot: usize) -> Result<(), Cause> {
        let Some(Some(player)) = self.players.get_mut(slot) else { return Ok(()) };
        if !player.has_room(&self.company) {
            // Perhaps only for want of writing.
            player.flush(&mut self.company)?;
        }
        if let (Phase::Running { to_ns }, true) = (self.phase, player.has_room(&self.company)) {
            match self.plan.mode {
                Mode::Closed => {
                    let now_ns = self.control.now_ns();
                    while now_ns < to_ns && player.has_room(&self.company) {
                        player.send(&mut self.company, now_ns, now_ns)?;
                    }
                }
                Mode::Open { .. } if !player.is_listed => {
                    player.is_listed = true;
                    self.free.push_back(slot);
                }
                Mode::Open { .. } | Mode::Idle => {}
            }
        }
        player.flush(&mut self.company)
    }

    fn remove(&mut self, slot: usize, cause: &str) {
        let Some(mut player) = self.players.get_mut(slot).and_then(Option::take) else { return };
        // An error here leaves nothing behind: closing the socket takes it out of the poll too.
        let _ = self.poll.registry().deregister(player.socket_mut());
        if player.is_ready() {
            count(&mut self.company.tally.disconnects, cause);
        } else {
            self.connecting -= 1;
            count(&mut self.company.tally.connect_failures, cause);
        }
        for pending in player.pending() {
            self.company.tally.handle_failed(pending, "closed");
        }
    }

    fn may_connect(&self) -> bool {
        self.players.len() < self.plan.share.connections as usize
            && self.connecting < CONNECTING_MAX
    }

    fn connect_due(&mut self, now_ns: u64) {
        while self.phase == Phase::Connecting
            && self.may_connect()
            && self.connects.due_ns() <= now_ns
        {
            self.connects.advance();
            let slot = self.players.len();
            self.players.push(None);
            match self.connect(slot, now_ns) {
                Ok(player) => {
                    self.connecting += 1;
                    if let Some(place) = self.players.get_mut(slot) {
                        *place = Some(player);
                    }
                }
                Err(error) => count(&mut self.company.tally.connect_failures, &error.to_string()),
            }
        }
    }

    fn connect(&self, slot: usize, now_ns: u64) -> io::Result<Player> {
        let target = self.plan.target;
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let number = self.plan.share.first_connection + slot as u32;
        if let Some(source) = source(target, number, self.plan.connections_total) {
            socket.bind(&SocketAddr::new(source.into(), 0).into())?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    || error.raw_os_error()
                        == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let mut socket = TcpStream::from_std(socket.into());
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(slot), interests)?;
        Ok(Player::new(socket, self.company.transport, number, now_ns))
    }

    /// Hands due requests to players with room, in turn, then writes them.
    fn issue_due(&mut self, now_ns: u64) {
        if !matches!(self.phase, Phase::Running { .. }) {
            return;
        }
        while self.requests.due_ns() <= now_ns.min(self.end_ns().saturating_sub(1)) {
            let Some(slot) = self.free.pop_front() else { break };
            let Some(Some(player)) = self.players.get_mut(slot) else { continue };
            player.is_listed = false;
            if !player.has_room(&self.company) {
                continue;
            }
            let due_ns = self.requests.due_ns();
            if let Err(cause) = player.send(&mut self.company, due_ns, now_ns) {
                self.remove(slot, &cause);
                continue;
            }
            self.requests.advance();
            if player.has_room(&self.company) {
                player.is_listed = true;
                self.free.push_back(slot);
            }
            self.given.push(slot);
        }
        let mut given = std::mem::take(&mut self.given);
        // A player with several requests stands here several times; its second flush finds nothing to write.
        for slot in given.drain(..) {
            if let Err(cause) = self.refill(slot) {
                self.remove(slot, &cause);
            }
        }
        self.given = given;
    }

    fn end_ns(&self) -> u64 {
        self.company.tally.window.map_or(u64::MAX, |window| window.to_ns)
    }

    fn sweep(&mut self, now_ns: u64) {
        for slot in 0..self.players.len() {
            let Some(Some(player)) = self.players.get_mut(slot) else { continue };
            let ticked = player.handle_tick(&mut self.company, now_ns);
            // A request that was given up has made room.
            if let Err(cause) = ticked.and_then(|()| self.refill(slot)) {
                self.remove(slot, &cause);
            }
        }
    }

    fn handle_phase(&mut self, now_ns: u64) {
        match self.phase {
            Phase::Connecting => {
                let are_begun = self.players.len() == self.plan.share.connections as usize;
                if are_begun && self.connecting == 0 {
                    self.phase = Phase::Waiting;
                    self.control.settled.fetch_add(1, Ordering::Release);
                }
            }
            Phase::Waiting => {
                let start_ns = self.control.start_ns.load(Ordering::Acquire);
                if now_ns >= start_ns {
                    self.start(start_ns);
                }
            }
            Phase::Running { to_ns } => {
                if now_ns >= to_ns {
                    self.stop();
                }
            }
            Phase::Draining => {
                let are_pending =
                    self.players.iter().flatten().any(|player| !player.pending().is_empty());
                if !are_pending {
                    self.phase = Phase::Done;
                }
            }
            Phase::Done => {}
        }
    }

    fn start(&mut self, start_ns: u64) {
        let from_ns = start_ns + self.plan.warmup_ns;
        let to_ns = from_ns + self.plan.duration_ns;
        self.company.tally.window = Some(Window { from_ns, to_ns });
        self.phase = Phase::Running { to_ns };
        if let (Mode::Open { .. }, Some(rate)) = (self.plan.mode, self.plan.share.rate) {
            // A share of nothing is due after the end.
            let first_ns = if rate == 0 { u64::MAX } else { start_ns };
            self.requests = Pace::new(first_ns, rate);
        }
        for slot in 0..self.players.len() {
            if let Err(cause) = self.refill(slot) {
                self.remove(slot, &cause);
            }
        }
    }

    fn stop(&mut self) {
        self.phase = Phase::Draining;
        self.company.tally.alive =
            self.players.iter().flatten().filter(|player| player.is_ready()).count() as u64;
        let end_ns = self.end_ns();
        while self.requests.due_ns() < end_ns {
            self.company.tally.handle_unsent(self.requests.due_ns());
            self.requests.advance();
        }
    }

    /// Adds what is new to the coordinator's counters.
    fn publish(&mut self) {
        let tally = &self.company.tally;
        let counts = [tally.connected, tally.completed, tally.failed];
        let shared = [&self.control.connected, &self.control.completed, &self.control.failed];
        for ((shared, count), published) in shared.into_iter().zip(counts).zip(&mut self.published)
        {
            if count != *published {
                shared.fetch_add(count - *published, Ordering::Relaxed);
                *published = count;
            }
        }
    }
}

/// A loopback address of its own for every so many connections, when one address has too few ports for all.
fn source(target: SocketAddr, number: u32, connections_total: u32) -> Option<Ipv4Addr> {
    let is_loopback = matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback());
    if !is_loopback || connections_total <= CONNECTIONS_PER_SOURCE {
        return None;
    }
    // The options allow a million connections: fifty addresses.
    let host = 1 + (number / CONNECTIONS_PER_SOURCE) as u8;
    Some(Ipv4Addr::new(127, 0, 0, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_to_a_loopback_server_come_from_several_addresses() {
        let local: SocketAddr = "127.0.0.1:3250".parse().unwrap();
        let remote: SocketAddr = "192.0.2.1:3250".parse().unwrap();
        assert_eq!(source(local, 19_999, 20_000), None);
        assert_eq!(source(remote, 0, 30_000), None);
        assert_eq!(source(local, 19_999, 20_001), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(source(local, 20_000, 20_001), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(source(local, 999_999, 1_000_000), Some(Ipv4Addr::new(127, 0, 0, 50)));
    }
}
