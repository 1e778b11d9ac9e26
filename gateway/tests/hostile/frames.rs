//! WebSocket frames (hostile inputs 2.4, client protocol 12).

use std::io::Read;
use std::time::Instant;

use client::raw::{Closed, RawClient};
use shared::packet::PacketType;
use shared::websocket::Opcode;

use crate::field::{Field, LONG, under_attack};

/// A working session on WebSocket that sends these bytes.
fn after(field: &Field, bytes: &[u8]) -> RawClient {
    let mut client = field.ws();
    client.establish().unwrap();
    // The gateway may close before everything is written.
    let _ = client.send_bytes(bytes);
    client
}

fn expect_code(field: &Field, bytes: &[u8], code: u16) {
    let closed = after(field, bytes).expect_close(LONG);
    let closed =
        closed.unwrap_or_else(|error| panic!("{:x?}: {error}", &bytes[..bytes.len().min(20)]));
    assert_eq!(
        closed,
        Closed::CloseFrame { code: Some(code) },
        "{:x?}",
        &bytes[..bytes.len().min(20)]
    );
}

#[test]
fn frames_that_break_the_protocol_are_told_1002() {
    let cases: [&[u8]; 14] = [
        b"\x82\x04\x03\0\0\0",                 // unmasked
        b"\xa2\x80\0\0\0\0",                   // RSV2
        b"\xf2\x80\0\0\0\0",                   // all reserved bits
        b"\x83\x80\0\0\0\0",                   // opcode 3
        b"\x8b\x80\0\0\0\0",                   // opcode 11
        b"\x09\x80\0\0\0\0",                   // ping in fragments
        b"\x89\xfe\0\x7e",                     // ping of 126 bytes
        b"\x88\xfe\0\x7e",                     // close of 126 bytes
        b"\x80\x80\0\0\0\0",                   // continuation of nothing
        b"\x02\x80\0\0\0\0\x82\x80\0\0\0\0",   // a message inside a message
        b"\x88\x81\0\0\0\0\x03",               // half a close code
        b"\x88\x82\0\0\0\0\x03\xed",           // code 1005
        b"\x88\x82\0\0\0\0\0\0",               // code 0
        b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0", // 2^63 bytes
    ];
    under_attack(&[], |field| {
        for bytes in cases {
            expect_code(field, bytes, 1002);
        }
    });
}

#[test]
fn sizes_are_refused_on_the_head_and_across_fragments() {
    under_attack(&[], |field| {
        expect_code(field, b"\x82\xff\0\0\x01\0\0\0\0\0\0\0\0\0", 1009);
        expect_code(field, b"\x02\xff\0\0\0\0\0\x01\0\x05\0\0\0\0", 1009);
        // A packet that is too large in a frame that is not.
        expect_code(field, b"\x82\x84\0\0\0\0\x04\x01\0\x01", 1009);
        let fragment = [&b"\0\xfe\x40\0\0\0\0\0"[..], &[0; 0x4000]].concat();
        let endless = [&b"\x02\x80\0\0\0\0"[..], &fragment.repeat(256)].concat();
        expect_code_or_reset(field, &endless, 1009);
        let empty = [&b"\x02\x80\0\0\0\0"[..], &b"\0\x80\0\0\0\0".repeat(1_000_000)].concat();
        expect_code_or_reset(field, &empty, 1009);
    });
}

/// The attacker may be writing still when the gateway is done with it; the reset may then overtake the close frame.
fn expect_code_or_reset(field: &Field, bytes: &[u8], code: u16) {
    let closed = after(field, bytes).expect_close(LONG).unwrap();
    assert!(
        [Closed::CloseFrame { code: Some(code) }, Closed::Reset].contains(&closed),
        "{closed:?}"
    );
}

