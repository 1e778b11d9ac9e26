//! RFC 6455 case by case, in the order of the Autobahn suite's sections. Every case runs in both roles and in several
//! cuts of the stream, and must give the same events each time.

mod websocket_frames;

use shared::websocket::{FrameLimits, Role};
use websocket_frames::{Event, frame, run};

const LIMITS: FrameLimits = FrameLimits { message_bytes_max: 70_000, fragments_max: 1024 };
const KEY: [u8; 4] = [0xa1, 0x07, 0x00, 0xff];

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const FIRST_TEXT: u8 = 0x01;
const FIRST_BINARY: u8 = 0x02;
const MORE: u8 = 0x00;
const LAST: u8 = 0x80;

type Frames<'a> = &'a [(u8, &'a [u8])];

fn message(payload: &[u8]) -> Event {
    Event::Message(payload.to_vec())
}

fn ping(payload: &[u8]) -> Event {
    Event::Ping(payload.to_vec())
}

fn check(name: &str, frames: Frames<'_>, expected: &[Event]) {
    for (role, mask) in [(Role::Server, Some(KEY)), (Role::Client, None)] {
        let stream: Vec<u8> =
            frames.iter().flat_map(|(first, payload)| frame(*first, payload, mask)).collect();
        for cut in [usize::MAX, 1, 7, 1460] {
            // Byte by byte is only worth its quadratic time for short streams.
            if cut < 1000 && stream.len() > 4096 {
                continue;
            }
            let events = run(role, &LIMITS, stream.chunks(cut));
            assert_eq!(events, expected, "{name}, as {role:?}, chunks of {cut}");
        }
    }
}

#[test]
fn framing_carries_every_length_form() {
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 70_000] {
        let payload = vec![b'*'; length];
        let expected = [message(&payload)];
        check("text", &[(TEXT, &payload)], &expected);
        check("binary", &[(BINARY, &payload)], &expected);
    }
    let many: Vec<_> = (0..50).map(|_| (BINARY, &b"x"[..])).collect();
    check("several in a row", &many, &vec![message(b"x"); 50]);
}

#[test]
fn pings_and_pongs_pass_with_up_to_125_bytes() {
    let long = [0xfe; 125];
    check("empty ping", &[(PING, b"")], &[ping(b"")]);
    check("binary ping", &[(PING, &[0, 0xff, 0xfe])], &[ping(&[0, 0xff, 0xfe])]);
    check("longest ping", &[(PING, &long)], &[ping(&long)]);
    check("too long ping", &[(PING, &[0; 126])], &[Event::Refused(1002)]);
    check("unasked pong", &[(PONG, b"x")], &[Event::Pong]);
    check("too long pong", &[(PONG, &[0; 126])], &[Event::Refused(1002)]);
    let ten: Vec<_> = (0..10).map(|_| (PING, &b"p"[..])).collect();
    check("ten pings", &ten, &vec![ping(b"p"); 10]);
}

#[test]
fn reserved_bits_are_refused_wherever_they_stand() {
    for bits in [0x10, 0x20, 0x40, 0x30, 0x50, 0x60, 0x70] {
        for first in [TEXT, BINARY, PING, CLOSE, FIRST_TEXT] {
            check("alone", &[(first | bits, b"ab")], &[Event::Refused(1002)]);
            let after = [message(b"ok"), Event::Refused(1002)];
            check("after a message", &[(TEXT, b"ok"), (first | bits, b"ab"), (PING, b"")], &after);
        }
    }
}

#[test]
fn unknown_opcodes_are_refused() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        check("empty", &[(0x80 | opcode, b"")], &[Event::Refused(1002)]);
        let frames: Frames<'_> = &[(BINARY, b"a"), (0x80 | opcode, b"b"), (BINARY, b"c")];
        check("between", frames, &[message(b"a"), Event::Refused(1002)]);
    }
}

