//! Faults of etcd beyond its death: it stands still, is cut off, loses a lease or all of its data.
//!
//! Requests go on in all of them; what was registered is registered again by itself. None of this passes through a
//! driver, so one of them has to do.

use std::time::{Duration, Instant};

use client::raw::RawClient;
use gateway::gateway::Gateway;

use crate::fault_proxy::FaultProxy;
use crate::watching::counter;
use crate::world::{World, http_get, tcp, until, until_answered};

const DRIVER: &str = "uring";
const OWN_KEY: &[u8] = b"pitaya/servers/connector/gate-1";
/// The lease of a gateway in these tests.
const TTL: Duration = Duration::from_secs(2);

fn has_discovery(gateway: &Gateway) -> bool {
    let (_, page) = http_get(gateway.addresses().admin[0], "/readyz").unwrap();
    page.contains(r#""discovery":true"#)
}

fn start(world: &World, endpoint: &str) -> (Gateway, RawClient) {
    let settings = [
        ("pitaya.cluster.sd.etcd.heartbeat.ttl", "2s"),
        ("pitaya.cluster.sd.etcd.endpoints", endpoint),
        ("pitaya.cluster.sd.etcd.dialtimeout", "1s"),
    ];
    let gateway = world.gateway(DRIVER, &settings);
    let mut client = tcp(&gateway);
    until_answered(&mut client, "room.room.echo", b"x");
    (gateway, client)
}

/// Requests are answered for longer than the lease lasts.
fn check_served(client: &mut RawClient) {
    let begun = Instant::now();
    while begun.elapsed() < TTL + Duration::from_secs(1) {
        assert_eq!(client.request("room.room.echo", b"x").unwrap().payload, b"x");
    }
}

#[test]
fn an_etcd_that_is_cut_off_costs_nothing_and_is_registered_with_again() {
    let world = World::new();
    let echo = world.backend("room-1").echo();
    let proxy = FaultProxy::start(world.etcd.address());
    let (gateway, mut client) = start(&world, &proxy.address().to_string());
    proxy.stand_still(true);
    check_served(&mut client);
    until("the lease has run out", || world.entry(OWN_KEY).is_none().then_some(()));
    until("readiness tells", || (!has_discovery(&gateway)).then_some(()));
    assert_eq!(client.request("room.room.echo", b"x").unwrap().payload, b"x");
    proxy.heal();
    let begun = Instant::now();
    until("registered again", || world.entry(OWN_KEY));
    until("readiness tells", || has_discovery(&gateway).then_some(()));
    println!("registered {:?} after the partition was over", begun.elapsed());
    assert_eq!(client.request("room.room.echo", b"x").unwrap().payload, b"x");
    assert_eq!(counter(&gateway, "pitaya_acceptor_closed_total"), 0);
    gateway.stop();
    world.withdraw(echo.discovery);
}

#[test]
fn an_etcd_that_stands_still_costs_nothing() {
    let world = World::new();
    let echo = world.backend("room-1").echo();
    let endpoint = world.etcd.address().to_string();
    let (gateway, mut client) = start(&world, &endpoint);
    world.etcd.pause();
    check_served(&mut client);
    world.etcd.resume();
    until("readiness tells", || has_discovery(&gateway).then_some(()));
    until("registered", || world.entry(OWN_KEY));
    check_served(&mut client);
    gateway.stop();
    world.withdraw(echo.discovery);
}

#[test]
fn an_etcd_that_lost_all_its_data_is_told_everything_again() {
    let mut world = World::new();
    let endpoint = world.etcd.address().to_string();
    let worker = world.worker("room-1");
    let (gateway, mut client) = {
        let settings = [("pitaya.cluster.sd.etcd.heartbeat.ttl", "2s")];
        let gateway = world.gateway(DRIVER, &settings);
        let mut client = tcp(&gateway);
        until_answered(&mut client, "room.test.echo", b"x");
        (gateway, client)
    };
    world.etcd.restart_empty();
    assert_eq!(world.etcd.address().to_string(), endpoint);
    let begun = Instant::now();
    until("the gateway is there again", || world.entry(OWN_KEY));
    until_answered(&mut client, "room.test.echo", b"x");
    println!("everything is registered {:?} after the loss", begun.elapsed());
    // A newcomer is found by a watch, which counts in the revisions of the new data.
    let other = world.announce("chat", "chat-1");
    until("a newcomer is seen", || {
        let text = client.request("chat.room.echo", b"").unwrap().text();
        text.contains("no responders").then_some(())
    });
    world.withdraw(other);
    assert_eq!(counter(&gateway, "pitaya_acceptor_closed_total"), 0);
    gateway.stop();
    world.stop_worker(worker);
}
