//! Bans of a cluster: one administrator's word holds on every gateway, and losing etcd unbans nobody.

use client::raw::RawClient;
use gateway::gateway::Gateway;

use crate::administrator::{ask, ban, unban};
use crate::backend::{NESTED_ACK, session_of};
use crate::world::{DRIVERS, SOON, World, tcp, until};

fn admin(gateway: &Gateway) -> std::net::SocketAddr {
    gateway.addresses().admin[0]
}

fn is_let_in(gateway: &Gateway) -> bool {
    RawClient::connect_tcp(gateway.addresses().tcp[0])
        .is_ok_and(|mut client| client.establish().is_ok())
}

fn listed(gateway: &Gateway) -> usize {
    ask(admin(gateway), "GET", "/bans", "").1["bans"].as_array().unwrap().len()
}

fn lifted(gateway: &Gateway) -> Option<()> {
    (listed(gateway) == 0 && is_let_in(gateway)).then_some(())
}

#[test]
fn a_ban_holds_on_every_gateway_also_on_one_that_comes_later() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let first = world.gateway(driver, &[]);
        let second = world.gateway(driver, &[("pitaya.server.id", "gate-2")]);
        let mut ann = tcp(&second);
        let session = backend.session_id(&mut ann);
        let bind = session_of(session, "ann", "");
        assert_eq!(&backend.caller.call("gate-2", "sys.bindsession", &bind)[..], NESTED_ACK);
        assert_eq!(ban(admin(&first), r#"{"subject":"uid:ann"}"#), "cluster");
        ann.expect_kick(SOON).unwrap();

        assert_eq!(ban(admin(&second), r#"{"subject":"address:127.0.0.0/8"}"#), "cluster");
        until("the other gateway keeps them out too", || (!is_let_in(&first)).then_some(()));
        let third = world.gateway(driver, &[("pitaya.server.id", "gate-3")]);
        until("a new gateway keeps them out too", || (!is_let_in(&third)).then_some(()));

        unban(admin(&third), "address:127.0.0.0/8");
        unban(admin(&third), "uid:ann");
        for gateway in [&first, &second, &third] {
            until("everybody is let in again", || lifted(gateway));
        }
        for gateway in [first, second, third] {
            gateway.stop();
        }
    }
}

#[test]
fn without_etcd_bans_hold_and_new_ones_reach_the_others_when_it_is_back() {
    let mut world = World::new();
    let first = world.gateway("epoll", &[]);
    let second = world.gateway("epoll", &[("pitaya.server.id", "gate-2")]);
    assert_eq!(ban(admin(&first), r#"{"subject":"uid:ann","seconds":600}"#), "cluster");
    until("both know", || (listed(&second) == 1).then_some(()));
    world.etcd.kill();
    let scope = ban(admin(&first), r#"{"subject":"uid:bob"}"#);
    assert!(scope.starts_with("this gateway;"), "{scope}");
    assert_eq!((listed(&first), listed(&second)), (2, 1));
    world.etcd.restart_same_port();
    until("the other gateway hears", || (listed(&second) == 2).then_some(()));
    assert_eq!(listed(&first), 2);
    for gateway in [first, second] {
        gateway.stop();
    }
}
