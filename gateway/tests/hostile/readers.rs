//! Readers that are slow or do not read at all (hostile inputs 2.3, client protocol 7 and 13.4).

use std::io::{Read, Write};
use std::time::Duration;

use client::raw::{Closed, RawClient, RawError};
use shared::packet::PacketType;

use shared::close::CloseReason;
use shared::metrics::LimitLabel;

use crate::accounting::exceeded;
use crate::field::{Field, LONG, eventually, turn, under_attack};
use crate::local::{self, DRIVERS};
use crate::metrics::{closed_total, metrics, value};

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
fn whose_pushes_pile_up_beyond_the_limit_is_closed_for_that_long_before_the_deadline() {
    // No write deadline can be what ends them.
    let settings = [PLAIN, ("pitaya.buffer.agent.conntimeout", "1h")];
    under_attack(&settings, |field| {
        let mut readers = lazy(field);
        for client in &mut readers {
            client.send_request("room.test.noise", br#"{"n":5000,"size":4096}"#).unwrap();
        }
        eventually("both are closed", || field.ended(CloseReason::OutboxLimit) == 2);
        assert_eq!(exceeded(field, LimitLabel::Outbox), 2);
        assert_eq!(value(&field.metrics(), "pitaya_acceptor_closed_total", "reason"), 2);
        drop(readers);
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

#[test]
fn who_asks_and_does_not_read_is_not_read_from_and_served_when_it_reads() {
    under_attack(&[PLAIN], |field| {
        let mut client = field.tcp();
        client.establish().unwrap();
        let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4_000).collect();
        let mut sender = client.socket().try_clone().unwrap();
        let asked = 6_000u64;
        let body = random.clone();
        let writer = std::thread::spawn(move || {
            for id in 1..=asked {
                let mut message = vec![0];
                message.extend(leb128(id));
                message.extend_from_slice(b"\x0eroom.test.echo");
                message.extend_from_slice(&body);
                let length = (message.len() as u32).to_be_bytes();
                let packet = [&[4], &length[1..], &message].concat();
                sender.write_all(&packet).unwrap();
            }
        });
        eventually("it is not read from any more", || exceeded(field, LimitLabel::Reading) > 0);
        let mut ids: Vec<u64> = (0..asked)
            .map(|_| {
                let answer = client.read_message(LONG).unwrap();
                let is_refused = answer.is_error && answer.text().contains("PIT-503");
                assert!(is_refused || answer.payload == random, "{}", answer.text());
                answer.id
            })
            .collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(1..=asked), "each is answered once");
        writer.join().unwrap();
        client.request("room.test.echo", b"x").unwrap();
        let closed = value(&field.metrics(), "pitaya_acceptor_closed_total", "reason");
        assert_eq!(closed, 0, "somebody was closed");
    });
}

/// A number as message ids are written.
fn leb128(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[test]
fn where_pushes_are_dropped_a_slow_reader_stays_and_is_answered() {
    let settings = [PLAIN, ("pitaya.gateway.outbox.policy", "drop")];
    under_attack(&settings, |field| {
        let [mut client, _] = field.established();
        client.send_request("room.test.noise", br#"{"n":5000,"size":4096}"#).unwrap();
        eventually("pushes are dropped", || exceeded(field, LimitLabel::Outbox) > 0);
        client.send_request("room.test.echo", b"still here").unwrap();
        let (mut pushes, mut last, mut answers) = (0, None, 0);
        // The two answers come behind what is queued; pushes that come later find room again.
        while answers < 2 {
            let message = client.read_message(LONG).unwrap();
            if message.route == "onNoise" {
                let number = message.payload[..8].to_vec();
                assert!(last < Some(number.clone()), "pushes are in order");
                last = Some(number);
                pushes += 1;
            } else {
                assert!(!message.is_error, "{}", message.text());
                answers += 1;
            }
        }
        assert!(pushes < 5_000, "nothing was dropped");
        assert_eq!(closed_total(&field.metrics(), CloseReason::OutboxLimit), 0);
    });
}

#[test]
fn above_the_ceiling_those_with_the_most_are_closed_and_others_are_not() {
    let settings = [
        PLAIN,
        ("pitaya.gateway.outbox.maxbytes", "67108864"),
        ("pitaya.gateway.memory.maxbytes", "4194304"),
    ];
    under_attack(&settings, |field| {
        let mut greedy: Vec<_> = (0..2).flat_map(|_| lazy(field)).collect();
        for client in &mut greedy {
            client.send_request("room.test.noise", br#"{"n":2000,"size":4096}"#).unwrap();
        }
        let shed = || closed_total(&field.metrics(), CloseReason::MemoryLimit);
        eventually("the greedy are closed", || shed() >= 1);
        eventually("memory is free again", || {
            value(&field.metrics(), "pitaya_limits_buffered_bytes", "") <= 4 << 20
        });
        let [mut tcp, mut web_socket] = field.established();
        for client in [&mut tcp, &mut web_socket] {
            assert_eq!(client.request("room.test.echo", b"x").unwrap().payload, b"x");
        }
        let closed = shed();
        assert!(exceeded(field, LimitLabel::Memory) >= closed);
        drop(greedy);
        eventually("nothing is counted for those who left", || {
            value(&field.metrics(), "pitaya_limits_buffered_bytes", "") < 1 << 10
        });
    });
}

#[test]
fn who_resets_its_connection_leaves_nothing_that_waits_to_be_sent() {
    // Far more than anything here takes: nobody is to wait for it.
    let settings = [
        PLAIN,
        ("pitaya.buffer.agent.conntimeout", "1h"),
        ("pitaya.gateway.outbox.maxbytes", "67108864"),
    ];
    under_attack(&settings, |field| {
        let held = || value(&field.metrics(), "pitaya_limits_buffered_bytes", "");
        let mut readers: Vec<_> = (0..5).flat_map(|_| lazy(field)).collect();
        for client in &mut readers {
            client.send_request("room.test.noise", br#"{"n":2000,"size":4096}"#).unwrap();
        }
        eventually("it waits to be sent", || held() > 1 << 20);
        // With unread bytes in front of them these ends are resets.
        drop(readers);
        eventually("nothing is held any more", || held() < 1 << 10);
    });
}

#[test]
fn stalled_readers_cost_the_others_no_work() {
    let _turn = turn();
    for driver in DRIVERS {
        let gateway = local::start(driver, &[PLAIN, ("pitaya.gateway.threads", "1")]);
        let connect = || {
            let mut client = RawClient::connect_tcp(local::tcp(&gateway)).unwrap();
            client.set_timeout(LONG);
            client.establish().unwrap();
            client
        };
        let mut good = connect();
        let read = || metrics(gateway.addresses().admin[0]);
        // Counted in events of the loop and not in time, which other work on the machine would change.
        let mut events_of_500 = || {
            let before = value(&read(), "pitaya_reactor_events_total", "");
            for number in 0..500u32 {
                let body = number.to_be_bytes();
                assert_eq!(good.request("room.test.echo", &body).unwrap().payload, body);
            }
            value(&read(), "pitaya_reactor_events_total", "") - before
        };
        let alone = events_of_500();
        let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(60_000).collect();
        let stalled: Vec<_> = (0..4)
            .map(|_| {
                let mut client = connect();
                let socket = socket2::SockRef::from(client.socket());
                socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
                let full = Duration::from_millis(200);
                client.socket().set_write_timeout(Some(full)).unwrap();
                while client.send_request("room.test.echo", &random).is_ok() {}
                client
            })
            .collect();
        let among = events_of_500();
        assert!(among <= alone + alone / 2, "{driver}: {alone} events alone, {among} among");
        drop(stalled);
        gateway.stop();
    }
}
