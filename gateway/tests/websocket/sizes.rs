//! Sections 9 and 10: large messages, many fragments, many messages, bytes in small pieces; and the limits.

use shared::websocket::Opcode;

use crate::peer::{MESSAGE_BYTES_MAX, frame, on_all, whole};

/// A message in fragments of this size.
fn fragmented(kind: Opcode, payload: &[u8], fragment_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + payload.len() / fragment_bytes * 14 + 14);
    let last = payload.len().div_ceil(fragment_bytes) - 1;
    for (number, fragment) in payload.chunks(fragment_bytes).enumerate() {
        let opcode = if number == 0 { kind } else { Opcode::Continuation };
        let last_bit = if number == last { 0x80 } else { 0 };
        out.extend(frame(last_bit | opcode as u8, fragment));
    }
    out
}

#[test]
fn large_messages_come_back_whole_and_in_fragments() {
    on_all(|echo| {
        // 9.1 to 9.6, with sizes up to our limit.
        let mut peer = echo.open();
        for kind in [Opcode::Text, Opcode::Binary] {
            for size in [64 * 1024, 1024 * 1024, MESSAGE_BYTES_MAX] {
                let payload = vec![b'*'; size];
                peer.send(&whole(kind, &payload));
                peer.expect(kind, &payload);
            }
        }
        let payload = vec![b'*'; 1024 * 1024];
        for fragment_bytes in [64, 1_300, 65_536] {
            peer.send(&fragmented(Opcode::Text, &payload, fragment_bytes));
            peer.expect(Opcode::Text, &payload);
        }
        peer.send_in(2_048, &whole(Opcode::Binary, &payload));
        peer.expect(Opcode::Binary, &payload);
        // 10.1.1.
        let payload = vec![b'*'; 65_536];
        peer.send(&fragmented(Opcode::Text, &payload, 1_300));
        peer.expect(Opcode::Text, &payload);
        peer.finish();
    });
}

#[test]
fn many_messages_come_back_in_order() {
    on_all(|echo| {
        // 9.7 and 9.8.
        let mut peer = echo.open();
        for size in [0, 16, 64, 256, 1_024, 4_096] {
            let messages: Vec<Vec<u8>> = (0..100_u32)
                .map(|number| [&number.to_be_bytes()[..], &vec![7; size]].concat())
                .collect();
            let all: Vec<u8> =
                messages.iter().flat_map(|message| whole(Opcode::Binary, message)).collect();
            peer.send(&all);
            for message in &messages {
                peer.expect(Opcode::Binary, message);
            }
        }
        peer.finish();
    });
}

#[test]
fn one_byte_or_one_fragment_over_the_limit_is_told_1009() {
    on_all(|echo| {
        let mut peer = echo.open();
        peer.send(&whole(Opcode::Binary, &vec![0; MESSAGE_BYTES_MAX + 1])[..14]);
        peer.expect_close(Some(1009), "on the head alone");
        let mut peer = echo.open();
        peer.send(&frame(Opcode::Binary as u8, &vec![0; MESSAGE_BYTES_MAX]));
        peer.send(&frame(0x80, b"1"));
        peer.expect_close(Some(1009), "across fragments");
        for announced in [&[0x7f_u8, 0xff, 0xff, 0xff, 0, 0, 0, 0][..], &[0, 0, 1, 0, 0, 0, 0, 0]] {
            let mut peer = echo.open();
            peer.send(&[&[0x82, 0xff][..], announced, &[0; 4]].concat());
            peer.expect_close(Some(1009), "announced");
        }
        let mut peer = echo.open();
        peer.send(&[&[0x82, 0xff, 0x80][..], &[0; 11]].concat());
        peer.expect_close(Some(1002), "2^63");
    });
}
