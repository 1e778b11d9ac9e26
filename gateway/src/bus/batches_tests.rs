//! Batches as lines: what gathers, what is written when, and under which subjects. The way over a real nats-server is in
//! `tests/cluster/batches.rs`.

use std::sync::Arc;

use proto::wire::BatchView;
use shared::router::Policy;
use shared::routing::Routing;
use shared::server::{METADATA_PROTOCOL, PROTOCOL_BATCHES, Server};
use shared::session::SessionId;

use super::*;
use crate::bus::pending::Pending;
use crate::bus::probes::Probes;
use crate::bus::subscriptions::Subscriptions;
use crate::bus::targets::{Choice, Seeker, TargetLimits};
use crate::bus::{Readiness, homes::Homes};
use crate::driver::Token;

/// A line of NATS: subject, reply, payload.
type Line = (String, String, Vec<u8>);

fn server(id: &str, server_type: &str, protocol: Option<&str>) -> Arc<Server> {
    let protocol = protocol.map(|words| (METADATA_PROTOCOL.to_owned(), words.to_owned()));
    Arc::new(Server {
        id: id.into(),
        server_type: server_type.into(),
        metadata: protocol.into_iter().collect(),
        frontend: false,
        hostname: String::new(),
    })
}

fn bus_with(has_batches: bool, payload_bytes_max: usize) -> BusState {
    let limits = TargetLimits {
        window: 1_000,
        reactors: 1,
        waiting_max: 10,
        waiting_age_max_us: 1_000_000,
        has_batches,
    };
    let mut lines = NatsLines::new();
    lines.restart("abc", payload_bytes_max);
    BusState {
        id: 0,
        is_primary: true,
        carrier: Carrier::Nats(lines),
        local: None,
        readiness: Readiness::Ready,
        pending: PendingTable::default(),
        subscriptions: Subscriptions::default(),
        targets: Targets::new(limits, Arc::new(Routing::new(Policy::LeastInFlight)), None),
        probes: Probes::default(),
        proofs: Vec::new(),
    }
}

/// A bus that knows one server of ours, `new`, and one of Go's, `old`.
fn bus() -> (BusState, u32, u32) {
    let mut bus = bus_with(true, 1 << 20);
    bus.update_servers(&table());
    let (new, old) = (target(&mut bus, "new"), target(&mut bus, "old"));
    (bus, new, old)
}

fn table() -> ServerTable {
    ServerTable::new([server("n", "new", Some(PROTOCOL_BATCHES)), server("o", "old", None)], 1)
}

fn target(bus: &mut BusState, server_type: &str) -> u32 {
    let homes = Homes::default();
    let anybody = Seeker { uid: "", homes: &homes, chosen: None };
    match bus.targets.choose(server_type, &anybody, 0) {
        Choice::Target(key) => key,
        other => panic!("{other:?}"),
    }
}

fn put(bus: &mut BusState, target: u32, message: &[u8]) -> u32 {
    let pending = Pending {
        connection: Token::from_bits(1),
        session: SessionId(1),
        message_id: 1,
        target,
        arrived_us: 0,
        sent_ms: 0,
        deadline_ms: 10,
        route: shared::metrics::RouteLabel::OTHER,
        unlabelled: None,
        is_retry: false,
    };
    let token = bus.pending.insert(pending).unwrap();
    let leaving = Leaving { target, token: Some(token), bytes: message.len(), is_kept: true };
    bus.put(&leaving, |out| out.extend_from_slice(message));
    token
}

fn notify(bus: &mut BusState, target: u32, message: &[u8]) {
    let leaving = Leaving { target, token: None, bytes: message.len(), is_kept: false };
    bus.put(&leaving, |out| out.extend_from_slice(message));
}

fn lines(bus: &mut BusState) -> Vec<Line> {
    let Carrier::Nats(lines) = &mut bus.carrier else { panic!("no lines") };
    let out = std::mem::take(&mut lines.out);
    let (mut rest, mut all) = (&out[..], Vec::new());
    while !rest.is_empty() {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let line = std::str::from_utf8(&rest[..end]).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let ["PUB", subject, reply, bytes] = words[..] else { panic!("{line}") };
        let payload_end = end + 2 + bytes.parse::<usize>().unwrap();
        all.push((subject.into(), reply.into(), rest[end + 2..payload_end].to_vec()));
        assert_eq!(&rest[payload_end..payload_end + 2], b"\r\n");
        rest = &rest[payload_end + 2..];
    }
    all
}

