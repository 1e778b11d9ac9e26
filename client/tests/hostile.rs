//! Whatever a server sends, the client's parsers say yes or no: they neither panic nor keep more than they were sent.

use client::address::{Address, Transport};
use client::decode_error;
use client::framing::Framing;
use client::upgrade::UpgradeRequest;
use proptest::prelude::*;

const BODY_BYTES_MAX: usize = 4096;

/// Bytes with the beginnings of packets and frames among them, so that more than the first check is reached.
fn server_bytes() -> impl Strategy<Value = Vec<u8>> {
    let packet = (1_u8..7, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(kind, body)| {
        let mut bytes = vec![kind, 0, 0, body.len() as u8];
        bytes.extend(body);
        bytes
    });
    let frame =
        (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(first, body)| {
            let mut bytes = vec![first, body.len() as u8];
            bytes.extend(body);
            bytes
        });
    let noise = prop::collection::vec(any::<u8>(), 0..20);
    prop::collection::vec(prop_oneof![packet, frame, noise], 0..12).prop_map(|parts| parts.concat())
}

/// How many times the usual cases are run; `./dev fuzz` raises it.
fn factor() -> u32 {
    std::env::var("FUZZ_FACTOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500 * factor(), ..ProptestConfig::default() })]

    #[test]
    fn framing_never_panics_and_pieces_make_no_difference(
        bytes in server_bytes(),
        piece_bytes in 1_usize..50,
        is_websocket: bool,
    ) {
        let transport = if is_websocket { Transport::WebSocket } else { Transport::Tcp };
        let run = |piece_bytes: usize| {
            let mut framing = Framing::new(transport, BODY_BYTES_MAX);
            let mut seen = Vec::new();
            for piece in bytes.chunks(piece_bytes) {
                let mut out = Vec::new();
                let result = framing.handle_bytes(&mut piece.to_vec(), &mut out, &mut |received| {
                    seen.push(format!("{received:?}"));
                });
                if result.is_err() {
                    return (seen, true);
                }
                assert!(framing.partial_bytes() <= bytes.len());
            }
            (seen, false)
        };
        prop_assert_eq!(run(bytes.len().max(1)), run(piece_bytes));
    }

    #[test]
    fn answers_to_an_upgrade_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let request = UpgradeRequest::new("game", "/");
        let _ = request.handle_response(&bytes);
        let _ = request.handle_response(&[b"HTTP/1.1 101 x\r\n", bytes.as_slice()].concat());
    }

    #[test]
    fn error_bodies_never_panic_and_always_have_a_code(
        body in prop::collection::vec(any::<u8>(), 0..100),
        is_protobuf: bool,
    ) {
        let error = decode_error(&body, if is_protobuf { "protobuf" } else { "json" });
        prop_assert!(!error.code.is_empty());
    }

    #[test]
    fn addresses_never_panic_and_print_as_they_are_read(text in "(tcp://|ws://|x://)?[a-z:\\[\\]/?.0-9]{0,20}") {
        if let Ok(address) = text.parse::<Address>() {
            prop_assert_eq!(address.to_string().parse::<Address>().ok(), Some(address));
        }
    }
}
