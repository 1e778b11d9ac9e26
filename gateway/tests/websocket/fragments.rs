//! Section 5: messages in pieces, with control frames between them, and pieces of nothing.

use shared::websocket::Opcode;

use crate::peer::{Echo, frame, on_all, whole};

const TEXT: u8 = Opcode::Text as u8;
const MORE: u8 = Opcode::Continuation as u8;
const LAST: u8 = 0x80;

/// In one piece, in pieces of a frame, byte by byte.
fn each_way(echo: &Echo, frames: &[Vec<u8>], expect: impl Fn(&mut crate::peer::Peer)) {
    for way in 0..3 {
        let mut peer = echo.open();
        match way {
            0 => peer.send(&frames.concat()),
            1 => frames.iter().for_each(|frame| peer.send(frame)),
            _ => peer.send_in(1, &frames.concat()),
        }
        expect(&mut peer);
    }
}

#[test]
fn control_frames_are_never_in_pieces() {
    on_all(|echo| {
        // 5.1 and 5.2.
        for kind in [Opcode::Ping, Opcode::Pong] {
            let frames = [frame(kind as u8, b"fragment1"), frame(LAST | MORE, b"fragment2")];
            each_way(echo, &frames, |peer| peer.expect_close(Some(1002), "5.1, 5.2"));
        }
    });
}

#[test]
fn pieces_are_joined_and_pings_between_them_answered_first() {
    on_all(|echo| {
        // 5.3 to 5.5.
        let two = [frame(TEXT, b"fragment1"), frame(LAST | MORE, b"fragment2")];
        each_way(echo, &two, |peer| peer.expect(Opcode::Text, b"fragment1fragment2"));
        // 5.6 to 5.8.
        let [first, second] = two;
        let with_ping = [first, whole(Opcode::Ping, b"pongme"), second];
        each_way(echo, &with_ping, |peer| {
            peer.expect(Opcode::Pong, b"pongme");
            peer.expect(Opcode::Text, b"fragment1fragment2");
        });
        // 5.19 and 5.20.
        let five = [
            frame(TEXT, b"fragment1"),
            frame(MORE, b"fragment2"),
            whole(Opcode::Ping, b"pongme 1!"),
            frame(MORE, b"fragment3"),
            frame(MORE, b"fragment4"),
            whole(Opcode::Ping, b"pongme 2!"),
            frame(LAST | MORE, b"fragment5"),
        ];
        each_way(echo, &five, |peer| {
            peer.expect(Opcode::Pong, b"pongme 1!");
            peer.expect(Opcode::Pong, b"pongme 2!");
            peer.expect(Opcode::Text, b"fragment1fragment2fragment3fragment4fragment5");
        });
        // 6.1: pieces may be empty.
        let empty = [frame(TEXT, b""), frame(MORE, b""), frame(LAST | MORE, b"")];
        each_way(echo, &empty, |peer| peer.expect(Opcode::Text, b""));
        let around = [frame(TEXT, b""), frame(MORE, b"middle"), frame(LAST | MORE, b"")];
        each_way(echo, &around, |peer| peer.expect(Opcode::Text, b"middle"));
    });
}

#[test]
fn pieces_of_nothing_and_messages_inside_messages_end_the_connection() {
    on_all(|echo| {
        let hello = || whole(Opcode::Text, b"Hello, world!");
        let nothing: [&[Vec<u8>]; 4] = [
            // 5.9 to 5.11, 5.12 to 5.14.
            &[frame(LAST | MORE, b"non-continuation payload"), hello()],
            &[frame(MORE, b"non-continuation payload"), hello()],
            // 5.16 and 5.17: in front of and behind a good message.
            &[
                frame(MORE, b"fragment1"),
                frame(TEXT, b"fragment2"),
                frame(LAST | MORE, b"fragment3"),
            ],
            &[frame(LAST | MORE, b"fragment1"), frame(TEXT, b"fragment2")],
        ];
        for frames in nothing {
            each_way(echo, frames, |peer| peer.expect_close(Some(1002), "5.9 to 5.17"));
        }
        // 5.15.
        let behind = [
            frame(TEXT, b"fragment1"),
            frame(LAST | MORE, b"fragment2"),
            frame(MORE, b"fragment3"),
            frame(LAST | TEXT, b"fragment4"),
        ];
        each_way(echo, &behind, |peer| {
            peer.expect(Opcode::Text, b"fragment1fragment2");
            peer.expect_close(Some(1002), "5.15");
        });
        // 5.18.
        let inside = [frame(TEXT, b"fragment1"), frame(LAST | TEXT, b"fragment2")];
        each_way(echo, &inside, |peer| peer.expect_close(Some(1002), "5.18"));
    });
}
