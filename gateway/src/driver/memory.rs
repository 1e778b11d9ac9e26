//! A driver over a network in memory, for the simulator: what arrives when, in which pieces, and what is taken of a send
//! is drawn from a seed, so that a run can be repeated exactly.
//!
//! It keeps the promises of [`Driver`](super::Driver) and breaks none in the player's favour: bytes come in any
//! pieces, sends are cut anywhere, buffers run out. Descriptors only stand for connections; nothing is sent over them.
#![expect(clippy::unnecessary_wraps, reason = "other drivers can fail where this one cannot")]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;
use std::{fmt, io};

use super::buffers::Ledger;
use super::pending::{Outgoing, Queued, Role};
use super::slots::Slots;
use super::{Buffer, Driver, DriverStats, Event, Token, Waker};

/// Few and small, so that they run out and packets are cut.
const BUFFERS: u16 = 6;
const BUFFER_BYTES: usize = 700;
/// What a peer that does not read holds at most.
const WINDOW_BYTES: usize = 8 * 1024;
/// Pieces that one socket receives in a turn at most.
const PIECES_MAX: usize = 4;

/// All connections of a simulated world. Clones share it.
#[derive(Clone)]
pub struct Network {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    random: fastrand::Rng,
    pipes: Vec<Pipe>,
    /// Which pipe a descriptor stands for.
    numbers: BTreeMap<RawFd, usize>,
    /// Connections that wait to be accepted, by the descriptor of their listener.
    arrivals: BTreeMap<RawFd, VecDeque<OwnedFd>>,
}

#[derive(Default)]
struct Pipe {
    inbound: VecDeque<u8>,
    outbound: Vec<u8>,
    /// What the peer did last.
    is_finished: bool,
    is_reset: bool,
    /// The driver's side has sent its FIN, or is gone.
    is_over: bool,
}

/// The far end of one connection.
pub struct Peer {
    network: Network,
    pipe: usize,
}

impl Network {
    /// An empty network whose delays are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let shared = Shared {
            random: fastrand::Rng::with_seed(seed),
            pipes: Vec::new(),
            numbers: BTreeMap::new(),
            arrivals: BTreeMap::new(),
        };
        Self { shared: Rc::new(RefCell::new(shared)) }
    }

    /// A driver on this network.
    pub fn driver(&self) -> Driver {
        Driver::Memory(Box::new(Memory {
            network: self.clone(),
            sockets: Slots::new(),
            buffers: vec![Vec::new(); usize::from(BUFFERS)],
            free: (0..BUFFERS).collect(),
            ledger: Ledger::new(BUFFERS),
            queue: VecDeque::new(),
            waker: Waker::silent(),
            stats: DriverStats::default(),
        }))
    }

    /// Something to listen on, and the number that [`connect`](Self::connect) knows it by.
    pub fn listener(&self) -> io::Result<(OwnedFd, RawFd)> {
        let stand_in = OwnedFd::from(UdpSocket::bind("127.0.0.1:0")?);
        let number = stand_in.as_raw_fd();
        self.shared.borrow_mut().arrivals.insert(number, VecDeque::new());
        Ok((stand_in, number))
    }

    /// A client that comes from `address` (of loopback) and waits to be accepted. Panics for an unknown listener.
    pub fn connect(&self, listener: RawFd, address: SocketAddr) -> io::Result<Peer> {
        let (stand_in, peer) = self.open(address)?;
        let mut shared = self.shared.borrow_mut();
        shared.arrivals.get_mut(&listener).expect("a listener").push_back(stand_in);
        Ok(peer)
    }

    /// A connection to `address` (of loopback): what is to be attached, and the far end.
    pub fn open(&self, address: SocketAddr) -> io::Result<(OwnedFd, Peer)> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        // Nothing is sent; but whoever asks for the peer's address gets this one.
        socket.connect(address)?;
        let stand_in = OwnedFd::from(socket);
        let mut shared = self.shared.borrow_mut();
        let pipe = shared.pipes.len();
        shared.pipes.push(Pipe::default());
        shared.numbers.insert(stand_in.as_raw_fd(), pipe);
        Ok((stand_in, Peer { network: self.clone(), pipe }))
    }
}

impl Peer {
    fn with<T>(&self, act: impl FnOnce(&mut Pipe) -> T) -> T {
        act(&mut self.network.shared.borrow_mut().pipes[self.pipe])
    }

    /// Sends.
    pub fn write(&self, bytes: &[u8]) {
        self.with(|pipe| pipe.inbound.extend(bytes));
    }

    /// Takes everything that has arrived.
    pub fn read(&self) -> Vec<u8> {
        self.with(|pipe| std::mem::take(&mut pipe.outbound))
    }

