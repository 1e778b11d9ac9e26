//! A turn of the selector driver: waiting, and serving one ready socket after the other.

use super::{Epoll, Socket, WAKER};
use crate::driver::{
    Event, Token,
    pending::{Queued, Role},
    socket::{AcceptFailure, accept_failure},
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::RecvFlags,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// A turn serves every socket that was ready at its begin once, and at least so many times in all:
/// a single busy peer must not cost one selector call for each buffer.
const SERVICES_PER_TURN_MIN: usize = 64;
/// Connections taken from one listener in a row; a storm of new ones must not starve the old.
const ACCEPTS_IN_A_ROW: usize = 16;

impl Epoll {
    pub(in crate::driver) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
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
        self.turn += 1;
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
    pub(super) fn enqueue(&mut self, token: Token) {
        let Some(socket) = self.sockets.get_mut(token) else { return };
        if !socket.is_queued && (socket.can_read() || socket.can_write()) {
            socket.is_queued = true;
            self.ready.push_back(token);
        }
    }

    pub(in crate::driver) fn next(&mut self) -> Option<Event> {
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
            // A send that failed took the socket's error along; reading would find a clean end, and tell it first.
            if let Some(Queued::Event(Event::Sent { result: Err(_), .. })) = self.queue.back() {
                self.enqueue(token);
                return None;
            }
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
            return self.starve(token);
        };
        let start = usize::from(index) * self.buffer_bytes;
        let memory = &mut self.memory[start..start + self.buffer_bytes];
        // The flag rather than `O_NONBLOCK`: that one is shared with every process that has the same
        // open file, and a ring over there needs it off.
        let flags = RecvFlags::DONTWAIT;
        self.stats.receives += 1;
        match retry_on_intr(|| rustix::net::recv(&socket.fd, &mut *memory, flags)) {
            Err(Errno::AGAIN) => {
                socket.is_readable = false;
                None
            }
            Ok((_, 0)) => {
                socket.has_ended = true;
                Some(Event::Ended { token, error: None })
            }
            Err(Errno::NOBUFS | Errno::NOMEM) => self.starve(token),
            Err(errno) => {
                socket.has_ended = true;
                Some(Event::Ended { token, error: Some(errno.into()) })
            }
            Ok((_, bytes)) => {
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

    /// There is no room for the bytes of a socket: it comes back with the next wait.
    fn starve(&mut self, token: Token) -> Option<Event> {
        self.stats.no_buffers += 1;
        self.sockets.get_mut(token)?.is_queued = true;
        self.starved.push_back(token);
        None
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

#[cfg(not(target_vendor = "apple"))]
fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::net::SocketFlags;
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?)
}

#[cfg(target_vendor = "apple")]
fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let socket = rustix::net::accept(listener)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket)
}
