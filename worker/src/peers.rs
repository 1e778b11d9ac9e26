//! Which server of a type a call goes to, and what is known of each: calls in flight, who turned out to be deaf, and
//! where calls of one key went before.
//!
//! The choice itself is [`shared::router`]'s. Only servers with something to remember have an entry here, so servers
//! that left take no room, and homes are forgotten by generations. The lock is held for one choice and never across an
//! await.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::router::{self, Candidate, Policy};
use shared::server::Server;
use tokio::time::Instant;

/// How long a server that did not listen is left out. Short, because its return is not announced when it kept its
/// lease; another call that meets nobody goes to another server, so a wrong guess costs nothing.
const SUSPECT_TIME: Duration = Duration::from_secs(2);

/// Entries above which suspects that were never called again are looked for.
const PEERS_SWEPT: usize = 1_000;

/// Homes in one generation: the calls of at least so many keys stay with their server.
const HOMES_MAX: usize = 32_768;

/// What is known of the servers that calls go to.
pub(crate) struct Peers(Mutex<State>);

/// What decides a choice besides the servers.
pub(crate) struct Wanted<'a> {
    pub(crate) server_type: &'a str,
    pub(crate) policy: Policy,
    /// Calls of one key belong together; empty for none.
    pub(crate) key: &'a str,
    /// Servers that provably did not get the call.
    pub(crate) tried: &'a [Arc<Server>],
}

struct State {
    /// One for each type, because policies remember whose turn it is.
    choosers: HashMap<String, router::State>,
    peers: HashMap<String, Peer>,
    homes: Homes,
    /// Kept, so that a choice does not allocate.
    candidates: Vec<Candidate>,
}

#[derive(Default)]
struct Peer {
    in_flight: u32,
    suspect_until: Option<Instant>,
}

/// Where the calls of each key went: identities of servers by hashes of keys. When the recent ones are too many, the
/// old ones are forgotten, and the recent ones are the old ones.
#[derive(Default)]
struct Homes {
    recent: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
}

/// A call that was given to a server. Its end, however it comes, is counted when this is dropped.
pub(crate) struct InFlight<'a> {
    peers: &'a Peers,
    server: Arc<Server>,
}

impl Default for Peers {
    fn default() -> Self {
        Self(Mutex::new(State {
            choosers: HashMap::new(),
            peers: HashMap::new(),
            homes: Homes::default(),
            candidates: Vec::new(),
        }))
    }
}

impl Peers {
    /// Chooses one of `servers` that was not tried, and counts the call. Suspects are chosen only when everybody else
    /// was tried. None when all were.
    pub(crate) fn choose(
        &self,
        servers: &[Arc<Server>],
        wanted: &Wanted<'_>,
    ) -> Option<InFlight<'_>> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { choosers, peers, homes, candidates } = &mut *state;
        let was_tried = |server: &Server| wanted.tried.iter().any(|other| other.id == server.id);
        let is_sticky = wanted.policy == Policy::Sticky && !wanted.key.is_empty();
        // Rotated, so that a type and a key of the same name are not each other's undoing.
        let hash =
            || router::identity(wanted.server_type).rotate_left(1) ^ router::identity(wanted.key);
        let home = if is_sticky { homes.find(hash()) } else { None };
        candidates.clear();
        candidates.extend(servers.iter().map(|server| {
            let peer = peers.get(&server.id);
            let identity = router::identity(&server.id);
            Candidate {
                identity,
                in_flight: peer.map_or(0, |peer| peer.in_flight),
                window: server.window().unwrap_or(1),
                is_previous: home == Some(identity),
                is_suspect: was_tried(server) || peer.is_some_and(|peer| peer.is_suspect(now)),
            }
        }));
        if candidates.iter().all(|candidate| candidate.is_suspect) {
            for (candidate, server) in candidates.iter_mut().zip(servers) {
                candidate.is_suspect = was_tried(server);
            }
        }
        if !choosers.contains_key(wanted.server_type) {
            let chooser = router::State::new(fastrand::u64(..));
            choosers.insert(wanted.server_type.to_owned(), chooser);
        }
        let chooser = choosers.get_mut(wanted.server_type)?;
        let index = router::pick(wanted.policy, candidates, wanted.key, chooser)?;
        if is_sticky && let Some(chosen) = candidates.get(index) {
            homes.set(hash(), chosen.identity);
        }
        let server = Arc::clone(servers.get(index)?);
        peers.entry(server.id.clone()).or_default().in_flight += 1;
        Some(InFlight { peers: self, server })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn is_suspect(&self, now: Instant) -> bool {
        self.suspect_until.is_some_and(|until| until > now)
    }
}

