//! The driver over readiness: epoll through mio, or kqueue. Does itself what a ring would do.
//!
//! Sockets are registered once, edge-triggered. A readiness flag stays set until a call says "would
//! block"; sockets with something to do wait in one queue, and each gets one buffer before the next one
//! has its turn. Nothing is ever in flight, so close and detach take effect at once; only their events
//! keep the order that a ring gives them.
//!
//! Invariant: a socket is in `ready` at most once, and is there (or in `starved`) whenever it could do
//! something that it is allowed to do.

use super::{
    Buffer, DriverError, DriverStats, Event, Options, Token, Waker,
    backoff::Backoffs,
    buffers::Ledger,
    slots::Slots,
    socket::{AcceptFailure, accept_failure, set_nonblocking, shut_down},
};
use mio::{Interest, Poll, Registry, unix::SourceFd};
use rustix::{io::Errno, net::SendFlags};
use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// mio's token of the waker; slots are far below.
const WAKER: mio::Token = mio::Token(usize::MAX);
/// Readiness events taken in one call. More sockets just need more calls.
const READINESS_EVENTS: usize = 1024;
/// A turn serves every socket that was ready at its begin once, and at least so many times in all:
/// a single busy peer must not cost one selector call for each buffer.
const SERVICES_PER_TURN_MIN: usize = 64;
/// Connections taken from one listener in a row; a storm of new ones must not starve the old.
const ACCEPTS_IN_A_ROW: usize = 16;

/// A driver over a selector.
pub struct Epoll {
    poll: Poll,
    readiness: mio::Events,
    waker: Waker,
    sockets: Slots<Socket>,
    /// Sockets with something to do, in order; at most once each (`Socket::is_queued`).
    ready: VecDeque<Token>,
    /// Sockets with bytes for which there was no buffer; they come back with the next wait.
    starved: VecDeque<Token>,
    /// How many of `ready` may still be served in this turn.
    services_left: usize,
    /// Events that are made, in order.
    queue: VecDeque<Queued>,
    memory: Box<[u8]>,
    buffer_bytes: usize,
    free_buffers: Vec<u16>,
    ledger: Ledger,
    backoffs: Backoffs,
    accept_rest: Duration,
    stats: DriverStats,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Listener,
    Stream,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about a socket")]
struct Socket {
    fd: OwnedFd,
    role: Role,
    is_readable: bool,
    /// The peer has hung up: a short read does not mean that the socket is drained.
    is_hung_up: bool,
    is_writable: bool,
    /// In `ready` or in `starved`.
    is_queued: bool,
    is_paused: bool,
    is_resting: bool,
    has_ended: bool,
    is_leaving: bool,
    shuts_down_after_send: bool,
    outgoing: Option<Outgoing>,
}

struct Outgoing {
    buffer: Vec<u8>,
    start: usize,
}

/// An event that waits to be taken.
enum Queued {
    Event(Event),
    /// Everything before it concerns the socket; when it is taken, the socket leaves.
    Leave(Token),
}

impl Epoll {
    pub(super) fn open(options: &Options) -> Result<Self, DriverError> {
        let refused = |call| move |source| DriverError::Refused { call, source };
        let poll = Poll::new().map_err(refused("epoll_create"))?;
        let waker = mio::Waker::new(poll.registry(), WAKER).map_err(refused("eventfd"))?;
        let buffers = options.receive_buffers.max(1);
        let buffer_bytes = options.receive_buffer_bytes.max(1) as usize;
        Ok(Self {
            poll,
            readiness: mio::Events::with_capacity(READINESS_EVENTS),
            waker: Waker::of_selector(waker),
            sockets: Slots::new(),
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            services_left: 0,
            queue: VecDeque::new(),
            // Zeroed memory of this size comes untouched from the kernel: pages that are never used
            // are never there.
            memory: vec![0; usize::from(buffers) * buffer_bytes].into_boxed_slice(),
            buffer_bytes,
            // Last in, first out: few connections use few pages.
            free_buffers: (0..buffers).rev().collect(),
            ledger: Ledger::new(buffers),
            backoffs: Backoffs::default(),
            accept_rest: options.accept_rest,
            stats: DriverStats::default(),
        })
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn listen(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.register(socket, Role::Listener)
    }

    pub(super) fn attach(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.register(socket, Role::Stream)
    }

    fn register(&mut self, fd: OwnedFd, role: Role) -> io::Result<Token> {
        set_nonblocking(&fd, true)?;
        let raw = fd.as_raw_fd();
        let token = self.sockets.insert(Socket {
            fd,
            role,
            is_readable: false,
            is_hung_up: false,
            // The first send finds out.
            is_writable: true,
            is_queued: false,
            is_paused: false,
            is_resting: false,
            has_ended: false,
            is_leaving: false,
            shuts_down_after_send: false,
            outgoing: None,
        });
        let interest = match role {
            Role::Listener => Interest::READABLE,
            Role::Stream => Interest::READABLE | Interest::WRITABLE,
        };
        let key = mio::Token(token.slot());
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&raw), key, interest) {
            self.sockets.remove(token);
            return Err(error);
        }
        Ok(token)
    }

