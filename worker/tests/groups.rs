//! Groups in a real etcd, with keys as Go servers read and write them.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../shared/tests/servers/mod.rs"]
mod servers;
mod support;

use std::sync::mpsc;
use std::time::Duration;

use servers::Etcd;
use shared::cluster::etcd::{
    Client, DeleteRangeRequest, PutRequest, RangeRequest, StoreOptions, prefix_end,
};
use support::Harness;
use tokio::time::timeout;
use worker::{App, Error, EtcdGroupsOptions, GroupStorage, Groups, Result};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

fn storage(etcd: &Etcd) -> GroupStorage {
    GroupStorage::Etcd(EtcdGroupsOptions {
        store: StoreOptions {
            prefix: "game/".into(),
            dial_timeout: Duration::from_secs(1),
            ..StoreOptions::at(etcd.url())
        },
        transaction_timeout: Duration::from_secs(2),
    })
}

/// An application that keeps its groups there, and the groups.
async fn open(storage: GroupStorage) -> (Harness, Groups) {
    let (sender, receiver) = mpsc::channel();
    let app = App::new("room").groups(storage).on_start(move |groups: Groups| {
        sender.send(groups).unwrap();
        std::future::ready(Ok::<_, Error>(()))
    });
    let harness = Harness::new(app).await;
    (harness, receiver.recv().unwrap())
}

/// Somebody else who uses the same etcd.
fn other(etcd: &Etcd) -> Client {
    Client::new(&StoreOptions::at(etcd.url()), Duration::from_secs(5)).unwrap()
}

/// All keys with their values and leases.
async fn keys(client: &Client) -> Vec<(String, String, i64)> {
    let all = RangeRequest {
        key: b"game/".to_vec(),
        range_end: prefix_end(b"game/"),
        ..Default::default()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let found = soon(client.range(all)).await.unwrap().kvs;
    found.iter().map(|kv| (text(&kv.key), text(&kv.value), kv.lease)).collect()
}

async fn put(client: &Client, key: &str, lease: i64) {
    let put = PutRequest { key: key.into(), value: Vec::new(), lease, ..PutRequest::default() };
    soon(client.put(put)).await.unwrap();
}

fn text<T>(result: Result<T>) -> String {
    let error = result.err().expect("an error");
    format!("{} {}", error.code, error.msg)
}

#[tokio::test]
async fn a_group_in_etcd_is_what_go_servers_read_and_write() {
    let etcd = Etcd::start();
    let (_harness, groups) = open(storage(&etcd)).await;
    let go = other(&etcd);
    soon(groups.create("room")).await.unwrap();
    soon(groups.add("room", "ann")).await.unwrap();
    let expected = [("game/groups/room", ""), ("game/groups/room/uids/ann", "")];
    let written = keys(&go).await;
    let written: Vec<_> = written.iter().map(|(k, v, lease)| (&**k, &**v, *lease)).collect();
    assert_eq!(written, expected.map(|(key, value)| (key, value, 0)));

    put(&go, "game/groups/theirs", 0).await;
    put(&go, "game/groups/theirs/uids/bob", 0).await;
    assert_eq!(soon(groups.members("theirs")).await.unwrap(), ["bob"]);
    assert_eq!(text(soon(groups.create("theirs")).await), "PIT-000 group already exists");
    assert!(soon(groups.contains("theirs", "bob")).await.unwrap());
    let delete = DeleteRangeRequest { key: b"game/groups/theirs".to_vec(), range_end: Vec::new() };
    soon(go.delete_range(delete)).await.unwrap();
    assert_eq!(text(soon(groups.members("theirs")).await), "PIT-000 group not found");
}

#[tokio::test]
async fn every_call_has_pitayas_errors() {
    let etcd = Etcd::start();
    let (harness, groups) = open(storage(&etcd)).await;
    let calls = async {
        groups.create("g").await.unwrap();
        assert_eq!(text(groups.create("g").await), "PIT-000 group already exists");
        for uid in ["b", "a", "c"] {
            groups.add("g", uid).await.unwrap();
        }
        assert_eq!(text(groups.add("g", "a").await), "PIT-000 member already exists in group");
        assert_eq!(text(groups.add("g", "").await), "PIT-000 empty uid");
        assert_eq!(text(groups.add("no", "a").await), "PIT-000 group not found");
        groups.remove("g", "b").await.unwrap();
        let gone = "PIT-000 member not found in the group";
        assert_eq!(text(groups.remove("g", "b").await), gone);
        assert_eq!(text(groups.remove("no", "b").await), gone);
        assert_eq!(groups.members("g").await.unwrap(), ["a", "c"]);
        assert_eq!(groups.count("g").await.unwrap(), 2);
        assert_eq!(groups.count("no").await.unwrap(), 0);
        assert!(groups.contains("g", "c").await.unwrap());
        assert!(!groups.contains("g", "b").await.unwrap());
        assert_eq!(text(groups.contains("no", "b").await), "PIT-000 group not found");
        assert_eq!(text(groups.contains("g", "").await), "PIT-000 empty uid");
        assert_eq!(text(groups.renew_ttl("g").await), "PIT-000 etcd lease not found in group");
        assert_eq!(text(groups.renew_ttl("no").await), "PIT-000 group not found");
        groups.via("connector").broadcast("g", "onText", "all").await.unwrap();
        assert_eq!(text(groups.broadcast("no", "onText", "all").await), "PIT-000 group not found");
        groups.remove_all("g").await.unwrap();
        assert_eq!(groups.count("g").await.unwrap(), 0);
        groups.delete("g").await.unwrap();
        assert_eq!(text(groups.delete("g").await), "PIT-000 group not found");
        assert_eq!(text(groups.remove_all("g").await), "PIT-000 group not found");
    };
    soon(calls).await;
    let subjects: Vec<_> = harness.link.pushes().into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, ["pitaya/connector/user/a/push", "pitaya/connector/user/c/push"]);
    assert_eq!(keys(&other(&etcd)).await, []);
}

