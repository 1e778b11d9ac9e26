//! What a client may send: packets well and badly formed, each with the kind of reaction that is waited for.
//!
//! The numbers M1 to M23, B1 to B17, P6 to P11, H9 and H10 are those of the test vectors in client protocol 18. B5 is not
//! here: it ends Pitaya's process.

use serde_json::json;
use shared::compression::Deflater;
use shared::packet::{self, PacketType};

/// The backend's route that answers with the bytes that came.
pub(super) const ECHO: &str = "room.test.echo";

/// How far the conversation is when the case begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connected,
    Handshaken,
    Working,
}

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// This many packets other than heartbeats.
    Answers(usize),
    /// Nothing but the answer to a later request.
    Silence,
    Close,
}

pub(super) struct Case {
    pub(super) name: String,
    pub(super) phase: Phase,
    /// Each item is a WebSocket message of its own; on TCP they are one stream.
    pub(super) send: Vec<Vec<u8>>,
    pub(super) then: Then,
}

pub(super) fn all() -> Vec<Case> {
    [routes(), payloads(), handler_errors(), messages(), broken_messages(), packets(), handshakes()]
        .into_iter()
        .flatten()
        .collect()
}

fn case(name: &str, then: Then, send: Vec<Vec<u8>>) -> Case {
    Case { name: name.to_owned(), phase: Phase::Working, send, then }
}

fn packet(kind: PacketType, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    packet::encode(kind, body, &mut out).expect("the body fits into a packet");
    out
}

/// A Data packet with this message, however broken.
fn data(message: &[u8]) -> Vec<u8> {
    packet(PacketType::Data, message)
}

/// Flags, id, route and payload of a message, written by hand so that none of them needs to be allowed.
fn message(flags: u8, id: &[u8], route: &[u8], payload: &[u8]) -> Vec<u8> {
    let route_bytes = u8::try_from(route.len()).expect("a route of a client is short");
    [&[flags], id, &[route_bytes], route, payload].concat()
}

pub(super) fn request(id: u8, route: &[u8], payload: &[u8]) -> Vec<u8> {
    data(&message(0, &[id], route, payload))
}

fn routes() -> Vec<Case> {
    let long = format!("room.test.{}", "x".repeat(245));
    let routes: [(&str, &[u8]); 20] = [
        ("of one part", b"a"),
        ("that is empty (B17)", b""),
        ("with an empty middle", b"a..b"),
        ("that begins with a dot", b".a.b"),
        ("that ends with a dot", b"a.b."),
        ("of four parts", b"a.b.c.d"),
        ("of dots", b".."),
        ("with a blank part", b"room. .echo"),
        ("of an unknown method", b"room.test.nothing"),
        ("of an unknown service", b"room.nothing.echo"),
        ("of an unknown server type", b"nowhere.test.echo"),
        ("of the frontend's own type", b"connector.none.here"),
        ("of two parts", b"none.here"),
        ("in capitals", b"ROOM.TEST.ECHO"),
        ("of a system call at the frontend", b"connector.sys.kick"),
        ("of a system call at the backend", b"room.sys.bindsession"),
        ("with letters beyond ASCII", "room.test.żółć".as_bytes()),
        ("with bytes that are no UTF-8", b"room.test.\xff"),
        ("of the frontend's own type with bytes that are no UTF-8", b"connector.test.\xff"),
        ("of 255 bytes", long.as_bytes()),
    ];
    let asked = routes.iter().map(|(name, route)| {
        case(
            &format!("a request with a route {name}"),
            Then::Answers(1),
            vec![request(1, route, b"{}")],
        )
    });
    let told = routes.iter().map(|(name, route)| {
        let notify = data(&message(0x02, &[], route, b"{}"));
        case(&format!("a notify with a route {name}"), Then::Silence, vec![notify])
    });
    asked.chain(told).collect()
}

