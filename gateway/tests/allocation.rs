//! A warm reactor forwards requests and brings back their answers without allocating, on either driver.
//!
//! One test in a binary of its own: what is counted is what the process allocates during a step.
#![cfg(target_os = "linux")]

#[path = "support/stepped.rs"]
mod stepped;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gateway::reactor::Reactor;
use stepped::World;

struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if IS_COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here and there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` or `realloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`; the caller keeps the contract about the size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests before counting: every slot that rotates has been used then, and every buffer has grown.
const WARMUP: u64 = 500;
const COUNTED: u64 = 2_000;

fn turn(reactor: &mut Reactor) -> bool {
    IS_COUNTING.store(true, Ordering::Relaxed);
    let is_running = reactor.step();
    IS_COUNTING.store(false, Ordering::Relaxed);
    is_running
}

#[test]
fn a_warm_reactor_forwards_without_allocating() {
    for driver in stepped::drivers() {
        let mut world = World::open(driver, 1, turn);
        world.greet();
        let mut out = Vec::new();
        // One at a time, which travel plainly, and several at once, which travel together.
        for together in [1, 8] {
            let mut ids = (1..).step_by(together as usize);
            for id in ids.by_ref().take(WARMUP as usize) {
                world.request(id, together, &mut out);
            }
            let (before, batched) = (ALLOCATIONS.load(Ordering::Relaxed), world.nats.batched);
            for id in ids.take(COUNTED as usize) {
                world.request(id, together, &mut out);
            }
            let during = ALLOCATIONS.load(Ordering::Relaxed) - before;
            let batched = world.nats.batched - batched;
            let expected = if together > 1 { COUNTED * together } else { 0 };
            assert_eq!(batched, expected, "{driver:?}: requests in batches of {together}");
            // The tick may allocate now and then; one allocation a request would be thousands.
            assert!(during < COUNTED / 50, "{driver:?}: {during} allocations, {together} at once");
        }
    }
}
