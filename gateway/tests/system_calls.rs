//! How often a loaded reactor enters the kernel: a count, so that it cannot depend on how busy the machine is.
//!
//! A ring takes a whole turn with one entry, however many sockets had something. Without one, each socket that had
//! something costs its own calls, and those must stay at what cannot be avoided.
#![cfg(target_os = "linux")]

#[path = "support/stepped.rs"]
mod stepped;

use std::sync::atomic::{AtomicU64, Ordering};

use gateway::driver::{DriverStats, Kind};
use gateway::reactor::Reactor;
use stepped::World;

const CLIENTS: u64 = 50;
const WARMUP: u64 = 5;
const ROUNDS: u64 = 20;
/// Requests that each client sends at once.
const TOGETHER: u64 = 4;

static TURNS: AtomicU64 = AtomicU64::new(0);

fn turn(reactor: &mut Reactor) -> bool {
    TURNS.fetch_add(1, Ordering::Relaxed);
    reactor.step()
}

/// What a load of requests cost: turns, and what the driver counted.
fn cost(driver: Kind) -> (u64, DriverStats) {
    let mut world = World::open(driver, CLIENTS as usize, turn);
    world.greet();
    let mut out = Vec::new();
    let mut ids = (1..).step_by(TOGETHER as usize);
    for id in ids.by_ref().take(WARMUP as usize) {
        world.request(id, TOGETHER, &mut out);
    }
    let (turns, before) = (TURNS.load(Ordering::Relaxed), world.reactor.driver_stats());
    for id in ids.take(ROUNDS as usize) {
        world.request(id, TOGETHER, &mut out);
    }
    let after = world.reactor.driver_stats();
    let during = DriverStats {
        enters: after.enters - before.enters,
        receives: after.receives - before.receives,
        sends: after.sends - before.sends,
        ..DriverStats::default()
    };
    (TURNS.load(Ordering::Relaxed) - turns, during)
}

#[test]
fn a_turn_costs_one_entry_with_a_ring_and_two_calls_a_socket_without() {
    for driver in stepped::drivers() {
        let (turns, calls) = cost(driver);
        println!("{driver:?}: {turns} turns, {calls:?}");
        let requests = CLIENTS * ROUNDS * TOGETHER;
        assert!(
            turns < requests / 5,
            "{driver:?}: {turns} turns are no load for {requests} requests"
        );
        // One send for all answers of a client, one for all requests to NATS.
        assert!(calls.sends <= CLIENTS * ROUNDS + 2 * turns, "{driver:?}: {} sends", calls.sends);
        // Once a turn; now and then once more, for what did not fit a queue or came out of turn.
        assert!(calls.enters <= turns + turns / 4, "{driver:?}: {} entries", calls.enters);
        match driver {
            Kind::Uring => assert_eq!(calls.receives, 0, "a ring receives by itself"),
            // Once for the bytes, and for no socket more than once to learn that there are no more.
            _ => assert!(
                calls.receives <= 2 * (CLIENTS * ROUNDS + turns),
                "{driver:?}: {} receives",
                calls.receives
            ),
        }
    }
}
