//! Overload of a server that takes its time, in simulated milliseconds: what a peak of three times the capacity leaves
//! of it (promise G11).

use std::collections::VecDeque;
use std::sync::Arc;

use shared::server::{METADATA_WINDOW, Server, ServerTable};
use shared::session::SessionId;

use shared::router::Policy;
use shared::routing::Routing;

use super::{Choice, Seeker, TargetLimits, Targets};
use crate::bus::homes::Homes;
use crate::bus::queue::Waiting;
use crate::driver::Token;

const AGE_MAX_MS: u64 = 100;
/// What a client waits for at most.
const DEADLINE_MS: u64 = 5_000;
/// The server answers one request in this time, one after the other: 100 a second.
const SERVICE_MS: u64 = 10;
const WINDOW: u32 = 8;

/// One gateway, one server, and what came of the requests.
struct World {
    targets: Targets,
    now_ms: u64,
    /// Arrival times of the requests that the server has in hand, in their order.
    in_hand: VecDeque<(u32, u64)>,
    busy_until_ms: u64,
    served_ms: Vec<u64>,
    refused: usize,
    late: usize,
    random: fastrand::Rng,
}

fn anybody(homes: &Homes) -> Seeker<'_> {
    Seeker { uid: "", homes, chosen: None }
}

impl World {
    fn new(seed: u64, waiting_age_max_ms: u64) -> Self {
        let server = Server {
            id: "room-1".into(),
            server_type: "room".into(),
            metadata: [(METADATA_WINDOW.to_owned(), WINDOW.to_string())].into(),
            frontend: false,
            hostname: String::new(),
        };
        let limits = TargetLimits {
            window: WINDOW,
            reactors: 1,
            waiting_max: 1_000,
            waiting_age_max_us: waiting_age_max_ms * 1_000,
            has_batches: false,
        };
        let routing = Arc::new(Routing::new(Policy::LeastInFlight));
        let mut targets = Targets::new(limits, routing, None);
        targets.update(&ServerTable::new([Arc::new(server)], 1));
        Self {
            targets,
            now_ms: 1_000_000,
            in_hand: VecDeque::new(),
            busy_until_ms: 0,
            served_ms: Vec::new(),
            refused: 0,
            late: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    fn arrive(&mut self) {
        let homes = Homes::default();
        match self.targets.choose("room", &anybody(&homes), self.now_ms) {
            Choice::Target(key) => self.send(key, self.now_ms),
            Choice::Busy(place) => {
                let waiting = Waiting {
                    connection: Token::from_bits(1),
                    session: SessionId(1),
                    message_id: 1,
                    route: "room.test.echo".into(),
                    payload: Vec::new(),
                    arrived_us: self.now_ms * 1_000,
                    deadline_ms: self.now_ms + DEADLINE_MS,
                    is_notify: false,
                    chosen: None,
                    place: 0,
                };
                self.refused += usize::from(self.targets.wait("room", place, waiting).is_err());
            }
            Choice::NoServers => panic!("the server is there"),
        }
    }

    fn send(&mut self, key: u32, arrived_ms: u64) {
        self.targets.begin(key);
        self.in_hand.push_back((key, arrived_ms));
    }

    fn serve(&mut self) {
        let Some(&(key, arrived_ms)) = self.in_hand.front() else {
            self.busy_until_ms = self.now_ms + SERVICE_MS;
            return;
        };
        if self.now_ms < self.busy_until_ms {
            return;
        }
        self.busy_until_ms = self.now_ms + SERVICE_MS;
        self.in_hand.pop_front();
        let latency_ms = self.now_ms - arrived_ms;
        if latency_ms < DEADLINE_MS {
            self.served_ms.push(latency_ms);
        } else {
            self.late += 1;
        }
        let homes = Homes::default();
        if let Some(waiting) = self.targets.end(key, self.now_ms * 1_000)
            && let Choice::Target(next) =
                self.targets.choose_next("room", &anybody(&homes), self.now_ms)
        {
            self.send(next, waiting.arrived_us / 1_000);
        }
    }

    /// Lets so many requests a second arrive at random times, for so long.
    fn run(&mut self, per_second: u64, seconds: u64) -> Outcome {
        (self.served_ms, self.refused, self.late) = (Vec::new(), 0, 0);
        for _ in 0..seconds * 1_000 {
            self.now_ms += 1;
            // Three tries a millisecond: neither even nor in large clumps.
            for _ in 0..3 {
                if self.random.u64(0..3_000) < per_second {
                    self.arrive();
                }
            }
            self.serve();
            let now_ms = self.now_ms;
            let late = &mut self.late;
            self.targets.expire(now_ms, |_| *late += 1);
        }
        self.served_ms.sort_unstable();
        let p99_ms = self.served_ms.get(self.served_ms.len() * 99 / 100).copied().unwrap_or(0);
        Outcome {
            served_per_second: self.served_ms.len() as u64 / seconds,
            p99_ms,
            refused: self.refused,
            late: self.late,
        }
    }
}

#[derive(Debug)]
struct Outcome {
    served_per_second: u64,
    p99_ms: u64,
    refused: usize,
    late: usize,
}

#[test]
fn at_three_times_the_capacity_the_capacity_is_served_and_in_time() {
    for seed in 0..5 {
        let mut world = World::new(seed, AGE_MAX_MS);
        let usual = world.run(80, 30);
        assert_eq!(usual.late, 0, "seed {seed}: {usual:?}");
        let peak = world.run(300, 60);
        assert!(peak.served_per_second >= 90, "seed {seed}: {peak:?}");
        // The queue's age, the window behind it, and one service time for the granularity of both.
        let bound_ms = AGE_MAX_MS + (u64::from(WINDOW) + 2) * SERVICE_MS;
        assert!(peak.p99_ms <= bound_ms, "seed {seed}: {peak:?}");
        assert_eq!(peak.late, 0, "seed {seed}: {peak:?}");
        assert!(peak.refused >= 190 * 60, "seed {seed}: {peak:?}");
    }
}

#[test]
fn when_the_peak_is_over_nobody_is_refused_any_more() {
    for seed in 0..5 {
        let mut world = World::new(seed, AGE_MAX_MS);
        world.run(300, 30);
        world.run(50, 1);
        let after = world.run(50, 10);
        assert_eq!((after.refused, after.late), (0, 0), "seed {seed}: {after:?}");
        assert!(after.p99_ms <= 10 * SERVICE_MS, "seed {seed}: {after:?}");
    }
}

#[test]
fn a_burst_is_not_an_overload() {
    let mut world = World::new(7, AGE_MAX_MS);
    for _ in 0..60 {
        world.arrive();
    }
    let burst = world.run(0, 1);
    assert_eq!((burst.refused, burst.late), (0, 0), "{burst:?}");
    assert_eq!(world.served_ms.len(), 60);
}

#[test]
fn without_the_age_the_queue_makes_everybody_wait() {
    // The test of the test: this is what the rule prevents.
    let peak = World::new(0, DEADLINE_MS * 10).run(300, 60);
    assert!(peak.p99_ms > 3_000 || peak.late > 0, "{peak:?}");
}
