//! Targets: the servers that requests can go to, how many each has in hand, and who waits for room.
//!
//! A Go backend silently drops what exceeds its queue, so each target has a window; requests beyond all windows of a
//! type wait in order, bounded, and are refused when that queue is full. A server that turned out not to listen is
//! left out for a while. The invariant: `in_flight` of a target is the number of pending requests that name it.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use shared::router::{self, Candidate, Policy};
use shared::server::{Server, ServerTable};
use shared::session::SessionId;
use slab::Slab;

use crate::driver::Token;

/// How long a server that did not listen is left out, ms. Short, because its return is not announced when it kept its
/// lease; a further request that meets nobody is sent to another server, so a wrong guess costs nothing.
const SUSPECT_MS: u64 = 2_000;
/// Payload bytes that wait for one server type at most.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// A server that requests go to.
#[derive(Debug)]
pub struct Target {
    /// Its record.
    pub server: Arc<Server>,
    /// Its subject.
    pub subject: Box<[u8]>,
    identity: u64,
    in_flight: u32,
    window: u32,
    suspect_until_ms: u64,
    is_gone: bool,
}

/// A request that waits for room in a window.
pub struct Waiting {
    /// Who asked.
    pub connection: Token,
    /// The session behind the token.
    pub session: SessionId,
    /// The client's message id.
    pub message_id: u64,
    /// The full route.
    pub route: Box<str>,
    /// The inflated payload.
    pub payload: Vec<u8>,
    /// When it arrived, µs.
    pub arrived_us: u64,
    /// When it is given up, ms.
    pub deadline_ms: u64,
    /// Whether nobody waits for an answer.
    pub is_notify: bool,
    /// How many stood before it when it came; set by [`Targets::wait`].
    pub place: u32,
}

#[derive(Default)]
struct Kind {
    targets: Vec<u32>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// How long a place in the queue has lasted lately, µs; 0 before anything was known.
    place_us: u64,
}

impl Kind {
    /// Takes the front of the queue, and learns from it how fast the queue moves.
    fn release(&mut self, now_us: u64) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.waiting_bytes -= waiting.payload.len();
        let waited_us = now_us.saturating_sub(waiting.arrived_us);
        let place_us = waited_us / (u64::from(waiting.place) + 1);
        self.place_us =
            if self.place_us == 0 { place_us } else { self.place_us.midpoint(place_us) };
        Some(waiting)
    }

    /// How long one that comes now would wait, as far as the queue tells: as long as its places last, and no less than
    /// the oldest has waited already. Nothing is known of an empty queue.
    fn expected_us(&self, now_us: u64) -> u64 {
        let Some(oldest) = self.waiting.front() else { return 0 };
        let by_place_us = (self.waiting.len() as u64 + 1).saturating_mul(self.place_us);
        now_us.saturating_sub(oldest.arrived_us).max(by_place_us)
    }
}

/// Where a request can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To this target.
    Target(u32),
    /// All servers of the type have their hands full.
    Busy,
    /// There is no server of the type.
    NoServers,
}

/// What bounds windows and queues.
#[derive(Clone, Copy, Debug)]
pub struct TargetLimits {
    /// Requests in flight to a server that announces nothing, for the whole process.
    pub window: u32,
    /// Reactors that share a window.
    pub reactors: u32,
    /// Requests that wait for one server type at most.
    pub waiting_max: usize,
    /// Expected wait from which on no more may wait, µs: an answer that comes when nobody wants it any more is work lost.
    pub waiting_age_max_us: u64,
}

impl TargetLimits {
    /// A reactor's part of a server's window.
    fn window_of(&self, server: &Server) -> u32 {
        let window = server.window().unwrap_or(self.window);
        // Rounded up: a window of 1 on two reactors lets two requests through rather than none.
        window.div_ceil(self.reactors.max(1)).max(1)
    }
}

/// All targets of one bus.
pub struct Targets {
    limits: TargetLimits,
    slots: Slab<Target>,
    by_id: HashMap<Box<str>, u32>,
    kinds: HashMap<Box<str>, Kind>,
    chooser: Chooser,
}

