//! The seeded simulator: real reactors over a network in memory, with a clock, a NATS, backends and players of chance.
//!
//! Everything from the sockets up is the code that ships: framing, agent, forwarding, buses, binds, moves, ends. What is
//! drawn from the seed: who connects and what it does, in which pieces bytes arrive, what the network takes of a send,
//! how slow backends are and what nonsense they answer, when NATS breaks, when servers come and go, when time leaps.
//! After every step the tables must agree with each other, and what players and backends see must be what was promised.
//!
//! A failure prints its seed; `FUZZ_SEED` replays it, `FUZZ_FACTOR` plays more games (`./dev fuzz`).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "simulation/backend.rs"]
mod backend;
#[path = "simulation/nats.rs"]
mod nats;
#[path = "simulation/player.rs"]
mod player;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use world::{Totals, World};

/// Games of an ordinary run, and steps of each.
const GAMES: u64 = 12;
const STEPS: usize = 1_500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Plays one game; names the seed when it fails.
fn play(seed: u64, steps: usize) -> Totals {
    let game = AssertUnwindSafe(|| World::new(seed).play(steps));
    catch_unwind(game).unwrap_or_else(|panic| {
        eprintln!("the game of seed {seed} failed; FUZZ_SEED={seed} FUZZ_FACTOR=0 replays it");
        resume_unwind(panic)
    })
}

#[test]
fn whatever_players_servers_and_the_network_do_every_promise_is_kept() {
    let first = number("FUZZ_SEED").unwrap_or(1);
    // Without any factor left it is one game: a replay.
    let games = (GAMES * number("FUZZ_FACTOR").unwrap_or(1)).max(1);
    let mut all = Totals::default();
    for seed in first..first + games {
        all.add(&play(seed, STEPS));
    }
    println!("{games} games from seed {first}: {all:?}");
    if games >= GAMES {
        assert!(all.is_eventful(), "the games were too quiet to mean anything: {all:?}");
    }
}

#[test]
fn a_seed_plays_the_same_game_each_time() {
    let seed = number("FUZZ_SEED").unwrap_or(77);
    assert_eq!(play(seed, STEPS), play(seed, STEPS));
}
