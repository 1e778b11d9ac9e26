//! Messages (hostile inputs 2.2, client protocol 3).

use client::raw::{Closed, RawClient, head};
use shared::compression::Deflater;
use shared::message::{Head, MessageType};
use shared::packet::PacketType;

use crate::field::{Field, LONG, under_attack};

/// Codes 4 and 260 for two routes.
const DICTIONARY: (&str, &str) = ("pitaya.gateway.dictionary", "onMessage=4,room.test.echo=260");

/// What a compressed echo request with id 7 has in front of its payload.
const COMPRESSED: &[u8] = b"\x10\x07\x0eroom.test.echo";

fn zlib(bytes: &[u8]) -> Vec<u8> {
    Deflater::new().deflate(bytes, 0).unwrap().to_vec()
}

/// `clients` of both kinds, each of which sends one body in a data packet.
fn each_sends(field: &Field, bodies: &[Vec<u8>], mut then: impl FnMut(RawClient, &[u8], bool)) {
    for body in bodies {
        for (mut client, is_web_socket) in field.established().into_iter().zip([false, true]) {
            client.send_packet(PacketType::Data, body).unwrap();
            then(client, body, is_web_socket);
        }
    }
}

#[test]
fn messages_that_cannot_be_decoded_close_the_connection() {
    let good = zlib(&[b'x'; 51]);
    let mut bad_checksum = [COMPRESSED, &good].concat();
    *bad_checksum.last_mut().unwrap() ^= 1;
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xab\x56\xca\x4b\xcc\x4d\x55\xb2\x52\xaa\x20\x12\x28\xd5\x02\0\x2f\x39\xbd\xf4\x33\0\0\0";
    let mut bodies: Vec<Vec<u8>> = vec![
        vec![],
        b"\0".to_vec(),
        b"\0\x01".to_vec(),
        b"\0\x80".to_vec(),
        b"\x02\x05a".to_vec(),
        b"\x06\x01".to_vec(),
        b"\0\x01\x02a".to_vec(),
        b"\0\x01\xffroom.test.echo".to_vec(),
        b"\x01\x01".to_vec(),
        b"\x01\x01\x01".to_vec(),
        b"\x01\x01\x03\xe7".to_vec(),
        b"\x03\xff\xff".to_vec(),
        [&b"\0"[..], &[0x80; 60], b"\x0eroom.test.echo"].concat(),
        [&b"\0"[..], &[0xff; 9], b"\x02\x0eroom.test.echo"].concat(),
        [&b"\0"[..], &[0xff; 10], b"\x01\x0eroom.test.echo"].concat(),
        COMPRESSED.to_vec(),
        [COMPRESSED, b"garbage"].concat(),
        [COMPRESSED, &good[..good.len() - 1]].concat(),
        [COMPRESSED, &good[2..]].concat(),
        [COMPRESSED, gzip].concat(),
        bad_checksum,
    ];
    bodies.extend((4..8u8).map(|kind| vec![kind << 1, 1, 0, 0]));
    under_attack(&[DICTIONARY], |field| {
        each_sends(field, &bodies, |mut client, body, is_web_socket| {
            let closed =
                client.expect_close(LONG).unwrap_or_else(|error| panic!("{body:x?}: {error}"));
            let code = Closed::CloseFrame { code: Some(1008) };
            assert_eq!(closed, if is_web_socket { code } else { Closed::Finished }, "{body:x?}");
        });
    });
}

#[test]
fn odd_but_decodable_messages_are_answered() {
    let good = zlib(&[b'x'; 51]);
    let answers: [(Vec<u8>, u64, Vec<u8>); 6] = [
        ([COMPRESSED, &good].concat(), 7, vec![b'x'; 51]),
        ([COMPRESSED, &good, b"\0\0"].concat(), 7, vec![b'x'; 51]),
        ([&b"\0\x81\0\x0eroom.test.echo"[..], b"1"].concat(), 1, b"1".to_vec()),
        (
            [&b"\0"[..], &[0xff; 9], b"\x01\x0eroom.test.echo", b"2"].concat(),
            u64::MAX,
            b"2".to_vec(),
        ),
        ([&b"\x01\x01\x01\x04"[..], b"3"].concat(), 1, b"3".to_vec()),
        // Unused bits and the error bit mean nothing in a request.
        ([&b"\xe0\x01\x0eroom.test.echo"[..], b"4"].concat(), 1, b"4".to_vec()),
    ];
    under_attack(&[DICTIONARY], |field| {
        for (body, id, payload) in &answers {
            each_sends(field, std::slice::from_ref(body), |mut client, _, _| {
                let answer = client.read_message(LONG).unwrap();
                assert_eq!((answer.id, &answer.payload), (*id, payload));
            });
        }
    });
}

