//! The gateway and etcd: servers that come and go, the gateway's own entry, an etcd that goes away.

use gateway::gateway::Gateway;
use shared::cluster::etcd::{Client, KeyValue, RangeRequest, StoreOptions};

use crate::world::{DRIVERS, SOON, World, error_of, http_get, tcp, until, until_answered};

const OWN_KEY: &[u8] = b"pitaya/servers/connector/gate-1";

impl World {
    fn etcd_client(&self) -> Client {
        let options = StoreOptions { dial_timeout: SOON, ..StoreOptions::at(self.etcd.url()) };
        self.soon(async { Client::new(&options, SOON) }).unwrap()
    }

    pub(crate) fn entry(&self, key: &[u8]) -> Option<KeyValue> {
        let client = self.etcd_client();
        let request = RangeRequest { key: key.to_vec(), ..RangeRequest::default() };
        self.soon(client.range(request)).unwrap().kvs.into_iter().next()
    }
}

#[test]
fn the_gateways_entry_is_as_go_writes_it_and_is_gone_after_a_stop() {
    let world = World::new();
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for driver in DRIVERS {
        let metadata = ("pitaya.server.metadata", "stack=green,zone=<b>");
        let gateway = world.gateway(driver, &[metadata]);
        let entry = world.entry(OWN_KEY).expect("registered before it serves");
        let expected = format!(
            concat!(
                r#"{{"id":"gate-1","type":"connector","metadata":{{"dragonfruit.protocol":"pushes","#,
                r#""stack":"green","zone":"\u003cb\u003e"}},"#,
                r#""frontend":true,"hostname":"{}"}}"#
            ),
            hostname.trim()
        );
        assert_eq!(String::from_utf8(entry.value).unwrap(), expected, "{driver}");
        assert_ne!(entry.lease, 0, "{driver}: it would stay for ever after a crash");
        gateway.stop();
        assert_eq!(world.entry(OWN_KEY), None, "{driver}");
    }
}

#[test]
fn an_entry_that_was_lost_is_written_again() {
    let world = World::new();
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let first = world.entry(OWN_KEY).unwrap();
        let client = world.etcd_client();
        world.soon(client.lease_revoke(first.lease)).unwrap();
        let again = until("the entry is back", || world.entry(OWN_KEY));
        assert_ne!(again.lease, first.lease, "{driver}");
        gateway.stop();
    }
}

#[test]
fn a_server_that_leaves_is_not_chosen_any_more_and_one_that_joins_is() {
    let world = World::new();
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[]);
        let mut client = tcp(&gateway);
        let none = r#"{"code":"PIT-500","msg":"no servers available of this type"}"#;
        assert_eq!(error_of(&mut client, "room.room.echo", b""), none, "{driver}");
        let first = world.backend("room-1").echo();
        until_answered(&mut client, "room.room.echo", b"");
        let second = world.backend("room-2");
        let mut joins = || {
            let id = client.send_request("room.room.echo", b"").unwrap();
            let call = second.call_unless_answered(&mut client, id)?;
            call.answer(b"second");
            assert!(!client.read_response(id, SOON).unwrap().is_error, "{driver}");
            Some(())
        };
        until("the second is used", &mut joins);
        world.withdraw(first.discovery);
        // The first still answers those that are on their way. When it is used no more, all go to the second.
        let mut in_a_row = 0;
        until("the first is left out", || {
            in_a_row = if joins().is_some() { in_a_row + 1 } else { 0 };
            (in_a_row >= 30).then_some(())
        });
        second.leave(&world);
        until("nobody is left", || {
            let answer = client.request("room.room.echo", b"").unwrap();
            assert!(answer.is_error, "{driver}");
            (answer.text() == none).then_some(())
        });
        gateway.stop();
    }
}

fn readiness(gateway: &Gateway) -> String {
    http_get(gateway.addresses().admin[0], "/readyz").unwrap().1
}

#[test]
fn etcd_can_be_killed_and_come_back_under_traffic() {
    let mut world = World::new();
    let echo = world.backend("room-1").echo();
    for driver in DRIVERS {
        let settings = [("pitaya.cluster.sd.etcd.heartbeat.ttl", "3s")];
        let gateway = world.gateway(driver, &settings);
        let mut client = tcp(&gateway);
        world.etcd.kill();
        // Long enough for the lease to have run out.
        until("readiness tells", || {
            assert_eq!(client.request("room.room.echo", b"x").unwrap().payload, b"x", "{driver}");
            readiness(&gateway).contains(r#""discovery":false"#).then_some(())
        });
        assert_eq!(client.request("room.room.echo", b"x").unwrap().payload, b"x", "{driver}");
        world.etcd.restart_same_port();
        until("readiness tells", || {
            assert_eq!(client.request("room.room.echo", b"x").unwrap().payload, b"x", "{driver}");
            readiness(&gateway).contains(r#""discovery":true"#).then_some(())
        });
        assert!(world.entry(OWN_KEY).is_some(), "{driver}");
        let other = world.announce("chat", "chat-1");
        // Its server does not listen, but it is seen.
        until("a newcomer is seen", || {
            let text = error_of(&mut client, "chat.room.echo", b"");
            text.contains("no responders").then_some(())
        });
        world.withdraw(other);
        gateway.stop();
    }
    world.withdraw(echo.discovery);
}