impl Targets {
    /// No servers yet.
    pub fn new(limits: TargetLimits) -> Self {
        Self {
            limits,
            slots: Slab::new(),
            by_id: HashMap::new(),
            kinds: HashMap::new(),
            chooser: Chooser {
                state: router::State::new(fastrand::u64(..)),
                candidates: Vec::new(),
            },
        }
    }

    /// Takes over a new list of servers. What is in flight to a server that left stays counted until it is answered.
    pub fn update(&mut self, table: &ServerTable) {
        for kind in self.kinds.values_mut() {
            kind.targets.clear();
        }
        for server in table.iter() {
            let known = self.by_id.get(server.id.as_str()).copied();
            let key = match known {
                Some(key) if self.is_unchanged(key, server) => key,
                // It has left and come back since the last list: window, type or metadata may be others.
                Some(key) => {
                    self.forget(key);
                    self.insert(server)
                }
                None => self.insert(server),
            };
            let kind: Box<str> = server.server_type.as_str().into();
            self.kinds.entry(kind).or_default().targets.push(key);
        }
        let gone: Vec<u32> =
            self.by_id.values().copied().filter(|key| !self.is_listed(table, *key)).collect();
        for key in gone {
            self.forget(key);
        }
        self.kinds.retain(|_, kind| !kind.targets.is_empty() || !kind.waiting.is_empty());
    }

    fn insert(&mut self, server: &Arc<Server>) -> u32 {
        let key = self.slots.insert(Target {
            server: server.clone(),
            subject: server.subject().into_bytes().into(),
            identity: router::identity(&server.id),
            in_flight: 0,
            window: self.limits.window_of(server),
            suspect_until_ms: 0,
            is_gone: false,
        }) as u32;
        self.by_id.insert(server.id.as_str().into(), key);
        key
    }

    fn is_unchanged(&self, key: u32, server: &Server) -> bool {
        self.slots.get(key as usize).is_some_and(|target| *target.server == *server)
    }

    fn is_listed(&self, table: &ServerTable, key: u32) -> bool {
        self.slots.get(key as usize).is_some_and(|target| table.by_id(&target.server.id).is_some())
    }

    fn forget(&mut self, key: u32) {
        let Some(target) = self.slots.get_mut(key as usize) else { return };
        self.by_id.remove(target.server.id.as_str());
        target.is_gone = true;
        if target.in_flight == 0 {
            self.slots.remove(key as usize);
        }
    }

    /// Picks a server of `server_type`: of two drawn at random the one with less in hand, among those with room.
    pub fn choose(&mut self, server_type: &str, now_ms: u64) -> Choice {
        let Some(kind) = self.kinds.get(server_type) else { return Choice::NoServers };
        match kind.targets.as_slice() {
            [] => Choice::NoServers,
            _ if !kind.waiting.is_empty() => Choice::Busy,
            candidates => pick(&self.slots, candidates, &mut self.chooser, now_ms),
        }
    }

    /// How many servers of the type of `key` there are besides it, i.e. whether a second try has somewhere to go.
    pub fn has_alternative(&self, server_type: &str) -> bool {
        self.kinds.get(server_type).is_some_and(|kind| kind.targets.len() > 1)
    }

    /// Counts a request to `key`, and returns where it goes.
    pub fn begin(&mut self, key: u32) -> Option<&Target> {
        let target = self.slots.get_mut(key as usize)?;
        target.in_flight += 1;
        Some(target)
    }

    /// The target, while it has requests in flight or is listed.
    pub fn find(&self, key: u32) -> Option<&Target> {
        self.slots.get(key as usize)
    }

    /// Counts the end of a request to `key`; returns a request that can go now because of it.
    pub fn end(&mut self, key: u32, now_us: u64) -> Option<Waiting> {
        let target = self.slots.get_mut(key as usize)?;
        debug_assert!(target.in_flight > 0, "more answers counted than requests");
        target.in_flight = target.in_flight.saturating_sub(1);
        let server = target.server.clone();
        if target.is_gone && target.in_flight == 0 {
            self.slots.remove(key as usize);
        }
        self.take_waiting(&server.server_type, now_us)
    }