#[test]
fn fragments_and_control_frames_between_them_are_served() {
    under_attack(&[], |field| {
        let packet = b"\x04\0\0\x13\0\x01\x0eroom.test.echo{}";
        let mut bytes = b"\x02\x80\0\0\0\0".to_vec();
        for byte in packet {
            bytes.extend_from_slice(&[0, 0x81, 0, 0, 0, 0, *byte, 0x8a, 0x80, 0, 0, 0, 0]);
        }
        bytes.extend_from_slice(b"\x80\x80\0\0\0\0");
        assert_eq!(after(field, &bytes).read_message(LONG).unwrap().payload, b"{}");
    });
}

#[test]
fn text_is_taken_like_binary_and_must_be_utf8() {
    under_attack(&[], |field| {
        let mut client = field.ws();
        client.send_frame(Opcode::Text, b"\x01\0\0\x02{}").unwrap();
        assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
        client.send_frame(Opcode::Text, b"\x02\0\0\0").unwrap();
        assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        expect_code(field, b"\x81\x82\0\0\0\0\xc3\x28", 1007);
        expect_code(field, b"\x01\x81\0\0\0\0\xff", 1007);
        expect_code(field, b"\x88\x83\0\0\0\0\x03\xe8\xff", 1007);
    });
}

#[test]
fn a_message_holds_whole_packets() {
    let bad: [&[u8]; 6] = [
        b"",
        b"\x03",
        b"\x03\0\0",
        b"\x02\0\0\x02\x01",
        b"\x02\0\0\x01\0\0",
        b"\x03\0\0\0\x04\0\0",
    ];
    under_attack(&[], |field| {
        for message in bad {
            let mut client = field.ws();
            client.establish().unwrap();
            client.send_frame(Opcode::Binary, message).unwrap();
            let closed = client.expect_close(LONG).unwrap();
            assert_eq!(closed, Closed::CloseFrame { code: Some(1002) }, "{message:x?}");
        }
        let mut client = field.ws();
        client
            .send_frame(
                Opcode::Binary,
                b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x13\0\x01\x0eroom.test.echo{}\x03\0\0\0",
            )
            .unwrap();
        assert_eq!(client.read_handshake_response(LONG).unwrap().code, 200);
        assert_eq!(client.read_message(LONG).unwrap().payload, b"{}");
    });
}

#[test]
fn pings_whose_pongs_nobody_reads_cost_a_bounded_outbox() {
    under_attack(
        &[("pitaya.gateway.outbox.maxbytes", "65536"), ("pitaya.buffer.agent.conntimeout", "1s")],
        |field| {
            let mut client = field.ws();
            client.establish().unwrap();
            socket2::SockRef::from(client.socket()).set_recv_buffer_size(4_096).unwrap();
            let ping = [&b"\x89\xfd\0\0\0\0"[..], &[b'p'; 125]].concat().repeat(100);
            let since = Instant::now();
            while client.send_bytes(&ping).is_ok() {
                assert!(since.elapsed() < LONG, "pings are taken for ever");
            }
        },
    );
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    under_attack(&[], |field| {
        let client = after(field, b"\x89\x84\0\0\0\0ping\x8a\x80\0\0\0\0");
        client.socket().set_read_timeout(Some(LONG)).unwrap();
        let mut pong = [0; 6];
        client.socket().read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"\x8a\x04ping");
    });
}

#[test]
fn a_close_is_echoed_and_the_socket_closed_though_the_client_stays() {
    under_attack(&[], |field| {
        for (close, code) in
            [(&b"\x88\x82\0\0\0\0\x03\xe9"[..], Some(1001)), (b"\x88\x80\0\0\0\0", None)]
        {
            let mut client = after(field, close);
            assert_eq!(client.expect_close(LONG).unwrap(), Closed::CloseFrame { code });
            // Nothing behind a close counts.
            let _ = client.send_packet(PacketType::Data, b"\0\x01\x0eroom.test.echo{}");
            let since = Instant::now();
            while client.heartbeat().is_ok() {
                assert!(since.elapsed() < LONG, "the gateway still takes bytes");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    });
}
