//! Targets: the servers that requests can go to, how many each has in hand, and who waits for room.
//!
//! A Go backend silently drops what exceeds its queue, so each target has a window; requests beyond all windows of a
//! type wait in order, bounded, and are refused when that queue is full. Where the policy ties a user or a session to
//! one server, its requests wait for that server alone, and hold nobody else up. A server that turned out not to listen
//! is left out for a while. The invariant: `in_flight` of a target is the number of pending requests that name it.

use std::sync::Arc;

use hashbrown::HashMap;
use shared::router::{self, Candidate, Policy};
use shared::routing::{Routing, Rule};
use shared::server::{PROTOCOL_BATCHES, Server, ServerTable};
use slab::Slab;

use super::homes::{Home, Homes};
use super::queue::{Queue, Waiting};

/// How long a server that did not listen is left out, ms. Short, because its return is not announced when it kept its
/// lease; a further request that meets nobody is sent to another server, so a wrong guess costs nothing.
const SUSPECT_MS: u64 = 2_000;
/// Stands for the type of the application in this process. No route can name it, and no server of the cluster has it.
pub const LOCAL_TYPE: &str = "";

/// A server that requests go to.
pub struct Target {
    /// Its record.
    pub server: Arc<Server>,
    /// Its subject.
    pub subject: Box<[u8]>,
    identity: u64,
    /// Set where sessions stay with their server.
    sticky_type: Option<u64>,
    in_flight: u32,
    window: u32,
    suspect_until_ms: u64,
    is_gone: bool,
    takes_batches: bool,
    /// Requests that belong to this server.
    queue: Queue,
}

struct Kind {
    policy: Policy,
    /// Of its name; asked for by sticky policies.
    identity: u64,
    targets: Vec<u32>,
    /// Requests that any of the targets may take.
    queue: Queue,
}

/// Where a request can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// To this target.
    Target(u32),
    /// Whoever may take it has its hands full.
    Busy(Place),
    /// There is no server of the type.
    NoServers,
}

/// Where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// For any server of its type.
    Type,
    /// For one target.
    Target(u32),
}

/// Who asks, as far as a choice depends on it.
#[derive(Clone, Copy)]
pub struct Seeker<'a> {
    /// The uid of the session, or empty.
    pub uid: &'a str,
    /// Where the session was served before.
    pub homes: &'a Homes,
    /// The id of the server that the application's routing function chose: this one or none.
    pub chosen: Option<&'a str>,
}

/// What bounds windows and queues, and how requests travel.
#[derive(Clone, Copy, Debug)]
pub struct TargetLimits {
    /// Requests in flight to a server that announces nothing, for the whole process.
    pub window: u32,
    /// Reactors that share a window.
    pub reactors: u32,
    /// Requests that wait for one server type, or for one server, at most.
    pub waiting_max: usize,
    /// Expected wait from which on no more may wait, µs: an answer that comes when nobody wants it any more is work lost.
    pub waiting_age_max_us: u64,
    /// Whether several requests may travel in one message to servers that announce that they take it.
    pub has_batches: bool,
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
    routing: Arc<Routing>,
    table: ServerTable,
    /// This process, when it hosts an application.
    local: Option<Arc<Server>>,
    slots: Slab<Target>,
    by_id: HashMap<Box<str>, u32>,
    kinds: HashMap<Box<str>, Kind>,
    chooser: Chooser,
}

impl Targets {
    /// No servers yet, except this process as a server of [`LOCAL_TYPE`] when it hosts an application.
    pub fn new(limits: TargetLimits, routing: Arc<Routing>, local: Option<Arc<Server>>) -> Self {
        let mut targets = Self {
            limits,
            routing,
            table: ServerTable::default(),
            local,
            slots: Slab::new(),
            by_id: HashMap::new(),
            kinds: HashMap::new(),
            chooser: Chooser {
                state: router::State::new(fastrand::u64(..)),
                candidates: Vec::new(),
            },
        };
        targets.update(&ServerTable::default());
        targets
    }

    /// The servers of the last [`Targets::update`].
    pub fn table(&self) -> &ServerTable {
        &self.table
    }