    /// Sends a FIN.
    pub fn finish(&self) {
        self.with(|pipe| pipe.is_finished = true);
    }

    /// Resets the connection: what was not received is lost, in both directions.
    pub fn reset(&self) {
        self.with(|pipe| {
            pipe.is_reset = true;
            pipe.inbound.clear();
            pipe.outbound.clear();
        });
    }

    /// Whether nothing more will arrive.
    pub fn is_over(&self) -> bool {
        self.with(|pipe| pipe.is_over || pipe.is_reset)
    }
}

/// A driver over a [`Network`].
pub struct Memory {
    network: Network,
    sockets: Slots<Socket>,
    buffers: Vec<Vec<u8>>,
    free: Vec<u16>,
    ledger: Ledger,
    queue: VecDeque<Queued>,
    waker: Waker,
    stats: DriverStats,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about a socket")]
struct Socket {
    fd: OwnedFd,
    role: Role,
    outgoing: Option<Outgoing>,
    is_paused: bool,
    has_ended: bool,
    is_leaving: bool,
    has_left: bool,
    shuts_down_after_send: bool,
}

impl Memory {
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn listen(&mut self, fd: OwnedFd) -> io::Result<Token> {
        Ok(self.adopt(fd, Role::Listener))
    }

    pub(super) fn attach(&mut self, fd: OwnedFd) -> io::Result<Token> {
        Ok(self.adopt(fd, Role::Stream))
    }

    fn adopt(&mut self, fd: OwnedFd, role: Role) -> Token {
        self.sockets.insert(Socket {
            fd,
            role,
            outgoing: None,
            is_paused: false,
            has_ended: false,
            is_leaving: false,
            has_left: false,
            shuts_down_after_send: false,
        })
    }

    pub(super) fn pause(&mut self, token: Token) {
        self.sockets.get_mut(token).into_iter().for_each(|socket| socket.is_paused = true);
    }

    pub(super) fn resume(&mut self, token: Token) {
        self.sockets.get_mut(token).into_iter().for_each(|socket| socket.is_paused = false);
    }

    pub(super) fn send(&mut self, token: Token, buffer: Vec<u8>, start: usize) {
        let Some(socket) = self.sockets.get_mut(token) else {
            return self.queue.push_back(Queued::Event(Event::Released { buffer }));
        };
        assert!(socket.outgoing.is_none(), "one send in flight a token");
        assert!(start <= buffer.len(), "the start lies in the buffer");
        if socket.is_leaving || start == buffer.len() {
            let sent = Event::Sent { token, buffer, result: Ok(0) };
            return self.queue.push_back(Queued::Event(sent));
        }
        self.stats.sends += 1;
        socket.outgoing = Some(Outgoing { buffer, start });
    }

    pub(super) fn shutdown_write(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if socket.outgoing.is_some() {
            socket.shuts_down_after_send = true;
        } else if !socket.is_leaving {
            end(&self.network, &socket.fd);
        }
    }

    pub(super) fn close(&mut self, token: Token) {
        let Some(socket) = self.sockets.remove(token) else { return };
        end(&self.network, &socket.fd);
        if let Some(Outgoing { buffer, .. }) = socket.outgoing {
            self.queue.push_back(Queued::Event(Event::Released { buffer }));
        }
    }

    pub(super) fn detach(&mut self, token: Token) {
        self.sockets.get_mut(token).into_iter().for_each(|socket| socket.is_leaving = true);
    }

