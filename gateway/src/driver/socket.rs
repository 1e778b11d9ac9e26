//! Small facts about sockets that both drivers need: modes and what an accept error means.

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};
use std::{io, os::fd::AsFd};

/// Sets or clears `O_NONBLOCK`. The flag lies in the open file description, which a hand-over shares
/// with another process: so it is looked at first, and written only when it differs.
pub(super) fn set_nonblocking(socket: impl AsFd, is_nonblocking: bool) -> io::Result<()> {
    let flags = fcntl_getfl(&socket)?;
    let wanted = if is_nonblocking { flags | OFlags::NONBLOCK } else { flags - OFlags::NONBLOCK };
    if wanted != flags {
        fcntl_setfl(&socket, wanted)?;
    }
    Ok(())
}

/// Sends a FIN.
pub(super) fn shut_down(socket: impl AsFd) {
    // It fails when the peer has reset the connection: there is nobody left to tell.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

/// What a failed accept means for the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptFailure {
    /// That one connection died before it was taken, or a signal came: go on at once.
    Transient,
    /// We, or the system, have run out of something, or the listener is broken: report, and pause,
    /// because the next try would fail in the same way and spin.
    Pause,
}

/// Sorts the errors of accept(2). It hands out pending network errors of the new connection too.
pub(super) fn accept_failure(error: &io::Error) -> AcceptFailure {
    match Errno::from_io_error(error) {
        Some(
            Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::INTR
            | Errno::AGAIN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH,
        ) => AcceptFailure::Transient,
        _ => AcceptFailure::Pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_pauses_and_a_lost_connection_does_not() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::BADF] {
            assert_eq!(accept_failure(&errno.into()), AcceptFailure::Pause, "{errno:?}");
        }
        assert_eq!(accept_failure(&Errno::CONNABORTED.into()), AcceptFailure::Transient);
    }

    #[test]
    fn the_mode_is_set_and_cleared() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        set_nonblocking(&socket, true).unwrap();
        assert!(fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        set_nonblocking(&socket, false).unwrap();
        assert!(!fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
    }
}