    /// Takes over a new list of servers. What is in flight to a server that left stays counted until it is answered.
    pub fn update(&mut self, table: &ServerTable) {
        self.table = table.clone();
        for kind in self.kinds.values_mut() {
            kind.targets.clear();
        }
        // Whoever hosts an application does not ask itself over NATS.
        let local = self.local.clone();
        let others =
            table.iter().filter(|other| local.as_ref().is_none_or(|own| own.id != other.id));
        for server in others.chain(&local) {
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
            self.kind(&server.server_type).targets.push(key);
        }
        let gone: Vec<u32> =
            self.by_id.values().copied().filter(|key| !self.is_listed(table, *key)).collect();
        for key in gone {
            self.forget(key);
        }
        self.kinds.retain(|_, kind| !kind.targets.is_empty() || !kind.queue.is_empty());
    }

    fn kind(&mut self, server_type: &str) -> &mut Kind {
        self.kinds.entry(server_type.into()).or_insert_with(|| Kind {
            policy: policy(&self.routing, server_type),
            identity: router::identity(server_type),
            targets: Vec::new(),
            queue: Queue::default(),
        })
    }

    fn insert(&mut self, server: &Arc<Server>) -> u32 {
        let is_sticky = policy(&self.routing, &server.server_type) == Policy::Sticky;
        let key = self.slots.insert(Target {
            server: server.clone(),
            subject: server.subject().into_bytes().into(),
            identity: router::identity(&server.id),
            sticky_type: is_sticky.then(|| router::identity(&server.server_type)),
            in_flight: 0,
            window: self.limits.window_of(server),
            suspect_until_ms: 0,
            is_gone: false,
            takes_batches: self.limits.has_batches && server.speaks(PROTOCOL_BATCHES),
            queue: Queue::default(),
        }) as u32;
        self.by_id.insert(server.id.as_str().into(), key);
        key
    }

    fn is_unchanged(&self, key: u32, server: &Server) -> bool {
        self.slots.get(key as usize).is_some_and(|target| *target.server == *server)
    }

    fn is_listed(&self, table: &ServerTable, key: u32) -> bool {
        self.is_local(key)
            || self
                .slots
                .get(key as usize)
                .is_some_and(|target| table.by_id(&target.server.id).is_some())
    }

    fn forget(&mut self, key: u32) {
        let Some(target) = self.slots.get_mut(key as usize) else { return };
        self.by_id.remove(target.server.id.as_str());
        target.is_gone = true;
        let (server, mut queue) = (target.server.clone(), std::mem::take(&mut target.queue));
        if target.in_flight == 0 {
            self.slots.remove(key as usize);
        }
        if !queue.is_empty() {
            // Whoever waited for it finds another one when its turn comes.
            self.kind(&server.server_type).queue.append(&mut queue);
        }
    }

    /// Chooses a server of `server_type` for whoever asks, by the policy of the type, among those with room. Requests that
    /// came earlier go first.
    pub fn choose(&mut self, server_type: &str, seeker: &Seeker<'_>, now_ms: u64) -> Choice {
        let Self { slots, kinds, chooser, .. } = self;
        let choice = match kinds.get(server_type) {
            _ if seeker.chosen.is_some() => self.choose_next(server_type, seeker, now_ms),
            Some(kind) if !kind.targets.is_empty() => {
                if !kind.queue.is_empty() && kind.tie(seeker).is_none() {
                    return Choice::Busy(Place::Type);
                }
                pick(slots, kind, seeker, chooser, now_ms)
            }
            _ => Choice::NoServers,
        };
        match choice {
            Choice::Target(key) if self.is_waited_for(key) => Choice::Busy(Place::Target(key)),
            choice => choice,
        }
    }

    fn is_waited_for(&self, key: u32) -> bool {
        self.slots.get(key as usize).is_some_and(|target| !target.queue.is_empty())
    }

    /// The next server for a request that has waited its turn.
    pub fn choose_next(&mut self, server_type: &str, seeker: &Seeker<'_>, now_ms: u64) -> Choice {
        if let Some(id) = seeker.chosen {
            let Some(key) = self.by_id.get(id) else { return Choice::NoServers };
            let target = self.slots.get(*key as usize);
            return target.map_or(Choice::NoServers, |target| target.take(*key));
        }
        match self.kinds.get(server_type) {
            Some(kind) if !kind.targets.is_empty() => {
                pick(&self.slots, kind, seeker, &mut self.chooser, now_ms)
            }
            _ => Choice::NoServers,
        }
    }

    /// How many servers of the type of `key` there are besides it, i.e. whether a second try has somewhere to go.
    pub fn has_alternative(&self, server_type: &str) -> bool {
        self.kinds.get(server_type).is_some_and(|kind| kind.targets.len() > 1)
    }