impl Homes {
    fn find(&self, key: u64) -> Option<u64> {
        self.recent.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn set(&mut self, key: u64, server: u64) {
        if self.recent.len() >= HOMES_MAX && !self.recent.contains_key(&key) {
            self.old = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, server);
    }
}

impl InFlight<'_> {
    /// Where the call goes.
    pub(crate) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// The server does not listen: others are asked for a while.
    pub(crate) fn suspect(&self) {
        let mut state = self.peers.lock();
        let peer = state.peers.entry(self.server.id.clone()).or_default();
        peer.suspect_until = Some(Instant::now() + SUSPECT_TIME);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.peers.lock();
        let Some(peer) = state.peers.get_mut(&self.server.id) else { return };
        peer.in_flight = peer.in_flight.saturating_sub(1);
        if peer.in_flight == 0 && !peer.is_suspect(now) {
            state.peers.remove(&self.server.id);
        }
        // A suspect that is never called again would stay otherwise.
        if state.peers.len() > PEERS_SWEPT {
            state.peers.retain(|_, peer| peer.in_flight > 0 || peer.is_suspect(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(count: usize) -> Vec<Arc<Server>> {
        let server = |id| {
            Arc::new(Server {
                id: format!("server-{id}"),
                server_type: "room".into(),
                metadata: std::collections::BTreeMap::new(),
                frontend: false,
                hostname: String::new(),
            })
        };
        (0..count).map(server).collect()
    }

    fn wanted<'a>(policy: Policy, key: &'a str, tried: &'a [Arc<Server>]) -> Wanted<'a> {
        Wanted { server_type: "room", policy, key, tried }
    }

    fn chosen(peers: &Peers, servers: &[Arc<Server>], policy: Policy, key: &str) -> String {
        peers.choose(servers, &wanted(policy, key, &[])).unwrap().server().id.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspect_is_left_out_until_its_time_is_over_or_nobody_else_is_left() {
        let (peers, servers) = (Peers::default(), servers(2));
        let random = |tried| wanted(Policy::Random, "", tried);
        peers.choose(&servers[..1], &random(&[])).unwrap().suspect();
        for _ in 0..50 {
            assert_eq!(chosen(&peers, &servers, Policy::Random, ""), "server-1");
        }
        let last = peers.choose(&servers, &random(&servers[1..])).unwrap();
        assert_eq!(last.server().id, "server-0");
        drop(last);
        assert!(peers.choose(&servers, &random(&servers)).is_none());
        tokio::time::advance(SUSPECT_TIME).await;
        let mut later = (0..50).map(|_| chosen(&peers, &servers, Policy::Random, ""));
        assert!(later.any(|id| id == "server-0"));
    }

    #[tokio::test]
    async fn what_ended_leaves_nothing_behind() {
        let (peers, servers) = (Peers::default(), servers(2));
        let random = wanted(Policy::Random, "", &[]);
        let calls = [peers.choose(&servers, &random), peers.choose(&servers, &random)];
        let in_flight: u32 = peers.lock().peers.values().map(|peer| peer.in_flight).sum();
        assert_eq!(in_flight, 2);
        drop(calls);
        assert!(peers.lock().peers.is_empty());
        assert!(peers.choose(&[], &random).is_none());
    }

    #[tokio::test]
    async fn every_policy_spreads_calls_evenly() {
        for (name, policy) in Policy::NAMES {
            let (peers, servers) = (Peers::default(), servers(4));
            let mut counts = HashMap::<String, u32>::new();
            for key in 0..8_000 {
                let id = chosen(&peers, &servers, policy, &format!("key-{key}"));
                *counts.entry(id).or_default() += 1;
            }
            // Six standard deviations of a fair draw are below 240.
            assert!(counts.values().all(|count| count.abs_diff(2_000) < 240), "{name}: {counts:?}");
        }
    }

    #[tokio::test]
    async fn the_calls_of_a_key_stay_together_and_few_move_when_a_server_leaves() {
        for policy in [Policy::ConsistentHash, Policy::Sticky] {
            let (peers, servers) = (Peers::default(), servers(5));
            let keys: Vec<_> = (0..2_000).map(|key| format!("key-{key}")).collect();
            let home = |servers: &[Arc<Server>], key| chosen(&peers, servers, policy, key);
            let before: Vec<_> = keys.iter().map(|key| home(&servers, key)).collect();
            let again: Vec<_> = keys.iter().map(|key| home(&servers, key)).collect();
            assert_eq!(before, again);
            let after: Vec<_> = keys.iter().map(|key| home(&servers[1..], key)).collect();
            let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
            assert_eq!(moved, before.iter().filter(|id| *id == "server-0").count());
        }
    }

    #[tokio::test]
    async fn a_busy_server_is_left_alone() {
        let (peers, servers) = (Peers::default(), servers(2));
        let least = wanted(Policy::LeastInFlight, "", &[]);
        let first = peers.choose(&servers, &least).unwrap();
        for _ in 0..50 {
            let second = peers.choose(&servers, &least).unwrap();
            assert_ne!(second.server().id, first.server().id);
        }
    }

    #[tokio::test]
    async fn homes_are_remembered_within_their_bound() {
        let mut homes = Homes::default();
        for key in 0..3 * HOMES_MAX as u64 {
            homes.set(key, key + 1);
        }
        assert_eq!(homes.find(3 * HOMES_MAX as u64 - 1), Some(3 * HOMES_MAX as u64));
        assert_eq!(homes.find(0), None);
        assert!(homes.recent.len() + homes.old.len() <= 2 * HOMES_MAX);
    }
}