    /// The request that has waited longest for a server of this type.
    pub fn take_waiting(&mut self, server_type: &str, now_us: u64) -> Option<Waiting> {
        self.kinds.get_mut(server_type)?.release(now_us)
    }

    /// Leaves a server out for a while.
    pub fn suspect(&mut self, key: u32, now_ms: u64) {
        if let Some(target) = self.slots.get_mut(key as usize) {
            target.suspect_until_ms = now_ms + SUSPECT_MS;
        }
    }

    /// Takes over other limits. What waits already goes on waiting.
    pub fn set_limits(&mut self, limits: TargetLimits) {
        self.limits = limits;
        for (_, target) in &mut self.slots {
            target.window = limits.window_of(&target.server);
        }
    }

    /// Lets a request wait. Errors: the queue is full, or stands still; the request is given back.
    pub fn wait(&mut self, server_type: &str, mut waiting: Waiting) -> Result<(), Waiting> {
        let TargetLimits { waiting_max, waiting_age_max_us, .. } = self.limits;
        let Some(kind) = self.kinds.get_mut(server_type) else { return Err(waiting) };
        if kind.waiting.len() >= waiting_max
            || kind.expected_us(waiting.arrived_us) >= waiting_age_max_us
            || kind.waiting_bytes + waiting.payload.len() > WAITING_BYTES_MAX
        {
            return Err(waiting);
        }
        waiting.place = kind.waiting.len() as u32;
        kind.waiting_bytes += waiting.payload.len();
        kind.waiting.push_back(waiting);
        Ok(())
    }

    /// Takes back a request that [`Targets::end`] released and that still has nowhere to go: to the front.
    pub fn wait_again(&mut self, server_type: &str, waiting: Waiting) {
        if let Some(kind) = self.kinds.get_mut(server_type) {
            kind.waiting_bytes += waiting.payload.len();
            kind.waiting.push_front(waiting);
        }
    }

    /// The next server for a request that has waited its turn.
    pub fn choose_next(&mut self, server_type: &str, now_ms: u64) -> Choice {
        match self.kinds.get(server_type) {
            Some(kind) if !kind.targets.is_empty() => {
                pick(&self.slots, &kind.targets, &mut self.chooser, now_ms)
            }
            _ => Choice::NoServers,
        }
    }

    /// Gives up waiting requests that are overdue. Deadlines are in the order of arrival.
    pub fn expire(&mut self, now_ms: u64, mut give_up: impl FnMut(Waiting)) {
        for kind in self.kinds.values_mut() {
            while kind.waiting.front().is_some_and(|waiting| now_ms >= waiting.deadline_ms) {
                let Some(waiting) = kind.waiting.pop_front() else { break };
                kind.waiting_bytes -= waiting.payload.len();
                give_up(waiting);
            }
        }
    }

    /// A waiting request that can go now, because servers came or a window opened unseen, with its server type.
    pub fn next_waiting(&mut self, now_ms: u64) -> Option<(Box<str>, Waiting)> {
        let Self { slots, kinds, chooser, .. } = self;
        for (server_type, kind) in kinds {
            let is_sendable = !kind.waiting.is_empty()
                && matches!(pick(slots, &kind.targets, chooser, now_ms), Choice::Target(_));
            if is_sendable && let Some(waiting) = kind.release(now_ms * 1_000) {
                return Some((server_type.clone(), waiting));
            }
        }
        None
    }

    /// How many requests wait.
    pub fn waiting_len(&self) -> usize {
        self.kinds.values().map(|kind| kind.waiting.len()).sum()
    }

