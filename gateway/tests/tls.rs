//! TLS towards clients: TCP and WebSocket, both versions, on both drivers; certificates that change; everything that
//! is no TLS or ends it badly.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/local.rs"]
mod local;
#[path = "support/metrics.rs"]
mod metrics;
#[path = "support/tls.rs"]
mod tls;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/traffic.rs"]
mod traffic;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client::raw::{Closed, RawClient};
use client::tls::Trust;
use client::{Client, ConnectError, ConnectOptions};
use gateway::gateway::Gateway;
use gateway::rules::Rules;
use local::{DRIVERS, start_changed};
use metrics::{closed_total, eventually, metrics};
use rustls::ClientConfig;
use shared::close::CloseReason;
use shared::packet::PacketType;
use tls::{Identity, connect, connect_web_socket};

const SOON: Duration = Duration::from_secs(60);

/// A gateway whose ports all speak TLS.
struct Secured {
    gateway: Gateway,
    rules: Arc<Rules>,
}

impl Secured {
    fn start(driver: &str, identity: &Identity, settings: &[(&str, &str)]) -> Self {
        let tls = identity.settings();
        let mut all: Vec<(&str, &str)> =
            tls.iter().map(|(key, value)| (*key, value.as_str())).collect();
        all.extend_from_slice(settings);
        let mut rules = None;
        let gateway = start_changed(driver, &all, |plan| rules = Some(plan.rules.clone()));
        Self { gateway, rules: rules.unwrap() }
    }

    /// One client of each transport.
    fn clients(&self, config: &Arc<ClientConfig>) -> [RawClient; 2] {
        [self.tcp(config), connect_web_socket(self.gateway.addresses().wss[0], config).unwrap()]
    }

    fn tcp(&self, config: &Arc<ClientConfig>) -> RawClient {
        connect(self.gateway.addresses().tls[0], config).unwrap()
    }

    /// A connection without TLS to the port with it.
    fn bare(&self) -> TcpStream {
        let socket = TcpStream::connect(self.gateway.addresses().tls[0]).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    fn expect_ends(&self, reason: CloseReason, count: u64) {
        eventually(reason.label(), || {
            closed_total(&metrics(self.gateway.addresses().admin[0]), reason) == count
        });
    }
}

/// Runs a test on both drivers.
fn on_both(settings: &[(&str, &str)], test: impl Fn(&Secured, &Identity)) {
    for driver in DRIVERS {
        let identity = Identity::new();
        let secured = Secured::start(driver, &identity, settings);
        test(&secured, &identity);
        secured.gateway.stop();
    }
}

/// Reads to the end of a connection, which must come; what came before it, and whether it was a FIN.
fn read_to_end(mut socket: &TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let is_fin = match socket.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
        Err(error) => panic!("{error}"),
    };
    (bytes, is_fin)
}

#[test]
fn both_versions_and_transports_are_served_with_small_and_large_packets() {
    // Trying to compress noise would be most of the work, without optimisation.
    let settings = [("pitaya.handler.messages.compression", "false")];
    on_both(&settings, |secured, identity| {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for mut client in secured.clients(&identity.client_of(&[version])) {
                client.set_timeout(SOON);
                assert_eq!(client.establish().unwrap().code, 200);
                for size in [0, 1, 16_380, 16_384, 60_000] {
                    let payload: Vec<u8> = (0..size).map(|_| fastrand::u8(..)).collect();
                    let answer = client.request("room.test.echo", &payload).unwrap();
                    assert!(answer.payload == payload, "{version:?}: {size} bytes");
                }
                // More in one turn than one TLS record holds.
                let id = client.send_request("room.test.flood", br#"{"n":150,"size":4000}"#);
                for number in 0..150_u64 {
                    let push = client.read_message(SOON).unwrap();
                    assert_eq!(push.payload[..8], number.to_be_bytes());
                }
                client.read_response(id.unwrap(), SOON).unwrap();
            }
        }
    });
}