#[test]
fn what_only_servers_send_runs_no_handler() {
    under_attack(&[], |field| {
        for mut client in field.established() {
            client.send_message(&head(MessageType::Push, 0, "room.test.kick"), b"{}").unwrap();
            client.send_message(&head(MessageType::Push, 0, "sys.kick"), b"{}").unwrap();
            client.send_message(&head(MessageType::Response, 1, ""), b"{}").unwrap();
            let error = Head { is_error: true, ..head(MessageType::Response, 2, "") };
            client.send_message(&error, b"{}").unwrap();
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
    });
}

#[test]
fn bombs_close_their_connection_only() {
    // A little under the limit of a packet, for 32 MiB.
    let bomb = [COMPRESSED, &zlib(&vec![0; 32 << 20])].concat();
    let just_fits = [COMPRESSED, &zlib(&vec![7; 60_000])].concat();
    under_attack(&[("pitaya.gateway.inflate.maxbytes", "60000")], |field| {
        each_sends(
            field,
            &[bomb.clone(), [COMPRESSED, &zlib(&vec![0; 60_001])].concat()],
            |mut client, _, is_web_socket| {
                let closed = client.expect_close(LONG).unwrap();
                let code = Closed::CloseFrame { code: Some(1009) };
                assert_eq!(closed, if is_web_socket { code } else { Closed::Finished });
            },
        );
        let many: Vec<_> = (0..4)
            .flat_map(|_| field.established())
            .map(|mut client| {
                client.send_packet(PacketType::Data, &bomb).unwrap();
                client
            })
            .collect();
        for mut client in many {
            client.expect_close(LONG).unwrap();
        }
        each_sends(field, std::slice::from_ref(&just_fits), |mut client, _, _| {
            assert_eq!(client.read_message(LONG).unwrap().payload, vec![7; 60_000]);
        });
    });
}

#[test]
fn ids_are_the_clients_own_affair() {
    under_attack(&[], |field| {
        for mut client in field.established() {
            for _ in 0..50 {
                client
                    .send_message(&head(MessageType::Request, 9, "room.test.sleep"), br#"{"ms":5}"#)
                    .unwrap();
            }
            // Id 0 is served and never answered; nor is a notify, wherever it goes.
            client.send_message(&head(MessageType::Request, 0, "room.test.echo"), b"x").unwrap();
            client.send_message(&head(MessageType::Request, 0, "nowhere"), b"x").unwrap();
            for route in ["room.test.nothing", "nowhere.at.all", "nonsense", "room.test.echo"] {
                client.notify(route, b"x").unwrap();
            }
            for _ in 0..50 {
                let answer = client.read_message(LONG).unwrap();
                assert_eq!((answer.id, answer.text()), (9, r#"{"code":200}"#.to_owned()));
            }
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
    });
}

#[test]
fn payloads_are_the_handlers_affair() {
    let deep = [vec![b'['; 30_000], vec![b']'; 30_000]].concat();
    let payloads: [&[u8]; 6] = [b"", b"{", b"\xff\xfe", b"[1,2", b"{}{}", &deep];
    under_attack(&[], |field| {
        for mut client in field.established() {
            for payload in payloads {
                let answer = client.request("room.test.data", payload).unwrap();
                assert!(answer.is_error && answer.text().contains("PIT-400"), "{}", answer.text());
            }
            assert_eq!(client.request("room.test.echo", &deep).unwrap().payload, deep);
        }
    });
}

#[test]
fn mutations_of_a_good_conversation_do_no_harm() {
    const SEED: u64 = 40;
    let good: [&[u8]; 5] = [
        b"\x01\0\0\x0a{\"sys\":{}}\x02\0\0\0\x04\0\0\x13\0\x01\x0eroom.test.echo{}\x03\0\0\0",
        b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x15\x10\x07\x0eroom.test.echo\x78\x9c\x03\0",
        b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x05\x01\x01\x01\x04x\x04\0\0\x03\x03\0\x04",
        b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x11\x02\x0eroom.test.echo{\x05\0\0\0",
        b"\x01\0\0\x02{}\x02\0\0\0\x04\0\0\x02\x04\x01\x04\0\0\x03\x06\x01a",
    ];
    // A write deadline longer than the wait for left sockets: an end whose client is gone must not wait for it.
    let settings = [DICTIONARY, ("pitaya.buffer.agent.conntimeout", "1m")];
    under_attack(&settings, |field| {
        println!("seed {SEED}");
        let mut random = fastrand::Rng::with_seed(SEED);
        for round in 0..1_500 {
            let mut bytes = good[round % good.len()].to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] ^= 1 << random.u8(..8),
                    1 => bytes[at] = random.u8(..),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.u8(..)),
                }
            }
            if round % 2 == 0 {
                let mut client = field.tcp();
                client.send_bytes(&bytes).unwrap();
            } else {
                let mut client = field.ws();
                client.send_frame(shared::websocket::Opcode::Binary, &bytes).unwrap();
            }
        }
    });
}