    #[expect(clippy::unused_self, reason = "the other drivers have something to do here")]
    pub(super) fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Never blocks: time is the simulator's. Each socket makes progress, or does not, in an order of chance.
    pub(super) fn wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        assert_eq!(self.ledger.out(), 0, "all buffers are recycled before a wait");
        if self.waker.is_rung() {
            self.waker.take();
            self.queue.push_back(Queued::Event(Event::Woken));
        }
        let mut tokens: Vec<Token> =
            (0..self.sockets.capacity()).filter_map(|slot| self.sockets.occupant(slot)).collect();
        let network = self.network.clone();
        let shared = &mut *network.shared.borrow_mut();
        shared.random.shuffle(&mut tokens);
        for token in tokens {
            match self.sockets.get(token).map(|socket| socket.role) {
                Some(Role::Listener) => self.accept(token, shared),
                Some(Role::Stream) => self.progress(token, shared),
                None => {}
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: Token, shared: &mut Shared) {
        let Some(Socket { fd, is_paused, is_leaving, has_left, .. }) =
            self.sockets.get_mut(listener)
        else {
            return;
        };
        if let (false, Some(arrivals)) = (*is_paused, shared.arrivals.get_mut(&fd.as_raw_fd())) {
            while shared.random.u8(..4) > 0
                && let Some(socket) = arrivals.pop_front()
            {
                self.queue.push_back(Queued::Event(Event::Accepted { listener, socket }));
            }
        }
        if *is_leaving && !std::mem::replace(has_left, true) {
            self.queue.push_back(Queued::Leave(listener));
        }
    }

    fn progress(&mut self, token: Token, shared: &mut Shared) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let Shared { random, pipes, numbers, .. } = shared;
        let pipe = &mut pipes[numbers[&socket.fd.as_raw_fd()]];
        if random.u8(..4) > 0
            && let Some((buffer, result)) = take_send(socket, pipe, random)
        {
            self.stats.sent_bytes += result.as_ref().map_or(0, |bytes| *bytes as u64);
            self.queue.push_back(Queued::Event(Event::Sent { token, buffer, result }));
        }
        if !socket.is_paused && random.u8(..4) > 0 {
            for _ in 0..random.usize(1..=PIECES_MAX) {
                let Some(&index) = self.free.last().filter(|_| !pipe.inbound.is_empty()) else {
                    break;
                };
                let count = random.usize(1..=BUFFER_BYTES.min(pipe.inbound.len()));
                self.buffers[usize::from(index)] = pipe.inbound.drain(..count).collect();
                self.free.pop();
                let buffer = self.ledger.lend(index, count as u32);
                self.stats.received_bytes += count as u64;
                self.queue.push_back(Queued::Event(Event::Received { token, buffer }));
            }
            let is_over = pipe.is_reset || pipe.is_finished && pipe.inbound.is_empty();
            if is_over && !std::mem::replace(&mut socket.has_ended, true) {
                let error = pipe.is_reset.then(reset);
                self.queue.push_back(Queued::Event(Event::Ended { token, error }));
            }
        }
        if socket.is_leaving && !socket.has_left && random.bool() {
            socket.has_left = true;
            if let Some(Outgoing { buffer, .. }) = socket.outgoing.take() {
                let sent = Event::Sent { token, buffer, result: Ok(0) };
                self.queue.push_back(Queued::Event(sent));
            }
            self.queue.push_back(Queued::Leave(token));
        }
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.queue.pop_front()? {
                Queued::Leave(token) => match self.sockets.remove(token) {
                    Some(socket) => return Some(Event::Detached { token, socket: socket.fd }),
                    None => continue,
                },
                Queued::Event(event) => event,
            };
            self.stats.completions += 1;
            match event {
                Event::Received { token, buffer } if self.sockets.get(token).is_none() => {
                    self.recycle(buffer);
                }
                Event::Sent { token, buffer, .. } if self.sockets.get(token).is_none() => {
                    return Some(Event::Released { buffer });
                }
                Event::Ended { token, .. } if self.sockets.get(token).is_none() => {}
                event => return Some(event),
            }
        }
    }

    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        let (index, length) = self.ledger.locate(buffer);
        &mut self.buffers[usize::from(index)][..length]
    }

    pub(super) fn recycle(&mut self, buffer: Buffer) {
        self.free.push(self.ledger.give_back(buffer));
    }

    pub(super) fn stats(&self) -> DriverStats {
        self.stats
    }

    pub(super) fn sockets(&self) -> usize {
        self.sockets.len()
    }
}

/// What the network takes of a send, if anything.
fn take_send(
    socket: &mut Socket,
    pipe: &mut Pipe,
    random: &mut fastrand::Rng,
) -> Option<(Vec<u8>, io::Result<usize>)> {
    let length = socket.outgoing.as_ref().map(|out| out.buffer.len() - out.start)?;
    let room = length.min(WINDOW_BYTES.saturating_sub(pipe.outbound.len()));
    if !pipe.is_reset && room == 0 {
        return None;
    }
    let Outgoing { buffer, start } = socket.outgoing.take()?;
    let result = if pipe.is_reset {
        Err(reset())
    } else {
        // Whole as a rule, as in life; cut anywhere otherwise.
        let count = if random.u8(..4) > 0 { room } else { random.usize(1..=room) };
        pipe.outbound.extend_from_slice(&buffer[start..start + count]);
        Ok(count)
    };
    if std::mem::take(&mut socket.shuts_down_after_send) {
        pipe.is_over = true;
    }
    Some((buffer, result))
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn end(network: &Network, fd: &OwnedFd) {
    let shared = &mut *network.shared.borrow_mut();
    if let Some(pipe) = shared.numbers.get(&fd.as_raw_fd()) {
        shared.pipes[*pipe].is_over = true;
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = formatter.debug_struct("Memory");
        text.field("sockets", &self.sockets.len()).field("stats", &self.stats);
        text.finish_non_exhaustive()
    }
}
