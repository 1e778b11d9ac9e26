//! Real processes under load while faults of a seeded schedule hit them: `./dev chaos [SECONDS] [SEED]`, `./dev soak`.
//!
//! Two gateways, two workers, nats-server and etcd, all separate processes, with a fault proxy on each way to NATS and
//! etcd. Players ask, are pushed to, and notice everything that is lost, doubled, reordered, late or dropped without an
//! excuse. An ordinary test run plays a short schedule of each kind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../shared/tests/servers/fault_proxy.rs"]
mod fault_proxy;
#[path = "../../shared/tests/servers/mod.rs"]
mod servers;

#[path = "chaos/cluster.rs"]
mod cluster;
#[path = "chaos/player.rs"]
mod player;
#[path = "chaos/process.rs"]
mod process;
#[path = "chaos/resources.rs"]
mod resources;
#[path = "chaos/schedule.rs"]
mod schedule;
#[path = "chaos/soak.rs"]
mod soak;
#[path = "chaos/worker.rs"]
mod worker_process;

use std::time::Duration;

/// A number from the environment, or what an ordinary run takes.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn under_faults_every_request_ends_in_time_no_client_is_dropped_and_nothing_leaks() {
    let duration = Duration::from_secs(number("CHAOS_SECONDS", 18));
    schedule::run(duration, number("CHAOS_SEED", 7));
}

#[test]
fn under_a_mixed_load_memory_descriptors_and_latency_stay_flat() {
    soak::run(Duration::from_secs(number("SOAK_SECONDS", 9)));
}

/// Not a test of its own: the worker process of the others is this program, started with this name.
#[test]
fn a_worker_process_serves_when_it_is_started_as_one() {
    worker_process::serve_if_asked();
}