#[test]
fn the_ends_of_connections_are_told_with_close_notify() {
    on_both(&[], |secured, identity| {
        let config = identity.client();
        for (mut client, is_web_socket) in secured.clients(&config).into_iter().zip([false, true]) {
            client.establish().unwrap();
            client.request("room.test.bind", br#"{"name":"ann"}"#).unwrap();
            client.send_request("room.test.kick", b"").unwrap();
            let code = Closed::CloseFrame { code: Some(1000) };
            let expected = if is_web_socket { code } else { Closed::Finished };
            assert_eq!(client.expect_kick(SOON).unwrap(), expected);
            let mut client = secured.tcp(&config);
            client.establish().unwrap();
            client.send_packet(PacketType::Data, b"\0\x01").unwrap();
            assert_eq!(client.expect_close(SOON).unwrap(), Closed::Finished, "not Closed::Cut");
        }
        secured.expect_ends(CloseReason::BadMessage, 2);
        for mut client in secured.clients(&config) {
            client.establish().unwrap();
            client.finish_writing().unwrap();
            assert_ne!(client.expect_close(SOON).unwrap(), Closed::Cut);
        }
        secured.expect_ends(CloseReason::PeerClosed, 2);
    });
}

#[test]
fn a_certificate_is_changed_without_dropping_anybody() {
    on_both(&[], |secured, identity| {
        // A client of its own for each step: one that was here before resumes, and is shown nothing.
        let [before, later, last] = [(); 3].map(|()| identity.client());
        let mut early = secured.clients(&before);
        for client in &mut early {
            client.establish().unwrap();
        }
        identity.renew();
        let after = identity.client();
        // Nothing changes before the reload.
        secured.tcp(&later).establish().unwrap();
        secured.rules.reload_certificates().unwrap();
        assert!(connect(secured.gateway.addresses().tls[0], &last).is_err(), "the old one");
        for mut client in secured.clients(&after) {
            client.establish().unwrap();
        }
        // A file that is broken changes nothing.
        std::fs::write(identity.key(), "-----BEGIN PRIVATE KEY-----\n").unwrap();
        assert!(secured.rules.reload_certificates().is_err());
        secured.tcp(&identity.client()).establish().unwrap();
        for client in &mut early {
            assert_eq!(client.request("room.test.echo", b"still").unwrap().payload, b"still");
        }
    });
}

#[test]
fn what_is_no_tls_is_closed_at_once_and_counted() {
    let beginnings: [&[u8]; 6] = [
        b"\x01\0\0\x02{}",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        // A hello of SSL 2, as ancient clients begin.
        b"\x80\x2e\x01\0\x02",
    ];
    on_both(&[], |secured, identity| {
        for bytes in beginnings {
            let mut socket = secured.bare();
            socket.write_all(bytes).unwrap();
            let (answer, _) = read_to_end(&socket);
            let is_alert = answer.is_empty() || answer.first() == Some(&0x15);
            assert!(is_alert, "{bytes:x?} was answered with {answer:x?}");
        }
        secured.expect_ends(CloseReason::Tls, 6);
        secured.tcp(&identity.client()).establish().unwrap();
        eventually("the finished handshake is counted", || {
            let metrics = metrics(secured.gateway.addresses().admin[0]);
            metrics::value(&metrics, "pitaya_acceptor_tls_handshakes_total", "") == 1
        });
    });
}

#[test]
fn tls_on_a_port_without_it_is_closed_at_once() {
    for driver in DRIVERS {
        let identity = Identity::new();
        let tls = identity.settings();
        let mut settings: Vec<(&str, &str)> =
            tls.iter().map(|(key, value)| (*key, value.as_str())).collect();
        settings.push(("pitaya.gateway.tls.tcp", "127.0.0.1:0"));
        settings.push(("pitaya.gateway.tls.ws", "127.0.0.1:0"));
        let gateway = start_changed(driver, &settings, |_| {});
        let config = identity.client();
        // Ports named for TLS leave the others plain.
        RawClient::connect_tcp(local::tcp(&gateway)).unwrap().establish().unwrap();
        RawClient::connect_ws(local::ws(&gateway), "/").unwrap().establish().unwrap();
        connect(gateway.addresses().tls[0], &config).unwrap().establish().unwrap();
        connect_web_socket(gateway.addresses().wss[0], &config).unwrap().establish().unwrap();
        assert!(connect(local::tcp(&gateway), &config).is_err());
        assert!(connect(local::ws(&gateway), &config).is_err());
        gateway.stop();
    }
}

#[test]
fn a_stream_that_ends_inside_tls_is_told_from_one_that_ends_between() {
    on_both(&[], |secured, identity| {
        let config = identity.client();
        // Without close_notify, but between two records: so do many clients that lose their network.
        let mut client = secured.tcp(&config);
        client.establish().unwrap();
        client.request("room.test.echo", b"x").unwrap();
        client.socket().shutdown(std::net::Shutdown::Write).unwrap();
        client.expect_close(SOON).unwrap();
        secured.expect_ends(CloseReason::PeerClosed, 1);
        // Inside a record.
        let mut client = secured.tcp(&config);
        client.establish().unwrap();
        client.request("room.test.echo", b"x").unwrap();
        client.socket().write_all(b"\x17\x03\x03\0\x40half of it").unwrap();
        client.socket().shutdown(std::net::Shutdown::Write).unwrap();
        client.expect_close(SOON).unwrap();
        // Inside the handshake.
        let socket = secured.bare();
        (&socket).write_all(b"\x16\x03\x01\x02\0\x01\0").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        read_to_end(&socket);
        secured.expect_ends(CloseReason::Tls, 2);
        // A record that was changed on its way.
        let mut client = secured.tcp(&config);
        client.establish().unwrap();
        client.request("room.test.echo", b"x").unwrap();
        client.socket().write_all(&[&b"\x17\x03\x03\0\x40"[..], &[7; 64]].concat()).unwrap();
        assert!(client.expect_close(SOON).is_err(), "an alert is no close_notify");
        secured.expect_ends(CloseReason::Tls, 3);
    });
}

#[test]
fn the_deadline_covers_tls_and_what_follows_it() {
    on_both(&[("pitaya.gateway.handshake.timeout", "700ms")], |secured, identity| {
        let silent = secured.bare();
        let mut slow = secured.bare();
        let mut stalled = secured.tcp(&identity.client());
        let hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
        for byte in hello {
            slow.write_all(&[*byte]).unwrap();
        }
        read_to_end(&silent);
        read_to_end(&slow);
        stalled.expect_close(SOON).unwrap();
        secured.expect_ends(CloseReason::HandshakeTimeout, 3);
    });
}

#[test]
fn too_many_handshakes_end_the_oldest_and_let_newcomers_in() {
    let settings = [("pitaya.gateway.tls.handshakes", "3"), ("pitaya.gateway.threads", "1")];
    on_both(&settings, |secured, identity| {
        let config = identity.client();
        let mut early = secured.tcp(&config);
        early.establish().unwrap();
        let silent: Vec<TcpStream> = (0..10).map(|_| secured.bare()).collect();
        for _ in 0..5 {
            secured.tcp(&config).establish().unwrap();
        }
        secured.expect_ends(CloseReason::Overload, 8);
        for socket in &silent[..8] {
            read_to_end(socket);
        }
        assert_eq!(early.request("room.test.echo", b"x").unwrap().payload, b"x");
    });
}

#[test]
fn a_session_is_resumed_across_connections() {
    on_both(&[], |secured, identity| {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = identity.client_of(&[version]);
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let mut client = secured.tcp(&config);
                client.establish().unwrap();
                client.request("room.test.echo", b"x").unwrap();
                kinds.push(client.tls().unwrap().handshake_kind());
            }
            assert_eq!(kinds[1], Some(rustls::HandshakeKind::Resumed), "{version:?}: {kinds:?}");
        }
    });
}

