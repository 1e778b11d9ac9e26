//! Sections 1 to 4: messages of all sizes of head, pings and pongs, reserved bits, opcodes that do not exist.

use shared::websocket::Opcode;

use crate::peer::{frame, on_all, whole};

#[test]
fn messages_of_every_size_of_head_come_back() {
    on_all(|echo| {
        // 1.1.1 to 1.2.8.
        for kind in [Opcode::Text, Opcode::Binary] {
            let mut peer = echo.open();
            for size in [0, 125, 126, 127, 128, 65_535, 65_536] {
                let payload = vec![if kind == Opcode::Text { b'*' } else { 0xfe }; size];
                peer.send(&whole(kind, &payload));
                peer.expect(kind, &payload);
            }
            let payload = vec![b'*'; 65_536];
            peer.send_in(997, &whole(kind, &payload));
            peer.expect(kind, &payload);
            peer.finish();
        }
    });
}

#[test]
fn pings_are_answered_and_pongs_are_not() {
    on_all(|echo| {
        let mut peer = echo.open();
        // 2.1 to 2.4, 2.6.
        for payload in [&b""[..], b"Hello, world!", b"\0\xff\xfe\xfd\xfc\xfb\0\xff", &[0xfe; 125]] {
            peer.send(&whole(Opcode::Ping, payload));
            peer.expect(Opcode::Pong, payload);
            peer.send_in(1, &whole(Opcode::Ping, payload));
            peer.expect(Opcode::Pong, payload);
        }
        // 2.7 to 2.9: a pong that nobody asked for, then a ping that somebody answers.
        for payload in [&b""[..], b"unasked"] {
            peer.send(&whole(Opcode::Pong, payload));
            peer.send(&whole(Opcode::Ping, b"asked"));
            peer.expect(Opcode::Pong, b"asked");
        }
        // 2.10 and 2.11: all answered, in order.
        for piece_bytes in [usize::MAX, 1] {
            let numbers: Vec<String> = (0..10).map(|number| format!("payload-{number}")).collect();
            let pings: Vec<u8> =
                numbers.iter().flat_map(|number| whole(Opcode::Ping, number.as_bytes())).collect();
            peer.send_in(piece_bytes, &pings);
            for number in &numbers {
                peer.expect(Opcode::Pong, number.as_bytes());
            }
        }
        peer.finish();
        // 2.5.
        let mut peer = echo.open();
        peer.send(&whole(Opcode::Ping, &[0xfe; 126]));
        peer.expect_close(Some(1002), "2.5");
    });
}

#[test]
fn reserved_bits_end_the_connection_behind_what_was_good() {
    on_all(|echo| {
        // 3.1 to 3.7: the bits in all data and control frames, with good frames in front of them.
        for bits in 1..8_u8 {
            for kind in [Opcode::Text, Opcode::Binary, Opcode::Ping, Opcode::Close] {
                for piece_bytes in [usize::MAX, 1] {
                    let mut peer = echo.open();
                    let bad = frame(0x80 | bits << 4 | kind as u8, b"");
                    let all = [whole(Opcode::Text, b"good"), bad, whole(Opcode::Ping, b"too late")]
                        .concat();
                    peer.send_in(piece_bytes, &all);
                    peer.expect(Opcode::Text, b"good");
                    peer.expect_close(Some(1002), &format!("bits {bits} in {kind:?}"));
                }
            }
        }
    });
}

#[test]
fn opcodes_that_do_not_exist_end_the_connection() {
    on_all(|echo| {
        // 4.1.1 to 4.2.5.
        for opcode in (3..8).chain(11..16) {
            for payload in [&b""[..], b"reserved"] {
                let mut peer = echo.open();
                let all = [
                    whole(Opcode::Text, b"good"),
                    frame(0x80 | opcode, payload),
                    whole(Opcode::Ping, b"too late"),
                ];
                peer.send(&all.concat());
                peer.expect(Opcode::Text, b"good");
                peer.expect_close(Some(1002), &format!("opcode {opcode}"));
            }
        }
    });
}

#[test]
fn a_frame_without_a_mask_ends_the_connection() {
    on_all(|echo| {
        for kind in [Opcode::Text, Opcode::Binary, Opcode::Ping, Opcode::Close] {
            let mut peer = echo.open();
            peer.send(&[0x80 | kind as u8, 0]);
            peer.expect_close(Some(1002), "no mask");
        }
    });
}
