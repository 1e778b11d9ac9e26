//! The driver over an `io_uring`: multishot accept and receive, provided buffers, one send a socket.
//!
//! What may be done next with a socket is decided in `operations`; this file turns its steps into
//! ring operations, and `completions` turns what comes back into events.
//!
//! Invariant: a slot, its descriptor and its send buffer live until the kernel has completed every
//! operation that names them; dropping the driver waits for that too.

mod completions;
#[cfg(test)]
mod model;
mod operations;
mod provided;
#[cfg_attr(test, allow(dead_code, reason = "unit tests drive a model of the kernel instead"))]
mod ring;
mod trial;

use super::{
    Buffer, DriverError, DriverStats, Event, Options, Token, Waker,
    backoff::Backoffs,
    pending::{Outgoing, Queued, Role},
    slots::Slots,
    socket::{set_nonblocking, shut_down},
};
use io_uring::{opcode, types};
#[cfg(test)]
use model::Ring;
use operations::{Operations, Step};
use provided::{GROUP, Provided};
#[cfg(not(test))]
use ring::Ring;
use std::{
    collections::VecDeque,
    fmt, io,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// How long dropping the driver waits for the kernel to let go of everything. It takes one round as a
/// rule; beyond this the memory is given up rather than freed under the kernel's hands.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// A driver over a ring.
pub struct Uring {
    ring: Ring,
    /// Dropped by hand: not at all if the kernel still holds an operation.
    provided: ManuallyDrop<Provided>,
    sockets: ManuallyDrop<Slots<Socket>>,
    waker: Waker,
    /// Events that did not come from a completion, in order; before the next completion.
    queue: VecDeque<Queued>,
    /// Sockets whose receive ended for want of a buffer, in order.
    starved: VecDeque<Token>,
    backoffs: Backoffs,
    accept_rest: Duration,
    stats: DriverStats,
}

struct Socket {
    fd: OwnedFd,
    role: Role,
    operations: Operations,
    outgoing: Option<Outgoing>,
    shuts_down_after_send: bool,
}

/// What a completion is about; the highest four bits of its user data, above the token.
#[derive(Clone, Copy)]
#[repr(u8)]
enum About {
    Wake = 1,
    Accept = 2,
    Receive = 3,
    Send = 4,
    CancelInput = 5,
    CancelOutput = 6,
}

impl About {
    fn user_data(self, token: Token) -> u64 {
        (self as u64) << 60 | token.to_bits()
    }

    fn of(user_data: u64) -> Option<Self> {
        let all = [
            Self::Wake,
            Self::Accept,
            Self::Receive,
            Self::Send,
            Self::CancelInput,
            Self::CancelOutput,
        ];
        all.into_iter().find(|&about| about as u64 == user_data >> 60)
    }
}

impl Uring {
    /// Opens a ring, tries it out, and says what it is like.
    pub(super) fn open(options: &Options) -> Result<(Self, String), DriverError> {
        let (ring, flags) = Ring::open(options.entries, options.completions)?;
        let mut uring = Self::over(ring, options)?;
        let reason = format!(
            "io_uring with {flags}, {} receive buffers of {} bytes",
            uring.provided.count(),
            options.receive_buffer_bytes.max(1),
        );
        uring.try_out()?;
        uring.stats = DriverStats::default();
        uring.ring.enters = 0;
        uring.listen_to_waker();
        Ok((uring, reason))
    }

    /// A driver over a ring that nobody has used yet.
    fn over(ring: Ring, options: &Options) -> Result<Self, DriverError> {
        let provided =
            Provided::register(&ring, options.receive_buffers, options.receive_buffer_bytes)?;
        let waker = Waker::of_counter()
            .map_err(|source| DriverError::Refused { call: "eventfd", source })?;
        Ok(Self {
            ring,
            provided: ManuallyDrop::new(provided),
            sockets: ManuallyDrop::new(Slots::new()),
            waker,
            queue: VecDeque::new(),
            starved: VecDeque::new(),
            backoffs: Backoffs::default(),
            accept_rest: options.accept_rest,
            stats: DriverStats::default(),
        })
    }

    fn listen_to_waker(&mut self) {
        let Some(counter) = self.waker.counter() else { return };
        let readable = libc::POLLIN as u32;
        let entry = opcode::PollAdd::new(types::Fd(counter.as_raw_fd()), readable)
            .multi(true)
            .build()
            .user_data(About::Wake.user_data(Token::new(0, 0)));
        // SAFETY: a poll names no memory. The descriptor lives as long as the driver's waker.
        unsafe { self.ring.push(entry) };
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn listen(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.adopt(socket, Role::Listener)
    }

    pub(super) fn attach(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.adopt(socket, Role::Stream)
    }

    fn adopt(&mut self, fd: OwnedFd, role: Role) -> io::Result<Token> {
        // With the flag set an operation would complete with "would block" instead of waiting.
        set_nonblocking(&fd, false)?;
        let token = self.sockets.insert(Socket {
            fd,
            role,
            operations: Operations::new(),
            outgoing: None,
            shuts_down_after_send: false,
        });
        self.settle(token);
        Ok(token)
    }

    pub(super) fn pause(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.operations.set_paused(true);
        self.settle(token);
    }

    pub(super) fn resume(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.operations.set_paused(false);
        socket.operations.set_resting(false);
        if socket.role == Role::Listener {
            self.backoffs.forget(token);
        }
        self.settle(token);
    }

    pub(super) fn send(&mut self, token: Token, buffer: Vec<u8>, start: usize) {
        let socket = self.sockets.get_mut(token).filter(|socket| socket.operations.is_heard());
        let Some(socket) = socket else {
            return self.queue.push_back(Queued::Event(Event::Released { buffer }));
        };
        debug_assert!(socket.outgoing.is_none(), "one send in flight a token");
        debug_assert!(start <= buffer.len(), "the start lies in the buffer");
        let refusal = if socket.outgoing.is_some() || start > buffer.len() {
            Some(Err(io::ErrorKind::InvalidInput.into()))
        } else if start == buffer.len() || !socket.operations.can_start_output() {
            Some(Ok(0))
        } else {
            None
        };
        if let Some(result) = refusal {
            return self.queue.push_back(Queued::Event(Event::Sent { token, buffer, result }));
        }
        socket.operations.start_output();
        socket.outgoing = Some(Outgoing { buffer, start });
        self.push_send(token);
    }

    /// Hands what is outgoing to the kernel; the accounts say already that it is in flight.
    fn push_send(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        let Some(Outgoing { buffer, start }) = &socket.outgoing else { return };
        let bytes = &buffer[*start..];
        // The result is an i32; the rest of a larger buffer is a second send like any other rest.
        let length = bytes.len().min(i32::MAX as usize) as u32;
        let entry = opcode::Send::new(types::Fd(socket.fd.as_raw_fd()), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(About::Send.user_data(token));
        self.stats.sends += 1;
        // SAFETY: the vector stays in `outgoing`, untouched, until the completion: only `handle_send`
        // takes it, and the slot is not vacated with an output in flight. Its heap memory does not
        // move when the slot does.
        unsafe { self.ring.push(entry) };
    }

    pub(super) fn shutdown_write(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if socket.operations.has_output() {
            socket.shuts_down_after_send = true;
        } else if socket.operations.is_open() {
            shut_down(&socket.fd);
        }
    }

    pub(super) fn close(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.operations.close();
        if socket.role == Role::Listener {
            self.backoffs.forget(token);
        }
        self.settle(token);
    }

    pub(super) fn detach(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        socket.operations.leave();
        if socket.role == Role::Listener {
            self.backoffs.forget(token);
        }
        self.settle(token);
    }

    /// Does what the accounts of a socket ask for.
    fn settle(&mut self, token: Token) {
        while let Some(socket) = self.sockets.get_mut(token) {
            let about_input = match socket.role {
                Role::Listener => About::Accept,
                Role::Stream => About::Receive,
            };
            let fd = types::Fd(socket.fd.as_raw_fd());
            let Some(step) = socket.operations.poll_step() else { return };
            match step {
                Step::StartInput => {
                    let entry = match socket.role {
                        Role::Listener => {
                            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
                        }
                        Role::Stream => opcode::RecvMulti::new(fd, GROUP).build(),
                    };
                    // SAFETY: neither names memory of ours but the provided buffers, which outlive
                    // every operation. The descriptor is closed only after the last completion.
                    unsafe { self.ring.push(entry.user_data(about_input.user_data(token))) };
                }
                Step::CancelInput => {
                    let user_data = About::CancelInput.user_data(token);
                    self.ring.cancel(about_input.user_data(token), user_data);
                }
                Step::CancelOutput => {
                    let user_data = About::CancelOutput.user_data(token);
                    self.ring.cancel(About::Send.user_data(token), user_data);
                }
                Step::Close => {
                    self.sockets.remove(token);
                }
                Step::Leave => self.queue.push_back(Queued::Leave(token)),
            }
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.ring.submit()
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        debug_assert_eq!(self.provided.out(), 0, "all buffers are recycled before a wait");
        let timeout = self.end_rests(timeout);
        self.feed_starved();
        // Left over: events to be taken, or sockets that did not get their turn at the buffers.
        let has_work =
            !self.queue.is_empty() || (!self.starved.is_empty() && self.provided.with_kernel() > 0);
        self.ring.wait(if has_work { Some(Duration::ZERO) } else { timeout })
    }

    /// Lets as many starved sockets receive again as there are buffers: more would only fail.
    fn feed_starved(&mut self) {
        if !self.starved.is_empty() {
            self.provided.offer_more();
        }
        for _ in 0..self.provided.with_kernel() {
            let Some(token) = self.starved.pop_front() else { return };
            if let Some(socket) = self.sockets.get_mut(token) {
                socket.operations.set_starved(false);
                self.settle(token);
            }
        }
    }

    /// Wakes the listeners that have rested long enough; reads the clock only if one rests at all.
    fn end_rests(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.backoffs.is_empty() {
            return timeout;
        }
        let now = Instant::now();
        while let Some(token) = self.backoffs.poll_rested(now) {
            if let Some(socket) = self.sockets.get_mut(token) {
                socket.operations.set_resting(false);
                self.settle(token);
            }
        }
        self.backoffs.shorten(timeout, now)
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(queued) = self.queue.pop_front() {
                if let Some(event) = self.resolve(queued) {
                    return Some(event);
                }
            }
            let completion = self.ring.pop()?;
            self.stats.completions += 1;
            let event = self.handle(completion);
            if event.is_some() {
                return event;
            }
        }
    }

    /// Checks, when an event is taken, that its socket has not been closed since it was made.
    fn resolve(&mut self, queued: Queued) -> Option<Event> {
        match queued {
            Queued::Leave(token) => {
                let socket = self.sockets.remove(token)?.fd;
                Some(Event::Detached { token, socket })
            }
            Queued::Event(Event::Sent { token, buffer, .. }) if !self.is_heard(token) => {
                Some(Event::Released { buffer })
            }
            Queued::Event(event) => Some(event),
        }
    }

    fn is_heard(&self, token: Token) -> bool {
        self.sockets.get(token).is_some_and(|socket| socket.operations.is_heard())
    }

    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.provided.bytes(buffer)
    }

    pub(super) fn recycle(&mut self, buffer: Buffer) {
        self.provided.recycle(buffer);
    }

    pub(super) fn stats(&self) -> DriverStats {
        DriverStats { enters: self.ring.enters, ..self.stats }
    }

    pub(super) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Closes everything and waits until the kernel has let go. False if it did not in time.
    fn quiesce(&mut self) -> bool {
        for slot in 0..self.sockets.capacity() {
            if let Some(token) = self.sockets.occupant(slot) {
                self.close(token);
            }
        }
        let deadline = Instant::now() + DROP_WAIT_MAX;
        loop {
            // Buffers that the caller dropped unrecycled are nobody's; events are not wanted.
            while let Some(event) = self.next() {
                if let Event::Received { buffer, .. } = event {
                    self.recycle(buffer);
                }
            }
            if self.sockets() == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.ring.wait(Some(left)).is_err() {
                return false;
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if !self.quiesce() {
            // The kernel may yet write to the buffers: they are leaked, with the sockets.
            tracing::error!(sockets = self.sockets(), "io_uring did not let go of its sockets");
            return;
        }
        // It fails only if nothing is registered.
        let _ = self.ring.unregister_buffers(GROUP);
        // SAFETY: dropped here and never used again; no operation is in flight (all sockets are
        // gone, the waker's poll names no memory), so nobody else uses the memory either.
        unsafe {
            ManuallyDrop::drop(&mut self.sockets);
            ManuallyDrop::drop(&mut self.provided);
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = formatter.debug_struct("Uring");
        text.field("sockets", &self.sockets.len()).field("stats", &self.stats());
        text.finish_non_exhaustive()
    }
}