    /// Whether `key` is the application in this process.
    pub fn is_local(&self, key: u32) -> bool {
        self.slots.get(key as usize).is_some_and(|target| target.server.server_type == LOCAL_TYPE)
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
        let own = target.queue.release(now_us);
        if target.is_gone && target.in_flight == 0 {
            self.slots.remove(key as usize);
        }
        own.or_else(|| self.take_waiting(&server.server_type, now_us))
    }

    /// The request that has waited longest for any server of this type.
    pub fn take_waiting(&mut self, server_type: &str, now_us: u64) -> Option<Waiting> {
        self.kinds.get_mut(server_type)?.queue.release(now_us)
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
            target.takes_batches = limits.has_batches && target.server.speaks(PROTOCOL_BATCHES);
        }
    }

    /// Lets a request wait. Errors: the queue is full, or stands still; the request is given back.
    pub fn wait(
        &mut self,
        server_type: &str,
        place: Place,
        waiting: Waiting,
    ) -> Result<(), Waiting> {
        let TargetLimits { waiting_max, waiting_age_max_us, .. } = self.limits;
        match self.queue(server_type, place) {
            Some(queue) => queue.push(waiting, waiting_max, waiting_age_max_us),
            None => Err(waiting),
        }
    }

    /// Takes back a request that [`Targets::end`] released and that still has nowhere to go: to the front.
    pub fn wait_again(&mut self, server_type: &str, place: Place, waiting: Waiting) {
        if let Some(queue) = self.queue(server_type, place) {
            queue.push_front(waiting);
        }
    }

    fn queue(&mut self, server_type: &str, place: Place) -> Option<&mut Queue> {
        match place {
            Place::Type => self.kinds.get_mut(server_type).map(|kind| &mut kind.queue),
            Place::Target(key) => self.slots.get_mut(key as usize).map(|target| &mut target.queue),
        }
    }

    /// Gives up waiting requests that are overdue.
    pub fn expire(&mut self, now_ms: u64, mut give_up: impl FnMut(Waiting)) {
        for queue in self.queues() {
            queue.expire(now_ms, &mut give_up);
        }
    }

    /// A waiting request that can go now, because servers came or a window opened unseen, with its server type.
    pub fn next_waiting(&mut self, now_ms: u64) -> Option<(Box<str>, Waiting)> {
        let Self { slots, kinds, chooser, .. } = self;
        let homes = Homes::default();
        let anybody = Seeker { uid: "", homes: &homes, chosen: None };
        for (server_type, kind) in kinds {
            let is_sendable = !kind.queue.is_empty()
                && matches!(pick(slots, kind, &anybody, chooser, now_ms), Choice::Target(_));
            if is_sendable && let Some(waiting) = kind.queue.release(now_ms * 1_000) {
                return Some((server_type.clone(), waiting));
            }
        }
        let has_room = |target: &Target| target.has_room() && target.suspect_until_ms <= now_ms;
        let mut waited_for =
            slots.iter_mut().map(|(_, target)| target).filter(|target| !target.queue.is_empty());
        let target = waited_for.find(|target| has_room(target))?;
        Some((target.server.server_type.as_str().into(), target.queue.release(now_ms * 1_000)?))
    }

    fn queues(&mut self) -> impl Iterator<Item = &mut Queue> {
        let of_kinds = self.kinds.values_mut().map(|kind| &mut kind.queue);
        of_kinds.chain(self.slots.iter_mut().map(|(_, target)| &mut target.queue))
    }

    /// How many requests wait.
    pub fn waiting_len(&self) -> usize {
        let of_kinds: usize = self.kinds.values().map(|kind| kind.queue.len()).sum();
        of_kinds + self.slots.iter().map(|(_, target)| target.queue.len()).sum::<usize>()
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
        let of_targets = self.slots.iter().map(|(_, target)| &target.queue);
        for queue in self.kinds.values().map(|kind| &kind.queue).chain(of_targets) {
            queue.check_invariants();
        }
    }

    /// Follows connections to other places.
    pub fn waiting_mut(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.queues().flat_map(Queue::iter_mut)
    }
}

impl Target {
    /// What a session has to remember of having been served here.
    pub fn home(&self) -> Option<Home> {
        self.sticky_type.map(|server_type| Home { server_type, server: self.identity })
    }

    /// Whether several requests may travel to it in one message.
    pub fn takes_batches(&self) -> bool {
        self.takes_batches
    }

