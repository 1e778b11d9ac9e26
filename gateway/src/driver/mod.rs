//! Sockets in completion style: one thread owns a [`Driver`], asks it for operations and takes events.
//!
//! Two drivers stand behind one interface and behave the same: [`Uring`] hands operations to an
//! `io_uring`, [`Epoll`] does them itself when a selector says that they will succeed. Neither knows
//! anything of packets, sessions or time-outs; that is the reactor's.
//!
//! A turn of the reactor is `wait`, then `next` until it returns `None`, and nothing else has to be
//! called. Within a turn the events of one socket come in order; `Ended` comes after all `Received`,
//! and `Detached` after everything.
//!
//! Invariants: a descriptor is closed, or leaves, only when the kernel holds no operation on it; a
//! buffer belongs to one side at a time; a token that was closed is never heard of again.

mod backoff;
mod buffers;
mod epoll;
#[cfg(feature = "simulation")]
pub mod memory;
mod pending;
mod slots;
mod socket;
mod token;
#[cfg(target_os = "linux")]
mod uring;
mod waker;

pub use buffers::Buffer;
pub use epoll::Epoll;
pub use token::Token;
#[cfg(target_os = "linux")]
pub use uring::Uring;
pub use waker::Waker;

use std::{fmt, io, os::fd::OwnedFd, time::Duration};

/// Which driver is wanted, or runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The ring where the kernel lets us have it, else epoll.
    Auto,
    /// `io_uring`, or an error.
    Uring,
    /// epoll (kqueue where that is what there is).
    Epoll,
}

/// Sizes of a driver. All memory but the table of sockets is taken when it opens.
#[derive(Clone, Debug)]
pub struct Options {
    /// Receive buffers, shared by all sockets. A ring rounds up to a power of two; 1 to 32768.
    /// A connection holds one only from the arrival of bytes to the end of the turn.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer, at least 1. The product with `receive_buffers` is what the driver
    /// keeps for good: 4 MiB by default.
    pub receive_buffer_bytes: u32,
    /// Operations that a ring takes up before it has to enter the kernel, rounded up to a power of two.
    pub entries: u32,
    /// Completions that a ring holds; more of them are kept by the kernel at a price. Above `entries`.
    pub completions: u32,
    /// How long a listener rests when accepting fails for want of descriptors or memory.
    pub accept_rest: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            receive_buffers: 1024,
            receive_buffer_bytes: 4096,
            entries: 1024,
            completions: 8192,
            accept_rest: Duration::from_millis(100),
        }
    }
}

/// Which driver runs and why. Displays as one line for the start-up log, such as
/// `epoll: io_uring_setup: Operation not permitted (os error 1)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// [`Kind::Uring`] or [`Kind::Epoll`].
    pub kind: Kind,
    /// What was asked for, what the ring can do, or what the kernel refused.
    pub reason: String,
}

impl fmt::Display for Chosen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Auto => "auto",
            Kind::Uring => "uring",
            Kind::Epoll => "epoll",
        };
        write!(formatter, "{kind}: {}", self.reason)
    }
}

