//! The binding storage as others see it: who is bound to this gateway stands in etcd, and nobody else.

use shared::cluster::etcd::{Client, KeyValue, RangeRequest, StoreOptions};

use crate::backend::{NESTED_ACK, session_of};
use crate::servers::Etcd;
use crate::world::{DRIVERS, GATE, SOON, World, tcp, until};

const ON: (&str, &str) = ("pitaya.modules.bindingstorage.enabled", "true");

/// What stands there of a user.
fn stored(world: &World, etcd: &Etcd, uid: &str) -> Option<KeyValue> {
    let options = StoreOptions { dial_timeout: SOON, ..StoreOptions::at(etcd.url()) };
    let key = format!("pitaya/bindings/connector/{uid}").into_bytes();
    let request = RangeRequest { key, ..RangeRequest::default() };
    let found = world.soon(async { Client::new(&options, SOON).unwrap().range(request).await });
    found.unwrap().kvs.pop()
}

#[test]
fn a_user_stands_in_etcd_from_the_confirmed_bind_to_the_end_of_the_session() {
    let world = World::new();
    let backend = world.backend("room-1");
    let etcd = world.etcd.url();
    for driver in DRIVERS {
        let endpoints = ("pitaya.modules.bindingstorage.etcd.endpoints", etcd.as_str());
        let gateway = world.gateway(driver, &[ON, endpoints]);
        let mut ann = tcp(&gateway);
        let session = backend.session_id(&mut ann);
        assert_eq!(backend.caller.bind(session, "ann"), NESTED_ACK);
        let entry = stored(&world, &world.etcd, "ann").expect("written before the confirmation");
        assert_eq!(String::from_utf8(entry.value).unwrap(), GATE, "{driver}");
        assert_ne!(entry.lease, 0);

        // The uid moves to another session of this gateway; the entry stays.
        let mut again = tcp(&gateway);
        let session = backend.session_id(&mut again);
        assert_eq!(backend.caller.bind(session, "ann"), NESTED_ACK);
        ann.expect_kick(SOON).unwrap();
        let mut bob = tcp(&gateway);
        let session = backend.session_id(&mut bob);
        assert_eq!(backend.caller.bind(session, "bob"), NESTED_ACK);
        drop(bob);
        until("bob is gone", || stored(&world, &world.etcd, "bob").is_none().then_some(()));
        assert!(stored(&world, &world.etcd, "ann").is_some(), "{driver}");

        drop(again);
        until("ann is gone", || stored(&world, &world.etcd, "ann").is_none().then_some(()));
        let mut eve = tcp(&gateway);
        let session = backend.session_id(&mut eve);
        assert_eq!(backend.caller.bind(session, "eve"), NESTED_ACK);
        gateway.stop();
        assert_eq!(stored(&world, &world.etcd, "eve"), None, "{driver}");
    }
}

#[test]
fn players_can_log_in_while_the_binding_storage_is_away() {
    let world = World::new();
    let backend = world.backend("room-1");
    let mut storage = Etcd::start();
    let endpoints = storage.url();
    let endpoints = ("pitaya.modules.bindingstorage.etcd.endpoints", endpoints.as_str());
    let gateway = world.gateway("auto", &[ON, endpoints]);
    storage.kill();
    let mut players = Vec::new();
    for number in 0..5 {
        let mut player = tcp(&gateway);
        let argument = session_of(backend.session_id(&mut player), &format!("u{number}"), "");
        let answer = backend.caller.call(GATE, "sys.bindsession", &argument);
        assert_eq!(answer, NESTED_ACK);
        players.push(player);
    }
    storage.restart_same_port();
    for number in 0..5 {
        until("it is written", || stored(&world, &storage, &format!("u{number}")));
    }
    gateway.stop();
}
