//! The mailbox: the only thing that crosses threads on the way to a reactor.
//!
//! A bounded queue of [`Mail`] and a wake-up. It is not for the hot path of a cluster gateway (whose requests and
//! answers never leave their core); it carries what the control thread, other reactors and, in standalone mode, the
//! application have to say. The invariant: a letter that was taken is handled, or its sender was told that the box
//! was full; wake-ups coalesce in the waker.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use shared::bans::BanList;
use shared::server::ServerTable;
use shared::session::SessionId;
use tokio::sync::Notify;

use crate::bus::ReplyTo;
use crate::bus::link::NatsServer;
use crate::driver::Waker;
use crate::freeze::ReactorState;
use crate::listener::Listener;
use crate::rules::Rules;

/// Letters that a box holds at most.
pub const LETTERS_MAX: usize = 16_384;
/// Payload bytes that a box holds at most.
pub const LETTER_BYTES_MAX: usize = 64 << 20;

/// A letter to a reactor.
pub enum Mail {
    /// The servers of the cluster, after a change.
    Servers(Arc<ServerTable>),
    /// Go by these rules from now on.
    Rules(Arc<Rules>),
    /// Keep these out from now on, and those of them who are here.
    Bans(Arc<BanList>),
    /// Serve these sockets. Sent last at start.
    Listen(Vec<Listener>),
    /// Close the listeners; existing connections go on. Sent first at stop.
    Unlisten,
    /// A connection to NATS that was asked for.
    BusConnected {
        /// The connected socket, non-blocking.
        socket: OwnedFd,
        /// Name, authentication and host of this server.
        server: NatsServer,
    },
    /// A call of another server to a session of this reactor: an encoded `protos.Request`.
    Call {
        /// The encoded request.
        request: Bytes,
        /// Where the answer goes.
        reply: ReplyTo,
    },
    /// A push to a session of this reactor (in-process bus): an encoded `protos.Push`.
    Push {
        /// Who gets it.
        session: SessionId,
        /// The encoded push.
        push: Bytes,
    },
    /// Kick this session; a session that has gone meanwhile is not missed.
    Kick {
        /// Whom.
        session: SessionId,
        /// True when the same user logged in again, false when a server asked.
        is_replaced: bool,
    },
    /// The answer to a forwarded request (in-process bus): an encoded `protos.Response`.
    Answer {
        /// The bus that the request went out on.
        bus: usize,
        /// The token that the request went out with.
        token: u32,
        /// The encoded response.
        response: Bytes,
    },
    /// Move all connections, with their bus, to the reactor of this number.
    MoveTo(usize),
    /// Take over the connections of another reactor.
    Adopt(Box<ReactorState>),
    /// Close all connections and end, when the requests in flight are answered or the time is over.
    Stop {
        /// Time for requests in flight and unsent bytes, ms.
        grace_ms: u64,
    },
}

impl Mail {
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Call { request: bytes, .. }
            | Self::Push { push: bytes, .. }
            | Self::Answer { response: bytes, .. } => bytes.len(),
            _ => 0,
        }
    }
}

/// A reactor's box. Shared; any thread may send, the owning reactor takes.
pub struct Mailbox {
    queue: ArrayQueue<Mail>,
    bytes: AtomicUsize,
    waker: Waker,
    /// Told when a crowded box has room again.
    relief: Notify,
}

/// The box was full, in letters or in bytes; the letter comes back.
pub struct MailboxFull(pub Mail);

impl Mailbox {
    /// A box that wakes its reactor through `waker`.
    pub fn new(waker: Waker) -> Self {
        Self {
            queue: ArrayQueue::new(LETTERS_MAX),
            bytes: AtomicUsize::new(0),
            waker,
            relief: Notify::new(),
        }
    }

    /// Posts a letter and wakes the reactor. Never blocks.
    ///
    /// Errors: the box is full; the letter is given back.
    pub fn send(&self, mail: Mail) -> Result<(), MailboxFull> {
        let bytes = mail.payload_bytes();
        // Relaxed: the sum is a limit, not a promise about the queue's content.
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > LETTER_BYTES_MAX {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(MailboxFull(mail));
        }
        if let Err(mail) = self.queue.push(mail) {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(MailboxFull(mail));
        }
        self.waker.wake();
        Ok(())
    }

    /// The next letter.
    pub fn take(&self) -> Option<Mail> {
        let was_crowded = self.is_crowded();
        let mail = self.queue.pop()?;
        self.bytes.fetch_sub(mail.payload_bytes(), Ordering::Relaxed);
        if was_crowded && !self.is_crowded() {
            self.relief.notify_waiters();
        }
        Some(mail)
    }

    /// Whether more than half of the box is full: who can wait should.
    pub fn is_crowded(&self) -> bool {
        self.queue.len() > LETTERS_MAX / 2
            || self.bytes.load(Ordering::Relaxed) > LETTER_BYTES_MAX / 2
    }

    /// Waits until the box is not crowded.
    pub async fn relieved(&self) {
        loop {
            let relief = self.relief.notified();
            if !self.is_crowded() {
                return;
            }
            relief.await;
        }
    }
}
