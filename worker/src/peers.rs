//! Which server of a type a call goes to, and what is known of each: calls in flight, and who turned out to be deaf.
//!
//! The choice itself is [`shared::router`]'s. Only servers with something to remember have an entry here, so servers
//! that left take no room. The lock is held for one choice and never across an await.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::router::{self, Candidate, Policy};
use shared::server::Server;
use tokio::time::Instant;

/// How long a server that did not listen is left out. Short, because its return is not announced when it kept its
/// lease; another call that meets nobody goes to another server, so a wrong guess costs nothing.
const SUSPECT_TIME: Duration = Duration::from_secs(2);

/// What is known of the servers that calls go to.
pub(crate) struct Peers(Mutex<State>);

struct State {
    random: router::State,
    peers: HashMap<String, Peer>,
    /// Kept, so that a choice does not allocate.
    candidates: Vec<Candidate>,
}

#[derive(Default)]
struct Peer {
    in_flight: u32,
    suspect_until: Option<Instant>,
}

/// A call that was given to a server. Its end, however it comes, is counted when this is dropped.
pub(crate) struct InFlight<'a> {
    peers: &'a Peers,
    server: Arc<Server>,
}

impl Default for Peers {
    fn default() -> Self {
        Self(Mutex::new(State {
            random: router::State::new(fastrand::u64(..)),
            peers: HashMap::new(),
            candidates: Vec::new(),
        }))
    }
}

impl Peers {
    /// Chooses one of `servers` that is not in `tried`, and counts the call. Suspects are chosen only when everybody
    /// else was tried. None when all were.
    pub(crate) fn choose(
        &self,
        servers: &[Arc<Server>],
        tried: &[Arc<Server>],
    ) -> Option<InFlight<'_>> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { random, peers, candidates } = &mut *state;
        let was_tried = |server: &Server| tried.iter().any(|other| other.id == server.id);
        candidates.clear();
        candidates.extend(servers.iter().map(|server| {
            let peer = peers.get(&server.id);
            Candidate {
                identity: router::identity(&server.id),
                in_flight: peer.map_or(0, |peer| peer.in_flight),
                window: server.window().unwrap_or(1),
                is_previous: false,
                is_suspect: was_tried(server) || peer.is_some_and(|peer| peer.is_suspect(now)),
            }
        }));
        if candidates.iter().all(|candidate| candidate.is_suspect) {
            for (candidate, server) in candidates.iter_mut().zip(servers) {
                candidate.is_suspect = was_tried(server);
            }
        }
        let index = router::pick(Policy::Random, candidates, "", random)?;
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
        if state.peers.len() > 1000 {
            state.peers.retain(|_, peer| peer.in_flight > 0 || peer.is_suspect(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(ids: &[&str]) -> Vec<Arc<Server>> {
        let server = |id: &&str| {
            Arc::new(Server {
                id: (*id).to_owned(),
                server_type: "room".into(),
                metadata: std::collections::BTreeMap::new(),
                frontend: false,
                hostname: String::new(),
            })
        };
        ids.iter().map(server).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspect_is_left_out_until_its_time_is_over_or_nobody_else_is_left() {
        let (peers, servers) = (Peers::default(), servers(&["a", "b"]));
        peers.choose(&servers[..1], &[]).unwrap().suspect();
        for _ in 0..50 {
            assert_eq!(peers.choose(&servers, &[]).unwrap().server().id, "b");
        }
        let tried = &servers[1..];
        assert_eq!(peers.choose(&servers, tried).unwrap().server().id, "a");
        assert!(peers.choose(&servers, &servers).is_none());
        tokio::time::advance(SUSPECT_TIME).await;
        assert!((0..50).any(|_| peers.choose(&servers, &[]).unwrap().server().id == "a"));
    }

    #[tokio::test]
    async fn what_ended_leaves_nothing_behind() {
        let (peers, servers) = (Peers::default(), servers(&["a", "b"]));
        let calls = [peers.choose(&servers, &[]), peers.choose(&servers, &[])];
        let in_flight: u32 = peers.lock().peers.values().map(|peer| peer.in_flight).sum();
        assert_eq!(in_flight, 2);
        drop(calls);
        assert!(peers.lock().peers.is_empty());
        assert!(peers.choose(&[], &[]).is_none());
    }
}
