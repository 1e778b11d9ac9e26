//! The keeper of bans over a real etcd: what reaches others, what ends by itself, and what losing etcd leaves.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "servers/etcd.rs"]
mod etcd;
mod servers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd::Etcd;
use shared::bans::{Ban, Subject};
use shared::cluster::ban_keeper::{BanHandle, BanKeeper, Stored};
use shared::cluster::etcd::StoreOptions;

const SOON: Duration = Duration::from_secs(30);

fn keeper(etcd: &Etcd) -> BanHandle {
    let dial_timeout = Duration::from_secs(1);
    let options = StoreOptions { dial_timeout, ..StoreOptions::at(etcd.endpoint()) };
    let (keeper, handle) = BanKeeper::new(Some(&options)).unwrap();
    tokio::spawn(keeper.run());
    handle
}

fn uid(name: &str) -> Subject {
    format!("uid:{name}").parse().unwrap()
}

fn key(name: &str) -> String {
    format!("pitaya/dragonfruit/bans/uid:{name}")
}

fn for_ever() -> Ban {
    Ban { until_ms: None, reason: "spam".into() }
}

async fn until(handle: &mut BanHandle, is_so: impl Fn(&BanHandle) -> bool) {
    let wait = async {
        while !is_so(handle) {
            handle.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("in time");
}

#[tokio::test]
async fn a_ban_reaches_others_and_one_with_an_end_leaves_etcd_by_itself() {
    let etcd = Etcd::start();
    let (one, mut other) = (keeper(&etcd), keeper(&etcd));
    assert_eq!(one.change(uid("ann"), Some(for_ever())).await, Some(Stored::InCluster));
    until(&mut other, |other| other.bans().contains_key(&uid("ann"))).await;
    assert_eq!(other.bans()[&uid("ann")].reason, "spam");
    assert_eq!(etcd.key(&key("ann")).unwrap().1, 0, "for ever needs no lease");

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let short = Ban { until_ms: Some(now + 1_000), reason: String::new() };
    one.change(uid("bob"), Some(short)).await;
    until(&mut other, |other| other.bans().contains_key(&uid("bob"))).await;
    assert_ne!(etcd.key(&key("bob")).unwrap().1, 0, "its lease cleans up");
    until(&mut other, |other| !other.bans().contains_key(&uid("bob"))).await;
    assert!(etcd.key(&key("bob")).is_none());

    assert_eq!(other.change(uid("ann"), None).await, Some(Stored::InCluster));
    let mut one = one;
    until(&mut one, |one| one.bans().is_empty()).await;
}

#[tokio::test]
async fn what_others_write_may_be_anything_and_unbans_nobody() {
    let etcd = Etcd::start();
    let mut handle = keeper(&etcd);
    handle.change(uid("ann"), Some(for_ever())).await;
    etcd.put("pitaya/dragonfruit/bans/nonsense", "{}", 0);
    etcd.put(&key("bad value"), "{}", 0);
    etcd.put(&key("carl"), "no json", 0);
    etcd.put(&key("dora"), r#"{"later":"field"}"#, 0);
    until(&mut handle, |handle| handle.bans().contains_key(&uid("dora"))).await;
    let known: Vec<_> = handle.bans().keys().cloned().collect();
    assert_eq!(known, [uid("ann"), uid("dora")]);
}

#[tokio::test]
async fn an_etcd_that_lost_its_data_gets_the_known_bans_again() {
    let mut etcd = Etcd::start();
    let handle = keeper(&etcd);
    handle.change(uid("ann"), Some(for_ever())).await;
    etcd.kill();
    assert_eq!(handle.change(uid("bob"), Some(for_ever())).await, Some(Stored::Pending));
    assert_eq!(handle.change(uid("carl"), None).await, Some(Stored::Pending));
    etcd.restart_empty();
    let mut late = keeper(&etcd);
    until(&mut late, |late| late.bans().len() == 2).await;
    assert!(handle.bans().contains_key(&uid("ann")) && handle.bans().contains_key(&uid("bob")));
}
