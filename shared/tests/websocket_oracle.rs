//! Our frame decoder against tungstenite's, an independent implementation: the same streams, cut at the same places,
//! must give the same messages, and broken streams must be refused alike.
//!
//! Differences that are known and allowed, all in how a broken stream is named:
//! - tungstenite looks at a frame's length before any other rule, so a frame that is both too long and wrong in
//!   another way is 1009 there and 1002 here; a length of 2^63 is 1009 there, 1002 here.
//! - It checks a close frame's reason before its code, we the code first: 1007 there, 1002 here.
//! - It does not know close code 1014 (bad gateway, registered later than the RFC) and refuses it with 1002.
//! - It has no limit on the number of fragments; the limit is out of the way here.

mod websocket_frames;

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use proptest::prelude::*;
use shared::websocket::{
    Decoder, FrameLimits, Incoming, OriginPolicy, Role, UpgradeLimits, accept,
};
use tungstenite::protocol::{WebSocket, WebSocketConfig, frame::coding::CloseCode};
use tungstenite::{Error, Message};
use websocket_frames::{Event, frame, run};

const MESSAGE_BYTES_MAX: usize = 600;
const LIMITS: FrameLimits =
    FrameLimits { message_bytes_max: MESSAGE_BYTES_MAX, fragments_max: u32::MAX };

/// A stream that has what was put in, and then would block.
#[derive(Default)]
struct Wire(VecDeque<u8>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run_oracle<'c>(chunks: impl IntoIterator<Item = &'c [u8]>) -> Vec<Event> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let role = tungstenite::protocol::Role::Server;
    let mut socket = WebSocket::from_raw_socket(Wire::default(), role, Some(config));
    let mut events = Vec::new();
    for chunk in chunks {
        socket.get_mut().0.extend(chunk);
        loop {
            match socket.read() {
                Ok(Message::Text(text)) => events.push(Event::Message(text.as_bytes().to_vec())),
                Ok(Message::Binary(bytes)) => events.push(Event::Message(bytes.to_vec())),
                Ok(Message::Ping(payload)) => events.push(Event::Ping(payload.to_vec())),
                Ok(Message::Pong(_)) => events.push(Event::Pong),
                Ok(Message::Close(close)) => {
                    events.push(match close {
                        // This is how it reports a code that may not be sent.
                        Some(close)
                            if close.code == CloseCode::Protocol
                                && close.reason.as_str() == "Protocol violation" =>
                        {
                            Event::Refused(1002)
                        }
                        close => Event::Closed(close.map(|close| close.code.into())),
                    });
                    return events;
                }
                Ok(Message::Frame(_)) => unreachable!("reading never yields raw frames"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    events.push(Event::Refused(match error {
                        Error::Utf8(_) => 1007,
                        Error::Capacity(_) => 1009,
                        Error::Protocol(_) => 1002,
                        other => panic!("unexpected {other}"),
                    }));
                    return events;
                }
            }
        }
    }
    events
}

/// Whether the two lists agree but for the differences in this file's header.
fn agree(ours: &[Event], oracle: &[Event]) -> bool {
    ours.len() == oracle.len()
        && ours.iter().zip(oracle).all(|pair| {
            matches!(
                pair,
                (Event::Refused(1002), Event::Refused(1007 | 1009))
                    | (Event::Closed(Some(1014)), Event::Refused(1002))
            ) || pair.0 == pair.1
        })
}

/// One frame as first byte, payload and mask.
type Frame = (u8, Vec<u8>, [u8; 4]);

fn control() -> impl Strategy<Value = Frame> {
    let payload = prop::collection::vec(any::<u8>(), 0..=125);
    (prop_oneof![Just(0x89), Just(0x8a)], payload, any::<[u8; 4]>())
}

/// A message in one or more frames with control frames in between.
fn message() -> impl Strategy<Value = Vec<Frame>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<char>(), 0..140)
            .prop_map(|text| (1, String::from_iter(text).into_bytes())),
        prop::collection::vec(any::<u8>(), 0..MESSAGE_BYTES_MAX).prop_map(|bytes| (2, bytes)),
    ];
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..5);
    let controls = prop::collection::vec(prop::option::weighted(0.2, control()), 6);
    (payload, cuts, controls, any::<[u8; 4]>()).prop_map(
        |((opcode, mut payload), cuts, controls, key)| {
            // At most 140 characters of 4 bytes, so the text is within the limit too.
            payload.truncate(MESSAGE_BYTES_MAX);
            let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
            places.extend([0, payload.len()]);
            places.sort_unstable();
            let pieces = places.len() - 1;
            let mut frames = Vec::new();
            for (piece, ends) in places.windows(2).enumerate() {
                let first = if piece == 0 { opcode } else { 0 };
                let last = if piece + 1 == pieces { 0x80 } else { 0 };
                frames.push((first | last, payload[ends[0]..ends[1]].to_vec(), key));
                frames.extend(controls[piece].clone());
            }
            frames
        },
    )
}