/// Why no driver could be opened.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel said no to `call`.
    #[error("{call}: {source}")]
    Refused {
        /// The system call, and the part of it that matters.
        call: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// The kernel has a ring, but too old a one, or one that does not do what it should.
    #[error("io_uring: {0}")]
    Unfit(&'static str),
}

/// What happened. See [`Driver::next`].
#[derive(Debug)]
pub enum Event {
    /// A client connected. The socket is close-on-exec; `attach` it, or drop it to close it.
    Accepted {
        /// Where it connected to.
        listener: Token,
        /// The connection.
        socket: OwnedFd,
    },
    /// Accepting failed (descriptors or memory ran out, as a rule). The listener goes on by itself
    /// after `Options::accept_rest`; nothing is to be done.
    AcceptFailed {
        /// Which listener.
        listener: Token,
        /// What the kernel said.
        error: io::Error,
    },
    /// Bytes came. `recycle` the buffer before the next wait.
    Received {
        /// From whom.
        token: Token,
        /// The bytes, at least one.
        buffer: Buffer,
    },
    /// Nothing more will be received: the peer's FIN (`None`) or an error. Comes at most once. Sending
    /// may still work after a FIN; the caller closes.
    Ended {
        /// Whose.
        token: Token,
        /// `None` for a FIN.
        error: Option<io::Error>,
    },
    /// A send came to its end. May be partial: send the rest with the same buffer and a later start.
    Sent {
        /// Whose.
        token: Token,
        /// The buffer of the send, unchanged, to be reused.
        buffer: Vec<u8>,
        /// How many bytes of `buffer[start..]` the kernel has taken.
        result: io::Result<usize>,
    },
    /// The send buffer of a token that is closed, to be reused.
    Released {
        /// The buffer, unchanged.
        buffer: Vec<u8>,
    },
    /// The socket is quiet and leaves: no operation on it is in flight, the token is gone.
    Detached {
        /// Whose it was.
        token: Token,
        /// The descriptor. `O_NONBLOCK` is off where a ring had it; a listener that epoll had is
        /// non-blocking. `attach` and `listen` set what they need.
        socket: OwnedFd,
    },
    /// Somebody woke the driver, once or more often, since the last such event.
    Woken,
}

/// Counters since the driver was opened; they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Entries into the kernel to submit or wait: `io_uring_enter`, or `epoll_wait`.
    pub enters: u64,
    /// Completions taken from the ring, or readiness events taken from the selector.
    pub completions: u64,
    /// Calls that receive; none with a ring, which receives by itself.
    pub receives: u64,
    /// Sends handed to the kernel; with epoll those that must wait for room count twice.
    pub sends: u64,
    /// Bytes delivered in `Received`.
    pub received_bytes: u64,
    /// Bytes that the kernel took from send buffers.
    pub sent_bytes: u64,
    /// Failed accepts, also those that are not worth an event.
    pub accept_errors: u64,
    /// How often a socket had bytes and there was no buffer for them.
    pub no_buffers: u64,
}

/// One thread's sockets. Opened, used and dropped on that thread. Dropping closes them all.
///
/// Passing a token that is gone is harmless: nothing happens, and a send buffer comes back as
/// [`Event::Released`].
#[derive(Debug)]
pub enum Driver {
    /// Over a ring.
    #[cfg(target_os = "linux")]
    Uring(Box<Uring>),
    /// Over a selector.
    Epoll(Box<Epoll>),
    /// Over a network in memory.
    #[cfg(feature = "simulation")]
    Memory(Box<memory::Memory>),
}

/// Calls the same method of whichever driver it is.
macro_rules! delegate {
    ($driver:expr, $it:ident => $call:expr) => {
        match $driver {
            #[cfg(target_os = "linux")]
            Driver::Uring($it) => $call,
            Driver::Epoll($it) => $call,
            #[cfg(feature = "simulation")]
            Driver::Memory($it) => $call,
        }
    };
}

impl Driver {
    /// Opens a driver on the thread that will own it. `Auto` tries a ring on a socket pair first, so
    /// that a kernel which lacks something, or forbids it, costs nothing but a line in the log.
    pub fn open(kind: Kind, options: &Options) -> Result<(Driver, Chosen), DriverError> {
        match kind {
            Kind::Epoll => Self::open_epoll(options, "as configured".to_owned()),
            Kind::Uring => Self::open_uring(options),
            Kind::Auto => Self::open_uring(options)
                .or_else(|refusal| Self::open_epoll(options, refusal.to_string())),
        }
    }

    fn open_epoll(options: &Options, reason: String) -> Result<(Driver, Chosen), DriverError> {
        let epoll = Epoll::open(options)?;
        Ok((Driver::Epoll(Box::new(epoll)), Chosen { kind: Kind::Epoll, reason }))
    }

    #[cfg(target_os = "linux")]
    fn open_uring(options: &Options) -> Result<(Driver, Chosen), DriverError> {
        let (uring, reason) = Uring::open(options)?;
        Ok((Driver::Uring(Box::new(uring)), Chosen { kind: Kind::Uring, reason }))
    }

    #[cfg(not(target_os = "linux"))]
    fn open_uring(_options: &Options) -> Result<(Driver, Chosen), DriverError> {
        Err(DriverError::Unfit("only Linux has it"))
    }

    /// What other threads wake this one with.
    pub fn waker(&self) -> Waker {
        delegate!(self, it => it.waker())
    }

