//! The hot path of the core allocates nothing once it is warm.
//!
//! One test in a binary of its own: the count is of the whole process, so nothing may run beside it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use shared::compression::{Deflater, Inflater};
use shared::dictionary::Dictionary;
use shared::limiter::{Limiter, LimiterRule};
use shared::message::{self, Head, MessageType};
use shared::metrics::{
    CloseReason, CodeLabel, CoreCounter, DelayType, Exporter, ExporterOptions, ResponseType,
};
use shared::packet::{self, PacketType};
use shared::route::Route;
use shared::session::{IpVersion, Session, SessionId};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here and there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` or `realloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`; the caller keeps the contract about the size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_warm_core_does_not_allocate() {
    let mut dictionary = Dictionary::default();
    dictionary.insert_all([("room.room.join", 260), ("onMessage", 4)]).unwrap();
    let mut limiter = Limiter::new(&LimiterRule { limit: 20, interval_ms: 1_000 });
    let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
    let exporter = Exporter::new(&ExporterOptions::default()).unwrap();
    let mut core = exporter.core();
    let session = Session::new(SessionId(1), IpVersion::V4);
    let payload = "abcdefgh".repeat(500);
    let mut out = Vec::with_capacity(16 * 1024);

    let mut turn = |now_ms: u64| {
        out.clear();
        let head = Head {
            kind: MessageType::Request,
            id: now_ms,
            route: "room.room.join",
            is_compressed: true,
            is_error: false,
        };
        let compressed = deflater.deflate(payload.as_bytes(), 128).unwrap();
        let body_bytes = message::head_bytes(&head, &dictionary) + compressed.len();
        out.extend_from_slice(&packet::header(PacketType::Data, body_bytes).unwrap());
        message::encode_head(&head, &dictionary, &mut out).unwrap();
        out.extend_from_slice(compressed);

        let (packet, _) = packet::decode(&out, 65_536).unwrap().unwrap();
        let message = message::decode(packet.body, &dictionary).unwrap();
        let route = std::str::from_utf8(message.route).unwrap();
        assert!(Route::parse(route).is_ok());
        let plain = inflater.inflate(message.payload, 65_536).unwrap();
        assert_eq!(plain.len(), payload.len());
        limiter.allow(now_ms);
        assert!(!session.encoded().is_empty());
        core.counters.increment(CoreCounter::Requests);
        core.counters.closed(CloseReason::PeerClosed);
        core.latency.delay(route, DelayType::Remote, now_ms);
        core.latency.response(route, ResponseType::Handler, CodeLabel::Ok, now_ms);
        core.latency.response("made.up", ResponseType::Handler, CodeLabel::NotFound, now_ms);
    };

    turn(1);
    turn(2);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for now_ms in 3..500 {
        turn(now_ms);
    }
    // The test harness itself may allocate now and then; one allocation a turn would be hundreds.
    let during = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(during < 20, "{during} allocations in 497 turns");
}