#[test]
fn fragments_are_joined_in_order() {
    let cases: [(&str, Frames<'_>, &[Event]); 12] = [
        ("text in two", &[(FIRST_TEXT, b"ab"), (LAST, b"cd")], &[message(b"abcd")]),
        (
            "binary in three",
            &[(FIRST_BINARY, b"a"), (MORE, b"b"), (LAST, b"c")],
            &[message(b"abc")],
        ),
        ("all empty", &[(FIRST_TEXT, b""), (MORE, b""), (LAST, b"")], &[message(b"")]),
        ("empty end", &[(FIRST_TEXT, b"x"), (LAST, b"")], &[message(b"x")]),
        (
            "two messages",
            &[(FIRST_TEXT, b"a"), (LAST, b"b"), (FIRST_BINARY, b"c"), (LAST, b"d"), (TEXT, b"e")],
            &[message(b"ab"), message(b"cd"), message(b"e")],
        ),
        (
            "pings between",
            &[(FIRST_TEXT, b"a"), (PING, b"1"), (MORE, b"b"), (PONG, b""), (LAST, b"c")],
            &[ping(b"1"), Event::Pong, message(b"abc")],
        ),
        ("ping in fragments", &[(0x09, b"a"), (LAST, b"b")], &[Event::Refused(1002)]),
        ("pong in fragments", &[(0x0a, b"a"), (LAST, b"b")], &[Event::Refused(1002)]),
        ("close in fragments", &[(0x08, b""), (LAST, b"")], &[Event::Refused(1002)]),
        ("nothing to continue", &[(LAST, b"x"), (TEXT, b"y")], &[Event::Refused(1002)]),
        ("nothing to go on with", &[(MORE, b"x"), (LAST, b"y")], &[Event::Refused(1002)]),
        ("a message in a message", &[(FIRST_TEXT, b"a"), (TEXT, b"b")], &[Event::Refused(1002)]),
    ];
    for (name, frames, expected) in cases {
        check(name, frames, expected);
    }
    let after = [message(b"ab"), Event::Refused(1002)];
    check("continued too long", &[(FIRST_TEXT, b"a"), (LAST, b"b"), (LAST, b"c")], &after);
    let frames: Frames<'_> = &[(FIRST_TEXT, b"a"), (CLOSE, b"\x03\xe8"), (LAST, b"b")];
    check("closed inside a message", frames, &[Event::Closed(Some(1000))]);
}

#[test]
fn text_must_be_utf8_as_a_whole() {
    let good: [&[u8]; 10] = [
        "Hello-µ@ßöäüàá-UTF-8!!".as_bytes(),
        "κόσμε".as_bytes(),
        b"\x00",
        &[0x7f],
        &[0xc2, 0x80],
        &[0xdf, 0xbf],
        &[0xef, 0xbf, 0xbf],
        &[0xed, 0x9f, 0xbf],
        &[0xf0, 0x90, 0x80, 0x80],
        &[0xf4, 0x8f, 0xbf, 0xbf],
    ];
    for text in good {
        check("whole", &[(TEXT, text)], &[message(text)]);
        // One byte a fragment cuts every character at every place.
        let mut frames: Vec<(u8, &[u8])> = vec![(FIRST_TEXT, b"")];
        frames.extend(text.chunks(1).map(|byte| (MORE, byte)));
        frames.push((LAST, b""));
        check("byte by byte", &frames, &[message(text)]);
    }
    let bad: [&[u8]; 16] = [
        &[0x80],
        &[0xbf, b'a'],
        &[0xc0, 0x80],
        &[0xc1, 0xbf],
        &[0xc3],
        &[0xe0, 0x80, 0x80],
        &[0xe2, 0x82],
        &[0xed, 0xa0, 0x80],
        &[0xed, 0xbf, 0xbf],
        &[0xf0, 0x80, 0x80, 0x80],
        &[0xf0, 0x9f, 0x98],
        &[0xf4, 0x90, 0x80, 0x80],
        &[0xf5, 0x80, 0x80, 0x80],
        &[0xf8, 0x88, 0x80, 0x80, 0x80],
        &[0xfe],
        b"ok \xff",
    ];
    for text in bad {
        check("whole", &[(TEXT, text)], &[Event::Refused(1007)]);
        check("last fragment", &[(FIRST_TEXT, b"ok"), (LAST, text)], &[Event::Refused(1007)]);
        check("as bytes", &[(BINARY, text)], &[message(text)]);
    }
}

#[test]
fn broken_text_is_refused_before_its_message_ends() {
    for broken in [&[0xff][..], &[0xc0], &[0xed, 0xa0], &[0xf4, 0x90], &[0xc3, 0x41]] {
        let frames: Frames<'_> = &[(FIRST_TEXT, "κό".as_bytes()), (MORE, broken)];
        check("without an end", frames, &[Event::Refused(1007)]);
    }
    let frames: Frames<'_> = &[(FIRST_TEXT, &[0xce]), (PING, b""), (MORE, &[0xba]), (LAST, b"!")];
    check("a cut character", frames, &[ping(b""), message("κ!".as_bytes())]);
}

#[test]
fn a_close_ends_everything() {
    let longest = [b'r'; 123];
    let with_reason = |code: u16, reason: &[u8]| [&code.to_be_bytes()[..], reason].concat();
    let cases: [(&str, Vec<u8>, Event); 8] = [
        ("empty", vec![], Event::Closed(None)),
        ("half a code", vec![3], Event::Refused(1002)),
        ("a code", with_reason(1000, b""), Event::Closed(Some(1000))),
        ("a reason", with_reason(1000, b"bye"), Event::Closed(Some(1000))),
        ("longest reason", with_reason(1000, &longest), Event::Closed(Some(1000))),
        ("one byte longer", with_reason(1000, &[b'r'; 124]), Event::Refused(1002)),
        ("broken reason", with_reason(1000, &[0xce, 0xba, 0xff]), Event::Refused(1007)),
        ("cut reason", with_reason(1000, &[0xce]), Event::Refused(1007)),
    ];
    for (name, payload, expected) in cases {
        check(name, &[(CLOSE, &payload), (PING, b""), (TEXT, b"late")], &[expected]);
    }
}

#[test]
fn only_codes_that_may_be_sent_are_taken() {
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014] {
        check("defined", &[(CLOSE, &u16::to_be_bytes(code))], &[Event::Closed(Some(code))]);
    }
    for code in [3000, 3999, 4000, 4999] {
        check("registered", &[(CLOSE, &u16::to_be_bytes(code))], &[Event::Closed(Some(code))]);
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        check("not for the wire", &[(CLOSE, &u16::to_be_bytes(code))], &[Event::Refused(1002)]);
    }
}