    pub(super) fn pause(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.is_paused = true;
        }
    }

    pub(super) fn resume(&mut self, token: Token) {
        if let Some(socket) = self.sockets.get_mut(token) {
            socket.is_paused = false;
            socket.is_resting = false;
            if socket.role == Role::Listener {
                self.backoffs.forget(token);
            }
            self.enqueue(token);
        }
    }

    pub(super) fn send(&mut self, token: Token, buffer: Vec<u8>, start: usize) {
        let Some(socket) = self.sockets.get_mut(token) else {
            return self.queue.push_back(Queued::Event(Event::Released { buffer }));
        };
        debug_assert!(socket.outgoing.is_none(), "one send in flight a token");
        debug_assert!(start <= buffer.len(), "the start lies in the buffer");
        let refusal = if socket.outgoing.is_some() || start > buffer.len() {
            Some(Err(io::ErrorKind::InvalidInput.into()))
        } else if socket.is_leaving || start == buffer.len() {
            Some(Ok(0))
        } else {
            None
        };
        if let Some(result) = refusal {
            return self.queue.push_back(Queued::Event(Event::Sent { token, buffer, result }));
        }
        socket.outgoing = Some(Outgoing { buffer, start });
        if socket.is_writable {
            self.try_send(token);
        }
    }

    /// Writes what is outgoing as far as the kernel takes it in one call.
    fn try_send(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let Some(Outgoing { buffer, start }) = socket.outgoing.take() else { return };
        self.stats.sends += 1;
        let written = rustix::io::retry_on_intr(|| {
            rustix::net::send(&socket.fd, &buffer[start..], send_flags())
        });
        let result = match written {
            Err(Errno::AGAIN) => {
                socket.is_writable = false;
                socket.outgoing = Some(Outgoing { buffer, start });
                return;
            }
            Ok(bytes) => {
                self.stats.sent_bytes += bytes as u64;
                Ok(bytes)
            }
            Err(errno) => Err(errno.into()),
        };
        if socket.shuts_down_after_send {
            shut_down(&socket.fd);
        }
        self.queue.push_back(Queued::Event(Event::Sent { token, buffer, result }));
    }

    pub(super) fn shutdown_write(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if socket.outgoing.is_some() {
            socket.shuts_down_after_send = true;
        } else if !socket.is_leaving {
            shut_down(&socket.fd);
        }
    }

    pub(super) fn close(&mut self, token: Token) {
        // Events that wait for the token are dropped, or turned into Released, when they are taken.
        let Some(socket) = self.sockets.remove(token) else { return };
        if !socket.is_leaving {
            deregister(self.poll.registry(), &socket.fd);
        }
        if socket.role == Role::Listener {
            self.backoffs.forget(token);
        }
        if let Some(Outgoing { buffer, .. }) = socket.outgoing {
            self.queue.push_back(Queued::Event(Event::Released { buffer }));
        }
    }

    pub(super) fn detach(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if std::mem::replace(&mut socket.is_leaving, true) {
            return;
        }
        let is_listener = socket.role == Role::Listener;
        deregister(self.poll.registry(), &socket.fd);
        if let Some(Outgoing { buffer, .. }) = socket.outgoing.take() {
            let sent = Event::Sent { token, buffer, result: Ok(0) };
            self.queue.push_back(Queued::Event(sent));
        }
        if is_listener {
            self.backoffs.forget(token);
        }
        self.queue.push_back(Queued::Leave(token));
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "the ring's can fail")]
    pub(super) fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        debug_assert_eq!(self.ledger.out(), 0, "all buffers are recycled before a wait");
        let timeout = self.end_rests(timeout);
        if !self.free_buffers.is_empty() {
            self.ready.append(&mut self.starved);
        }
        let has_work = !self.queue.is_empty() || !self.ready.is_empty();
        let timeout = if has_work { Some(Duration::ZERO) } else { timeout };
        self.stats.enters += 1;
        match self.poll.poll(&mut self.readiness, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        self.take_readiness();
        self.services_left = self.ready.len().max(SERVICES_PER_TURN_MIN);
        Ok(())
    }

    /// Wakes the listeners that have rested long enough; reads the clock only if one rests at all.
    fn end_rests(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.backoffs.is_empty() {
            return timeout;
        }
        let now = Instant::now();
        while let Some(token) = self.backoffs.poll_rested(now) {
            if let Some(socket) = self.sockets.get_mut(token) {
                socket.is_resting = false;
                self.enqueue(token);
            }
        }
        self.backoffs.shorten(timeout, now)
    }

    fn take_readiness(&mut self) {
        let readiness = std::mem::replace(&mut self.readiness, mio::Events::with_capacity(0));
        for event in &readiness {
            self.stats.completions += 1;
            if event.token() == WAKER {
                self.queue.push_back(Queued::Event(Event::Woken));
                continue;
            }
            // A socket is deregistered before its slot is vacated, and readiness is taken in one go:
            // the occupant is the one that the event is about.
            let Some(token) = self.sockets.occupant(event.token().0) else { continue };
            let Some(socket) = self.sockets.get_mut(token) else { continue };
            let is_hung_up = event.is_read_closed() || event.is_error();
            socket.is_hung_up |= is_hung_up;
            socket.is_readable |= event.is_readable() || is_hung_up;
            socket.is_writable |= event.is_writable() || event.is_write_closed() || is_hung_up;
            self.enqueue(token);
        }
        self.readiness = readiness;
    }

    /// Puts a socket at the end of the queue if there is something that it can and may do.
    fn enqueue(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if !socket.is_queued && (socket.can_read() || socket.can_write()) {
            socket.is_queued = true;
            self.ready.push_back(token);
        }
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(queued) = self.queue.pop_front() {
                if let Some(event) = self.resolve(queued) {
                    return Some(event);
                }
            }
            self.services_left = self.services_left.checked_sub(1)?;
            let token = self.ready.pop_front()?;
            let event = self.serve(token);
            if event.is_some() {
                return event;
            }
        }
    }

    /// Checks, when an event is taken, that its socket has not been closed since it was made.
    fn resolve(&mut self, queued: Queued) -> Option<Event> {
        let event = match queued {
            Queued::Leave(token) => {
                let socket = self.sockets.remove(token)?.fd;
                return Some(Event::Detached { token, socket });
            }
            Queued::Event(event) => event,
        };
        match event {
            Event::Woken => {
                self.waker.take();
                Some(Event::Woken)
            }
            Event::Sent { token, buffer, .. } if self.sockets.get(token).is_none() => {
                Some(Event::Released { buffer })
            }
            Event::Accepted { listener, .. } | Event::AcceptFailed { listener, .. }
                if self.sockets.get(listener).is_none() =>
            {
                None
            }
            event => Some(event),
        }
    }

    /// Does one piece of work for a socket and puts it back if there is more.
    fn serve(&mut self, token: Token) -> Option<Event> {
        let socket = self.sockets.get_mut(token)?;
        socket.is_queued = false;
        if socket.can_write() {
            self.try_send(token);
        }
        let socket = self.sockets.get(token)?;
        let event = match socket.role {
            _ if !socket.can_read() => None,
            Role::Stream => self.receive(token),
            Role::Listener => {
                self.accept(token);
                None
            }
        };
        self.enqueue(token);
        event
    }

    fn receive(&mut self, token: Token) -> Option<Event> {
        let socket = self.sockets.get_mut(token)?;
        let Some(&index) = self.free_buffers.last() else {
            self.stats.no_buffers += 1;
            socket.is_queued = true;
            self.starved.push_back(token);
            return None;
        };
        let start = usize::from(index) * self.buffer_bytes;
        let memory = &mut self.memory[start..start + self.buffer_bytes];
        match rustix::io::retry_on_intr(|| rustix::io::read(&socket.fd, &mut *memory)) {
            Err(Errno::AGAIN) => {
                socket.is_readable = false;
                None
            }
            Ok(0) => {
                socket.has_ended = true;
                Some(Event::Ended { token, error: None })
            }
            Err(errno) => {
                socket.has_ended = true;
                Some(Event::Ended { token, error: Some(errno.into()) })
            }
            Ok(bytes) => {
                // A short read drains a stream; what comes later makes a new edge. Only an end that
                // was announced before makes none.
                if bytes < self.buffer_bytes && !socket.is_hung_up {
                    socket.is_readable = false;
                }
                self.free_buffers.pop();
                self.stats.received_bytes += bytes as u64;
                let buffer = self.ledger.lend(index, bytes as u32);
                Some(Event::Received { token, buffer })
            }
        }
    }

    fn accept(&mut self, listener: Token) {
        for _ in 0..ACCEPTS_IN_A_ROW {
            let Some(socket) = self.sockets.get_mut(listener) else { return };
            let error: io::Error = match accept(socket.fd.as_fd()) {
                Ok(accepted) => {
                    let event = Event::Accepted { listener, socket: accepted };
                    self.queue.push_back(Queued::Event(event));
                    continue;
                }
                Err(error) => error,
            };
            if error.kind() == io::ErrorKind::WouldBlock {
                socket.is_readable = false;
                return;
            }
            self.stats.accept_errors += 1;
            if accept_failure(&error) == AcceptFailure::Pause {
                socket.is_resting = true;
                self.backoffs.rest(listener, Instant::now() + self.accept_rest);
                let event = Event::AcceptFailed { listener, error };
                self.queue.push_back(Queued::Event(event));
                return;
            }
        }
    }

    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        let (index, length) = self.ledger.locate(buffer);
        let start = usize::from(index) * self.buffer_bytes;
        &mut self.memory[start..start + length]
    }

    pub(super) fn recycle(&mut self, buffer: Buffer) {
        self.free_buffers.push(self.ledger.give_back(buffer));
    }

    pub(super) fn stats(&self) -> DriverStats {
        self.stats
    }

    pub(super) fn sockets(&self) -> usize {
        self.sockets.len()
    }
}