#[tokio::test]
async fn names_that_would_lead_elsewhere_never_reach_etcd() {
    let etcd = Etcd::start();
    let (_harness, groups) = open(storage(&etcd)).await;
    let too_long = "x".repeat(worker::GROUP_NAME_BYTES_MAX + 1);
    for name in ["", "a/uids/b", "a b", "a\nb", "*", "a>", &too_long] {
        let refused = "PIT-400 illegal group name";
        assert_eq!(text(soon(groups.create(name)).await), refused, "{name:?}");
        assert_eq!(text(soon(groups.delete(name)).await), refused, "{name:?}");
        assert_eq!(text(soon(groups.count(name)).await), refused, "{name:?}");
        assert_eq!(text(soon(groups.broadcast(name, "r", "x")).await), refused, "{name:?}");
    }
    soon(groups.create("g")).await.unwrap();
    for uid in ["a b", "*", "a..b", "a\rb", &"x".repeat(4_000)] {
        assert_eq!(text(soon(groups.add("g", uid)).await), "PIT-400 illegal uid", "{uid:?}");
    }
    assert_eq!(keys(&other(&etcd)).await.len(), 1);
}

#[tokio::test]
async fn a_group_with_a_time_to_live_ends_whole_and_can_be_kept() {
    let etcd = Etcd::start();
    let (_harness, groups) = open(storage(&etcd)).await;
    let go = other(&etcd);
    soon(groups.create_with_ttl("short", Duration::from_millis(2_900))).await.unwrap();
    soon(groups.add("short", "ann")).await.unwrap();
    let written = keys(&go).await;
    let lease = written[0].2;
    assert!(lease != 0 && written.iter().all(|key| key.2 == lease), "{written:?}");
    assert_eq!(soon(go.lease_time_to_live(lease)).await.unwrap().granted_ttl, 2);
    soon(groups.renew_ttl("short")).await.unwrap();

    // A second group of the name leaves no lease behind.
    let again = soon(groups.create_with_ttl("short", Duration::from_secs(60))).await;
    assert_eq!(text(again), "PIT-000 group already exists");

    soon(go.lease_revoke(lease)).await.unwrap();
    assert_eq!(text(soon(groups.members("short")).await), "PIT-000 group not found");
    assert_eq!(text(soon(groups.add("short", "bob")).await), "PIT-000 group not found");

    soon(groups.create_with_ttl("short", Duration::from_secs(60))).await.unwrap();
    let lease = keys(&go).await[0].2;
    soon(groups.delete("short")).await.unwrap();
    assert_eq!(soon(go.lease_time_to_live(lease)).await.unwrap().ttl, -1, "the lease ended too");
}

#[tokio::test]
async fn a_group_of_many_pages_is_read_as_of_one_moment() {
    let etcd = Etcd::start();
    let (_harness, groups) = open(storage(&etcd)).await;
    let go = other(&etcd);
    put(&go, "game/groups/big", 0).await;
    let members: Vec<String> = (0..20_001).map(|number| format!("u{number:05}")).collect();
    for chunk in members.chunks(128) {
        let put = |uid: &String| {
            let key = format!("game/groups/big/uids/{uid}").into_bytes();
            let put = PutRequest { key, value: Vec::new(), lease: 0, ..PutRequest::default() };
            shared::cluster::etcd::RequestOp::Put(put)
        };
        let steps = chunk.iter().map(put).collect();
        let request = shared::cluster::etcd::TxnRequest::new(vec![], steps, vec![]);
        soon(go.txn(request)).await.unwrap();
    }
    assert_eq!(soon(groups.members("big")).await.unwrap(), members);
    assert_eq!(soon(groups.count("big")).await.unwrap(), members.len());
}

#[tokio::test]
async fn losing_etcd_costs_the_calls_of_that_time_and_nothing_else() {
    let mut etcd = Etcd::start();
    let (_harness, groups) = open(storage(&etcd)).await;
    soon(groups.create("g")).await.unwrap();
    etcd.kill();
    let error = soon(groups.add("g", "ann")).await.unwrap_err();
    assert_eq!(error.code, "PIT-500", "{error}");
    etcd.restart_same_port();
    soon(async { while groups.add("g", "ann").await.is_err() {} }).await;
    assert_eq!(soon(groups.members("g")).await.unwrap(), ["ann"]);

    etcd.pause();
    let error = soon(groups.members("g")).await.unwrap_err();
    assert_eq!(error.code, "PIT-500", "{error}");
    etcd.resume();
    soon(async { while groups.members("g").await.is_err() {} }).await;
}