    /// Whether it may be asked if it is still there. One that leaves in good order listens no more, and still answers.
    pub fn takes_probes(&self) -> bool {
        !self.is_gone && self.server.speaks(PROTOCOL_BATCHES)
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.window
    }

    fn take(&self, key: u32) -> Choice {
        if self.has_room() { Choice::Target(key) } else { Choice::Busy(Place::Target(key)) }
    }
}

/// How one request is tied to one server.
enum Tie {
    /// By the hash of its user.
    User,
    /// By having been there.
    Home(u64),
}

impl Kind {
    fn tie(&self, seeker: &Seeker<'_>) -> Option<Tie> {
        match self.policy {
            Policy::ConsistentHash => (!seeker.uid.is_empty()).then_some(Tie::User),
            Policy::Sticky => seeker.homes.find(self.identity).map(Tie::Home),
            Policy::Random | Policy::RoundRobin | Policy::LeastInFlight => None,
        }
    }
}

/// The policy of a type. Behind a function of the application there is none: it is asked, not the policy.
fn policy(routing: &Routing, server_type: &str) -> Policy {
    match routing.of(server_type) {
        Rule::Policy(policy) => *policy,
        Rule::Function(_) => Policy::LeastInFlight,
    }
}

/// Chooses among servers with room, except for a request that belongs to one server, which waits for it. Suspects count
/// only when nobody else is listed: while the others have their hands full, waiting for them is better than asking
/// somebody who does not listen.
fn pick(
    targets: &Slab<Target>,
    kind: &Kind,
    seeker: &Seeker<'_>,
    chooser: &mut Chooser,
    now_ms: u64,
) -> Choice {
    let listed = || kind.targets.iter().filter_map(|key| targets.get(*key as usize));
    let is_trusted = |target: &Target| target.suspect_until_ms <= now_ms;
    let has_trusted = listed().any(is_trusted);
    let tie = kind.tie(seeker);
    let is_tied = tie.is_some();
    let home = if let Some(Tie::Home(home)) = tie { Some(home) } else { None };
    let fill = |chooser: &mut Chooser, heeds_windows: bool| {
        chooser.candidates.clear();
        chooser.candidates.extend(listed().map(|target| Candidate {
            identity: target.identity,
            in_flight: target.in_flight,
            window: target.window,
            is_previous: home == Some(target.identity),
            is_suspect: has_trusted && !is_trusted(target) || heeds_windows && !target.has_room(),
        }));
        chooser.candidates.iter().any(|candidate| candidate.is_previous && !candidate.is_suspect)
    };
    let is_home_there = fill(chooser, !is_tied);
    if home.is_some() && !is_home_there {
        // Its server is gone: any other one with room is its new home.
        fill(chooser, true);
    }
    let choice = router::pick(kind.policy, &chooser.candidates, seeker.uid, &mut chooser.state);
    let key = choice.and_then(|index| kind.targets.get(index)).copied();
    match key.and_then(|key| Some((key, targets.get(key as usize)?))) {
        Some((key, target)) => target.take(key),
        None => Choice::Busy(Place::Type),
    }
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

    use crate::driver::Token;

    use super::*;

    fn server(server_type: &str, window: u32) -> Arc<Server> {
        named("server-1", server_type, window)
    }

    fn named(id: &str, server_type: &str, window: u32) -> Arc<Server> {
        Arc::new(Server {
            id: id.into(),
            server_type: server_type.into(),
            metadata: [(METADATA_WINDOW.to_owned(), window.to_string())].into(),
            frontend: false,
            hostname: String::new(),
        })
    }

    /// What a user whose session was nowhere yet gets.
    fn choice(targets: &mut Targets, server_type: &str, uid: &str) -> Choice {
        let homes = Homes::default();
        targets.choose(server_type, &Seeker { uid, homes: &homes, chosen: None }, 0)
    }

    fn chosen(targets: &mut Targets, server_type: &str) -> Option<u32> {
        match choice(targets, server_type, "") {
            Choice::Target(key) => Some(key),
            Choice::Busy(_) | Choice::NoServers => None,
        }
    }

    fn targets(policy: Policy, servers: &[Arc<Server>]) -> Targets {
        let limits = TargetLimits {
            window: 25,
            reactors: 1,
            waiting_max: 10,
            waiting_age_max_us: 1_000_000,
            has_batches: true,
        };
        let mut targets = Targets::new(limits, Arc::new(Routing::new(policy)), None);
        targets.update(&ServerTable::new(servers.iter().cloned(), 1));
        targets
    }

    fn waiting(message_id: u64, chosen: Option<&str>) -> Waiting {
        Waiting {
            connection: Token::from_bits(1),
            session: shared::session::SessionId(1),
            message_id,
            route: "room.a.b".into(),
            payload: Vec::new(),
            arrived_us: 0,
            deadline_ms: 100,
            is_notify: false,
            chosen: chosen.map(Into::into),
            place: 0,
        }
    }

    const BUSY: Choice = Choice::Busy(Place::Type);

    #[test]
    fn a_server_that_came_back_unseen_is_taken_as_it_is_now() {
        let mut targets = targets(Policy::LeastInFlight, &[server("room", 1)]);
        let first = chosen(&mut targets, "room").unwrap();
        targets.begin(first);
        assert_eq!(choice(&mut targets, "room", ""), BUSY);
        targets.update(&ServerTable::new([server("room", 1)], 2));
        assert_eq!(choice(&mut targets, "room", ""), BUSY, "nothing has changed");
        targets.update(&ServerTable::new([server("room", 2)], 3));
        let again = chosen(&mut targets, "room").unwrap();
        for key in [again, again] {
            assert!(targets.begin(key).is_some());
        }
        assert_eq!(choice(&mut targets, "room", ""), BUSY);
        // What was under way to the earlier process still ends, and is not counted for the present one.
        targets.end(first, 0);
        assert!(targets.find(first).is_none());
        assert_eq!(choice(&mut targets, "room", ""), BUSY);
        targets.update(&ServerTable::new([server("chat", 2)], 4));
        assert_eq!(choice(&mut targets, "room", ""), Choice::NoServers);
        let key = chosen(&mut targets, "chat").unwrap();
        assert_eq!(&*targets.find(key).unwrap().subject, b"pitaya/servers/chat/server-1");
    }

    fn room(count: usize, window: u32) -> Vec<Arc<Server>> {
        (0..count).map(|n| named(&format!("server-{n}"), "room", window)).collect()
    }

    #[test]
    fn every_policy_spreads_users_evenly() {
        for (name, policy) in Policy::NAMES {
            let mut targets = targets(policy, &room(4, 100));
            let mut counts = HashMap::<u32, u32>::new();
            for user in 0..8_000 {
                match choice(&mut targets, "room", &format!("user-{user}")) {
                    Choice::Target(key) => *counts.entry(key).or_default() += 1,
                    other => panic!("{name}: {other:?}"),
                }
            }
            // Six standard deviations of a fair draw are below 240.
            assert!(counts.values().all(|count| count.abs_diff(2_000) < 240), "{name}: {counts:?}");
            assert_eq!(counts.len(), 4);
        }
    }

    #[test]
    fn few_users_move_when_a_server_leaves_or_comes() {
        let servers = room(5, 100);
        let mut targets = targets(Policy::ConsistentHash, &servers);
        let homes = |targets: &mut Targets| -> Vec<String> {
            let home = |user: u32| match choice(targets, "room", &format!("user-{user}")) {
                Choice::Target(key) => targets.find(key).unwrap().server.id.clone(),
                other => panic!("{other:?}"),
            };
            (0..2_000).map(home).collect()
        };
        let moved =
            |a: &[String], b: &[String]| a.iter().zip(b).filter(|(old, new)| old != new).count();
        let before = homes(&mut targets);
        targets.update(&ServerTable::new(servers[1..].iter().cloned(), 2));
        let without = homes(&mut targets);
        let had = before.iter().filter(|id| *id == "server-0").count();
        assert_eq!(moved(&before, &without), had);
        assert!(had.abs_diff(400) < 110, "{had}");
        targets.update(&ServerTable::new(servers, 3));
        assert_eq!(homes(&mut targets), before);
    }

    #[test]
    fn a_user_waits_for_its_own_server_and_holds_nobody_up() {
        let mut targets = targets(Policy::ConsistentHash, &room(2, 1));
        let Choice::Target(own) = choice(&mut targets, "room", "alice") else { panic!("no room") };
        targets.begin(own);
        let busy = choice(&mut targets, "room", "alice");
        assert_eq!(busy, Choice::Busy(Place::Target(own)));
        targets.wait("room", Place::Target(own), waiting(1, None)).ok().unwrap();
        let others = (0..20).map(|user| choice(&mut targets, "room", &format!("user-{user}")));
        let others: Vec<_> = others.collect();
        assert!(others.iter().any(|choice| matches!(choice, Choice::Target(key) if *key != own)));
        assert!(others.iter().all(|choice| *choice != BUSY && *choice != Choice::Target(own)));
        assert_eq!(targets.waiting_len(), 1);
        assert_eq!(targets.end(own, 0).unwrap().message_id, 1);
        assert_eq!(choice(&mut targets, "room", "alice"), Choice::Target(own));
    }

    #[test]
    fn who_waits_for_a_server_that_leaves_finds_another() {
        let servers = room(2, 1);
        let mut targets = targets(Policy::ConsistentHash, &servers);
        let Choice::Target(own) = choice(&mut targets, "room", "alice") else { panic!("no room") };
        targets.begin(own);
        targets.wait("room", Place::Target(own), waiting(1, None)).ok().unwrap();
        let id = targets.find(own).unwrap().server.id.clone();
        let rest: Vec<_> = servers.into_iter().filter(|server| server.id != id).collect();
        targets.update(&ServerTable::new(rest, 2));
        let (server_type, next) = targets.next_waiting(0).unwrap();
        assert_eq!((&*server_type, next.message_id), ("room", 1));
        assert!(matches!(choice(&mut targets, "room", "alice"), Choice::Target(key) if key != own));
        assert!(targets.end(own, 0).is_none() && targets.find(own).is_none());
    }

    #[test]
    fn a_session_stays_until_its_server_goes_or_is_deaf() {
        let mut targets = targets(Policy::Sticky, &room(3, 2));
        let mut homes = Homes::default();
        let ask = |targets: &mut Targets, homes: &Homes, now_ms| {
            targets.choose("room", &Seeker { uid: "", homes, chosen: None }, now_ms)
        };
        let Choice::Target(first) = ask(&mut targets, &homes, 0) else { panic!("no room") };
        homes.set(targets.find(first).unwrap().home().unwrap());
        for _ in 0..20 {
            assert_eq!(ask(&mut targets, &homes, 0), Choice::Target(first));
        }
        for _ in 0..2 {
            targets.begin(first);
        }
        assert_eq!(ask(&mut targets, &homes, 0), Choice::Busy(Place::Target(first)));
        targets.suspect(first, 0);
        assert!(matches!(ask(&mut targets, &homes, 0), Choice::Target(key) if key != first));
        assert_eq!(ask(&mut targets, &homes, SUSPECT_MS), Choice::Busy(Place::Target(first)));
    }

    #[test]
    fn the_server_that_a_function_chose_is_the_only_one() {
        let mut targets = targets(Policy::LeastInFlight, &room(2, 1));
        let homes = Homes::default();
        let ask = |targets: &mut Targets, id| {
            targets.choose("room", &Seeker { uid: "", homes: &homes, chosen: Some(id) }, 0)
        };
        let Choice::Target(key) = ask(&mut targets, "server-1") else { panic!("no room") };
        targets.begin(key);
        assert_eq!(ask(&mut targets, "server-1"), Choice::Busy(Place::Target(key)));
        assert_eq!(ask(&mut targets, "server-9"), Choice::NoServers);
        targets.wait("room", Place::Target(key), waiting(1, Some("server-1"))).ok().unwrap();
        let mut late = 0;
        targets.expire(100, |_| late += 1);
        assert_eq!((late, targets.waiting_len()), (1, 0));
    }

    #[test]
    fn the_application_of_this_process_stays_whatever_the_cluster_says() {
        let limits = TargetLimits {
            window: 25,
            reactors: 1,
            waiting_max: 10,
            waiting_age_max_us: 1_000_000,
            has_batches: true,
        };
        let local = server(LOCAL_TYPE, 1);
        let routing = Arc::new(Routing::new(Policy::LeastInFlight));
        let mut targets = Targets::new(limits, routing, Some(local));
        let key = chosen(&mut targets, LOCAL_TYPE).unwrap();
        assert!(targets.is_local(key));
        targets.begin(key);
        // The own record is in the cluster's table under the own type, and gone from it after a loss of etcd.
        targets.update(&ServerTable::new([server("connector", 5)], 1));
        assert_eq!(choice(&mut targets, "connector", ""), Choice::NoServers);
        assert_eq!(choice(&mut targets, LOCAL_TYPE, ""), BUSY);
        targets.update(&ServerTable::default());
        targets.end(key, 0);
        assert_eq!(chosen(&mut targets, LOCAL_TYPE), Some(key));
    }
}
