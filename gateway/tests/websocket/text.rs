//! Section 6: text is UTF-8, whole or in pieces, cut anywhere, and broken text ends the connection when it breaks.

use shared::websocket::Opcode;

use crate::peer::{Echo, frame, on_all, whole};

const KOSME: &str = "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}";

/// The text in pieces of this many bytes.
fn pieces(text: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut out = frame(Opcode::Text as u8, b"");
    for piece in text.chunks(piece_bytes) {
        out.extend(frame(Opcode::Continuation as u8, piece));
    }
    out.extend(frame(0x80 | Opcode::Continuation as u8, b""));
    out
}

fn expect_refused(echo: &Echo, text: &[u8]) {
    let case = text.escape_ascii().to_string();
    for bytes in [whole(Opcode::Text, text), pieces(text, 1), pieces(text, 3)] {
        let mut peer = echo.open();
        peer.send(&bytes);
        peer.expect_close(Some(1007), &case);
    }
}

#[test]
fn good_text_comes_back_however_it_is_cut() {
    // 6.2, 6.5, 6.7, 6.9, 6.11, 6.13, 6.17, 6.22, 6.23: first and last of each length, around the surrogates,
    // characters that are none, and those that are often confused with errors.
    let texts: Vec<String> = vec![
        "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!".to_owned(),
        KOSME.to_owned(),
        "\0\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}".to_owned(),
        "\u{d7ff}\u{e000}\u{fffd}".to_owned(),
        "\u{fffe}\u{1fffe}\u{1ffff}\u{2fffe}\u{fdd0}\u{10fffe}".to_owned(),
        "\u{feff}\u{200b}\u{2028}".to_owned(),
    ];
    on_all(|echo| {
        let mut peer = echo.open();
        for text in &texts {
            let text = text.as_bytes();
            peer.send(&whole(Opcode::Text, text));
            peer.expect(Opcode::Text, text);
            for piece_bytes in 1..4 {
                peer.send(&pieces(text, piece_bytes));
                peer.expect(Opcode::Text, text);
            }
            peer.send_in(1, &pieces(text, 1));
            peer.expect(Opcode::Text, text);
        }
        // Bytes need not be text.
        peer.send(&whole(Opcode::Binary, b"\xff\xfe\xc0"));
        peer.expect(Opcode::Binary, b"\xff\xfe\xc0");
        peer.finish();
    });
}

#[test]
fn broken_text_is_refused() {
    // 6.3, 6.6, 6.8, 6.10, 6.12, 6.14 to 6.16, 6.18 to 6.21.
    let cut = KOSME.as_bytes();
    let mut cases: Vec<Vec<u8>> = vec![
        [cut, b"\xed\xa0\x80edited"].concat(),
        b"\xf8\x88\x80\x80\x80".to_vec(),
        b"\xfc\x84\x80\x80\x80\x80".to_vec(),
        b"\xf7\xbf\xbf\xbf".to_vec(),
        b"\xfb\xbf\xbf\xbf\xbf".to_vec(),
        b"\xfd\xbf\xbf\xbf\xbf\xbf".to_vec(),
        b"\xf4\x90\x80\x80".to_vec(),
        b"\x80".to_vec(),
        b"\xbf\x80\xbf\x80".to_vec(),
        b"\xc0 \xc1 \xdf ".to_vec(),
        b"\xe0 \xef ".to_vec(),
        b"\xf0 \xf7 ".to_vec(),
        b"\xfe".to_vec(),
        b"\xff".to_vec(),
        b"\xfe\xfe\xff\xff".to_vec(),
        b"\xc0\xaf".to_vec(),
        b"\xe0\x80\xaf".to_vec(),
        b"\xf0\x80\x80\xaf".to_vec(),
        b"\xc1\xbf".to_vec(),
        b"\xe0\x9f\xbf".to_vec(),
        b"\xf0\x8f\xbf\xbf".to_vec(),
        b"\xc0\x80".to_vec(),
        b"\xed\xa0\x80".to_vec(),
        b"\xed\xbf\xbf".to_vec(),
        b"\xed\xa0\x80\xed\xb0\x80".to_vec(),
    ];
    // 6.6: characters that are cut at the end of the message.
    for (length, text) in [(2, "\u{80}"), (3, "\u{800}"), (4, "\u{10000}")] {
        cases.extend((1..length).map(|kept| text.as_bytes()[..kept].to_vec()));
    }
    on_all(|echo| cases.iter().for_each(|case| expect_refused(echo, case)));
}

#[test]
fn broken_text_is_refused_before_its_message_ends() {
    on_all(|echo| {
        // 6.4: the rest never comes; without an early refusal this would wait for it.
        for bad in [&b"\xf4\x90"[..], b"\xed\xa0\x80", b"\xce\xba\xff"] {
            let mut peer = echo.open();
            peer.send(&frame(Opcode::Text as u8, KOSME.as_bytes()));
            peer.send(&frame(Opcode::Continuation as u8, bad));
            peer.expect_close(Some(1007), "6.4");
        }
    });
}
