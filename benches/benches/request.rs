//! What one small request costs in the pure parts of the gateway, each by itself: the codecs of packets, messages and WebSocket
//! frames, the agent, the limiter, routes and the choice of a server. No sockets, no clock.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shared::agent::{Agent, AgentRules};
use shared::dictionary::Dictionary;
use shared::handshake::{HandshakeOptions, HandshakeResponses};
use shared::limiter::{Limiter, LimiterRule};
use shared::message::{self, Head, MessageType};
use shared::packet::{self, Packet, PacketType};
use shared::route::Route;
use shared::router::{self, Candidate, Policy, State};
use shared::websocket::frame::{Decoder, FrameLimits, Opcode, Role, apply_mask, frame_head};

const ROUTE: &str = "room.room.echo";
/// Payloads of the comparison, bytes.
const PAYLOADS: [usize; 2] = [64, 512];
const BODY_BYTES_MAX: usize = 64 * 1024;
const MASK: [u8; 4] = [1, 2, 3, 4];

fn head(kind: MessageType) -> Head<'static> {
    Head { kind, id: 7, route: ROUTE, is_compressed: false, is_error: false }
}

/// A whole packet with a message.
fn packet_of(kind: MessageType, payload: &[u8], dictionary: &Dictionary, out: &mut Vec<u8>) {
    let head = head(kind);
    let body_bytes = message::head_bytes(&head, dictionary) + payload.len();
    let header = packet::header(PacketType::Data, body_bytes).expect("it fits");
    out.extend_from_slice(&header);
    message::encode_head(&head, dictionary, out).expect("a route that can be sent");
    out.extend_from_slice(payload);
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet and message");
    let mut dictionary = Dictionary::default();
    dictionary.insert_all([("room.room.echo", 4), ("room.room.join", 5)]).expect("two routes");
    for bytes in PAYLOADS {
        let payload = vec![b'x'; bytes];
        let mut request = Vec::new();
        packet_of(MessageType::Request, &payload, &dictionary, &mut request);
        group.throughput(Throughput::Bytes(request.len() as u64));
        group.bench_function(format!("decode a request of {bytes} bytes"), |bencher| {
            bencher.iter(|| {
                let decoded = packet::decode(black_box(&request), BODY_BYTES_MAX);
                let (packet, _) = decoded.expect("a packet").expect("a whole one");
                let message = message::decode(packet.body, &dictionary).expect("a message");
                black_box(message.payload.len())
            });
        });
        let mut out = Vec::with_capacity(4_096);
        group.bench_function(format!("encode a response of {bytes} bytes"), |bencher| {
            bencher.iter(|| {
                out.clear();
                packet_of(MessageType::Response, black_box(&payload), &dictionary, &mut out);
            });
        });
    }
    group.finish();
}

fn web_socket(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("websocket frame");
    for bytes in PAYLOADS {
        let mut frame = Vec::new();
        frame_head(Opcode::Binary, bytes, Some(MASK), &mut frame);
        let start = frame.len();
        frame.resize(start + bytes, b'x');
        apply_mask(&mut frame[start..], MASK);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        let limits = FrameLimits::new(BODY_BYTES_MAX);
        let mut decoder = Decoder::new(Role::Server);
        let mut copy = frame.clone();
        group.bench_function(format!("decode and unmask {bytes} bytes"), |bencher| {
            bencher.iter(|| {
                // Unmasked in place, so each round begins with a fresh copy.
                copy.copy_from_slice(&frame);
                let taken = decoder.decode(black_box(&mut copy), &limits).expect("a frame");
                black_box(taken.is_some())
            });
        });
        let payload = vec![b'x'; bytes];
        let mut out = Vec::with_capacity(4_096);
        group.bench_function(format!("encode {bytes} bytes"), |bencher| {
            bencher.iter(|| {
                out.clear();
                frame_head(Opcode::Binary, bytes, None, &mut out);
                out.extend_from_slice(black_box(&payload));
            });
        });
    }
    group.finish();
}

fn agent_rules(limiter: Option<LimiterRule>) -> AgentRules {
    let options = HandshakeOptions {
        heartbeat_s: 30,
        dictionary: &Dictionary::default(),
        serializer: "json",
        compression: true,
    };
    AgentRules {
        heartbeat_ms: 30_000,
        silence_ms: AgentRules::silence_ms(30_000),
        handshake_timeout_ms: 10_000,
        handshake_bytes_max: 4_096,
        responses: HandshakeResponses::new(&options).expect("a small dictionary"),
        limiter,
        checks: Vec::new(),
    }
}

fn agent(criterion: &mut Criterion) {
    let rule = LimiterRule { limit: 1_000_000, interval_ms: 1 };
    for (name, limiter) in [("agent, a data packet", None), ("agent with limiter", Some(rule))] {
        let rules = agent_rules(limiter);
        let mut agent = Agent::new(&rules, 0);
        for (kind, body) in
            [(PacketType::Handshake, &b"{\"sys\":{}}"[..]), (PacketType::HandshakeAck, b"")]
        {
            agent.handle_packet(Packet { kind, body }, &rules, 0).expect("a handshake");
        }
        let mut now_ms = 0;
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                now_ms += 1;
                let packet = Packet { kind: PacketType::Data, body: black_box(b"body") };
                agent.handle_packet(packet, &rules, now_ms).is_ok()
            });
        });
    }
    let mut limiter = Limiter::new(&LimiterRule { limit: 20, interval_ms: 1_000 });
    let mut now_ms = 0;
    criterion.bench_function("limiter", |bencher| {
        bencher.iter(|| {
            now_ms += 40;
            limiter.allow(black_box(now_ms))
        });
    });
}

fn route(criterion: &mut Criterion) {
    criterion.bench_function("route, parsed", |bencher| {
        bencher.iter(|| Route::parse(black_box(ROUTE)).is_ok());
    });
    let mut group = criterion.benchmark_group("router");
    for servers in [1_u32, 4, 64] {
        let candidates: Vec<Candidate> = (0..servers)
            .map(|number| Candidate {
                identity: router::identity(&format!("server-{number}")),
                in_flight: number % 7,
                window: 25,
                is_previous: number == 1,
                is_suspect: number == 3,
            })
            .collect();
        let mut state = State::new(1);
        for (name, policy) in [
            ("random", Policy::Random),
            ("round robin", Policy::RoundRobin),
            ("least in flight", Policy::LeastInFlight),
            ("consistent hash", Policy::ConsistentHash),
            ("sticky", Policy::Sticky),
        ] {
            group.bench_function(format!("{name} of {servers}"), |bencher| {
                bencher.iter(|| router::pick(policy, black_box(&candidates), "user", &mut state));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, codec, web_socket, agent, route);
criterion_main!(benches);
