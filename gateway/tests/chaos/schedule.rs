//! The chaos itself: a schedule of faults from a seed, one after the other, each followed by a recovery that is timed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Fault, GATEWAYS};
use crate::player::{Notes, play};
use crate::process::{SOON, until};

const PLAYERS: usize = 8;
/// Far beyond what is measured on a quiet machine, for busy ones.
const BACK_WITHIN: Duration = SOON;
/// What caches, pools and the kernel's rounding may keep after everybody has left, in a debug build.
const GROWTH_BYTES_MAX: u64 = 48 << 20;
/// Connections of the administration's port, timers and the like.
const GROWTH_DESCRIPTORS_MAX: usize = 6;

/// Runs chaos for so long; the same seed gives the same faults in the same order for the same times.
pub(crate) fn run(duration: Duration, seed: u64) {
    println!("chaos for {} s; CHAOS_SEED={seed} replays it", duration.as_secs());
    let cluster = Arc::new(Cluster::start());
    cluster.wait_ready();
    let before: Vec<(u64, usize)> = usage(&cluster);
    let notes = Arc::new(Notes::new(PLAYERS));
    let begun = Instant::now();
    let players: Vec<_> = (0..PLAYERS)
        .map(|number| play(number, seed, cluster.clone(), notes.clone(), begun))
        .collect();
    recover(&cluster, &notes, begun);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut deck = Vec::new();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < duration {
        if deck.is_empty() {
            deck = Fault::deck(&mut random);
        }
        let Some(fault) = deck.pop() else { continue };
        let time = Duration::from_millis(random.u64(100..1_800));
        let at = begun.elapsed();
        cluster.suffer(fault, time);
        let back = recover(&cluster, &notes, begun);
        println!("{:6.2} s  {fault:?} for {time:?}: all served {back:?} later", at.as_secs_f32());
        slowest = slowest.max(back);
        notes.check();
        // A while without faults, so that each is seen apart.
        std::thread::sleep(Duration::from_millis(random.u64(50..400)));
    }
    notes.stop.store(true, Ordering::SeqCst);
    for player in players {
        player.join().expect("a player failed");
    }
    notes.check();
    cluster.check_alive();
    println!(
        "{} answers, {} pushes, errors {:?}, {} connections made again, slowest recovery {slowest:?}",
        notes.answers.load(Ordering::SeqCst),
        notes.pushes.load(Ordering::SeqCst),
        notes.errors.lock().unwrap(),
        notes.reconnects.load(Ordering::SeqCst),
    );
    check_leaks(&cluster, &before);
}

fn usage(cluster: &Cluster) -> Vec<(u64, usize)> {
    let of = |number: usize| {
        let gateway = cluster.gateways[number].read().unwrap();
        (gateway.program.resident_bytes(), gateway.program.descriptors())
    };
    (0..GATEWAYS).map(of).collect()
}

/// Waits until every player was served after this moment; says how long it took.
fn recover(cluster: &Cluster, notes: &Notes, begun: Instant) -> Duration {
    let from_ms = begun.elapsed().as_millis() as u64;
    let since = Instant::now();
    loop {
        let is_served = |ms: &std::sync::atomic::AtomicU64| ms.load(Ordering::SeqCst) > from_ms;
        if notes.served_ms.iter().all(is_served) {
            return since.elapsed();
        }
        if since.elapsed() > BACK_WITHIN {
            for gateway in &cluster.gateways {
                eprintln!("{}\n", gateway.read().unwrap().program.log_end());
            }
            notes.check();
            panic!("somebody is not served again");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// With nobody connected a gateway has what it had, and its accounts balance.
fn check_leaks(cluster: &Cluster, before: &[(u64, usize)]) {
    for (number, (bytes, descriptors)) in before.iter().enumerate() {
        let gateway = cluster.gateways[number].read().unwrap();
        until("everybody has left", || gateway.counter("pitaya_acceptor_connected_clients") == 0);
        until("nothing is under way", || gateway.counter("pitaya_handler_requests_in_flight") == 0);
        gateway.check_accounts();
        let limit = descriptors + GROWTH_DESCRIPTORS_MAX;
        until("descriptors are back", || gateway.program.descriptors() <= limit);
        let grown = gateway.program.resident_bytes().saturating_sub(*bytes);
        println!("gateway {number}: {} KiB more than at the begin", grown >> 10);
        assert!(grown < GROWTH_BYTES_MAX, "gateway {number} has grown by {grown} bytes");
    }
}