#[test]
fn masks_are_required_of_clients_and_refused_from_servers() {
    let bare = frame(BINARY, b"abc", None);
    assert_eq!(run(Role::Server, &LIMITS, [&bare[..]]), [Event::Refused(1002)]);
    let masked = frame(BINARY, b"abc", Some(KEY));
    assert_eq!(run(Role::Client, &LIMITS, [&masked[..]]), [Event::Refused(1002)]);
}

#[test]
fn messages_over_the_limit_are_refused_and_full_ones_are_not() {
    let full = vec![7; LIMITS.message_bytes_max];
    let over = vec![7; LIMITS.message_bytes_max + 1];
    check("full", &[(BINARY, &full)], &[message(&full)]);
    check("over", &[(BINARY, &over)], &[Event::Refused(1009)]);
    let (front, back) = full.split_at(30_000);
    check("full in two", &[(FIRST_BINARY, front), (LAST, back)], &[message(&full)]);
    let frames: Frames<'_> = &[(FIRST_BINARY, front), (MORE, back), (LAST, b"x")];
    check("over in three", frames, &[Event::Refused(1009)]);

    let mut frames: Vec<(u8, &[u8])> = vec![(FIRST_BINARY, b"")];
    frames.resize(1023, (MORE, b""));
    frames.push((LAST, b"z"));
    check("1024 fragments", &frames, &[message(b"z")]);
    frames.insert(1, (MORE, b""));
    check("1025 fragments", &frames, &[Event::Refused(1009)]);
}

#[test]
fn lengths_that_cannot_be_are_refused_on_the_head() {
    let huge: [(&[u8], u16); 4] = [
        (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002),
        (&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1002),
        (&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4], 1009),
        (&[0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1009),
    ];
    for (head, code) in huge {
        assert_eq!(run(Role::Server, &LIMITS, [head]), [Event::Refused(code)], "{head:x?}");
    }
    // Longer forms than needed are read as they stand, as Pitaya's server reads them.
    let padded = [0x82, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1, b'x', 0x82, 0x7e, 0, 1, b'y'];
    assert_eq!(run(Role::Client, &LIMITS, [&padded[..]]), [message(b"x"), message(b"y")]);
}
