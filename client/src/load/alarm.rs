//! Wakes a poll at a precise time.
//!
//! The timeout of `epoll_wait` counts in milliseconds; an open loop needs microseconds, or its own lateness would
//! drown what it measures. Linux has a timer that is a file descriptor; elsewhere the poll is repeated without waiting
//! for the last millisecond, which costs CPU and keeps the figures right.

use std::io;
use std::time::Duration;

use mio::{Registry, Token};

/// A timer that makes a poll return.
#[derive(Debug)]
pub(crate) struct Alarm {
    #[cfg(target_os = "linux")]
    timer: std::os::fd::OwnedFd,
}

#[cfg(target_os = "linux")]
impl Alarm {
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        use std::os::fd::AsRawFd;

        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let mut source = mio::unix::SourceFd(&timer.as_raw_fd());
        registry.register(&mut source, token, mio::Interest::READABLE)?;
        Ok(Self { timer })
    }

    /// How long the poll may wait so that it returns after `wait`, by itself or by this timer. The timer need not be
    /// read: setting it again makes the next expiry an event of its own.
    pub(crate) fn arm(&self, wait: Duration) -> io::Result<Option<Duration>> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        if wait.is_zero() {
            return Ok(Some(wait));
        }
        let timer = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        Ok(None)
    }
}

#[cfg(not(target_os = "linux"))]
impl Alarm {
    pub(crate) fn new(_registry: &Registry, _token: Token) -> io::Result<Self> {
        Ok(Self {})
    }

    pub(crate) fn arm(&self, wait: Duration) -> io::Result<Option<Duration>> {
        Ok(Some(Duration::from_millis(wait.as_millis() as u64)))
    }
}