    /// Panics unless what is in flight to each target is what `pending` requests name it, within its window, and what
    /// waits is within its bounds.
    #[cfg(feature = "simulation")]
    pub(crate) fn check_invariants(&self, pending: &std::collections::BTreeMap<u32, u32>) {
        for (key, target) in &self.slots {
            let named = pending.get(&(key as u32)).copied().unwrap_or(0);
            assert_eq!(target.in_flight, named, "in flight to {}", target.server.id);
            assert!(target.in_flight <= target.window, "{} is over its window", target.server.id);
            assert!(!target.is_gone || target.in_flight > 0, "{} stays", target.server.id);
        }
        assert!(pending.keys().all(|key| self.slots.contains(*key as usize)), "asked nobody");
        for kind in self.kinds.values() {
            let bytes: usize = kind.waiting.iter().map(|waiting| waiting.payload.len()).sum();
            assert_eq!(kind.waiting_bytes, bytes, "bytes of waiting requests");
        }
    }

    /// Follows connections to other places.
    pub fn waiting_mut(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.kinds.values_mut().flat_map(|kind| kind.waiting.iter_mut())
    }
}

/// Chooses among servers with room. Suspects count only when nobody else is listed: while the others have their hands
/// full, waiting for them is better than asking somebody who does not listen.
fn pick(targets: &Slab<Target>, keys: &[u32], chooser: &mut Chooser, now_ms: u64) -> Choice {
    let listed = || keys.iter().filter_map(|key| targets.get(*key as usize));
    let is_trusted = |target: &Target| target.suspect_until_ms <= now_ms;
    let has_trusted = listed().any(is_trusted);
    chooser.candidates.clear();
    chooser.candidates.extend(listed().map(|target| Candidate {
        identity: target.identity,
        in_flight: target.in_flight,
        window: target.window,
        is_previous: false,
        is_suspect: has_trusted && !is_trusted(target) || target.in_flight >= target.window,
    }));
    let choice = router::pick(Policy::LeastInFlight, &chooser.candidates, "", &mut chooser.state);
    choice.and_then(|index| keys.get(index)).map_or(Choice::Busy, |key| Choice::Target(*key))
}

/// What a choice needs besides the servers; kept, so that choosing allocates nothing.
struct Chooser {
    state: router::State,
    candidates: Vec<Candidate>,
}

#[cfg(test)]
#[path = "overload_tests.rs"]
mod overload_tests;

#[cfg(test)]
mod tests {
    use shared::server::METADATA_WINDOW;

    use super::*;

    fn server(server_type: &str, window: u32) -> Arc<Server> {
        Arc::new(Server {
            id: "server-1".into(),
            server_type: server_type.into(),
            metadata: [(METADATA_WINDOW.to_owned(), window.to_string())].into(),
            frontend: false,
            hostname: String::new(),
        })
    }

    fn chosen(targets: &mut Targets, server_type: &str) -> Option<u32> {
        match targets.choose(server_type, 0) {
            Choice::Target(key) => Some(key),
            Choice::Busy | Choice::NoServers => None,
        }
    }

    #[test]
    fn a_server_that_came_back_unseen_is_taken_as_it_is_now() {
        let limits = TargetLimits {
            window: 25,
            reactors: 1,
            waiting_max: 10,
            waiting_age_max_us: 1_000_000,
        };
        let mut targets = Targets::new(limits);
        targets.update(&ServerTable::new([server("room", 1)], 1));
        let first = chosen(&mut targets, "room").unwrap();
        targets.begin(first);
        assert_eq!(targets.choose("room", 0), Choice::Busy);
        targets.update(&ServerTable::new([server("room", 1)], 2));
        assert_eq!(targets.choose("room", 0), Choice::Busy, "nothing has changed");
        targets.update(&ServerTable::new([server("room", 2)], 3));
        let again = chosen(&mut targets, "room").unwrap();
        for key in [again, again] {
            assert!(targets.begin(key).is_some());
        }
        assert_eq!(targets.choose("room", 0), Choice::Busy);
        // What was under way to the earlier process still ends, and is not counted for the present one.
        targets.end(first, 0);
        assert!(targets.find(first).is_none());
        assert_eq!(targets.choose("room", 0), Choice::Busy);
        targets.update(&ServerTable::new([server("chat", 2)], 4));
        assert_eq!(targets.choose("room", 0), Choice::NoServers);
        let key = chosen(&mut targets, "chat").unwrap();
        assert_eq!(&*targets.find(key).unwrap().subject, b"pitaya/servers/chat/server-1");
    }
}
