//! Service discovery against a real etcd that is killed, stopped, wiped and lied to.
//!
//! Every test has its own etcd. Times are limits, never pauses to wait for something to happen, except where the passing
//! of time itself is under test.

#[path = "servers/etcd.rs"]
mod etcd;
#[path = "servers/fault_proxy.rs"]
mod fault_proxy;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd::Etcd;
use fault_proxy::FaultProxy;
use shared::cluster::discovery::{
    Departure, Discovery, DiscoveryError, DiscoveryOptions, ServerEvent,
};
use shared::cluster::etcd::{
    Client, Compare, CompareValue, DeleteRangeRequest, EtcdError, PutRequest, RangeRequest,
    RequestOp, ResponseOp, StoreOptions, TxnRequest, WatchCreateRequest, prefix_end,
};
use shared::secret::Secret;
use shared::server::{Server, ServerTable};

/// Longest wait for anything; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn server(id: &str, server_type: &str) -> Server {
    Server {
        id: id.to_owned(),
        server_type: server_type.to_owned(),
        metadata: BTreeMap::from([("stack".to_owned(), "green".to_owned())]),
        frontend: false,
        hostname: "vm".to_owned(),
    }
}

/// With the shortest lease that etcd gives, and syncs so seldom that they repair nothing unseen.
fn options(endpoint: &str) -> DiscoveryOptions {
    let dial_timeout = Duration::from_secs(2);
    DiscoveryOptions {
        store: StoreOptions { dial_timeout, ..StoreOptions::at(endpoint) },
        lease_ttl: Duration::from_secs(2),
        sync_interval: Duration::from_secs(3600),
        shutdown_delay: Duration::from_millis(50),
        ..DiscoveryOptions::default()
    }
}

fn start(etcd: &Etcd, id: &str, server_type: &str) -> Discovery {
    Discovery::start(options(&etcd.endpoint()), &server(id, server_type)).expect("good options")
}

async fn started_and_registered(etcd: &Etcd, id: &str, server_type: &str) -> Discovery {
    let discovery = start(etcd, id, server_type);
    within(PATIENCE, "registration", discovery.register()).await;
    discovery
}

async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took over {limit:?}"))
}

async fn table(
    discovery: &Discovery,
    what: &str,
    is_met: impl Fn(&ServerTable) -> bool,
) -> Arc<ServerTable> {
    let mut tables = discovery.tables();
    let table = within(PATIENCE, what, tables.wait_for(|table| is_met(table))).await;
    Arc::clone(&*table.expect("discovery runs"))
}

