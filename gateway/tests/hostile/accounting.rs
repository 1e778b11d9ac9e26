//! What the metrics say of attacks (hostile inputs 2, the list of reasons, and 2.2): every end has its reason, accepted
//! connections are open or closed, and clients cannot make series.

use client::raw::RawClient;
use shared::close::CloseReason;
use shared::metrics::LimitLabel;
use shared::packet::PacketType;

use crate::field::{Field, LONG, eventually, reset, under_attack};
use crate::metrics::{closed_total, value};

/// How often a limit was run into.
pub(crate) fn exceeded(field: &Field, limit: LimitLabel) -> u64 {
    let label = format!(r#"limit="{}""#, limit.name());
    value(&field.metrics(), "pitaya_limits_exceeded_total", &label)
}

/// Ends a connection of each kind in one way, and says for which reason.
type Attack = (CloseReason, u64, fn(&Field));

fn each(field: &Field, mut act: impl FnMut(&mut RawClient)) {
    for mut client in field.established() {
        act(&mut client);
        client.read_to_close(LONG).unwrap();
    }
}

const ATTACKS: [Attack; 9] = [
    (CloseReason::BadPacket, 2, |field| {
        each(field, |client| {
            // A handshake puts the session back; data is refused then.
            client.handshake().unwrap();
            client.send_packet(PacketType::Data, b"").unwrap();
        });
    }),
    (CloseReason::BadMessage, 2, |field| {
        each(field, |client| client.send_packet(PacketType::Data, b"\0\x01").unwrap());
    }),
    (CloseReason::BadHandshake, 2, |field| {
        each(field, |client| client.send_packet(PacketType::Handshake, b"[]").unwrap());
    }),
    (CloseReason::TooLarge, 2, |field| {
        each(field, |client| drop(client.send_packet(PacketType::Data, &[0; 65_537])));
    }),
    (CloseReason::InflateLimit, 2, |field| {
        let bomb =
            shared::compression::Deflater::new().deflate(&vec![0; 2 << 20], 0).unwrap().to_vec();
        let bomb = [b"\x10\x07\x0eroom.test.echo", &bomb[..]].concat();
        each(field, |client| client.send_packet(PacketType::Data, &bomb).unwrap());
    }),
    (CloseReason::PeerClosed, 2, |field| each(field, |client| client.finish_writing().unwrap())),
    (CloseReason::Kicked, 2, |field| {
        each(field, |client| {
            let uid = format!(r#"{{"name":"{}"}}"#, client.socket().local_addr().unwrap().port());
            client.request("room.test.bind", uid.as_bytes()).unwrap();
            client.send_request("room.test.kick", b"").unwrap();
        });
    }),
    (CloseReason::WebSocketProtocol, 1, |field| {
        let mut client = field.ws();
        client.send_bytes(b"\x82\x04\x03\0\0\0").unwrap();
        client.expect_close(LONG).unwrap();
    }),
    (CloseReason::Utf8, 1, |field| {
        let mut client = field.ws();
        client.send_bytes(b"\x81\x82\0\0\0\0\xc3\x28").unwrap();
        client.expect_close(LONG).unwrap();
    }),
];

#[test]
fn every_end_is_counted_once_with_its_reason() {
    under_attack(&[], |field| {
        for (reason, ends, attack) in ATTACKS {
            attack(field);
            eventually(reason.label(), || closed_total(&field.metrics(), reason) == ends);
        }
        for _ in 0..50 {
            let client = field.tcp();
            reset(client.socket());
        }
        // The gauge follows with the next tick.
        eventually("accepted = open + closed", || {
            let metrics = field.metrics();
            let closed = CloseReason::ALL.iter().map(|reason| closed_total(&metrics, *reason));
            let open = value(&metrics, "pitaya_acceptor_connected_clients", "");
            let accepted = value(&metrics, "pitaya_acceptor_accepted_total", "");
            open == 2 && accepted >= 50 && accepted == open + closed.sum::<u64>()
        });
    });
}

#[test]
fn made_up_routes_make_no_series() {
    under_attack(&[], |field| {
        let series = || field.metrics().lines().filter(|line| !line.starts_with('#')).count();
        let before = series();
        for mut client in field.established() {
            for number in 0..1_000 {
                client.request(&format!("room.made{number}.up"), b"").unwrap();
                client.notify(&format!("type{number}.made.up"), b"").unwrap();
            }
        }
        let after = series();
        assert!(after <= before + 100, "{before} series became {after}");
        assert!(!field.metrics().contains("made7"), "a client's route is a label");
    });
}
