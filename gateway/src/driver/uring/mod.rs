//! The driver over an `io_uring`: multishot accept and receive, provided buffers, one send a socket.
//!
//! What may be done next with a socket is decided in [`operations`]; this file turns steps into
//! operations and completions into events.
//!
//! Invariant: a slot, its descriptor and its send buffer live until the kernel has completed every
//! operation that names them; dropping the driver waits for that too.

mod operations;
mod provided;
mod ring;

use super::{
    Buffer, DriverError, DriverStats, Event, Options, Token, Waker,
    backoff::Backoffs,
    slots::Slots,
    socket::{AcceptFailure, accept_failure, set_nonblocking, shut_down},
};
use io_uring::{opcode, types};
use operations::{Operations, Step};
use provided::{GROUP, Provided};
use ring::{Completion, Ring};
use std::{
    collections::VecDeque,
    fmt, io,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Listener,
    Stream,
}

struct Socket {
    fd: OwnedFd,
    role: Role,
    operations: Operations,
    outgoing: Option<Outgoing>,
    shuts_down_after_send: bool,
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
        let provided =
            Provided::register(&ring, options.receive_buffers, options.receive_buffer_bytes)?;
        let waker = Waker::of_counter()
            .map_err(|source| DriverError::Refused { call: "eventfd", source })?;
        let reason = format!(
            "io_uring with {flags}, {} receive buffers of {} bytes",
            provided.count(),
            options.receive_buffer_bytes.max(1),
        );
        let mut uring = Self {
            ring,
            provided: ManuallyDrop::new(provided),
            sockets: ManuallyDrop::new(Slots::new()),
            waker,
            queue: VecDeque::new(),
            starved: VecDeque::new(),
            backoffs: Backoffs::default(),
            accept_rest: options.accept_rest,
            stats: DriverStats::default(),
        };
        uring.try_out()?;
        uring.stats = DriverStats::default();
        uring.ring.enters = 0;
        uring.listen_to_waker();
        Ok((uring, reason))
    }

    /// Sends a byte each way over a socket pair. Where a seccomp filter or an old kernel gets in the
    /// way, it shows here and not with the first player. Multishot accept is older than the multishot
    /// receive that is tried here.
    fn try_out(&mut self) -> Result<(), DriverError> {
        const WAIT_MAX: Duration = Duration::from_secs(1);
        let refused = |call| move |source| DriverError::Refused { call, source };
        let (ours, peer) = std::os::unix::net::UnixStream::pair().map_err(refused("socketpair"))?;
        let token = self.attach(ours.into()).map_err(refused("fcntl"))?;
        rustix::io::write(&peer, b"?").map_err(|errno| refused("write")(errno.into()))?;
        self.send(token, vec![b'!'], 0);
        let deadline = Instant::now() + WAIT_MAX;
        let (mut has_received, mut has_sent) = (false, false);
        while self.sockets() > 0 {
            if Instant::now() > deadline {
                return Err(DriverError::Unfit("a trial on a socket pair did not end"));
            }
            self.ring
                .wait(Some(WAIT_MAX))
                .map_err(|source| DriverError::Refused { call: "io_uring_enter", source })?;
            while let Some(event) = self.next() {
                match event {
                    Event::Received { buffer, .. } => {
                        has_received = self.bytes(&buffer) == b"?";
                        self.recycle(buffer);
                    }
                    Event::Sent { result, .. } => {
                        has_sent = result.map_err(refused("io_uring send"))? == 1;
                    }
                    Event::Ended { error, .. } => {
                        let source = error.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                        let call = "io_uring multishot receive (Linux 6.0)";
                        return Err(DriverError::Refused { call, source });
                    }
                    _ => {}
                }
            }
            if has_received && has_sent {
                self.close(token);
            }
        }
        Ok(())
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

    fn handle(&mut self, completion: Completion) -> Option<Event> {
        let token = Token::from_bits(completion.user_data);
        match About::of(completion.user_data)? {
            About::Wake => {
                if completion.is_last() {
                    self.listen_to_waker();
                }
                self.waker.take();
                Some(Event::Woken)
            }
            About::Accept => self.handle_accept(token, completion),
            About::Receive => self.handle_receive(token, completion),
            About::Send => self.handle_send(token, completion),
            about @ (About::CancelInput | About::CancelOutput) => {
                let operations = &mut self.sockets.get_mut(token)?.operations;
                if matches!(about, About::CancelInput) {
                    operations.handle_missed_input();
                } else {
                    operations.handle_missed_output();
                }
                self.settle(token);
                None
            }
        }
    }

    fn handle_accept(&mut self, listener: Token, completion: Completion) -> Option<Event> {
        let accepted = outcome(completion.result).map(|fd| {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
            unsafe { OwnedFd::from_raw_fd(fd as i32) }
        });
        let socket = self.sockets.get_mut(listener)?;
        socket.operations.handle_input(completion.is_last());
        let is_heard = socket.operations.is_heard();
        let event = match accepted {
            Ok(socket) => Some(Event::Accepted { listener, socket }),
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => None,
            Err(error) => {
                self.stats.accept_errors += 1;
                if accept_failure(&error) == AcceptFailure::Pause {
                    socket.operations.set_resting(true);
                    if socket.operations.is_open() {
                        self.backoffs.rest(listener, Instant::now() + self.accept_rest);
                    }
                    Some(Event::AcceptFailed { listener, error })
                } else {
                    restore_mode(socket, &error);
                    None
                }
            }
        };
        self.settle(listener);
        event.filter(|_| is_heard)
    }

    fn handle_receive(&mut self, token: Token, completion: Completion) -> Option<Event> {
        let buffer = completion.buffer();
        let Some(socket) = self.sockets.get_mut(token) else {
            debug_assert!(false, "a socket outlives its receive");
            if let Some(index) = buffer {
                self.provided.put_back(index);
            }
            return None;
        };
        let operations = &mut socket.operations;
        operations.handle_input(completion.is_last());
        let is_heard = operations.is_heard();
        let mut event = None;
        match (outcome(completion.result), buffer) {
            (Ok(bytes @ 1..), Some(index)) if is_heard => {
                self.stats.received_bytes += u64::from(bytes);
                let buffer = self.provided.lend(index, bytes);
                event = Some(Event::Received { token, buffer });
            }
            (outcome, buffer) => {
                if let Some(index) = buffer {
                    self.provided.put_back(index);
                }
                match outcome.map_err(|error| (error.raw_os_error(), error)) {
                    Ok(0) => {
                        operations.set_ended();
                        event = Some(Event::Ended { token, error: None });
                    }
                    Ok(_) | Err((Some(libc::ECANCELED | libc::EINTR), _)) => {}
                    Err((Some(libc::ENOBUFS | libc::ENOMEM), _)) => {
                        operations.set_starved(true);
                        self.stats.no_buffers += 1;
                        self.starved.push_back(token);
                    }
                    Err((Some(libc::EAGAIN), error)) => restore_mode(socket, &error),
                    Err((_, error)) => {
                        operations.set_ended();
                        event = Some(Event::Ended { token, error: Some(error) });
                    }
                }
            }
        }
        self.settle(token);
        event.filter(|_| is_heard)
    }

    fn handle_send(&mut self, token: Token, completion: Completion) -> Option<Event> {
        let socket = self.sockets.get_mut(token)?;
        let result = match outcome(completion.result) {
            Ok(bytes) => {
                self.stats.sent_bytes += u64::from(bytes);
                Ok(bytes as usize)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) if socket.operations.is_open() => {
                    restore_mode(socket, &error);
                    self.push_send(token);
                    return None;
                }
                // Cancelled by `detach` or `close`: nothing was taken.
                Some(libc::ECANCELED | libc::EAGAIN | libc::EINTR) => Ok(0),
                _ => Err(error),
            },
        };
        socket.operations.handle_output();
        if std::mem::take(&mut socket.shuts_down_after_send) && socket.operations.is_open() {
            shut_down(&socket.fd);
        }
        let is_heard = socket.operations.is_heard();
        let outgoing = socket.outgoing.take();
        self.settle(token);
        let buffer = outgoing?.buffer;
        Some(if is_heard {
            Event::Sent { token, buffer, result }
        } else {
            Event::Released { buffer }
        })
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
        let _ = self.ring.submitter().unregister_buf_ring(GROUP);
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

/// A completion's result: a count or descriptor, or a negative error number.
fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

/// Another process that shares the open file has set `O_NONBLOCK` (a hand-over that was rolled back):
/// takes it off again, so that the operation waits in the kernel.
fn restore_mode(socket: &Socket, error: &io::Error) {
    if error.raw_os_error() == Some(libc::EAGAIN) {
        // If it fails, the operation fails again and comes back here.
        let _ = set_nonblocking(&socket.fd, false);
    }
}