async fn eventually(what: &str, is_met: impl Fn() -> bool) {
    within(PATIENCE, what, async {
        while !is_met() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn now(discovery: &Discovery) -> Arc<ServerTable> {
    Arc::clone(&discovery.tables().borrow())
}

fn key(server_type: &str, id: &str) -> String {
    format!("pitaya/servers/{server_type}/{id}")
}

fn lease_of(etcd: &Etcd, server_type: &str, id: &str) -> Option<i64> {
    etcd.key(&key(server_type, id)).map(|(_, lease)| lease)
}

/// Writes a server as a Go server would, without a lease.
fn put_by_hand(etcd: &Etcd, id: &str, server_type: &str) {
    let record = String::from_utf8(server(id, server_type).encode()).expect("text");
    etcd.put(&key(server_type, id), &record, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_server_is_seen_by_others_until_it_leaves() {
    let etcd = Etcd::start();
    let watcher = start(&etcd, "c1", "connector");
    within(PATIENCE, "the first sync", watcher.wait_synced()).await;
    let mut events = watcher.events();

    let room = start(&etcd, "r1", "room");
    within(PATIENCE, "the first sync", room.wait_synced()).await;
    assert!(!room.is_registered() && etcd.key(&key("room", "r1")).is_none(), "announced too early");
    within(PATIENCE, "registration", room.register()).await;
    assert!(room.is_registered() && room.is_connected());

    let (value, lease) = etcd.key(&key("room", "r1")).unwrap();
    assert_eq!(value.as_bytes(), server("r1", "room").encode());
    assert_ne!(lease, 0);
    let seen = table(&watcher, "the new server", |table| table.by_id("r1").is_some()).await;
    assert_eq!(*seen.by_type("room")[0].as_ref(), server("r1", "room"));
    let added = within(PATIENCE, "an event", events.recv()).await.unwrap();
    assert_eq!(added, ServerEvent::Added(Arc::new(server("r1", "room"))));

    within(PATIENCE, "leaving", room.leave()).await;
    assert!(!room.is_registered() && etcd.key(&key("room", "r1")).is_none());
    table(&watcher, "the removal", |table| table.by_id("r1").is_none()).await;
    let removed = within(PATIENCE, "an event", events.recv()).await.unwrap();
    let left = ServerEvent::Removed(Arc::new(server("r1", "room")), Departure::Left);
    assert_eq!(removed, left);

    // Who has left still sees the others, and cannot be brought back by accident.
    put_by_hand(&etcd, "r2", "room");
    table(&room, "another server", |table| table.by_id("r2").is_some()).await;
    within(PATIENCE, "a late registration", room.register()).await;
    assert!(!room.is_registered());
    within(PATIENCE, "shutdown", room.shutdown()).await;
    within(PATIENCE, "shutdown", watcher.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_go_servers_are_read_and_bad_ones_are_left_out() {
    let etcd = Etcd::start();
    let uuid = "91e47eed-e4fb-4c7d-8cca-bbeceb07b7a1";
    let captured = format!(
        r#"{{"id":"{uuid}","type":"room","metadata":{{"stack":"green"}},"frontend":false,"hostname":"vm"}}"#
    );
    etcd.put(&key("room", uuid), &captured, 0);
    etcd.put(&key("room", "null"), "null", 0);
    etcd.put(&key("room", "other"), &captured, 0);
    etcd.put("pitaya/servers/room", &captured, 0);
    etcd.put("pitaya/servers/room/a/b", &captured, 0);
    etcd.put("pitaya/bindings/connector/u1", "c1", 0);
    let discovery = start(&etcd, "c1", "connector");
    within(PATIENCE, "the first sync", discovery.wait_synced()).await;
    let found = now(&discovery);
    assert_eq!(found.len(), 1);
    assert_eq!(found.by_id(uuid).unwrap().metadata["stack"], "green");

    // The same through the watch.
    etcd.put(&key("room", "null2"), "null", 0);
    etcd.put(&key("room", "string"), r#"{"id":"string","type":"room","metadata":""}"#, 0);
    let found = table(&discovery, "a lenient entry", |table| table.by_id("string").is_some()).await;
    assert_eq!(found.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_record_stays_until_the_key_is_deleted() {
    let etcd = Etcd::start();
    let record =
        |mark: &str| format!(r#"{{"id":"r1","type":"room","metadata":{{"mark":"{mark}"}}}}"#);
    etcd.put(&key("room", "r1"), &record("first"), 0);
    let discovery = start(&etcd, "c1", "connector");
    within(PATIENCE, "the first sync", discovery.wait_synced()).await;
    etcd.put(&key("room", "r1"), &record("second"), 0);
    put_by_hand(&etcd, "r2", "room");
    let found = table(&discovery, "a later put", |table| table.by_id("r2").is_some()).await;
    assert_eq!(found.by_id("r1").unwrap().metadata["mark"], "first");
    etcd.delete(&key("room", "r1"));
    etcd.put(&key("room", "r1"), &record("third"), 0);
    let is_third = |table: &ServerTable| {
        table.by_id("r1").is_some_and(|server| server.metadata["mark"] == "third")
    };
    table(&discovery, "the new record", is_third).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_of_the_blacklist_are_not_in_the_table() {
    let etcd = Etcd::start();
    put_by_hand(&etcd, "h1", "hidden");
    let mut options = options(&etcd.endpoint());
    options.blacklist = vec!["hidden".to_owned()];
    let discovery = Discovery::start(options, &server("own", "hidden")).unwrap();
    within(PATIENCE, "registration", discovery.register()).await;
    put_by_hand(&etcd, "h2", "hidden");
    put_by_hand(&etcd, "r1", "room");
    let found = table(&discovery, "the last put", |table| table.by_id("r1").is_some()).await;
    let ids = found.iter().map(|server| server.id.as_str()).collect::<Vec<_>>();
    assert_eq!(ids, ["own", "r1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_server_disappears_when_its_lease_expires() {
    let etcd = Etcd::start();
    let watcher = start(&etcd, "c1", "connector");
    let room = started_and_registered(&etcd, "r1", "room").await;
    table(&watcher, "the server", |table| table.by_id("r1").is_some()).await;
    // The lease is kept for longer than it lasts.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(now(&watcher).by_id("r1").is_some() && room.is_registered());
    drop(room);
    table(&watcher, "the removal", |table| table.by_id("r1").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_somebody_deletes_is_written_again() {
    let etcd = Etcd::start();
    let room = started_and_registered(&etcd, "r1", "room").await;
    let lease = lease_of(&etcd, "room", "r1").unwrap();
    etcd.delete(&key("room", "r1"));
    eventually("the key", || lease_of(&etcd, "room", "r1") == Some(lease)).await;
    assert!(room.is_registered());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_on_a_foreign_lease_is_repaired_by_the_next_sync() {
    let etcd = Etcd::start();
    let mut options = options(&etcd.endpoint());
    options.sync_interval = Duration::from_millis(300);
    let room = Discovery::start(options, &server("r1", "room")).unwrap();
    within(PATIENCE, "registration", room.register()).await;
    let lease = lease_of(&etcd, "room", "r1");
    put_by_hand(&etcd, "r1", "room");
    assert_eq!(lease_of(&etcd, "room", "r1").map(|_| ()), Some(()));
    eventually("the own lease", || lease_of(&etcd, "room", "r1") == lease).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_revoked_behind_our_back_is_replaced_at_once() {
    let etcd = Etcd::start();
    let room = started_and_registered(&etcd, "r1", "room").await;
    for _ in 0..3 {
        let lease = lease_of(&etcd, "room", "r1").unwrap();
        let revoked_at = Instant::now();
        etcd.revoke(lease);
        eventually("a new lease", || {
            lease_of(&etcd, "room", "r1").is_some_and(|new| new != lease && new != 0)
        })
        .await;
        assert!(revoked_at.elapsed() < Duration::from_secs(3), "{:?}", revoked_at.elapsed());
    }
    eventually("the state", || room.is_registered()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_outlives_etcd_and_the_server_registers_again() {
    let mut etcd = Etcd::start();
    put_by_hand(&etcd, "r9", "room");
    let room = started_and_registered(&etcd, "r1", "room").await;
    table(&room, "both servers", |table| table.len() == 2).await;
    etcd.kill();
    eventually("the loss", || !room.is_connected() && !room.is_registered()).await;
    assert_eq!(now(&room).len(), 2);
    etcd.restart_same_port();
    let back_at = Instant::now();
    eventually("the return", || room.is_connected() && room.is_registered()).await;
    assert!(back_at.elapsed() < Duration::from_secs(5), "{:?}", back_at.elapsed());
    assert!(lease_of(&etcd, "room", "r1").is_some_and(|lease| lease != 0));
    assert_eq!(now(&room).len(), 2);
    put_by_hand(&etcd, "r10", "room");
    table(&room, "changes after the return", |table| table.by_id("r10").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_may_come_up_after_the_server() {
    let mut etcd = Etcd::start();
    etcd.kill();
    let room = start(&etcd, "r1", "room");
    let too_early = tokio::time::timeout(Duration::from_millis(500), room.register()).await;
    assert!(too_early.is_err() && !room.is_connected() && now(&room).is_empty());
    etcd.restart_same_port();
    within(Duration::from_secs(5), "registration", room.register()).await;
    assert!(etcd.key(&key("room", "r1")).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_etcd_costs_nothing_but_time() {
    let etcd = Etcd::start();
    put_by_hand(&etcd, "r9", "room");
    let room = started_and_registered(&etcd, "r1", "room").await;
    table(&room, "both servers", |table| table.len() == 2).await;
    etcd.pause();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(now(&room).by_id("r9").is_some());
    etcd.resume();
    eventually("the key", || room.is_registered() && etcd.key(&key("room", "r1")).is_some()).await;
    put_by_hand(&etcd, "r10", "room");
    table(&room, "all servers", |table| table.len() == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_get_time_to_write_themselves_again_after_etcd_lost_its_data() {
    let mut etcd = Etcd::start();
    for number in 0..20 {
        put_by_hand(&etcd, &format!("r{number}"), "room");
    }
    let mut options = options(&etcd.endpoint());
    options.store_lost_grace = Duration::from_secs(3);
    let room = Discovery::start(options, &server("own", "room")).unwrap();
    within(PATIENCE, "registration", room.register()).await;
    table(&room, "all servers", |table| table.len() == 21).await;
    let mut events = room.events();
    etcd.restart_empty();
    eventually("the key", || etcd.key(&key("room", "own")).is_some()).await;
    put_by_hand(&etcd, "r0", "room");
    assert_eq!(now(&room).len(), 21, "nobody is removed yet");
    let left = table(&room, "the end of the grace", |table| table.len() < 21).await;
    let ids = left.iter().map(|server| server.id.as_str()).collect::<Vec<_>>();
    assert_eq!(ids, ["own", "r0"]);
    for _ in 0..19 {
        let event = within(PATIENCE, "an event", events.recv()).await.unwrap();
        assert!(matches!(event, ServerEvent::Removed(server, _) if server.id != "r0"));
    }
}

fn client(etcd: &Etcd) -> Client {
    let limit = Duration::from_secs(2);
    let options = StoreOptions { dial_timeout: limit, ..StoreOptions::at(etcd.endpoint()) };
    Client::new(&options, limit).expect("good options")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_of_the_client_do_what_they_say() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let lease = client.lease_grant(60).await.unwrap();
    assert!(lease.id != 0 && lease.ttl == 60);
    for (name, lease) in [("k/1", lease.id), ("k/2", 0), ("l/1", 0)] {
        let put =
            PutRequest { key: name.into(), value: b"v".to_vec(), lease, ..PutRequest::default() };
        client.put(put).await.unwrap();
    }
    let all =
        RangeRequest { key: b"k/".to_vec(), range_end: prefix_end(b"k/"), ..Default::default() };
    let found = client.range(all.clone()).await.unwrap();
    let leases = found.kvs.iter().map(|key_value| key_value.lease).collect::<Vec<_>>();
    assert_eq!((found.count, leases), (2, vec![lease.id, 0]));
    let found =
        client.range(RangeRequest { keys_only: true, limit: 1, ..all.clone() }).await.unwrap();
    assert!(found.more && found.kvs.len() == 1 && found.kvs[0].value.is_empty());

    let left = client.lease_time_to_live(lease.id).await.unwrap();
    assert!(left.ttl > 0 && left.granted_ttl == 60 && left.keys == [b"k/1"]);
    assert_eq!(client.lease_keep_alive(lease.id).await.unwrap(), 60);
    client.lease_revoke(lease.id).await.unwrap();
    client.lease_revoke(lease.id).await.expect("revoking twice is no error");
    assert!(matches!(client.lease_keep_alive(lease.id).await, Err(EtcdError::LeaseLost)));
    assert_eq!(client.lease_time_to_live(lease.id).await.unwrap().ttl, -1);
    assert_eq!(client.range(all.clone()).await.unwrap().count, 1);

    // "Delete if the value is mine", twice: the second time it is not there.
    for is_there in [true, false] {
        let delete = DeleteRangeRequest { key: b"k/2".to_vec(), ..Default::default() };
        let is_mine = Compare::equal(b"k/2".to_vec(), CompareValue::Value(b"v".to_vec()));
        let txn = TxnRequest::new(
            vec![is_mine],
            vec![RequestOp::DeleteRange(delete)],
            vec![RequestOp::Range(all.clone())],
        );
        let answer = client.txn(txn).await.unwrap();
        assert_eq!(answer.succeeded, is_there);
        match answer.into_responses().next().unwrap() {
            ResponseOp::DeleteRange(answer) => assert!(is_there && answer.deleted == 1),
            ResponseOp::Range(answer) => assert!(!is_there && answer.count == 0),
            ResponseOp::Put(_) => panic!("nothing was put"),
        }
    }
    let rest = DeleteRangeRequest { key: b"l".to_vec(), range_end: prefix_end(b"l") };
    assert_eq!(client.delete_range(rest).await.unwrap().deleted, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_revision_ends_a_watch_and_says_so() {
    let etcd = Etcd::start();
    for number in 0..5 {
        put_by_hand(&etcd, &format!("r{number}"), "room");
    }
    let revision = etcd.compact();
    let client = client(&etcd);
    // etcd confirms such a watch first and cancels it then.
    let error = within(PATIENCE, "the cancellation", async {
        let request =
            WatchCreateRequest { key: b"x".to_vec(), start_revision: 1, ..Default::default() };
        let mut watch = match client.watch(request).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        loop {
            if let Err(error) = watch.next().await {
                return error;
            }
        }
    })
    .await;
    let is_expected = matches!(error, EtcdError::WatchCancelled { compact_revision, .. } if compact_revision == revision);
    assert!(is_expected, "{error}");
}

/// What stays open here stays open in etcd too, and takes memory of both until the connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_and_watches_that_are_over_leave_no_stream_open() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let lease = client.lease_grant(60).await.expect("a lease").id;
    let request = WatchCreateRequest { key: b"x".to_vec(), ..Default::default() };
    let mut kept = client.watch(request.clone()).await.expect("a watch");
    for _ in 0..20 {
        client.lease_keep_alive(lease).await.expect("a renewal");
        drop(client.watch(request.clone()).await.expect("a watch"));
    }
    eventually("only the watch that is kept is open", || etcd.open_streams() == 1).await;
    etcd.put("x", "seen", 0);
    within(PATIENCE, "its events still come", async {
        while kept.next().await.expect("it is open").events.is_empty() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_while_disconnected_leaves_no_gap() {
    let mut etcd = Etcd::start();
    put_by_hand(&etcd, "r0", "room");
    let proxy = FaultProxy::start(etcd.address());
    let watcher =
        Discovery::start(options(&proxy.address().to_string()), &server("c1", "connector"))
            .unwrap();
    table(&watcher, "the server", |table| table.by_id("r0").is_some()).await;
    proxy.refuse(true);
    eventually("the loss", || !watcher.is_connected()).await;
    etcd.delete(&key("room", "r0"));
    for number in 1..10 {
        put_by_hand(&etcd, &format!("r{number}"), "room");
    }
    etcd.compact();
    etcd.restart_same_port();
    assert!(now(&watcher).by_id("r0").is_some());
    proxy.refuse(false);
    let found = table(&watcher, "the changes", |table| table.by_id("r9").is_some()).await;
    assert!(found.by_id("r0").is_none());
    assert_eq!(found.len(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_found_and_what_was_missed_is_repaired() {
    let etcd = Etcd::start();
    let proxy = FaultProxy::start(etcd.address());
    let mut options = options(&proxy.address().to_string());
    options.store.dial_timeout = Duration::from_millis(500);
    options.sync_interval = Duration::from_millis(500);
    let watcher = Discovery::start(options, &server("c1", "connector")).unwrap();
    within(PATIENCE, "registration", watcher.register()).await;
    proxy.forget();
    let frozen_at = Instant::now();
    put_by_hand(&etcd, "r1", "room");
    table(&watcher, "the missed server", |table| table.by_id("r1").is_some()).await;
    // Before the pings of the connection notice anything.
    assert!(frozen_at.elapsed() < Duration::from_secs(6), "{:?}", frozen_at.elapsed());
    eventually("the state", || watcher.is_connected() && watcher.is_registered()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_or_hung_endpoint_is_passed_over() {
    let mut dead = Etcd::start();
    let hung = Etcd::start();
    let etcd = Etcd::start();
    dead.kill();
    hung.pause();
    let mut options = options(&etcd.endpoint());
    options.store.dial_timeout = Duration::from_secs(1);
    options.store.endpoints =
        vec![dead.endpoint(), hung.endpoint(), format!("http://{}", etcd.endpoint())];
    let room = Discovery::start(options, &server("r1", "room")).unwrap();
    within(Duration::from_secs(8), "registration", room.register()).await;
    assert!(etcd.key(&key("room", "r1")).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_used_and_a_forgotten_token_is_asked_for_again() {
    let mut etcd = Etcd::start();
    etcd.require_password("pitaya", "secret", "pitaya/");
    let refused = with_password(&etcd, "r2", "wrong");
    let anonymous = with_password(&etcd, "r3", "");
    let room = with_password(&etcd, "r1", "secret");
    within(PATIENCE, "registration", room.register()).await;
    table(&room, "the own server", |table| table.by_id("r1").is_some()).await;
    etcd.restart_same_port();
    eventually("the return", || room.is_connected() && room.is_registered()).await;
    let other = with_password(&etcd, "r4", "secret");
    within(PATIENCE, "registration", other.register()).await;
    table(&room, "the other server", |table| table.by_id("r4").is_some()).await;
    for intruder in [refused, anonymous] {
        assert!(!intruder.is_connected() && now(&intruder).is_empty());
        within(PATIENCE, "shutdown", intruder.shutdown()).await;
    }
    within(PATIENCE, "leaving", other.leave()).await;
    table(&room, "the removal", |table| table.by_id("r4").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_became_invalid_is_replaced_without_a_gap() {
    let mut etcd = Etcd::start();
    etcd.require_password("pitaya", "secret", "pitaya/");
    let room = with_password(&etcd, "r1", "secret");
    within(PATIENCE, "registration", room.register()).await;
    let lease = lease_of(&etcd, "room", "r1");
    etcd.change_password("pitaya", "secret");
    etcd.delete(&key("room", "r1"));
    eventually("the key", || lease_of(&etcd, "room", "r1") == lease).await;
    assert!(room.is_connected() && room.is_registered());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_may_be_switched_on_while_the_server_runs() {
    let mut etcd = Etcd::start();
    let room = with_password(&etcd, "r1", "secret");
    within(PATIENCE, "registration", room.register()).await;
    let lease = lease_of(&etcd, "room", "r1");
    etcd.require_password("pitaya", "secret", "pitaya/");
    etcd.delete(&key("room", "r1"));
    eventually("the key", || lease_of(&etcd, "room", "r1") == lease).await;
    within(PATIENCE, "leaving", room.leave()).await;
    assert!(etcd.key(&key("room", "r1")).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_costs_no_registration() {
    let etcd = Etcd::start();
    let mut options = options(&etcd.endpoint());
    options.sync_interval = Duration::from_millis(300);
    let room = Discovery::start(options, &server("r1", "room")).unwrap();
    within(PATIENCE, "registration", room.register()).await;
    let lease = lease_of(&etcd, "room", "r1");
    etcd.run_out_of_space();
    // Longer than the lease lasts without being renewed; with doubts about the key in between.
    tokio::time::sleep(Duration::from_secs(2)).await;
    etcd.delete(&key("room", "r1"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    etcd.end_alarm();
    eventually("the key on the old lease", || lease_of(&etcd, "room", "r1") == lease).await;
    assert!(room.is_registered());
}

fn with_password(etcd: &Etcd, id: &str, password: &str) -> Discovery {
    let mut options = options(&etcd.endpoint());
    "pitaya".clone_into(&mut options.store.user);
    options.store.password = Secret::new(password);
    Discovery::start(options, &server(id, "room")).expect("good options")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_without_authentication_does_no_harm() {
    let etcd = Etcd::start();
    let room = with_password(&etcd, "r1", "secret");
    within(PATIENCE, "registration", room.register()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_is_bounded_while_etcd_is_away() {
    let mut etcd = Etcd::start();
    let mut options = options(&etcd.endpoint());
    options.revoke_timeout = Duration::from_millis(500);
    let room = Discovery::start(options, &server("r1", "room")).unwrap();
    within(PATIENCE, "registration", room.register()).await;
    etcd.kill();
    within(Duration::from_secs(3), "leaving", room.leave()).await;
    within(Duration::from_secs(3), "shutdown", room.shutdown()).await;
}

#[tokio::test]
async fn mistakes_of_the_configuration_stop_the_start() {
    let start = |endpoints: &[&str], id: &str| {
        let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        let store = StoreOptions { endpoints, ..StoreOptions::default() };
        let options = DiscoveryOptions { store, ..DiscoveryOptions::default() };
        Discovery::start(options, &server(id, "room"))
    };
    assert!(matches!(start(&[], "r1"), Err(DiscoveryError::Endpoint(EtcdError::NoEndpoint))));
    let bad = start(&["localhost:2379", "not a url"], "r1");
    assert!(matches!(bad, Err(DiscoveryError::Endpoint(EtcdError::InvalidEndpoint { .. }))));
    let bad = start(&["localhost:2379"], "a/b");
    assert!(matches!(bad, Err(DiscoveryError::OwnServer(_))));
    let mut options = options("x");
    options.store.password = Secret::new("secret");
    let text = format!("{options:?}");
    assert!(!text.contains("secret"));
}

/// Servers come and go as fast as etcd takes it while connections break again and again; whatever is missed in between
/// must be in the table at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_ends_up_equal_to_etcd_whatever_breaks_in_between() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let etcd = Etcd::start();
    let proxy = FaultProxy::start(etcd.address());
    let watcher =
        Discovery::start(options(&proxy.address().to_string()), &server("c1", "connector"))
            .expect("good options");
    within(PATIENCE, "the first sync", watcher.wait_synced()).await;
    let mut expected = BTreeSet::new();
    for _ in 0..400 {
        let id = format!("r{}", random.u8(..40));
        if random.u8(..3) == 0 {
            etcd.delete(&key("room", &id));
            expected.remove(&id);
        } else {
            put_by_hand(&etcd, &id, "room");
            expected.insert(id);
        }
        match random.u8(..20) {
            0 => proxy.cut(),
            1 => {
                etcd.compact();
            }
            _ => {}
        }
    }
    put_by_hand(&etcd, "the-last", "room");
    expected.insert("the-last".to_owned());
    let is_equal = |table: &ServerTable| {
        table.iter().map(|server| &server.id).collect::<BTreeSet<_>>() == expected.iter().collect()
    };
    table(&watcher, "equality with etcd", is_equal).await;
}
