//! Soak: a mixed load for as long as is wished, with memory, descriptors and latency over time, judged flat.
//!
//! The mix: players that ask and are pushed to, players that come and go, and clients that misbehave. Without faults:
//! whatever grows here grows by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use client::raw::RawClient;
use shared::packet::PacketType;

use crate::cluster::{Cluster, GATEWAYS};
use crate::player::{Notes, play};
use crate::process::until;

const PLAYERS: usize = 8;
/// Samples of one run.
const SAMPLES: usize = 12;
/// Growth between a third of the time, when everything is warm, and the end; more is a leak.
const GROWTH_MAX: f64 = 0.05;
/// Pages that an allocator takes in steps, and what a debug build allocates on top.
const GROWTH_BYTES_MAX: u64 = 6 << 20;
/// A machine that does something else for a moment is not a gateway that becomes slower.
const LATENCY_US_MIN: u64 = 100_000;

#[derive(Debug)]
struct Sample {
    at: Duration,
    bytes: [u64; GATEWAYS],
    descriptors: [usize; GATEWAYS],
    answers: u64,
    p50_us: u64,
    p99_us: u64,
}

/// Runs for so long.
pub(crate) fn run(duration: Duration) {
    let cluster = Arc::new(Cluster::start());
    cluster.wait_ready();
    let notes = Arc::new(Notes::new(PLAYERS));
    let begun = Instant::now();
    let players: Vec<_> =
        (0..PLAYERS).map(|number| play(number, 1, cluster.clone(), notes.clone(), begun)).collect();
    let (guests, guests_notes) = (cluster.clone(), notes.clone());
    let guests = std::thread::spawn(move || entertain_guests(&guests, &guests_notes));
    let mut samples = Vec::new();
    println!("   time  resident (MiB)   descriptors    answers      p50       p99");
    for number in 1..=SAMPLES {
        let until = duration * number as u32 / SAMPLES as u32;
        std::thread::sleep(until.saturating_sub(begun.elapsed()));
        samples.push(Sample::take(&cluster, &notes, begun));
    }
    notes.stop.store(true, Ordering::SeqCst);
    for thread in players.into_iter().chain([guests]) {
        thread.join().expect("a player failed");
    }
    notes.check();
    assert!(notes.errors.lock().unwrap().values().sum::<u64>() <= 20, "{:?}", notes.errors);
    judge(&samples);
    cluster.check_alive();
    for gateway in &cluster.gateways {
        let gateway = gateway.read().unwrap();
        until("everybody has left", || gateway.counter("pitaya_acceptor_connected_clients") == 0);
        until("nothing is under way", || gateway.counter("pitaya_handler_requests_in_flight") == 0);
        gateway.check_accounts();
    }
}

impl Sample {
    fn take(cluster: &Cluster, notes: &Notes, begun: Instant) -> Self {
        let mut latencies = std::mem::take(&mut *notes.latencies_us.lock().unwrap());
        latencies.sort_unstable();
        let quantile = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
        };
        let of = |number: usize| {
            let gateway = cluster.gateways[number].read().unwrap();
            (gateway.program.resident_bytes(), gateway.program.descriptors())
        };
        let all: [(u64, usize); GATEWAYS] = std::array::from_fn(of);
        let sample = Self {
            at: begun.elapsed(),
            bytes: all.map(|(bytes, _)| bytes),
            descriptors: all.map(|(_, descriptors)| descriptors),
            answers: latencies.len() as u64,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
        };
        println!(
            "{:5.1} s  {:7.2} {:7.2}  {:6} {:6}  {:9}  {:4.1} ms  {:5.1} ms",
            sample.at.as_secs_f32(),
            sample.bytes[0] as f64 / f64::from(1 << 20),
            sample.bytes[1] as f64 / f64::from(1 << 20),
            sample.descriptors[0],
            sample.descriptors[1],
            sample.answers,
            sample.p50_us as f64 / 1_000.0,
            sample.p99_us as f64 / 1_000.0,
        );
        sample
    }
}

/// The last third is like the middle one; the first is for warming up.
fn judge(samples: &[Sample]) {
    let third = SAMPLES / 3;
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    for gateway in 0..GATEWAYS {
        let most = |part: &[Sample]| part.iter().map(|it| it.bytes[gateway]).max().unwrap();
        let (before, after) = (most(middle), most(last));
        let limit = before + ((before as f64 * GROWTH_MAX) as u64).max(GROWTH_BYTES_MAX);
        assert!(after <= limit, "gateway {gateway}: {before} bytes became {after}");
        let fewest = |part: &[Sample]| part.iter().map(|it| it.descriptors[gateway]).min().unwrap();
        let (before, after) = (fewest(middle), fewest(last));
        assert!(after <= before + 8, "gateway {gateway}: {before} descriptors became {after}");
    }
    let typical = |part: &[Sample]| {
        let mut all: Vec<u64> = part.iter().map(|it| it.p99_us).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let (before, after) = (typical(middle), typical(last));
    assert!(after <= (3 * before).max(LATENCY_US_MIN), "p99 of {before} us became {after} us");
    assert!(samples.iter().all(|sample| sample.answers > 0), "nobody was served for a while");
}

/// Clients that come, misbehave in some way, and go, a few at a time.
fn entertain_guests(cluster: &Cluster, notes: &Notes) {
    let mut random = fastrand::Rng::with_seed(2);
    while !notes.stop.load(Ordering::SeqCst) {
        let gateway = random.usize(..GATEWAYS);
        let (tcp, ws) = {
            let process = cluster.gateways[gateway].read().unwrap();
            (process.tcp, process.ws)
        };
        let is_web = random.bool();
        let guest =
            if is_web { RawClient::connect_ws(ws, "/") } else { RawClient::connect_tcp(tcp) };
        let mut guest = guest.expect("a gateway takes guests");
        // What becomes of them is other tests' business; here they only must leave nothing behind.
        let _ = match random.u8(..6) {
            0 => guest.send_bytes(&[0xff; 64]),
            1 => guest.send_packet(PacketType::Handshake, b"{"),
            2 => guest.establish().map(drop),
            3 => guest.establish().and_then(|_| guest.send_packet(PacketType::Data, &[0; 3])),
            4 => guest
                .establish()
                .and_then(|_| guest.request("room.chaos.echo", &[7; 5_000]).map(drop)),
            _ => guest.establish().and_then(|_| guest.request("room.chaos.none", b"").map(drop)),
        };
        std::thread::sleep(Duration::from_millis(5));
    }
}