impl Socket {
    fn can_read(&self) -> bool {
        self.is_readable
            && !(self.is_paused || self.is_resting || self.has_ended || self.is_leaving)
    }

    fn can_write(&self) -> bool {
        self.is_writable && self.outgoing.is_some()
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = formatter.debug_struct("Epoll");
        text.field("sockets", &self.sockets.len()).field("stats", &self.stats);
        text.finish_non_exhaustive()
    }
}

/// Always before the descriptor goes: another process may hold the same open file, and then closing
/// ours would leave the registration behind.
fn deregister(registry: &Registry, fd: &OwnedFd) {
    // It fails only for a socket that is not registered, which is what is wanted.
    let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
}

/// A peer that is gone gives an error, not a signal. Where the flag is missing, the runtime ignores
/// the signal anyway.
fn send_flags() -> SendFlags {
    #[cfg(target_vendor = "apple")]
    return SendFlags::empty();
    #[cfg(not(target_vendor = "apple"))]
    SendFlags::NOSIGNAL
}

#[cfg(not(target_vendor = "apple"))]
fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::net::SocketFlags;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::accept_with(listener, flags)?)
}

#[cfg(target_vendor = "apple")]
fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let socket = rustix::net::accept(listener)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    set_nonblocking(&socket, true)?;
    Ok(socket)
}
