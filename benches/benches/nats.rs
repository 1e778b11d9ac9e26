//! What one forwarded request costs in the NATS and protobuf code, without sockets: the sizes are those of a small
//! captured request (cluster protocol 23.1).
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use proto::wire::{RequestView, ResponseView, SysRequest, encode_session};
use shared::metadata::{MetadataFields, MetadataPrefix, encode_metadata};
use shared::nats::encoder::{CRLF, publish_head};
use shared::nats::parser::parse;
use shared::nats::{Client, ConnectOptions, Event, ParseLimits};

const SERVER_ID: &str = "7dfc7114-5665-441d-8313-8de431c0a25c";
const SUBJECT: &[u8] = b"pitaya/servers/room/91e47eed-e4fb-4c7d-8cca-bbeceb07b7a1";
const REPLY: &[u8] = b"_INBOX.OoarC9RN55jSeqgc6P9597.17";
const ANSWER: &[u8] =
    b"MSG _INBOX.OoarC9RN55jSeqgc6P9597.17 1 16\r\n\x0a\x0e{\"msg\":\"hi a\"}\r\n";
/// Messages that one read brings under load.
const MESSAGES_PER_READ: usize = 64;

fn session() -> Vec<u8> {
    let mut session = Vec::new();
    encode_session(1, "", b"{\"ipversion\":\"ipv4\"}", &mut session);
    session
}

fn metadata(prefix: &MetadataPrefix, out: &mut Vec<u8>) {
    let fields = MetadataFields {
        prefix,
        route: "room.room.echo",
        start_ns: 1_795_220_528_566_124_939,
        timeout: "5s",
        request_number: 1_000_000,
    };
    encode_metadata(black_box(&fields), out);
}

fn request<'a>(session: &'a [u8], metadata: &'a [u8]) -> SysRequest<'a> {
    SysRequest {
        session,
        message_id: 2,
        route: "room.room.echo",
        payload: b"{\"name\":\"a\"}",
        is_notify: false,
        frontend_id: SERVER_ID,
        metadata,
    }
}

fn receive(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nats receive");
    let stream = ANSWER.repeat(MESSAGES_PER_READ);
    group.throughput(Throughput::Elements(MESSAGES_PER_READ as u64));
    let limits = ParseLimits::default();
    group.bench_function("parser", |bencher| {
        bencher.iter(|| {
            let mut rest = black_box(&stream[..]);
            while let Ok(Some((operation, consumed))) = parse(rest, &limits) {
                black_box(operation);
                rest = &rest[consumed..];
            }
        });
    });
    let mut client = Client::new(Arc::new(ConnectOptions::default()));
    client.handle_bytes(b"INFO {}\r\nPONG\r\n", &mut |_| {}).expect("a plain greeting");
    group.bench_function("client and response view", |bencher| {
        bencher.iter(|| {
            let mut handle = |event: Event<'_>| {
                if let Event::Message(message) = event {
                    black_box(ResponseView::decode(message.payload)).expect("a valid response");
                }
            };
            client.handle_bytes(black_box(&stream), &mut handle).expect("a valid stream");
        });
    });
    group.finish();
}

fn send(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nats send");
    group.throughput(Throughput::Elements(1));
    let session = session();
    let prefix = MetadataPrefix::new(SERVER_ID, "connector", "Rww27amaCG5z.");
    let mut encoded_metadata = Vec::new();
    metadata(&prefix, &mut encoded_metadata);
    let mut out = Vec::with_capacity(4096);
    group.bench_function("publish head", |bencher| {
        bencher.iter(|| {
            out.clear();
            publish_head(&mut out, black_box(SUBJECT), Some(black_box(REPLY)), black_box(300));
        });
    });
    group.bench_function("metadata", |bencher| {
        bencher.iter(|| {
            out.clear();
            metadata(&prefix, &mut out);
        });
    });
    group.bench_function("request", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(request(&session, &encoded_metadata)).encode(&mut out);
        });
    });
    group.bench_function("whole message", |bencher| {
        bencher.iter(|| {
            out.clear();
            encoded_metadata.clear();
            metadata(&prefix, &mut encoded_metadata);
            let request = black_box(request(&session, &encoded_metadata));
            publish_head(&mut out, SUBJECT, Some(REPLY), request.encoded_bytes());
            request.encode(&mut out);
            out.extend_from_slice(CRLF);
        });
    });
    group.finish();
}

fn worker_side(criterion: &mut Criterion) {
    let (session, mut encoded) = (session(), Vec::new());
    request(&session, b"{\"reqTimeout\":\"5s\"}").encode(&mut encoded);
    criterion.bench_function("request view", |bencher| {
        bencher.iter(|| black_box(RequestView::decode(black_box(&encoded))).is_ok());
    });
}

criterion_group!(benches, receive, send, worker_side);
criterion_main!(benches);
