//! What comes back from the ring, turned into events.

use super::{About, Socket, Uring, ring::Completion};
use crate::driver::{
    Event, Token,
    socket::{AcceptFailure, accept_failure, set_nonblocking, shut_down},
};
use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    time::Instant,
};

impl Uring {
    pub(super) fn handle(&mut self, completion: Completion) -> Option<Event> {
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
