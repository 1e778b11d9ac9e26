//! Tests of [`super`]: against rustls as a client, over memory.

use std::fs;
use std::io::{Read, Write};

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::tls::{CertificateFiles, Certificates, OldestVersion};

fn configs(
    version: &'static rustls::SupportedProtocolVersion,
) -> (Arc<ServerConfig>, ClientConfig) {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = CertificateFiles {
        certificate: directory.path().join("certificate.pem"),
        key: directory.path().join("key.pem"),
        oldest_version: OldestVersion::Tls12,
    };
    fs::write(&files.certificate, made.cert.pem()).unwrap();
    fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(&files.certificate).unwrap();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Certificates::load(files).unwrap().current(), client)
}

struct Pair {
    server: TlsSession,
    client: ClientConnection,
    plain: Vec<u8>,
    /// What the client has read.
    answers: Vec<u8>,
    /// Whether it has read close_notify behind that.
    is_ended: bool,
}

impl Pair {
    fn new(version: &'static rustls::SupportedProtocolVersion) -> Self {
        let (server, client) = configs(version);
        let name = ServerName::try_from("localhost").unwrap();
        Self {
            server: TlsSession::new(server).unwrap(),
            client: ClientConnection::new(Arc::new(client), name).unwrap(),
            plain: Vec::new(),
            answers: Vec::new(),
            is_ended: false,
        }
    }

    fn established(version: &'static rustls::SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        while pair.client.is_handshaking() || pair.server.is_handshaking() {
            let sent = pair.sent_by_client();
            pair.server.handle_bytes(&mut { sent }, &mut pair.plain).unwrap();
            let mut out = Vec::new();
            pair.server.seal(b"", &mut out).unwrap();
            pair.give_client(&out);
        }
        pair
    }

    fn sent_by_client(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn give_client(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            self.client.process_new_packets().unwrap();
            // Waiting for more is an error, and all of it is read then.
            self.is_ended |= self.client.reader().read_to_end(&mut self.answers).is_ok();
        }
    }
}

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

#[test]
fn bytes_cross_both_ways_whole_and_cut_anywhere() {
    for version in VERSIONS {
        let mut pair = Pair::established(version);
        for step in [1, 7, 4_096, 100_000] {
            let sent: Vec<u8> = (0..50_000_u32).map(|number| (number % 251) as u8).collect();
            pair.client.writer().write_all(&sent).unwrap();
            pair.plain.clear();
            let mut plain = Vec::new();
            for part in pair.sent_by_client().chunks_mut(step) {
                pair.server.handle_bytes(part, &mut plain).unwrap();
                assert!(pair.server.partial.len() <= PARTIAL_BYTES_MAX);
            }
            assert!(plain == sent, "{version:?} in steps of {step}");
            assert!(!pair.server.is_cut());
            let mut sealed = Vec::new();
            pair.server.seal(&sent, &mut sealed).unwrap();
            pair.give_client(&sealed);
            assert!(std::mem::take(&mut pair.answers) == sent, "{version:?}");
        }
        let kept_bytes = pair.server.partial.capacity() + pair.server.output.capacity();
        assert_eq!(kept_bytes, 0, "an idle session keeps no buffer");
    }
}

#[test]
fn a_handshake_byte_by_byte_is_served() {
    for version in VERSIONS {
        let mut pair = Pair::new(version);
        while pair.client.is_handshaking() || pair.server.is_handshaking() {
            for byte in pair.sent_by_client() {
                pair.server.handle_bytes(&mut [byte], &mut pair.plain).unwrap();
            }
            let mut out = Vec::new();
            pair.server.seal(b"", &mut out).unwrap();
            pair.give_client(&out);
        }
        assert!(pair.server.is_established());
    }
}

#[test]
fn close_notify_goes_both_ways() {
    for version in VERSIONS {
        let mut pair = Pair::established(version);
        pair.server.ask_finish();
        let mut out = Vec::new();
        pair.server.seal(b"last", &mut out).unwrap();
        pair.server.finish(&mut out);
        let before = out.len();
        pair.server.finish(&mut out);
        pair.server.seal(b"nothing behind it", &mut out).unwrap();
        assert_eq!(out.len(), before);
        pair.give_client(&out);
        assert_eq!(pair.answers, b"last");
        assert!(pair.is_ended, "a clean end, not a cut");

        let mut pair = Pair::established(version);
        pair.client.writer().write_all(b"bye").unwrap();
        pair.client.send_close_notify();
        let mut sent = pair.sent_by_client();
        let mut plain = Vec::new();
        let end = pair.server.handle_bytes(&mut sent, &mut plain);
        assert!(matches!(end, Err(TlsEnd::PeerClosed)), "{end:?}");
        assert_eq!(plain, b"bye", "what came before the end counts");
        // The other direction is still open.
        let mut out = Vec::new();
        pair.server.seal(b"and good night", &mut out).unwrap();
        pair.give_client(&out);
        assert_eq!(pair.answers, b"and good night");
    }
}

