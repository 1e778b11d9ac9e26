//! Trying a ring out before anybody relies on it.

use super::Uring;
use crate::driver::{DriverError, Event};
use std::{
    io,
    time::{Duration, Instant},
};

/// How long the trial may take; it is over in microseconds where it works.
const WAIT_MAX: Duration = Duration::from_secs(1);

impl Uring {
    /// Sends a byte each way over a socket pair. Where a seccomp filter or an old kernel gets in the
    /// way, it shows here and not with the first player. Multishot accept is older than the multishot
    /// receive that is tried here.
    pub(super) fn try_out(&mut self) -> Result<(), DriverError> {
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
}
