//! Wake-ups, time-outs, system calls a turn, and which driver is chosen.

use crate::world::{DEADLINE, World};
use gateway::driver::{Driver, Event, Kind, Options};
use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

both_drivers! {
    wake_ups_of_many_threads_become_one_event
    a_wake_up_ends_a_wait_that_has_no_end
    a_wake_up_before_the_wait_is_not_lost
    a_wait_ends_with_its_timeout
    an_echo_costs_one_entry_into_the_kernel_a_turn
}

fn wake_ups_of_many_threads_become_one_event(kind: Kind) {
    let mut world = World::new(kind);
    for round in 1..=3 {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let waker = world.driver.waker();
                thread::spawn(move || (0..100).for_each(|_| waker.wake()))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        world.until("the event", |world| world.woken >= round);
        world.driver.wait(Some(Duration::ZERO)).unwrap();
        world.drain();
        assert_eq!(world.woken, round, "eight hundred wake-ups are one event");
    }
}

fn a_wake_up_ends_a_wait_that_has_no_end(kind: Kind) {
    let mut world = World::new(kind);
    let waker = world.driver.waker();
    let (told, tell) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        tell.recv().unwrap();
        waker.wake();
    });
    told.send(()).unwrap();
    while world.woken == 0 {
        world.driver.wait(None).unwrap();
        world.drain();
    }
    thread.join().unwrap();
}

fn a_wake_up_before_the_wait_is_not_lost(kind: Kind) {
    let (mut driver, _) = Driver::open(kind, &Options::default()).unwrap();
    driver.waker().wake();
    let start = Instant::now();
    driver.wait(Some(DEADLINE)).unwrap();
    assert!(matches!(driver.next(), Some(Event::Woken)));
    assert!(start.elapsed() < DEADLINE / 2);
}

fn a_wait_ends_with_its_timeout(kind: Kind) {
    let (mut driver, _) = Driver::open(kind, &Options::default()).unwrap();
    let timeout = Duration::from_millis(30);
    let start = Instant::now();
    driver.wait(Some(timeout)).unwrap();
    assert!(driver.next().is_none());
    let took = start.elapsed();
    assert!(took >= timeout && took < DEADLINE / 2, "took {took:?}");
    let start = Instant::now();
    driver.wait(Some(Duration::ZERO)).unwrap();
    assert!(start.elapsed() < DEADLINE / 2);
}

fn an_echo_costs_one_entry_into_the_kernel_a_turn(kind: Kind) {
    let mut world = World::new(kind);
    let (token, mut client) = world.connect();
    let mut turns = 0;
    for round in 1..=50_usize {
        client.write_all(b"ping").unwrap();
        while world.text(token).len() < 4 * round || world.is_sending(token) {
            world.turn();
            turns += 1;
            if world.text(token).len() == 4 * round && !world.sent.contains_key(&token) {
                world.send(token, b"pong");
            }
        }
        world.sent.clear();
        let mut answer = [0; 4];
        world.driver.flush().unwrap();
        client.read_exact(&mut answer).unwrap();
    }
    let enters = world.driver.stats().enters;
    assert!(enters <= turns + 50, "{enters} entries in {turns} turns");
}

#[test]
fn auto_takes_the_ring_where_there_is_one() {
    let (driver, chosen) = Driver::open(Kind::Auto, &Options::default()).unwrap();
    assert!(matches!(driver, Driver::Uring(_)), "{chosen}");
    assert_eq!(chosen.kind, Kind::Uring);
    assert!(chosen.to_string().starts_with("uring: io_uring with "), "{chosen}");
    assert_eq!((driver.sockets(), driver.stats().completions), (0, 0), "the trial left nothing");
}

#[test]
fn auto_falls_back_where_the_ring_is_forbidden_and_says_why() {
    // A filter binds its thread only, and those that it starts.
    let thread = thread::spawn(|| {
        forbid_io_uring();
        let refusal = Driver::open(Kind::Uring, &Options::default()).unwrap_err();
        assert!(refusal.to_string().starts_with("io_uring_setup: Operation not permitted"));
        let (driver, chosen) = Driver::open(Kind::Auto, &Options::default()).unwrap();
        assert!(matches!(driver, Driver::Epoll(_)));
        assert_eq!(chosen.kind, Kind::Epoll);
        assert_eq!(
            chosen.to_string(),
            "epoll: io_uring_setup: Operation not permitted (os error 1)"
        );
    });
    thread.join().unwrap();
}

/// What the seccomp profile of a container does: `io_uring_setup` answers EPERM.
fn forbid_io_uring() {
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        // The number of the system call lies at the begin of `seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: number,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls read their arguments only, and `filter` lives through the second.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter), 0);
    }
}
