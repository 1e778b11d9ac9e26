//! What comes and goes leaves no byte behind: connections good and bad, users, requests and pushes, at gateway and worker.
//!
//! Counted are the bytes that the process holds, not the memory that the allocator keeps, which would hide a small leak and
//! show one where there is none. One test in a binary of its own, over a real NATS server and etcd.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(dead_code, unused_imports, reason = "other tests use the rest of the parts")]

#[path = "support/asking.rs"]
mod asking;
#[path = "cluster/backend.rs"]
mod backend;
#[path = "../../shared/tests/servers/mod.rs"]
mod servers;
#[path = "cluster/world.rs"]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use client::raw::RawClient;
use gateway::gateway::Gateway;
use shared::packet::PacketType;
use world::World;

struct Counting;

/// Bytes that are allocated now.
static HELD: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here and there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` or `realloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_add(size as i64 - layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as for `dealloc`; the caller keeps the contract about the size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rounds of one kind; the first warms up what is kept for the next.
const ROUNDS: usize = 4;
const GUESTS: usize = 150;
/// Growth of the counted rounds together that is no leak: a table that doubled, a line of the log on its way.
const GROWTH_BYTES_MAX: i64 = 40 << 10;
const LONG: Duration = Duration::from_secs(20);

/// One visit, from the connect to the end that one of both makes.
#[derive(Clone, Copy, Debug)]
enum Visit {
    Garbage,
    BrokenHandshake,
    WebSocketGarbage,
    Greeting,
    UnknownRoute,
    Requests,
    Bind,
    Pushes,
}

const VISITS: [Visit; 8] = [
    Visit::Garbage,
    Visit::BrokenHandshake,
    Visit::WebSocketGarbage,
    Visit::Greeting,
    Visit::UnknownRoute,
    Visit::Requests,
    Visit::Bind,
    Visit::Pushes,
];

impl Visit {
    fn connect(self, gateway: &Gateway) -> RawClient {
        let mut guest = match self {
            Self::WebSocketGarbage => {
                RawClient::connect_ws(gateway.addresses().ws[0], "/").unwrap()
            }
            _ => RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap(),
        };
        guest.set_timeout(LONG);
        guest
    }

    fn make(self, number: usize, guest: &mut RawClient) {
        match self {
            Self::Garbage | Self::WebSocketGarbage => guest.send_bytes(&[0xff; 64]).unwrap(),
            Self::BrokenHandshake => guest.send_packet(PacketType::Handshake, b"{").unwrap(),
            _ => drop(guest.establish().unwrap()),
        }
        match self {
            // The gateway ends these.
            Self::Garbage | Self::WebSocketGarbage | Self::BrokenHandshake => {
                while guest.read_packet(LONG).is_ok() {}
            }
            Self::Greeting => {}
            Self::UnknownRoute => assert!(guest.request("room.test.none", b"").unwrap().is_error),
            Self::Requests => {
                for bytes in [1, 100, 5_000] {
                    let answer = guest.request("room.test.echo", &vec![7; bytes]).unwrap();
                    assert!(!answer.is_error);
                }
            }
            // The same users again and again: of each a little is remembered for a while.
            Self::Bind => bind(guest, &format!("user-{number}")),
            Self::Pushes => {
                bind(guest, "ann");
                let id = guest.send_request("room.test.flood", br#"{"n":20,"size":100}"#).unwrap();
                for _ in 0..20 {
                    guest.read_push(LONG).unwrap();
                }
                guest.read_response(id, LONG).unwrap();
            }
        }
    }
}

fn bind(guest: &mut RawClient, uid: &str) {
    let body = format!("{{\"name\":\"{uid}\"}}");
    assert!(!guest.request("room.test.bind", body.as_bytes()).unwrap().is_error);
}

#[test]
fn what_comes_and_goes_leaves_no_byte_behind() {
    let world = World::new();
    let gateway = world.gateway("auto", &[]);
    let worker = world.worker("room-1");
    let mut host = world::tcp(&gateway);
    world::until_answered(&mut host, "room.test.echo", b"x");
    for visit in VISITS {
        let mut held = Vec::new();
        for _ in 0..ROUNDS {
            for number in 0..GUESTS {
                visit.make(number, &mut visit.connect(&gateway));
            }
            // What the last guest held goes when the gateway has noticed.
            let mut last = 0;
            world::until("nothing changes any more", || {
                let before = std::mem::replace(&mut last, HELD.load(Ordering::Relaxed));
                (before == last).then_some(())
            });
            held.push(last);
        }
        let grown = held[ROUNDS - 1] - held[0];
        assert!(grown < GROWTH_BYTES_MAX, "{visit:?}: {grown} bytes more: {held:?}");
    }
    world.stop_worker(worker);
}