/// The lines at the turn's end.
fn closed(bus: &mut BusState) -> Vec<Line> {
    bus.close_batches();
    let all = lines(bus);
    let Carrier::Nats(lines) = &mut bus.carrier else { panic!("no lines") };
    assert_eq!(lines.batches.bytes(), 0, "nothing is counted as open");
    all
}

fn entries(payload: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let view = BatchView::decode(payload).unwrap();
    view.entries().map(|(token, message)| (token, message.to_vec())).collect()
}

#[test]
fn the_requests_of_a_turn_leave_as_one_message_in_their_order() {
    let (mut bus, new, _) = bus();
    let tokens = [b"a", b"b"].map(|message| put(&mut bus, new, message));
    notify(&mut bus, new, b"c");
    assert_eq!(lines(&mut bus), [], "nothing leaves before the turn ends");
    let all = closed(&mut bus);
    let (subject, reply, payload) = &all[0];
    assert_eq!((all.len(), &**subject), (1, "pitaya/servers/new/n"));
    assert_eq!(*reply, format!("_INBOX.abc.b{}", tokens[0]));
    let expected =
        [(tokens[0], b"a".to_vec()), (tokens[1], b"b".to_vec()), (NO_TOKEN, b"c".to_vec())];
    assert_eq!(entries(payload), expected);
    assert_eq!(bus.pending.batch_of(tokens[0]), tokens);
    assert_eq!(bus.pending.request_buffer(tokens[1]).unwrap(), b"b", "kept for a second try");
    assert_eq!(closed(&mut bus), [], "it has left once");
}

#[test]
fn a_batch_of_one_is_the_plain_message() {
    let (mut bus, new, old) = bus();
    let single = put(&mut bus, new, b"request");
    let ours = closed(&mut bus);
    let token = put(&mut bus, old, b"request");
    let theirs = closed(&mut bus);
    assert_eq!(ours[0].1, format!("_INBOX.abc.{single}"));
    assert_eq!(theirs[0].1, format!("_INBOX.abc.{token}"));
    assert_eq!((&ours[0].2, ours.len()), (&theirs[0].2, theirs.len()));
    notify(&mut bus, new, b"notify");
    let alone = closed(&mut bus);
    assert_eq!((&*alone[0].1, &alone[0].2[..]), ("_DISCARD.notify", &b"notify"[..]));
}

#[test]
fn servers_that_announce_nothing_get_plain_messages() {
    let (mut bus, new, old) = bus();
    for target in [old, new, old, new] {
        put(&mut bus, target, b"x");
    }
    let plain = lines(&mut bus);
    assert!(plain.iter().all(|line| line.0 == "pitaya/servers/old/o" && line.2 == b"x"));
    assert_eq!((plain.len(), closed(&mut bus).len()), (2, 1));
}

#[test]
fn switched_off_there_are_no_batches() {
    let mut bus = bus_with(false, 1 << 20);
    bus.update_servers(&table());
    let new = target(&mut bus, "new");
    put(&mut bus, new, b"a");
    put(&mut bus, new, b"b");
    assert_eq!(lines(&mut bus).len(), 2);
}

#[test]
fn a_full_batch_leaves_and_the_next_one_begins() {
    let (mut bus, new, _) = bus();
    for _ in 0..=BATCH_REQUESTS_MAX {
        put(&mut bus, new, b"x");
    }
    let all = closed(&mut bus);
    assert_eq!(entries(&all[0].2).len(), BATCH_REQUESTS_MAX);
    assert_eq!((all.len(), &all[1].2[..]), (2, &b"x"[..]), "the one over travels alone");
}

#[test]
fn a_batch_never_exceeds_what_the_nats_server_takes() {
    let overhead = BATCH_HEADER.len() + 2 * BATCH_ENTRY_BYTES;
    let mut bus = bus_with(true, overhead + 20);
    bus.update_servers(&table());
    let new = target(&mut bus, "new");
    for size in [10, 10, 10, 11] {
        put(&mut bus, new, &vec![1; size]);
    }
    let sizes: Vec<usize> = closed(&mut bus).iter().map(|line| line.2.len()).collect();
    assert_eq!(sizes, [overhead + 20, 10, 11]);
}

