//! Who may talk to NATS: passwords, tokens, keys, TLS.

use std::fs;
use std::time::Duration;

use async_nats::ConnectOptions;
use gateway::gateway::{Commands, Gateway};

use crate::backend::{Backend, NESTED_ACK, error_in};
use crate::servers::Nats;
use crate::world::{DRIVERS, GATE, SOON, World, error_of, free_address, http_get, tcp, until};

/// Starts a gateway with these settings, and has one request served.
fn check_served(world: &World, options: ConnectOptions, settings: &[(&str, &str)]) {
    let client = world.soon(options.connect(world.nats.url())).unwrap();
    let backend = Backend::start(world, "room-1", client).echo();
    for driver in DRIVERS {
        let gateway = world.gateway(driver, settings);
        let mut client = tcp(&gateway);
        for size in [5, 60_000] {
            let payload = vec![b'x'; size];
            let answer = client.request("room.room.echo", &payload).unwrap();
            assert_eq!(answer.payload, payload, "{driver}");
        }
        gateway.stop();
    }
    world.withdraw(backend.discovery);
}

#[test]
fn user_and_password_token_and_key_are_taken() {
    let world = World::over(Nats::start(&["--user", "gw", "--pass", "p@ss word"]));
    let user = ConnectOptions::with_user_and_password("gw".into(), "p@ss word".into());
    let settings = [("pitaya.nats.user", "gw"), ("pitaya.nats.password", "p@ss word")];
    check_served(&world, user, &settings);
    let world = World::over(Nats::start(&["--auth", "token-1"]));
    let token = ConnectOptions::with_token("token-1".into());
    check_served(&world, token, &[("pitaya.nats.token", "token-1")]);
    let key = nkeys::KeyPair::new_user();
    let users = format!("authorization {{ users = [ {{ nkey: {} }} ] }}", key.public_key());
    let world = World::over(Nats::start_configured(&users));
    let seed = key.seed().unwrap();
    check_served(&world, ConnectOptions::with_nkey(seed.clone()), &[("pitaya.nats.nkey", &seed)]);
}

#[test]
fn a_wrong_password_is_tried_again_without_a_flood_until_it_is_right() {
    for driver in DRIVERS {
        let monitor = free_address();
        let monitor_port = monitor.port().to_string();
        let start = |port: &str, password: &str| {
            Nats::start(&["-p", port, "-m", &monitor_port, "--user", "gw", "--pass", password])
        };
        let mut world = World::over(start("-1", "other"));
        let port = world.nats.address().port().to_string();
        let settings = [("pitaya.nats.user", "gw"), ("pitaya.nats.password", "right")];
        let plan = world.plan(driver, &settings);
        let starting = std::thread::spawn(|| Gateway::start(plan, Commands::new()));
        let tries = || {
            let (_, page) = http_get(monitor, "/varz").unwrap();
            let count = page.split("\"total_connections\": ").nth(1).unwrap();
            count.split(',').next().unwrap().parse::<u32>().unwrap()
        };
        let begun = std::time::Instant::now();
        until("several tries", || (tries() >= 8).then_some(()));
        // Two reactors, each waits at least 100 ms between two tries; their first comes at once.
        assert!(begun.elapsed() >= Duration::from_millis(250), "{driver}: a flood");
        assert!(!starting.is_finished(), "{driver}");
        world.nats.kill();
        world.nats = start(&port, "right");
        let gateway = starting.join().unwrap().unwrap();
        let options = ConnectOptions::with_user_and_password("gw".into(), "right".into());
        let client = world.soon(options.connect(world.nats.url())).unwrap();
        let backend = Backend::start(&world, "room-1", client).echo();
        let mut client = tcp(&gateway);
        crate::world::until_answered(&mut client, "room.room.echo", b"x");
        world.withdraw(backend.discovery);
        gateway.stop();
    }
}

