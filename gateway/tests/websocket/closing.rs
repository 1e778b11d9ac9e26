//! Section 7: who closes how, with which code, and what counts behind it.

use shared::websocket::Opcode;

use crate::peer::{close, frame, on_all, whole};

#[test]
fn nothing_counts_behind_a_close() {
    on_all(|echo| {
        // 7.1.1.
        let mut peer = echo.open();
        peer.send(&whole(Opcode::Text, b"Hello World!"));
        peer.expect(Opcode::Text, b"Hello World!");
        peer.finish();
        // 7.1.2 to 7.1.4: a second close, a ping, a message.
        let behind = [close(1000, b""), whole(Opcode::Ping, b""), whole(Opcode::Text, b"x")];
        for late in behind {
            let mut peer = echo.open();
            peer.send(&[close(1000, b""), late].concat());
            peer.expect_close(Some(1000), "7.1.2 to 7.1.4");
        }
        // 7.1.5: in the middle of a message.
        let mut peer = echo.open();
        let begun = frame(Opcode::Text as u8, b"fragment1");
        let rest = frame(0x80, b"fragment2");
        peer.send(&[begun, close(1000, b""), rest].concat());
        peer.expect_close(Some(1000), "7.1.5");
        // 7.1.6: what was asked before is answered before.
        let mut peer = echo.open();
        let large = vec![b'*'; 256 * 1024];
        peer.send(
            &[whole(Opcode::Text, &large), close(1000, b""), whole(Opcode::Ping, b"")].concat(),
        );
        peer.expect(Opcode::Text, &large);
        peer.expect_close(Some(1000), "7.1.6");
    });
}

#[test]
fn close_frames_hold_nothing_or_a_code_and_a_reason() {
    on_all(|echo| {
        // 7.3.1, 7.3.3 to 7.3.5.
        let mut peer = echo.open();
        peer.send(&whole(Opcode::Close, b""));
        peer.expect_close(None, "7.3.1");
        for reason in [&b""[..], b"Hello World!", &[b'*'; 123]] {
            let mut peer = echo.open();
            peer.send(&close(1000, reason));
            peer.expect_close(Some(1000), "7.3.3 to 7.3.5");
        }
        // 7.3.2 and 7.3.6.
        let mut peer = echo.open();
        peer.send(&whole(Opcode::Close, b"a"));
        peer.expect_close(Some(1002), "7.3.2");
        let mut peer = echo.open();
        peer.send(&close(1000, &[b'*'; 124]));
        peer.expect_close(Some(1002), "7.3.6");
        // 7.5.1.
        let mut peer = echo.open();
        peer.send(&close(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80"));
        peer.expect_close(Some(1007), "7.5.1");
    });
}

#[test]
fn only_codes_that_may_be_sent_are_echoed() {
    on_all(|echo| {
        // 7.7.1 to 7.7.13.
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            let mut peer = echo.open();
            peer.send(&close(code, b""));
            peer.expect_close(Some(code), "7.7");
        }
        // 7.9.1 to 7.9.9, 7.13.
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            let mut peer = echo.open();
            peer.send(&close(code, b""));
            peer.expect_close(Some(1002), &format!("7.9: {code}"));
        }
    });
}

#[test]
fn a_client_that_goes_without_a_word_leaves_nothing() {
    on_all(|echo| {
        let mut peer = echo.open();
        peer.send(&frame(Opcode::Text as u8, b"half"));
        drop(peer);
        let mut peer = echo.open();
        peer.send_in(1, &whole(Opcode::Text, b"still served"));
        peer.expect(Opcode::Text, b"still served");
        peer.finish();
        // One who stays after the close is closed all the same; `expect_close` has seen the end above.
        let mut peer = echo.open();
        peer.send(&close(1000, b""));
        peer.expect_close(Some(1000), "the socket ends soon");
    });
}
