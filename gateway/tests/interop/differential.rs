//! The same bytes to a frontend of Pitaya and to the gateway, both in front of one backend of Pitaya: what comes back
//! must be the same, down to the texts, except for the differences that are listed here.

use std::process::Command;
use std::time::Duration;

use client::address::Transport;

use client::raw::{OwnedPacket, RawClient, RawError};
use serde_json::{Value, json};
use shared::compression::Inflater;
use shared::dictionary::Dictionary;
use shared::message::{self, MessageType};
use shared::packet::PacketType;
use shared::websocket::frame::Opcode;

use super::cases::{self, Case, ECHO, Phase, Then};
use super::{GoPeer, pitaya};

/// Longer than the request timeout of both frontends.
const REACTION_TIMEOUT: Duration = Duration::from_secs(8);
/// Silence can only be shown by waiting. Pitaya answers two requests side by side, a later one perhaps first.
const SILENCE: Duration = Duration::from_millis(100);
const FENCE_ID: u8 = 99;
/// Enough to tell payloads apart.
const SHOWN_BYTES: usize = 120;

/// A case in which the gateway differs on purpose.
struct Difference {
    case: &'static str,
    ours: &'static str,
    reason: &'static str,
}

const REFUSED: &str =
    r#"handshake {"code":400,"sys":{"dict":{},"heartbeat":30,"serializer":"json"}} | closed"#;

const DIFFERENCES: &[Difference] = &[
    Difference {
        case: "an error without text",
        ours: r#"error 1 {"code":"GAME-1","msg":"GAME-1"} | open"#,
        reason: "a client should have something to show: the code stands in for the text",
    },
    Difference {
        case: "a request with a route with bytes that are no UTF-8",
        ours: r#"error 1 {"code":"PIT-400","msg":"route is not valid UTF-8"} | open"#,
        reason: "the client's mistake; Pitaya finds it when it encodes the call and reports an unknown error",
    },
    Difference {
        case: "a request with a route of the frontend's own type with bytes that are no UTF-8",
        ours: r#"error 1 {"code":"PIT-400","msg":"route is not valid UTF-8"} | open"#,
        reason: "the same mistake is the same error whoever serves the route",
    },
    Difference {
        case: "a response from a client with an id (M9)",
        ours: "open",
        reason: "a response is no request, so it has no answer",
    },
    Difference {
        case: "an acknowledgement first",
        ours: "closed",
        reason: "without a handshake nobody has judged the client",
    },
    Difference {
        case: "a packet of 100,000 bytes",
        ours: "closed",
        reason: "packets of clients are limited to 64 KiB unless configured otherwise",
    },
    Difference {
        case: "two packets in one write",
        ours: "response 1 1 | response 1 1 | open",
        reason: "on WebSocket Pitaya takes one packet a message, and closes without a word",
    },
    Difference {
        case: "a handshake with a nesting of 200",
        ours: REFUSED,
        reason: "deep nesting is an attack on the stack; 128 levels are allowed",
    },
    Difference {
        case: "a handshake of 20,000 bytes",
        ours: REFUSED,
        reason: "a handshake is limited to 16 KiB unless configured otherwise",
    },
];

