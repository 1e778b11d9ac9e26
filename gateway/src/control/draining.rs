//! Draining: the wait for players to leave by themselves, after SIGTERM and before the end (sessions and handlers 17).
//!
//! Nobody is let in meanwhile, so that the wait has an end; whoever is there notices nothing. The server stays in the
//! cluster: its players are still pushed to.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, interval, sleep_until};

use super::{Control, post};
use crate::directory::Directory;
use crate::mailbox::Mail;

/// A wait that has begun.
pub(super) struct Draining {
    directory: Arc<Directory>,
    looks: Interval,
    timeout: Duration,
    deadline: Instant,
}

impl Control {
    /// Lets nobody in any more and begins to wait; none when that is not configured.
    pub(super) async fn begin_draining(&self) -> Option<Draining> {
        if !self.plan.is_draining() {
            return None;
        }
        let config = &self.plan.config;
        let timeout = config.duration("pitaya.session.drain.timeout");
        tracing::info!(?timeout, "draining: no new connections; players may leave when they like");
        self.unlisten().await;
        Some(Draining {
            directory: self.directory.clone(),
            looks: interval(config.duration("pitaya.session.drain.period")),
            timeout,
            deadline: Instant::now() + timeout,
        })
    }

    /// Lets nobody in any more, and says so to load balancers.
    pub(super) async fn unlisten(&self) {
        self.readiness.set_listeners(false);
        for mailbox in self.mailboxes.iter() {
            post(mailbox, Mail::Unlisten).await;
        }
    }
}

impl Draining {
    /// Waits until nobody is left, or for too long. May be dropped and called again.
    async fn end(&mut self) {
        loop {
            tokio::select! {
                _ = self.looks.tick() => {}
                () = sleep_until(self.deadline) => {
                    let (left, timeout) = (self.directory.connections(), self.timeout);
                    tracing::warn!(left, ?timeout, "players have not left in time");
                    return;
                }
            }
            let left = self.directory.connections();
            if left == 0 {
                tracing::info!("the players have left");
                return;
            }
            tracing::debug!(left, "waiting for players to leave");
        }
    }
}

/// The end of a wait; never when there is none.
pub(super) async fn end_of(draining: &mut Option<Draining>) {
    match draining {
        Some(draining) => draining.end().await,
        None => std::future::pending().await,
    }
}