    /// Starts accepting on a bound and listening socket. Fails when the socket's mode cannot be set
    /// or the selector refuses it; the socket is closed then.
    pub fn listen(&mut self, socket: OwnedFd) -> io::Result<Token> {
        delegate!(self, it => it.listen(socket))
    }

    /// Stops accepting until [`resume_accept`](Self::resume_accept). Connections that were already
    /// taken are still delivered; the others wait in the kernel's queue.
    pub fn pause_accept(&mut self, token: Token) {
        delegate!(self, it => it.pause(token));
    }

    /// Accepts again, at once even if the listener rested after a failure.
    pub fn resume_accept(&mut self, token: Token) {
        delegate!(self, it => it.resume(token));
    }

    /// Stops accepting for good. What was already taken is delivered, then [`Event::Detached`] brings
    /// the listener; what waits in its queue stays there for the next owner.
    pub fn unlisten(&mut self, token: Token) {
        delegate!(self, it => it.detach(token));
    }

    /// Takes over a connected stream socket; receiving starts. Fails like [`listen`](Self::listen).
    pub fn attach(&mut self, socket: OwnedFd) -> io::Result<Token> {
        delegate!(self, it => it.attach(socket))
    }

    /// Sends `buffer[start..]`. The buffer comes back in exactly one `Sent`, or in one `Released` when
    /// the token is closed meanwhile; until then no second send on the token may begin. Nothing to
    /// send gives `Sent` with zero.
    pub fn send(&mut self, token: Token, buffer: Vec<u8>, start: usize) {
        delegate!(self, it => it.send(token, buffer, start));
    }

    /// Stops receiving until [`resume_receive`](Self::resume_receive). Bytes that were already taken
    /// from the socket are still delivered, and so may be its end; afterwards nothing of the peer is
    /// noticed, not even a reset.
    pub fn pause_receive(&mut self, token: Token) {
        delegate!(self, it => it.pause(token));
    }

    /// Receives again.
    pub fn resume_receive(&mut self, token: Token) {
        delegate!(self, it => it.resume(token));
    }

    /// Sends a FIN, after the send that is in flight if there is one. The caller sends nothing more.
    pub fn shutdown_write(&mut self, token: Token) {
        delegate!(self, it => it.shutdown_write(token));
    }

    /// Closes the socket as soon as no operation on it is in flight. The token is gone at once: no
    /// event names it any more. A send buffer in flight comes back as [`Event::Released`].
    pub fn close(&mut self, token: Token) {
        delegate!(self, it => it.close(token));
    }

    /// Takes the socket out. Operations in flight are cancelled; what they did before is delivered:
    /// `Received` with bytes that came first, `Sent` with what the kernel took (maybe zero), then
    /// [`Event::Detached`]. Only [`close`](Self::close) may be called on the token after this.
    pub fn detach(&mut self, token: Token) {
        delegate!(self, it => it.detach(token));
    }

    /// Hands queued operations to the kernel without waiting. Not needed for anything but latency
    /// within a long turn.
    pub fn flush(&mut self) -> io::Result<()> {
        delegate!(self, it => it.flush())
    }

    /// Hands over what is queued and waits until there is something for [`next`](Self::next), at most
    /// `timeout` (`None`: for ever). May return early with nothing. Returns at once when events are
    /// left over. All buffers must have been recycled. An error is the kernel's refusal to wait at
    /// all; a signal is none.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        delegate!(self, it => it.wait(timeout))
    }

    /// The next event of this turn. `None` says: `wait`. With epoll the reading is done here. The
    /// length of a turn is bounded, however fast the peers are.
    #[expect(clippy::should_implement_trait, reason = "an iterator would hold the driver borrowed")]
    pub fn next(&mut self) -> Option<Event> {
        delegate!(self, it => it.next())
    }

    /// The bytes of a received buffer; may be changed in place. Panics for another driver's buffer.
    pub fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        delegate!(self, it => it.bytes(buffer))
    }

    /// Gives a buffer back for reuse. Panics for another driver's buffer.
    pub fn recycle(&mut self, buffer: Buffer) {
        delegate!(self, it => it.recycle(buffer));
    }

    /// The counters.
    pub fn stats(&self) -> DriverStats {
        delegate!(self, it => it.stats())
    }

    /// How many sockets the driver holds, those included that are on their way out.
    pub fn sockets(&self) -> usize {
        delegate!(self, it => it.sockets())
    }
}