fn payloads() -> Vec<Case> {
    let text = json!({ "text": "zażółć <&>\u{2028}" }).to_string();
    let compressible = vec![b'a'; 5000];
    let large: Vec<u8> =
        (0..60_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let deflated = deflate(&compressible);
    let with_trailer = [&deflated[..], &[0, 0]].concat();
    let echo = ECHO.as_bytes();
    let answered =
        |name: &str, message: Vec<u8>| case(name, Then::Answers(1), vec![data(&message)]);
    vec![
        answered("a request with JSON", message(0, &[1], echo, text.as_bytes())),
        answered("a request without payload", message(0, &[1], echo, b"")),
        answered(
            "a request with bytes that are no text",
            message(0, &[1], echo, &[0, 255, 128, 1]),
        ),
        answered("a request with much that compresses", message(0, &[1], echo, &compressible)),
        answered("a request with much that does not compress", message(0, &[1], echo, &large)),
        answered("a compressed request (M20)", message(0x10, &[1], echo, &deflated)),
        answered(
            "a compressed request with a trailer (B16)",
            message(0x10, &[1], echo, &with_trailer),
        ),
        answered("a request with id 300 (M13)", message(0, &[0xac, 2], echo, b"1")),
        answered("a request with a long form of id 1 (M21)", message(0, &[0x81, 0], echo, b"1")),
        answered("a request with id 2^32", message(0, &[0x80, 0x80, 0x80, 0x80, 0x10], echo, b"1")),
        answered("a request with unused bits set (M22)", message(0xc0, &[1], echo, b"1")),
        answered("a request with the error bit set", message(0x20, &[1], echo, b"1")),
        case("a request with id 0", Then::Silence, vec![request(0, echo, b"1")]),
        case(
            "two requests",
            Then::Answers(2),
            vec![request(1, echo, b"1"), request(2, echo, b"1")],
        ),
        case(
            "two requests with one id",
            Then::Answers(2),
            vec![request(1, echo, b"1"), request(1, echo, b"1")],
        ),
    ]
}

fn handler_errors() -> Vec<Case> {
    let asked = |name: &str, method: &str, body: &str| {
        let route = format!("room.test.{method}");
        case(name, Then::Answers(1), vec![request(1, route.as_bytes(), body.as_bytes())])
    };
    vec![
        asked("an error with code and text", "fail", r#"{"code":"GAME-1","msg":"no"}"#),
        asked("an error without code", "fail", r#"{"msg":"no"}"#),
        asked("an error without text", "fail", r#"{"code":"GAME-1"}"#),
        asked(
            "an error with metadata",
            "fail",
            r#"{"code":"G","msg":"<&>","metadata":{"b":"2","a":"1"}}"#,
        ),
        asked("a body that is no JSON", "bind", "{"),
        asked("a body of the wrong type", "bind", r#"{"name":1}"#),
        asked("a bind of nobody", "bind", r#"{"name":""}"#),
        asked("a bind of somebody", "bind", r#"{"name":"somebody"}"#),
        asked("a kick of a session without user", "kick", "{}"),
        asked("a push without user", "push", r#"{"name":"","n":1}"#),
        asked("a kick of a user who is not there", "kickUser", r#"{"name":"stranger"}"#),
        asked("session data", "data", r#"{"n":1,"s":"<&>","nested":{"a":[1,null]}}"#),
    ]
}

fn messages() -> Vec<Case> {
    let silent = |name: &str, message: &[u8]| case(name, Then::Silence, vec![data(message)]);
    let echo = ECHO.as_bytes();
    vec![
        silent("a notify to a request handler", &message(0x02, &[], echo, b"1")),
        silent("a notify with unused bits set", &message(0xc2, &[], echo, b"1")),
        silent("a push from a client (M5)", &[0x06, 1, b'a']),
        silent("a push from a client to a backend", &message(0x06, &[], echo, b"1")),
        silent("an empty response from a client (M7)", &[0x04, 0]),
        silent("a response from a client with an id (M9)", &[0x04, 0x81, 1]),
        silent("an error response from a client (M10)", &[0x24, 0, 1]),
    ]
}

fn broken_messages() -> Vec<Case> {
    let deflated = deflate(&[b'a'; 51]);
    let mut wrong_checksum = deflated.clone();
    *wrong_checksum.last_mut().expect("a stream ends with its checksum") ^= 1;
    let cut = deflated.get(..deflated.len() - 1).expect("a stream is not empty");
    let raw_deflate =
        [0xab, 0x56, 0xca, 0x4b, 0xcc, 0x4d, 0x55, 0xb2, 0x52, 0xaa, 0x20, 0x12, 0x28, 0xd5, 2, 0];
    let bodies: [(&str, Vec<u8>); 15] = [
        ("B1, empty", vec![]),
        ("B2, only flags", vec![0]),
        ("B3, type 4", vec![0x08, 1]),
        ("B4, type 7", vec![0x0e, 1]),
        ("B6, a short route", vec![0, 1, 2, b'a']),
        ("B7, a push without route", vec![0x06, 1]),
        ("B8, half an id", vec![0, 0x80]),
        ("B9, a route code that nobody gave", vec![1, 1, 3, 0xe7]),
        ("B10, half a route code", vec![1, 1, 4]),
        ("B11, nothing compressed", vec![0x10, 7, 1, b'a']),
        ("B12, raw deflate", message(0x10, &[7], ECHO.as_bytes(), &raw_deflate)),
        (
            "B13, gzip",
            message(0x10, &[7], ECHO.as_bytes(), &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0]),
        ),
        ("B14, a wrong checksum", message(0x10, &[7], ECHO.as_bytes(), &wrong_checksum)),
        ("B15, a cut stream", message(0x10, &[7], ECHO.as_bytes(), cut)),
        ("a compressed plain text", message(0x10, &[7], ECHO.as_bytes(), b"{}")),
    ];
    let broken = |(name, body): &(&str, Vec<u8>)| {
        case(&format!("a broken message, {name}"), Then::Close, vec![data(body)])
    };
    bodies.iter().map(broken).collect()
}

fn packets() -> Vec<Case> {
    let echo = || request(1, ECHO.as_bytes(), b"1");
    let handshake = || packet(PacketType::Handshake, b"{}");
    let ack = || packet(PacketType::HandshakeAck, b"");
    let in_phase = |phase, case| Case { phase, ..case };
    vec![
        case("a packet of type 0 (P6)", Then::Close, vec![vec![0, 0, 0, 0]]),
        case("a packet of type 6 (P7)", Then::Close, vec![vec![6, 0, 0, 0]]),
        case("a packet of type 255 (P8)", Then::Close, vec![vec![0xff, 0, 0, 1, 0]]),
        case("a heartbeat", Then::Silence, vec![packet(PacketType::Heartbeat, b"")]),
        case("a heartbeat with a body", Then::Silence, vec![packet(PacketType::Heartbeat, b"abc")]),
        case("a second acknowledgement", Then::Silence, vec![ack()]),
        case(
            "an acknowledgement with a body",
            Then::Silence,
            vec![packet(PacketType::HandshakeAck, b"abc")],
        ),
        case("a kick from a client", Then::Silence, vec![packet(PacketType::Kick, b"")]),
        case(
            "a second handshake and its acknowledgement",
            Then::Answers(2),
            vec![handshake(), ack(), echo()],
        ),
        case("a second handshake and data", Then::Close, vec![handshake(), echo()]),
        in_phase(Phase::Connected, case("data first", Then::Close, vec![echo()])),
        in_phase(
            Phase::Handshaken,
            case("data before the acknowledgement", Then::Close, vec![echo()]),
        ),
        in_phase(
            Phase::Connected,
            case("an acknowledgement first", Then::Close, vec![ack(), echo()]),
        ),
        in_phase(
            Phase::Connected,
            case(
                "a heartbeat first",
                Then::Answers(1),
                vec![packet(PacketType::Heartbeat, b""), handshake()],
            ),
        ),
        in_phase(
            Phase::Connected,
            case("everything at once (T2)", Then::Answers(2), vec![handshake(), ack(), echo()]),
        ),
        case(
            "a packet of 100,000 bytes",
            Then::Answers(1),
            vec![request(1, ECHO.as_bytes(), &[b'a'; 100_000])],
        ),
        case("two packets in one write", Then::Answers(2), vec![[echo(), echo()].concat()]),
    ]
}

/// H9 and H10, and what lies between them.
fn handshakes() -> Vec<Case> {
    let refused = [
        "",
        "[]",
        "\"x\"",
        "1",
        "{} x",
        r#"{"sys":{"platform":1}}"#,
        r#"{"user":[]}"#,
        r#"{"user":"x"}"#,
        "asiodjasd",
        "{\"sys\":{\"platform\":\"\\ud800\"",
        "true",
    ];
    let accepted = [
        "{}",
        "null",
        " {} ",
        r#"{"sys":null}"#,
        r#"{"user":null}"#,
        r#"{"SYS":{"PLATFORM":"a"}}"#,
        r#"{"sys":{"platform":"mac"}}"#,
        r#"{"sys":{"platform":null},"user":{"a":[1,{}]},"more":1}"#,
        r#"{"sys":{"platform":"a"},"sys":{"platform":"b"}}"#,
        r#"{"sys":{"platform":"\ud800"}}"#,
    ];
    let handshake = |name: &str, body: &[u8], then| Case {
        name: format!("a handshake {name}"),
        phase: Phase::Connected,
        send: vec![packet(PacketType::Handshake, body)],
        then,
    };
    let deep = format!(r#"{{"user":{{"a":{}1{}}}}}"#, "[".repeat(200), "]".repeat(200));
    let large = format!(r#"{{"user":{{"a":"{}"}}}}"#, "x".repeat(20_000));
    let special = [
        handshake("with bytes that are no UTF-8", b"{\"user\":{\"a\":\"\xff\"}}", Then::Answers(1)),
        handshake("with such bytes outside of texts", b"{\"user\":\xff}", Then::Close),
        handshake("with a byte order mark", b"\xef\xbb\xbf{}", Then::Close),
        handshake("with a number beyond all bounds", br#"{"user":{"a":1e999}}"#, Then::Close),
        handshake("with an unknown member that is broken", br#"{"more":{"a":01}}"#, Then::Close),
        handshake("with a nesting of 200", deep.as_bytes(), Then::Answers(1)),
        handshake("of 20,000 bytes", large.as_bytes(), Then::Answers(1)),
    ];
    let refused = refused.map(|body| handshake(body, body.as_bytes(), Then::Close));
    let accepted = accepted.map(|body| handshake(body, body.as_bytes(), Then::Answers(1)));
    refused.into_iter().chain(accepted).chain(special).collect()
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    Deflater::new().deflate(plain, 0).expect("it gets shorter").to_vec()
}
