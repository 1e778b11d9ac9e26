//! Overload: three times of what a real worker can do, from players that do not wait for one another's answers.
//!
//! The worker's capacity is bounded by its configuration and its handlers only sleep, so the machine has room, and what
//! is served in the same test at full load is the measure of what must be served when three times as much is asked for.

use std::collections::BTreeMap;

use clap::Parser;
use client::load::{self, LoadOptions, Report};
use gateway::gateway::Gateway;

use crate::world::{DRIVERS, World, tcp, until_answered};

/// Handlers at the same time; each holds its place for [`HELD`].
const PLACES: u32 = 4;
const HELD: &str = r#"{"ms":20}"#;
/// Who asks for more than a place waits for this long at most, at the worker and at the gateway.
const AGE_MAX: &str = "300ms";
/// Any answer later than this would have been given up by its player. Far more than what may wait, and far less than what
/// would have to wait if nothing were refused.
const PATIENCE: &str = "3s";
const ROUNDS: usize = 4;

/// The command line of the load generator.
#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    load: LoadOptions,
}

/// Players that ask at this rate, or again as soon as they are answered.
fn ask(gateway: &Gateway, players: u32, rate: Option<u32>, ms: [u64; 2]) -> Report {
    let [warmup, duration] = ms.map(|ms| format!("{ms}ms"));
    let (address, players) = (gateway.addresses().tcp[0].to_string(), players.to_string());
    let pace = match rate {
        Some(rate) => [format!("--rate={rate}"), "--in-flight=90".to_owned()],
        None => ["--in-flight=1".to_owned(), "--connect-rate=0".to_owned()],
    };
    let given = ["load", &address, "-c", &players, "--timeout", PATIENCE];
    let line = given.into_iter().chain(["--warmup", &warmup, "--duration", &duration]).chain([
        "--route",
        "room.test.sleep",
        "--payload",
        HELD,
    ]);
    let line = Line::parse_from(line.chain(pace.iter().map(String::as_str)));
    load::run(&line.load).unwrap()
}

fn refused(report: &Report) -> u64 {
    report.requests.errors.get("PIT-503").copied().unwrap_or(0)
}

/// The peak that was measured, a second, if nine tenths of it are served at three times the load.
fn serves_its_peak(gateway: &Gateway, players: u32, driver: &str) -> Option<f64> {
    let full = ask(gateway, 2 * PLACES, None, [300, 1_000]);
    assert_eq!(full.errors, 0, "{driver}: {:?}", full.requests);
    let peak = full.requests.per_second;
    let above = ask(gateway, players, Some((3.0 * peak) as u32), [700, 1_500]);
    let served = above.requests.per_second;
    println!("{driver}: {served:.0} of {peak:.0} a second served, {:?}", above.requests);
    // Nothing was given up by its player, and nobody was thrown out.
    let only_refusals = BTreeMap::from([("PIT-503".to_owned(), refused(&above))]);
    assert_eq!(above.requests.errors, only_refusals, "{driver}");
    assert_eq!((above.requests.unsent, above.requests.late), (0, 0), "{driver}");
    assert!(above.connections.lost.is_empty(), "{driver}: {:?}", above.connections);
    (served >= 0.9 * peak).then_some(peak)
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
        // A machine with other work is slower from one second to the next, which goodput against an earlier peak shows as a
        // loss; a mechanism that loses capacity loses it each time.
        let is_kept = |_| serves_its_peak(&gateway, players, driver);
        let peak = (0..ROUNDS).find_map(is_kept).expect("goodput is 90 % of the peak");

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