#[test]
fn moves_between_reactors_lose_nothing_under_tls() {
    on_both(&[], |secured, identity| {
        let config = identity.client();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let mut players = Vec::new();
        for index in 0..8 {
            let [mut tcp, mut web_socket] = secured.clients(&config);
            tcp.establish().unwrap();
            web_socket.establish().unwrap();
            players.push(traffic::asking(tcp, index, stop.clone(), answered.clone()));
            let ask = ("room.test.flood", r#"{"n":20,"size":3000}"#);
            players.push(traffic::pushed(web_socket, ask, 20, stop.clone()));
        }
        // One in the middle of a record, one in the middle of its handshake.
        let mut half = secured.tcp(&config);
        half.establish().unwrap();
        let mut begun = secured.bare();
        begun.write_all(b"\x16\x03\x01\x02\0\x01\0").unwrap();
        for step in 0..6 {
            let before = answered.load(Ordering::Relaxed);
            secured.gateway.move_connections(step % 2, (step + 1) % 2);
            traffic::wait_until("answers after a move", || {
                answered.load(Ordering::Relaxed) > before + 20
            });
        }
        stop.store(true, Ordering::Relaxed);
        for player in players {
            assert!(player.join().unwrap() > 0);
        }
        assert_eq!(half.request("room.test.echo", b"moved").unwrap().payload, b"moved");
        drop(begun);
        secured.expect_ends(CloseReason::IoError, 0);
    });
}

#[test]
fn the_proxys_header_lies_in_front_of_tls() {
    let settings =
        [("pitaya.acceptor.proxyprotocol", "true"), ("pitaya.gateway.session.address", "true")];
    on_both(&settings, |secured, identity| {
        for header in ["PROXY TCP4 192.0.2.9 198.51.100.2 1 2\r\n", "PROXY UNKNOWN\r\n"] {
            let mut client = RawClient::connect_tcp(secured.gateway.addresses().tls[0]).unwrap();
            client.send_bytes(header.as_bytes()).unwrap();
            let mut client = client.secure(identity.client(), tls::NAME).unwrap();
            client.establish().unwrap();
            let told = client.request("room.test.address", b"").unwrap().text();
            let address = if header.contains('9') { "192.0.2.9" } else { "127.0.0.1" };
            assert_eq!(told, format!(r#"["ipv4","{address}"]"#));
        }
        assert!(connect(secured.gateway.addresses().tls[0], &identity.client()).is_err());
        secured.expect_ends(CloseReason::ProxyHeader, 1);
    });
}

#[test]
fn the_client_library_speaks_tls_with_servers_that_it_trusts() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    on_both(&[], |secured, identity| {
        let addresses = secured.gateway.addresses();
        // By name, because the certificate is for one.
        let urls = [
            format!("tls://{}:{}", tls::NAME, addresses.tls[0].port()),
            format!("wss://{}:{}/", tls::NAME, addresses.wss[0].port()),
        ];
        for url in urls {
            let connect = |trust: Trust| {
                let options = ConnectOptions { trust, ..ConnectOptions::default() };
                runtime.block_on(Client::connect(&url, options))
            };
            for trust in [Trust::File(identity.certificate()), Trust::Anybody] {
                let client = connect(trust).unwrap();
                let answer = runtime.block_on(client.request("room.test.echo", b"hello"));
                assert_eq!(&answer.unwrap()[..], b"hello", "{url}");
                runtime.block_on(client.disconnect());
            }
            let stranger = Identity::new();
            for trust in [Trust::System, Trust::File(stranger.certificate())] {
                assert!(matches!(connect(trust), Err(ConnectError::Io(_))), "{url}");
            }
            assert!(connect(Trust::File(identity.certificate().join("nothing"))).is_err());
        }
    });
}