#[test]
fn the_gateway_reacts_to_clients_as_its_frontend_does() {
    let Some((cluster, programs)) = pitaya::start() else { return };
    let _backend = programs.server(&cluster, &["-type", "room"]);
    let gateway = cluster.gateway();
    let frontend = programs.frontend(&cluster, &[]);
    let mut findings = Vec::new();
    for (transport, name) in [(Transport::Tcp, "tcp"), (Transport::WebSocket, "ws")] {
        for case in cases::all() {
            let theirs = react(transport, frontend.listens_at(name), &case);
            let ours = react(transport, &gateway.address(name), &case);
            let known = DIFFERENCES.iter().find(|difference| difference.case == case.name);
            let expected = known.map_or(theirs.as_str(), |difference| difference.ours);
            if ours != expected {
                let reason = known.map_or("none", |difference| difference.reason);
                findings.push(format!(
                    "{name}, {}:\n  theirs {theirs}\n  ours   {ours}\n  listed difference: {reason}",
                    case.name
                ));
            }
        }
    }
    assert!(findings.is_empty(), "{} differences\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn a_backend_that_hangs_or_has_died_is_reported_as_by_its_frontend() {
    let Some((cluster, programs)) = pitaya::start() else { return };
    let _backend = programs.server(&cluster, &["-type", "room"]);
    let hanging = programs.server(&cluster, &["-type", "hanging"]);
    let mut dead = programs.server(&cluster, &["-type", "dead"]);
    let gateway = cluster.gateway();
    let frontend = programs.frontend(&cluster, &[]);
    signal(&hanging, "STOP");
    // Etcd still has it: its lease runs on for a minute.
    dead.process.child.kill().expect("it runs");
    dead.process.child.wait().expect("it ends");

    let mut reports = Vec::new();
    for kind in ["hanging", "dead"] {
        let route = format!("{kind}.test.echo");
        let send = vec![cases::request(1, route.as_bytes(), b"1")];
        let case = Case { name: route, phase: Phase::Working, send, then: Then::Answers(1) };
        let theirs = react(Transport::Tcp, frontend.listens_at("tcp"), &case);
        reports.push((theirs, react(Transport::Tcp, &gateway.address("tcp"), &case)));
    }
    signal(&hanging, "CONT");
    for (theirs, ours) in reports {
        assert_eq!(ours, theirs);
    }
}

fn signal(peer: &GoPeer, name: &str) {
    let command = format!("kill -{name} {}", peer.process.child.id());
    let status = Command::new("sh").args(["-c", &command]).status().expect("there is a shell");
    assert!(status.success(), "{command}: {status}");
}

/// Everything that comes back, as text. Answers of equal standing are sorted: Pitaya keeps no order.
fn react(transport: Transport, address: &str, case: &Case) -> String {
    let mut client = RawClient::connect(transport, address).expect("the frontend listens");
    let greeted = match case.phase {
        Phase::Connected => Ok(()),
        Phase::Handshaken => client.handshake().map(drop),
        Phase::Working => client.establish().map(drop),
    };
    greeted.expect("the default handshake is accepted");
    for content in &case.send {
        // It may have closed already, which is then read below.
        let _ = send(&mut client, transport, content);
    }
    let mut seen = Vec::new();
    let ended = match case.then {
        Then::Close => collect(&mut client, usize::MAX, &mut seen),
        Then::Answers(count) => collect(&mut client, count, &mut seen),
        Then::Silence => None,
    };
    let ended = ended.unwrap_or_else(|| {
        let _ = send(&mut client, transport, &cases::request(FENCE_ID, ECHO.as_bytes(), b"fence"));
        read_to_fence(&mut client, case.then, &mut seen)
    });
    seen.sort();
    seen.push(ended);
    seen.join(" | ")
}

fn send(client: &mut RawClient, transport: Transport, content: &[u8]) -> Result<(), RawError> {
    match transport {
        Transport::Tcp => client.send_bytes(content),
        Transport::WebSocket => client.send_frame(Opcode::Binary, content),
    }
}

/// Reads this many packets. Some is why there were fewer.
fn collect(client: &mut RawClient, count: usize, seen: &mut Vec<String>) -> Option<String> {
    for _ in 0..count {
        match next(client, REACTION_TIMEOUT) {
            Ok(packet) => seen.push(describe(&packet)),
            Err(RawError::Closed(..)) => return Some("closed".to_owned()),
            Err(RawError::Timeout { .. }) => return Some("silent".to_owned()),
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

fn next(client: &mut RawClient, within: Duration) -> Result<OwnedPacket, RawError> {
    loop {
        let packet = client.read_packet(within)?;
        if packet.kind != PacketType::Heartbeat {
            return Ok(packet);
        }
    }
}

/// Whether the session still works, after the case has had its effect.
fn read_to_fence(client: &mut RawClient, then: Then, seen: &mut Vec<String>) -> String {
    let fence = format!("response {FENCE_ID} fence");
    while !seen.contains(&fence) {
        if let Some(ended) = collect(client, 1, seen) {
            return ended;
        }
    }
    seen.retain(|packet| *packet != fence);
    if then == Then::Silence {
        while let Ok(packet) = next(client, SILENCE) {
            seen.push(describe(&packet));
        }
    }
    "open".to_owned()
}

fn describe(packet: &OwnedPacket) -> String {
    match packet.kind {
        PacketType::Handshake => format!("handshake {}", json_of(&inflated(&packet.body))),
        PacketType::Data => describe_message(&packet.body),
        kind => format!("{kind:?} {}", shown(&packet.body)),
    }
}

fn describe_message(body: &[u8]) -> String {
    let dictionary = Dictionary::default();
    let message = match message::decode(body, &dictionary) {
        Ok(message) => message,
        Err(error) => return format!("a broken message: {error}"),
    };
    let payload =
        if message.is_compressed { inflated(message.payload) } else { message.payload.to_vec() };
    match (message.kind, message.is_error) {
        (MessageType::Response, true) => {
            let mut failure = json_of(&payload);
            if let Some(server) = failure.pointer_mut("/metadata/server") {
                *server = json!("the frontend");
            }
            format!("error {} {failure}", message.id)
        }
        (MessageType::Response, false) => format!("response {} {}", message.id, shown(&payload)),
        (kind, _) => {
            format!("{kind:?} {} {}", String::from_utf8_lossy(message.route), shown(&payload))
        }
    }
}

fn inflated(body: &[u8]) -> Vec<u8> {
    match Inflater::new().inflate(body, 1 << 20) {
        Ok(plain) => plain.to_vec(),
        Err(_) => body.to_vec(),
    }
}

/// The members in order: the two may write them in different ones.
fn json_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| json!(shown(body)))
}

fn shown(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(SHOWN_BYTES).collect();
    if body.len() > SHOWN_BYTES { format!("{text}... of {} bytes", body.len()) } else { text }
}