#[test]
fn a_large_message_travels_alone_and_overtakes_nothing() {
    let (mut bus, new, _) = bus();
    put(&mut bus, new, b"before");
    put(&mut bus, new, b"too");
    put(&mut bus, new, &vec![7; BATCH_BYTES_MAX]);
    put(&mut bus, new, b"after");
    let all = closed(&mut bus);
    assert_eq!(entries(&all[0].2).len(), 2);
    assert_eq!((all[1].2.len(), &all[2].2[..]), (BATCH_BYTES_MAX, &b"after"[..]));
}

#[test]
fn batches_of_several_servers_are_apart() {
    let mut bus = bus_with(true, 1 << 20);
    let servers = (0..5).map(|n| server("x", &format!("t{n}"), Some(PROTOCOL_BATCHES)));
    let servers = servers
        .enumerate()
        .map(|(n, server)| Arc::new(Server { id: format!("s{n}"), ..Server::clone(&server) }));
    bus.update_servers(&ServerTable::new(servers, 1));
    let targets: Vec<u32> = (0..5).map(|n| target(&mut bus, &format!("t{n}"))).collect();
    for round in 0..3 {
        for (number, target) in targets.iter().enumerate() {
            put(&mut bus, *target, format!("{number}.{round}").as_bytes());
        }
    }
    // Four of the five are full of one large message in between, so that places change.
    for target in &targets[..2] {
        put(&mut bus, *target, &vec![0; BATCH_BYTES_MAX]);
    }
    let all = closed(&mut bus);
    assert_eq!(all.len(), 7);
    for line in all.iter().filter(|line| line.2.len() < BATCH_BYTES_MAX) {
        let number = line.0.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        let number = number.split('/').next().unwrap();
        let expected: Vec<String> = (0..3).map(|round| format!("{number}.{round}")).collect();
        let messages: Vec<String> =
            entries(&line.2).into_iter().map(|(_, m)| String::from_utf8(m).unwrap()).collect();
        assert_eq!(messages, expected);
    }
}

#[test]
fn a_batch_leaves_before_its_server_is_forgotten() {
    let (mut bus, new, _) = bus();
    notify(&mut bus, new, b"a");
    notify(&mut bus, new, b"b");
    bus.update_servers(&ServerTable::default());
    let all = lines(&mut bus);
    assert_eq!((all.len(), &*all[0].1), (1, "_DISCARD.notify"));
    assert_eq!(entries(&all[0].2).len(), 2);
}

#[test]
fn what_is_open_counts_against_the_bound_of_the_bus() {
    let (mut bus, new, _) = bus();
    put(&mut bus, new, &vec![0; 1_000]);
    let Carrier::Nats(lines) = &mut bus.carrier else { panic!("no lines") };
    assert_eq!(lines.batches.bytes(), BATCH_HEADER.len() + BATCH_ENTRY_BYTES + 1_000);
    lines.restart("def", 1 << 20);
    assert_eq!((lines.batches.bytes(), lines.out.len()), (0, 0));
    assert_eq!(closed(&mut bus), [], "what was open is dropped with its connection");
}

#[test]
fn an_answer_is_known_by_its_subject() {
    let mut lines = NatsLines::new();
    lines.restart("abc", 1_000);
    for token in [0, 7, 10, 65_535, u32::MAX] {
        lines.out.clear();
        lines.put_head(b"to", Some(token), 0);
        let line = String::from_utf8(lines.out.clone()).unwrap();
        assert_eq!(line, format!("PUB to _INBOX.abc.{token} 0\r\n"));
        let one = format!("_INBOX.abc.{token}");
        assert_eq!(lines.addressee(one.as_bytes()), Some(Addressee::Request(token)));
        let many = format!("_INBOX.abc.b{token}");
        assert_eq!(lines.addressee(many.as_bytes()), Some(Addressee::Batch(Some(token))));
    }
    assert_eq!(lines.addressee(b"_INBOX.abc.b"), Some(Addressee::Batch(None)));
    for odd in
        ["_INBOX.old.7", "_INBOX.abc.", "_INBOX.abc.99999999999", "_INBOX.abc.bb", "_INBOX.abc.c1"]
    {
        assert_eq!(lines.addressee(odd.as_bytes()), None, "{odd}");
    }
}
