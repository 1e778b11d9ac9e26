//! The driver over readiness: epoll through mio, or kqueue. Does itself what a ring would do.
//!
//! Sockets are registered once, edge-triggered. A readiness flag stays set until a call says "would
//! block"; sockets with something to do wait in one queue, and each gets one buffer before the next one
//! has its turn. Nothing is ever in flight, so close and detach take effect at once; only their events
//! keep the order that a ring gives them.
//!
//! Invariant: a socket is in `ready` at most once, and is there (or in `starved`) whenever it could do
//! something that it is allowed to do.

mod turn;

use super::{
    Buffer, DriverError, DriverStats, Event, Options, Token, Waker,
    backoff::Backoffs,
    buffers::Ledger,
    pending::{Outgoing, Queued, Role},
    slots::Slots,
    socket::{set_nonblocking, shut_down},
};
use mio::{Interest, Poll, Registry, unix::SourceFd};
use rustix::{io::Errno, net::SendFlags};
use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

/// mio's token of the waker; slots are far below.
const WAKER: mio::Token = mio::Token(usize::MAX);
/// Readiness events taken in one call. More sockets just need more calls.
const READINESS_EVENTS: usize = 1024;
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
    /// The number of this turn.
    turn: u64,
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
    /// The turn of the last send: a second one in the same turn has to queue, or a peer that reads as
    /// fast as it is sent to would hold the turn for ever.
    sent_in_turn: u64,
    outgoing: Option<Outgoing>,
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
            turn: 1,
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
        if role == Role::Listener {
            // Streams stay as they are, see `receive`; there is no such flag for an accept.
            set_nonblocking(&fd, true)?;
        }
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
            sent_in_turn: 0,
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
        if socket.sent_in_turn == self.turn {
            self.enqueue(token);
        } else if socket.is_writable {
            self.try_send(token);
        }
    }

    /// Writes what is outgoing as far as the kernel takes it in one call.
    fn try_send(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let Some(Outgoing { buffer, start }) = socket.outgoing.take() else { return };
        socket.sent_in_turn = self.turn;
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
        if std::mem::take(&mut socket.shuts_down_after_send) {
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
    return SendFlags::DONTWAIT;
    #[cfg(not(target_vendor = "apple"))]
    SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT)
}
