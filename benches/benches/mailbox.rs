//! What a letter into a reactor costs its sender and the reactor: the only crossing of threads in the gateway.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gateway::driver::{Driver, Kind, Options};
use gateway::mailbox::{Mail, Mailbox};

/// Letters between two turns of a busy reactor.
const BATCH: usize = 64;

fn answer(response: &Bytes) -> Mail {
    Mail::Answer { bus: 0, token: 1, response: response.clone() }
}

fn letters(criterion: &mut Criterion) {
    let (driver, _) = Driver::open(Kind::Epoll, &Options::default()).expect("epoll is everywhere");
    let mailbox = Mailbox::new(driver.waker());
    let response = Bytes::from_static(b"\x0a\x05hello");
    let mut group = criterion.benchmark_group("mailbox");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("send and take 64", |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                assert!(mailbox.send(answer(&response)).is_ok(), "the box has room");
            }
            while mailbox.take().is_some() {}
        });
    });
    group.finish();
}

criterion_group!(benches, letters);
criterion_main!(benches);