#[test]
fn a_missing_permission_costs_the_request_and_not_the_connection() {
    let users = r#"authorization { users = [
        { user: gw, password: gw, permissions: { publish: { deny: "pitaya/servers/room/secret" } } }
        { user: room, password: room }
    ] }"#;
    let world = World::over(Nats::start_configured(users));
    let options = || ConnectOptions::with_user_and_password("room".into(), "room".into());
    let client = world.soon(options().connect(world.nats.url())).unwrap();
    let backend = Backend::start(&world, "secret", client);
    for driver in DRIVERS {
        let settings = [
            ("pitaya.nats.user", "gw"),
            ("pitaya.nats.password", "gw"),
            ("pitaya.cluster.rpc.client.nats.requesttimeout", "300ms"),
        ];
        let gateway = world.gateway(driver, &settings);
        let mut client = tcp(&gateway);
        for _ in 0..3 {
            let text = error_of(&mut client, "room.room.echo", b"");
            assert!(text.contains("PIT-408"), "{driver}: {text}");
        }
        let (status, page) = http_get(gateway.addresses().admin[0], "/readyz").unwrap();
        assert_eq!(status, 200, "{driver}: {page}");
        gateway.stop();
    }
    assert!(backend.next_within(Duration::ZERO).is_none());
}

#[test]
fn a_bind_fails_when_the_users_subjects_are_not_permitted() {
    let users = r#"authorization { users = [
        { user: gw, password: gw, permissions: { subscribe: { allow: [
            "_INBOX.>", "pitaya/servers/connector/gate-1", "pitaya/connector/bindings",
            "pitaya/connector/user/ann/push", "pitaya/connector/user/bob/push",
            "pitaya/connector/user/bob/kick" ] } } }
        { user: room, password: room }
    ] }"#;
    let world = World::over(Nats::start_configured(users));
    let options = ConnectOptions::with_user_and_password("room".into(), "room".into());
    let client = world.soon(options.connect(world.nats.url())).unwrap();
    let backend = Backend::start(&world, "room-1", client);
    for driver in DRIVERS {
        let settings = [("pitaya.nats.user", "gw"), ("pitaya.nats.password", "gw")];
        let gateway = world.gateway(driver, &settings);
        for _ in 0..4 {
            let mut client = tcp(&gateway);
            let session = backend.session_id(&mut client);
            // Neither subject, then one of the two.
            for uid in ["eve", "ann"] {
                let (code, text) = error_in(&backend.caller.bind(session, uid));
                assert_eq!(code, "PIT-000", "{driver}");
                assert!(text.contains("Permissions Violation"), "{driver}: {text}");
                let kick = proto::KickMsg { user_id: uid.into() };
                let answer = backend.caller.call(GATE, "sys.kick", &kick);
                assert_eq!(error_in(&answer).1, "session not found", "{driver}");
            }
            assert_eq!(&backend.caller.bind(session, "bob")[..], NESTED_ACK, "{driver}");
            backend.caller.push("bob", b"x");
            assert_eq!(client.read_push(SOON).unwrap().payload, b"x", "{driver}");
        }
        gateway.stop();
    }
}

/// A NATS server with a certificate of its own making, and the file to trust it by.
fn encrypted(options: &str) -> (World, tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let place = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let certificate = place("certificate.pem", made.cert.pem());
    let key = place("key.pem", made.signing_key.serialize_pem());
    let tls = format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" {options} }}");
    (World::over(Nats::start_configured(&tls)), directory, certificate)
}

#[test]
fn a_server_that_asks_for_tls_gets_it() {
    let (world, _directory, certificate) = encrypted("");
    let options = || ConnectOptions::new().add_root_certificates(certificate.clone().into());
    let settings = [("pitaya.nats.tls.ca", certificate.as_str())];
    check_served(&world, options(), &settings);
    // More in one turn than one TLS record, and more than a TLS library holds back by default.
    let client = world.soon(options().connect(world.nats.url())).unwrap();
    let backend = Backend::start(&world, "room-1", client).echo();
    for driver in DRIVERS {
        let large = [("pitaya.gateway.packet.maxbytes", "1000000"), settings[0]];
        let gateway = world.gateway(driver, &large);
        let mut client = tcp(&gateway);
        let payload: Vec<u8> = (0..500_000_u32).map(|number| (number % 251) as u8).collect();
        let answer = client.request("room.room.echo", &payload).unwrap();
        assert!(!answer.is_error, "{driver}: {}", answer.text());
        assert!(answer.payload == payload, "{driver}: other bytes");
        gateway.stop();
    }
    world.withdraw(backend.discovery);
}
