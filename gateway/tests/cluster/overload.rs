//! Overload: three times of what a real worker can do, from players that do not wait for one another's answers.
//!
//! The worker's capacity is bounded by its configuration and its handlers only sleep, so the machine has room, and what
//! is served in the same test at full load is the measure of what must be served when three times as much is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use client::load::{self, LoadOptions, Report, TransportName};
use gateway::gateway::Gateway;

use crate::world::{DRIVERS, World, tcp, until_answered};

/// Handlers at the same time; each holds its place for [`HELD`].
const PLACES: u32 = 4;
const HELD: &str = r#"{"ms":20}"#;
/// Who asks for more than a place waits for this long at most, at the worker and at the gateway.
const AGE_MAX: &str = "300ms";
/// Any answer later than this would have been given up by its player. Far more than what may wait, and far less than what
/// would have to wait if nothing were refused.
const PATIENCE: Duration = Duration::from_secs(3);

/// Players that ask at this rate, or again as soon as they are answered.
fn ask(gateway: &Gateway, players: u32, rate: Option<u32>, ms: [u64; 2]) -> Report {
    let [warmup, duration] = ms.map(Duration::from_millis);
    let options = LoadOptions {
        address: gateway.addresses().tcp[0].to_string().parse().unwrap(),
        transport: TransportName::Tcp,
        connections: players,
        connect_rate: 0,
        in_flight: if rate.is_some() { 90 } else { 1 },
        rate,
        duration,
        warmup,
        timeout: PATIENCE,
        route: "room.test.sleep".to_owned(),
        notify: false,
        payload_bytes: 0,
        payload: Some(HELD.to_owned()),
        idle: false,
        processes: Vec::new(),
        threads: 1,
        max_errors: 0,
        json: None,
    };
    load::run(&options).unwrap()
}

fn refused(report: &Report) -> u64 {
    report.requests.errors.get("PIT-503").copied().unwrap_or(0)
}

/// A worker with these settings under three times its load, and then under half of it.
fn overload(drivers: &[&str], players: u32, settings: &[(&str, &str)]) {
    let world = World::new();
    let places = PLACES.to_string();
    let mut all =
        vec![("pitaya.handler.concurrency", &*places), ("pitaya.handler.queue.maxage", AGE_MAX)];
    all.extend(settings);
    let worker = world.worker_of("room-1", &all);
    for driver in drivers {
        let gateway = world.gateway(driver, &[("pitaya.gateway.queue.maxage", AGE_MAX)]);
        until_answered(&mut tcp(&gateway), "room.test.echo", b"x");
        let full = ask(&gateway, 2 * PLACES, None, [300, 1_000]);
        assert_eq!(full.errors, 0, "{driver}: {:?}", full.requests);
        let peak = full.requests.per_second;

        let above = ask(&gateway, players, Some((3.0 * peak) as u32), [700, 1_500]);
        let served = above.requests.per_second;
        println!("{driver}: {served:.0} of {peak:.0} a second served, {:?}", above.requests);
        assert!(served >= 0.9 * peak, "{driver}: {served} a second instead of {peak}");
        // Nothing was given up by its player, and nobody was thrown out.
        let only_refusals = BTreeMap::from([("PIT-503".to_owned(), refused(&above))]);
        assert_eq!(above.requests.errors, only_refusals, "{driver}");
        assert_eq!((above.requests.unsent, above.requests.late), (0, 0), "{driver}");
        assert!(above.connections.lost.is_empty(), "{driver}: {:?}", above.connections);

        let after = ask(&gateway, players, Some((0.5 * peak) as u32), [0, 500]);
        let (sent, failed) = (after.requests.sent, after.requests.failed);
        assert_eq!(failed, refused(&after), "{driver}: {:?}", after.requests);
        // None on a quiet machine; one that stands still for a moment makes a small peak of its own.
        assert!(failed <= sent / 20, "{driver}: {failed} of {sent} are refused when it is over");
        gateway.stop();
    }
    world.stop_worker(worker);
}

#[test]
fn a_worker_serves_its_capacity_at_three_times_of_it_and_refuses_the_rest() {
    // Its window never fills, so the worker itself refuses.
    overload(&DRIVERS[..1], 200, &[]);
}

#[test]
fn a_worker_is_not_drowned_by_few_players_who_ask_much() {
    // Too few for handlers to wait long: each waits behind its own earlier requests.
    overload(&DRIVERS[1..], 12, &[]);
}

#[test]
fn a_gateway_gives_a_worker_its_capacity_at_three_times_of_it_and_refuses_the_rest() {
    // The window is full, so requests wait at the gateway, which refuses.
    overload(&DRIVERS, 40, &[("pitaya.handler.queue.maxrequests", "12")]);
}
