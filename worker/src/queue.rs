//! The order of a session's messages: one queue for each session that is busy at this moment.
//!
//! Only data; who runs the jobs is [`crate::service`]. A session is busy from the first job until [`next`] found
//! nothing left, and only then has it an entry here, so idle sessions cost nothing and nothing needs cleaning up.
//! The invariant: at most one owner (whoever got [`Enqueued::Start`]) takes jobs of a key, in the order of arrival.
//!
//! A key is a keyed hash of the session's name. Two sessions that share one run one after the other, which is
//! correct, only slower; with 64 bits it does not happen.
//!
//! [`next`]: SessionQueues::next

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

/// Locks are held for a push or a pop; a few of them keep two threads from meeting often.
const SHARDS: usize = 32;

/// What waits for each busy session.
type Waiting<J> = HashMap<u64, VecDeque<J>>;

pub(crate) struct SessionQueues<J> {
    shards: Box<[Mutex<Waiting<J>>]>,
    waiting_max: usize,
}

/// What became of a job.
pub(crate) enum Enqueued<J> {
    /// The session was idle: the caller owns it now, runs this job and then what [`SessionQueues::next`] gives.
    Start(J),
    /// The session's owner will run it.
    Queued,
    /// The session's queue is full; the job comes back.
    Full(J),
}

impl<J> SessionQueues<J> {
    /// `waiting_max` is how many jobs of a session may ever wait behind the one that runs.
    pub(crate) fn new(waiting_max: usize) -> Self {
        let shards = std::iter::repeat_with(Mutex::default).take(SHARDS).collect();
        Self { shards, waiting_max }
    }

    /// Puts a job behind those of its session, if fewer than `places` wait there now.
    pub(crate) fn enqueue(&self, key: u64, job: J, places: usize) -> Enqueued<J> {
        let mut shard = self.shard(key);
        match shard.get_mut(&key) {
            None => {
                shard.insert(key, VecDeque::new());
                Enqueued::Start(job)
            }
            Some(waiting) if waiting.len() < places.min(self.waiting_max) => {
                waiting.push_back(job);
                Enqueued::Queued
            }
            Some(_) => Enqueued::Full(job),
        }
    }

    /// The next job of a session that the caller owns. None ends the ownership.
    pub(crate) fn next(&self, key: u64) -> Option<J> {
        let mut shard = self.shard(key);
        let job = shard.get_mut(&key).and_then(VecDeque::pop_front);
        if job.is_none() {
            shard.remove(&key);
        }
        job
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Waiting<J>> {
        // The upper bits choose the shard, because the map inside uses the lower ones.
        let at = (key >> 32) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_queued(outcome: &Enqueued<u8>) -> bool {
        matches!(outcome, Enqueued::Queued)
    }

    #[test]
    fn one_owner_takes_the_jobs_of_a_session_in_order() {
        let queues = SessionQueues::new(8);
        assert!(matches!(queues.enqueue(1, 10, 9), Enqueued::Start(10)));
        assert!(is_queued(&queues.enqueue(1, 11, 9)) && is_queued(&queues.enqueue(1, 12, 9)));
        assert!(matches!(queues.enqueue(2, 20, 9), Enqueued::Start(20)));
        assert_eq!((queues.next(1), queues.next(1), queues.next(1)), (Some(11), Some(12), None));
        assert!(matches!(queues.enqueue(1, 13, 9), Enqueued::Start(13)));
    }

    #[test]
    fn a_full_queue_gives_the_job_back_and_disturbs_no_other_session() {
        let queues = SessionQueues::new(1);
        assert!(matches!(queues.enqueue(1, 1, 9), Enqueued::Start(1)));
        assert!(is_queued(&queues.enqueue(1, 2, 9)));
        assert!(matches!(queues.enqueue(1, 3, 9), Enqueued::Full(3)));
        assert!(matches!(queues.enqueue(2, 4, 9), Enqueued::Start(4)));
        assert_eq!(queues.next(1), Some(2));
        assert!(matches!(queues.enqueue(1, 5, 0), Enqueued::Full(5)), "fewer places than usual");
        assert!(is_queued(&queues.enqueue(1, 5, 9)));
        assert!(matches!(queues.enqueue(3, 6, 0), Enqueued::Start(6)), "who starts needs none");
    }

    #[test]
    fn idle_sessions_leave_nothing_behind() {
        let queues = SessionQueues::new(1);
        for key in 0..1000u64 {
            assert!(matches!(queues.enqueue(key << 30, 0, 9), Enqueued::Start(0)));
            assert_eq!(queues.next(key << 30), None);
        }
        assert!(queues.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
