//! A process that comes close to the memory that it may use.

use std::time::Duration;

use client::raw::RawClient;
use shared::close::CloseReason;

use crate::field::{LONG, eventually};
use crate::local::DRIVERS;
use crate::metrics::{closed_total, metrics, value};
use crate::process::Process;

/// Room above what the process uses when nobody asks for anything.
const ROOM: usize = 48 << 20;

fn established(process: &Process) -> RawClient {
    let mut client = RawClient::connect_tcp(process.tcp).unwrap();
    client.set_timeout(LONG);
    client.establish().unwrap();
    client
}

fn is_answered(client: &mut RawClient) -> bool {
    client.request("room.test.echo", b"x").is_ok_and(|answer| answer.payload == b"x")
}

/// The ceiling of what is held for clients lies above that of the process, so the pause comes first: what a gateway does
/// whose memory goes elsewhere than to its clients.
fn config(process_bytes: usize) -> String {
    format!(
        "[pitaya.gateway]\nmemory.processbytes = {process_bytes}\nmemory.maxbytes = {}\n\
         outbox.maxbytes = {}\n",
        1 << 30,
        256 << 20
    )
}

#[test]
fn when_memory_is_scarce_newcomers_wait_players_play_on_and_it_passes() {
    for driver in DRIVERS {
        let settings =
            ["pitaya.handler.messages.compression=false", "pitaya.buffer.agent.conntimeout=10m"];
        let process = Process::start(driver, 4_096, &settings);
        let mut good = established(&process);
        let mut greedy: Vec<_> = (0..4).map(|_| established(&process)).collect();
        assert!(is_answered(&mut good));
        process.reload(&config(process.resident_bytes() + ROOM));
        eventually("the reload", || process.log().contains("was read again"));

        for client in &mut greedy {
            let socket = socket2::SockRef::from(client.socket());
            socket.set_recv_buffer_size(4_096).unwrap();
            client.send_request("room.test.flood", br#"{"n":5000,"size":4096}"#).unwrap();
        }
        let paused = || value(&metrics(process.admin), "pitaya_limits_exceeded_total", "memory");
        eventually("accepting rests", || paused() == 1);
        // The kernel takes it, and the gateway does not: nobody answers its handshake.
        let mut newcomer = RawClient::connect_tcp(process.tcp).unwrap();
        newcomer.set_timeout(LONG);
        newcomer.send_packet(shared::packet::PacketType::Handshake, b"{\"sys\":{}}").unwrap();
        for _ in 0..50 {
            assert!(is_answered(&mut good), "{driver}: a player who was here goes unanswered");
        }
        newcomer.expect_silence(Duration::from_millis(200)).unwrap();
        assert_eq!(closed_total(&metrics(process.admin), CloseReason::MemoryLimit), 0);

        drop(greedy);
        assert_eq!(newcomer.read_handshake_response(LONG).unwrap().code, 200, "{driver}");
        assert!(process.log().contains("there is enough memory again"), "{}", process.log());
        assert!(is_answered(&mut good) && is_answered(&mut established(&process)), "{driver}");
    }
}
