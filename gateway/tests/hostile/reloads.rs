//! Reading the configuration again while players play: all of it or nothing, and nobody is dropped for it.

use std::path::Path;

use client::raw::RawClient;
use gateway::control::plan::Plan;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shared::config::{Binary, KEYS, Source, Sources};
use shared::metrics::LimitLabel;

use crate::administrator::ask;
use crate::field::{LONG, eventually, turn};
use crate::local::{self, DRIVERS};
use crate::metrics::{metrics, value};
use crate::process::Process;
use crate::tls::{self, Identity};

/// What the gateway was started with, and a file besides.
fn sources(plan: &Plan, file: &Path) -> Sources {
    let given = KEYS.iter().filter(|key| plan.config.source(key.name) == Source::Flag);
    let flags = given.map(|key| (key.name.to_owned(), plan.config.shown(key.name))).collect();
    let file = Some(file.to_owned());
    Sources { binary: Binary::Gateway, file, environment: Vec::new(), flags }
}

fn established(address: std::net::SocketAddr) -> Result<RawClient, client::raw::RawError> {
    let mut client = RawClient::connect_tcp(address)?;
    client.set_timeout(LONG);
    client.establish().map(|_| client)
}

#[test]
fn a_reload_changes_what_it_can_and_says_what_it_cannot() {
    let _turn = turn();
    let directory = tempfile::TempDir::new().unwrap();
    for driver in DRIVERS {
        let file = directory.path().join(driver);
        std::fs::write(&file, "").unwrap();
        let gateway = local::start_changed(driver, &[], |plan| {
            plan.sources = Some(sources(plan, &file));
        });
        let (address, admin) = (local::tcp(&gateway), gateway.addresses().admin[0]);
        let mut player = established(address).unwrap();
        let reload = |text: &str| {
            std::fs::write(&file, text).unwrap();
            ask(admin, "POST", "/reload", "")
        };

        let (status, answer) = reload("");
        assert_eq!((status, answer["changed"].as_array().unwrap().len()), (200, 0), "{answer}");
        let (status, answer) = reload(
            "pitaya.gateway.maxconns = 1\npitaya.heartbeat.interval = \"7s\"\n\
             pitaya.gateway.routes.rate.\"room.test.fail\" = \"1\"\n",
        );
        assert_eq!(status, 200, "{answer}");
        let keys = |what: &str| -> Vec<String> {
            let changes = answer[what].as_array().unwrap().iter();
            changes.map(|change| change["key"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(keys("changed"), ["pitaya.gateway.maxconns", "pitaya.gateway.routes.rate"]);
        assert_eq!(keys("needs_restart"), ["pitaya.heartbeat.interval"]);
        eventually("nobody else is let in", || established(address).is_err());
        let refused = (0..10)
            .filter(|_| player.request("room.test.fail", b"").unwrap().text().contains("PIT-429"))
            .count();
        assert!(refused > 0, "{driver}: the route's rate does not hold");

        // One mistake, and nothing of the rest takes effect.
        for mistake in ["pitaya.gateway.packet.maxbytes = 3", "pitaya.log.level = \"=,=\"", "x = 1"]
        {
            let (status, answer) = reload(&format!("pitaya.gateway.maxconns = 50\n{mistake}\n"));
            assert_eq!(status, 400, "{answer}");
            assert_eq!(answer["errors"].as_array().unwrap().len(), 1, "{answer}");
            assert!(established(address).is_err(), "{driver}: {mistake}");
        }
        assert_eq!(reload("").0, 200);
        eventually("others are let in", || established(address).is_ok());
        assert_eq!(player.request("room.test.echo", b"x").unwrap().payload, b"x");
        let label = format!(r#"limit="{}""#, LimitLabel::Connections.name());
        assert!(value(&metrics(admin), "pitaya_limits_exceeded_total", &label) >= 4);
        gateway.stop();
    }
}

#[test]
fn a_hangup_reads_the_file_again_and_says_so_in_the_log() {
    for driver in DRIVERS {
        let process = Process::start(driver, 4_096, &["pitaya.log.format=text"]);
        let mut player = established(process.tcp).unwrap();
        let leaver = established(process.tcp).unwrap();
        process.reload("pitaya.gateway.maxconns = 1\npitaya.log.level = \"debug\"\n");
        eventually("the limit holds", || established(process.tcp).is_err());
        // That a client has left is worth a line at this level only.
        drop(leaver);
        eventually("the level holds", || process.log().contains("DEBUG"));
        process.reload("pitaya.gateway.maxconns = 0\n");
        eventually("the mistake is told", || process.log().contains("nothing has changed"));
        assert!(process.log().contains("pitaya.gateway.maxconns"));
        assert!(established(process.tcp).is_err());
        assert_eq!(player.request("room.test.echo", b"x").unwrap().payload, b"x");
    }
}

/// Clients on each transport that trust this certificate, and the one that they were shown.
fn secured(process: &Process, identity: &Identity) -> [(RawClient, Vec<u8>); 2] {
    let config = identity.client();
    let clients = [
        tls::connect(process.tls.unwrap(), &config),
        tls::connect_web_socket(process.wss.unwrap(), &config),
    ];
    clients.map(|client| {
        let mut client = client.unwrap();
        client.set_timeout(LONG);
        client.establish().unwrap();
        let shown = client.tls().unwrap().peer_certificates().unwrap();
        let shown = shown.first().unwrap().to_vec();
        (client, shown)
    })
}

fn certificate(identity: &Identity) -> Vec<u8> {
    CertificateDer::from_pem_file(identity.certificate()).unwrap().to_vec()
}

#[test]
fn a_hangup_puts_a_new_certificate_in_place_and_those_connected_play_on() {
    for driver in DRIVERS {
        let identity = Identity::new();
        let old = certificate(&identity);
        let [file, key] = identity.settings().map(|(key, value)| format!("{key}={value}"));
        let listen = ["pitaya.gateway.tls.tcp=127.0.0.1:0", "pitaya.gateway.tls.ws=127.0.0.1:0"];
        let process = Process::start(driver, 4_096, &[&file, &key, listen[0], listen[1]]);
        let lines = |text: &str| process.log().lines().filter(|line| line.contains(text)).count();
        let mut early = secured(&process, &identity);
        let mut play_on = |when: &str| {
            for (client, shown) in &mut early {
                assert!(*shown == old, "{driver}: {when}");
                let answer = client.request("room.test.echo", when.as_bytes()).unwrap();
                assert_eq!(answer.text(), when, "{driver}");
            }
        };
        play_on("before");

        identity.renew();
        let new = certificate(&identity);
        assert!(new != old);
        process.reload("");
        eventually("the reload", || lines("was read again") == 1);
        for (_, shown) in secured(&process, &identity) {
            assert!(shown == new, "{driver}: the old one is shown");
        }
        play_on("after");

        // What is broken changes nothing, neither for those who are here nor for those who come.
        std::fs::write(identity.key(), "-----BEGIN PRIVATE KEY-----\n").unwrap();
        process.reload("");
        eventually("the mistake is told", || lines("nothing has changed") == 1);
        for (_, shown) in secured(&process, &identity) {
            assert!(shown == new, "{driver}: another one is shown");
        }
        play_on("at last");
        let closed = value(&metrics(process.admin), "pitaya_acceptor_closed_total", r#""tls""#);
        assert_eq!(closed, 0, "{driver}: a handshake failed");
    }
}