fn close() -> impl Strategy<Value = Frame> {
    let codes = prop_oneof![1000..=1003u16, 1007..=1013u16, 3000..=4999u16];
    let payload = prop::option::of((codes, "[a-zß€😀]{0,20}")).prop_map(|close| {
        close.map_or(Vec::new(), |(code, reason)| {
            [&code.to_be_bytes()[..], reason.as_bytes()].concat()
        })
    });
    (payload, any::<[u8; 4]>()).prop_map(|(payload, key)| (0x88, payload, key))
}

/// A conversation's bytes, and the places where the network cuts it.
fn stream() -> impl Strategy<Value = (Vec<u8>, Vec<prop::sample::Index>)> {
    let items = prop::collection::vec(
        prop_oneof![4 => message(), 1 => control().prop_map(|frame| vec![frame])],
        0..6,
    );
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..8);
    (items, prop::option::weighted(0.3, close()), cuts).prop_map(|(items, close, cuts)| {
        let frames = items.into_iter().flatten().chain(close);
        let bytes = frames.flat_map(|(first, payload, key)| frame(first, &payload, Some(key)));
        (bytes.collect(), cuts)
    })
}

fn chunks<'b>(bytes: &'b [u8], cuts: &[prop::sample::Index]) -> Vec<&'b [u8]> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    /// Frames often go wrong in their heads; these overwrite the first bytes.
    Head(u8, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        (place(), 0..8u32).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        (place(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
        place().prop_map(Mutation::Remove),
        any::<(u8, u8)>().prop_map(|(first, second)| Mutation::Head(first, second)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    match mutation {
        Mutation::Flip(at, bits) => *at.get_mut(bytes) ^= bits,
        Mutation::Insert(at, byte) => bytes.insert(at.index(bytes.len()), *byte),
        Mutation::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
        Mutation::Head(first, second) => {
            for (byte, new) in bytes.iter_mut().zip([first, second]) {
                *byte = *new;
            }
        }
    }
}

/// How many times the usual cases are run; `./dev fuzz` raises it.
fn factor() -> u32 {
    std::env::var("FUZZ_FACTOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn config(cases: u32) -> ProptestConfig {
    // A failing input is printed whole after shrinking; files with seeds would add nothing.
    ProptestConfig {
        cases: cases * factor(),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn valid_streams_give_the_same_messages((bytes, cuts) in stream()) {
        let chunks = chunks(&bytes, &cuts);
        let ours = run(Role::Server, &LIMITS, chunks.clone());
        prop_assert!(!ours.iter().any(|event| matches!(event, Event::Refused(_))), "{ours:?}");
        prop_assert_eq!(ours, run_oracle(chunks));
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn broken_streams_are_refused_alike(
        (mut bytes, cuts) in stream(),
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        // We refuse on the head, tungstenite when the payload is in: give it the payload.
        bytes.resize(bytes.len() + MESSAGE_BYTES_MAX + 32, 0);
        let chunks = chunks(&bytes, &cuts);
        let ours = run(Role::Server, &LIMITS, chunks.clone());
        let oracle = run_oracle(chunks);
        prop_assert!(agree(&ours, &oracle), "ours {ours:?}\noracle {oracle:?}");
    }

    #[test]
    fn noise_never_panics_and_never_takes_what_is_not_there(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        is_client in any::<bool>(),
    ) {
        let role = if is_client { Role::Client } else { Role::Server };
        let limits = FrameLimits { message_bytes_max: 64, fragments_max: 3 };
        let mut decoder = Decoder::new(role);
        let mut rest = noise.clone();
        while let Ok(Some((incoming, taken))) = decoder.decode(&mut rest, &limits) {
            if let Incoming::Message(message) = incoming {
                prop_assert!(message.len() <= limits.message_bytes_max);
            }
            prop_assert!((2..=rest.len()).contains(&taken));
            decoder.check_invariants(&limits);
            rest.drain(..taken);
        }

        let limits = UpgradeLimits {
            head_bytes_max: 128,
            origins: OriginPolicy::SameHost,
            serves_pages: is_client,
        };
        let request = [&b"GET /?a HTTP/1.1\r\nOrigin: "[..], &noise].concat();
        let _ = accept(&noise, &limits);
        let _ = accept(&request, &limits);
    }
}
