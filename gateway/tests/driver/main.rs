//! What a driver does, once for each of them: the same tests run over the ring and over epoll.
//!
//! Peers are ordinary blocking sockets. Where a machine forbids `io_uring`, the tests of the ring fail
//! and say so: a driver that was not tested must not look as if it had been.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

/// Makes a test of each driver from one function over the kind.
macro_rules! both_drivers {
    ($($name:ident)*) => {$(
        mod $name {
            #[test]
            fn over_the_ring() {
                super::$name(gateway::driver::Kind::Uring);
            }

            #[test]
            fn over_epoll() {
                super::$name(gateway::driver::Kind::Epoll);
            }
        }
    )*};
}

mod accepting;
mod leaving;
mod limits;
mod traffic;
mod waking;
mod walk;
mod world;
