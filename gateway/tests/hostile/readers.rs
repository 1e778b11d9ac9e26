//! Readers that are slow or do not read at all (hostile inputs 2.3, client protocol 7 and 13.4).

use std::io::Read;
use std::time::Duration;

use client::raw::{Closed, RawClient, RawError};
use shared::packet::PacketType;

use crate::field::{Field, LONG, eventually, under_attack};

/// Room in the kernel for what a reader does not read; small, so that little has to be sent.
const RECEIVE_BUFFER_BYTES: usize = 4_096;

const DEADLINE: (&str, &str) = ("pitaya.buffer.agent.conntimeout", "1s");
/// Trying to compress noise would be most of the work, without optimisation.
const PLAIN: (&str, &str) = ("pitaya.handler.messages.compression", "false");

fn lazy(field: &Field) -> [RawClient; 2] {
    let clients = field.established();
    for client in &clients {
        socket2::SockRef::from(client.socket()).set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
    }
    clients
}

/// Whether the gateway has ended the connection: then writing fails before long.
fn is_dropped(client: &mut RawClient) -> bool {
    client.heartbeat().is_err()
}

#[test]
fn readers_that_ask_and_never_read_are_dropped() {
    let settings = [DEADLINE, PLAIN];
    under_attack(&settings, |field| {
        let mut readers: Vec<_> = (0..4).flat_map(|_| lazy(field)).collect();
        // Not compressible, and asked for until the kernel's buffers, which may grow to megabytes, hold no more.
        let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(60_000).collect();
        eventually("all readers are dropped", || {
            readers.retain_mut(|client| {
                (0..5).all(|_| client.send_request("room.test.echo", &random).is_ok())
            });
            readers.is_empty()
        });
    });
}

#[test]
fn readers_of_pushes_that_never_read_are_dropped() {
    let settings = [DEADLINE, PLAIN];
    under_attack(&settings, |field| {
        let mut readers: Vec<_> = (0..5).flat_map(|_| lazy(field)).collect();
        for client in &mut readers {
            client.send_request("room.test.noise", br#"{"n":4000,"size":2048}"#).unwrap();
        }
        eventually("all readers are dropped", || {
            readers.retain_mut(|client| !is_dropped(client));
            readers.is_empty()
        });
    });
}

#[test]
fn nothing_is_ever_sent_behind_a_cut_packet() {
    let settings = [DEADLINE, PLAIN, ("pitaya.gateway.outbox.maxbytes", "16777216")];
    under_attack(&settings, |field| {
        for mut client in lazy(field) {
            client.send_request("room.test.noise", br#"{"n":7000,"size":1024}"#).unwrap();
            eventually("the deadline ends it", || is_dropped(&mut client));
            // What was under way before the end is whole packets in order, and perhaps a cut one at the very end.
            let mut next = 0u64;
            let end = loop {
                match client.read_message(LONG) {
                    Ok(message) => {
                        assert_eq!(message.payload[..8], next.to_be_bytes());
                        next += 1;
                    }
                    Err(error) => break error,
                }
            };
            assert!(matches!(end, RawError::Closed(Closed::Finished | Closed::Reset, _)), "{end}");
            assert!(next < 7_000, "everything arrived");
        }
    });
}

#[test]
fn a_reader_of_a_kilobyte_a_second_is_dropped_and_a_steady_one_is_kept() {
    let settings = [DEADLINE, PLAIN, ("pitaya.gateway.outbox.maxbytes", "16777216")];
    under_attack(&settings, |field| {
        let [mut slow, _] = lazy(field);
        let [_, mut steady] = field.established();
        for client in [&mut slow, &mut steady] {
            client.send_request("room.test.noise", br#"{"n":6000,"size":1024}"#).unwrap();
        }
        let steady = std::thread::spawn(move || {
            for number in 0..6_000u64 {
                assert_eq!(steady.read_message(LONG).unwrap().payload[..8], number.to_be_bytes());
            }
        });
        let mut read = 0;
        eventually("the slow reader is dropped", || {
            let mut part = [0; 10];
            slow.socket().set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            read += (&mut slow.socket()).read(&mut part).unwrap_or(0);
            is_dropped(&mut slow)
        });
        assert!(read < 100_000, "it read {read} bytes");
        steady.join().unwrap();
    });
}

#[test]
fn what_is_queued_and_then_the_kick_arrive_before_the_end() {
    let settings = [DEADLINE, PLAIN, ("pitaya.gateway.outbox.maxbytes", "16777216")];
    under_attack(&settings, |field| {
        for mut client in field.established() {
            // Idle for longer than the write deadline: a kick must not run into the deadline of an earlier write.
            client.request("room.test.noise", br#"{"n":1,"size":8}"#).unwrap();
            std::thread::sleep(Duration::from_millis(1_200));
            client.send_request("room.test.noise", br#"{"n":200,"size":1024}"#).unwrap();
            client.send_request("room.test.kick", b"").unwrap();
            let (packets, _) = client.read_to_close(LONG).unwrap();
            let kinds: Vec<_> = packets.iter().map(|packet| packet.kind).collect();
            let (last, others) = kinds.split_last().unwrap();
            assert_eq!(*last, PacketType::Kick);
            let data = others.iter().filter(|kind| **kind == PacketType::Data).count();
            assert!(data >= 201, "{data} messages arrived before the kick");
        }
    });
}

#[test]
fn a_kick_ends_a_client_that_cannot_be_told() {
    let settings = [DEADLINE, PLAIN, ("pitaya.gateway.outbox.maxbytes", "16777216")];
    under_attack(&settings, |field| {
        for mut client in lazy(field) {
            client.send_request("room.test.noise", br#"{"n":7000,"size":1024}"#).unwrap();
            client.send_request("room.test.kick", b"").unwrap();
            eventually("the kicked one is gone", || is_dropped(&mut client));
        }
    });
}