#[test]
fn what_is_no_tls_is_refused_on_its_first_byte_and_what_breaks_it_with_an_alert() {
    for first in [b'G', 1, 0, 0x15, 0x17, 0x80, 0xff] {
        let mut pair = Pair::new(&rustls::version::TLS13);
        let end = pair.server.handle_bytes(&mut [first], &mut pair.plain);
        assert!(matches!(end, Err(TlsEnd::NotTls)), "{first}: {end:?}");
        assert!(!pair.server.is_handshaking());
    }
    let broken: [&[u8]; 4] = [
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
        b"\x16\x09\x09\0\x01\x01",
    ];
    for bytes in broken {
        let mut pair = Pair::new(&rustls::version::TLS13);
        let end = pair.server.handle_bytes(&mut bytes.to_vec(), &mut pair.plain);
        assert!(matches!(end, Err(TlsEnd::Protocol(_))), "{bytes:x?}: {end:?}");
        assert!(pair.server.handle_bytes(&mut [0; 100], &mut pair.plain).is_ok(), "it is over");
    }
    for version in VERSIONS {
        let mut pair = Pair::established(version);
        pair.client.writer().write_all(b"hello").unwrap();
        let mut sent = pair.sent_by_client();
        *sent.last_mut().unwrap() ^= 1;
        let end = pair.server.handle_bytes(&mut sent, &mut pair.plain);
        assert!(matches!(end, Err(TlsEnd::Protocol(rustls::Error::DecryptError))), "{end:?}");
        let mut alert = Vec::new();
        pair.server.seal(b"lost", &mut alert).unwrap();
        let mut alert = alert.as_slice();
        pair.client.read_tls(&mut alert).unwrap();
        let told = pair.client.process_new_packets();
        assert!(matches!(told, Err(rustls::Error::AlertReceived(_))), "{told:?}");
    }
}

#[test]
fn an_endless_hello_is_cut_off() {
    let mut pair = Pair::new(&rustls::version::TLS13);
    // A handshake message of 64 KiB announced, in records of one byte each.
    let mut bytes = b"\x16\x03\x01\0\x04\x01\0\xff\xff".to_vec();
    for _ in 0..10_000 {
        bytes.extend_from_slice(b"\x16\x03\x01\0\x01\0");
    }
    let mut outcome = Ok(());
    for part in bytes.chunks_mut(4_096) {
        outcome = pair.server.handle_bytes(part, &mut pair.plain);
        if outcome.is_err() {
            break;
        }
    }
    assert!(outcome.is_err());
    assert!(pair.server.partial.len() <= PARTIAL_BYTES_MAX + 4_096);
}

#[test]
fn keys_are_renewed_when_the_client_asks() {
    let mut pair = Pair::established(&rustls::version::TLS13);
    pair.client.refresh_traffic_keys().unwrap();
    pair.client.writer().write_all(b"with new keys").unwrap();
    let mut sent = pair.sent_by_client();
    pair.plain.clear();
    pair.server.handle_bytes(&mut sent, &mut pair.plain).unwrap();
    assert_eq!(pair.plain, b"with new keys");
    let mut out = Vec::new();
    pair.server.seal(b"same here", &mut out).unwrap();
    pair.give_client(&out);
    assert_eq!(pair.answers, b"same here");
}

#[test]
fn bytes_that_were_put_back_leave_first() {
    let mut pair = Pair::established(&rustls::version::TLS12);
    let mut first = Vec::new();
    pair.server.seal(b"first ", &mut first).unwrap();
    let late = first.split_off(3);
    pair.give_client(&first);
    pair.server.put_back(late);
    let mut out = Vec::new();
    pair.server.seal(b"second", &mut out).unwrap();
    pair.give_client(&out);
    assert_eq!(pair.answers, b"first second");
}
