//! The binding storage over a real etcd: what Go servers find there, and what is left after troubles.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod servers;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use servers::Etcd;
use shared::cluster::binding_writer::{
    BindingInlet, BindingNotes, BindingOptions, BindingWriter, Holders,
};
use shared::cluster::bindings::{BindingError, BindingStorage};
use shared::cluster::etcd::{Client, PutRequest, RangeRequest, StoreOptions, prefix_end};
use tokio::sync::{mpsc::unbounded_channel, oneshot};
use tokio::time::{sleep, timeout};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

#[derive(Default)]
struct Held(Mutex<BTreeSet<Box<str>>>);

impl Holders for Held {
    fn holds(&self, uid: &str) -> bool {
        self.0.lock().unwrap().contains(uid)
    }

    fn all(&self) -> Vec<Box<str>> {
        self.0.lock().unwrap().iter().cloned().collect()
    }
}

/// A frontend as far as bindings go.
struct Frontend {
    held: Arc<Held>,
    notes: BindingNotes,
    writer: BindingWriter,
}

impl Frontend {
    fn start(etcd: &Etcd, id: &str) -> Self {
        Self::over(&options(etcd), id, BindingNotes::new())
    }

    fn over(options: &BindingOptions, id: &str, queue: (BindingNotes, BindingInlet)) -> Self {
        let held = Arc::new(Held::default());
        let (notes, inlet) = queue;
        let writer = BindingWriter::start(options, "connector", id, held.clone(), inlet).unwrap();
        Self { held, notes, writer }
    }

    /// Binds; the future ends when that is confirmed.
    fn bind(&self, uid: &str) -> impl Future<Output = ()> + use<> {
        self.held.0.lock().unwrap().insert(uid.into());
        let (confirm, confirmed) = oneshot::channel();
        self.notes.bound(
            uid,
            Box::new(move || {
                let _ = confirm.send(());
            }),
        );
        async { soon(confirmed).await.unwrap() }
    }

    fn unbind(&self, uid: &str) {
        self.held.0.lock().unwrap().remove(uid);
        self.notes.unbound(uid);
    }
}

fn options(etcd: &Etcd) -> BindingOptions {
    let store = StoreOptions {
        prefix: "game/".into(),
        dial_timeout: Duration::from_secs(1),
        ..StoreOptions::at(etcd.url())
    };
    BindingOptions { store, lease_ttl: Duration::from_secs(60) }
}

fn client(etcd: &Etcd) -> Client {
    Client::new(&StoreOptions::at(etcd.url()), Duration::from_secs(5)).unwrap()
}

/// All bindings with their leases.
async fn entries(client: &Client) -> Vec<(String, String, i64)> {
    let (key, range_end) = (b"game/".to_vec(), prefix_end(b"game/"));
    let all = RangeRequest { key, range_end, ..RangeRequest::default() };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let found = soon(client.range(all)).await.unwrap().kvs;
    found.iter().map(|kv| (text(&kv.key), text(&kv.value), kv.lease)).collect()
}

async fn until(client: &Client, what: &str, is_so: impl Fn(&[(String, String, i64)]) -> bool) {
    let reached = async {
        while !is_so(&entries(client).await) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, reached).await.is_ok(), "{what}: {:?}", entries(client).await);
}

#[tokio::test]
async fn a_confirmed_bind_is_in_etcd_as_go_writes_it_and_an_unbind_takes_it_out() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let front = Frontend::start(&etcd, "front-1");
    front.bind("ann").await;
    let written = entries(&client).await;
    assert_eq!((&*written[0].0, &*written[0].1), ("game/bindings/connector/ann", "front-1"));
    assert_ne!(written[0].2, 0, "it would stay for ever after a crash");

    let storage = BindingStorage::new(&options(&etcd).store).unwrap();
    assert_eq!(soon(storage.frontend_of("ann", "connector")).await.unwrap(), "front-1");
    let missing = soon(storage.frontend_of("bob", "connector")).await.unwrap_err();
    assert!(matches!(missing, BindingError::NotFound));
    assert_eq!(missing.to_string(), "binding for this user was not found in etcd");

    front.unbind("ann");
    until(&client, "ann is gone", <[_]>::is_empty).await;
    front.bind("ann").await;
    soon(front.writer.shutdown()).await;
    assert_eq!(entries(&client).await, []);
}

#[tokio::test]
async fn a_late_unbind_leaves_the_binding_of_the_next_frontend_alone() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let (old, new) = (Frontend::start(&etcd, "old"), Frontend::start(&etcd, "new"));
    old.bind("ann").await;
    old.bind("bob").await;
    new.bind("ann").await;
    old.unbind("ann");
    old.unbind("bob");
    old.bind("last").await;
    let written = entries(&client).await;
    let written: Vec<_> = written.iter().map(|(key, value, _)| (&**key, &**value)).collect();
    let expected =
        [("game/bindings/connector/ann", "new"), ("game/bindings/connector/last", "old")];
    assert_eq!(written, expected);
    soon(old.writer.shutdown()).await;
    assert_eq!(entries(&client).await.len(), 1, "the other frontend's entry stays");
}

#[tokio::test]
async fn everything_is_written_again_after_a_lost_lease() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    let options = BindingOptions { lease_ttl: Duration::from_secs(3), ..options(&etcd) };
    let front = Frontend::over(&options, "front-1", BindingNotes::new());
    for number in 0..250 {
        drop(front.bind(&format!("u{number}")));
    }
    front.bind("last").await;
    let lease = entries(&client).await[0].2;
    soon(client.lease_revoke(lease)).await.unwrap();
    until(&client, "all are back", |entries| entries.len() == 251).await;
    assert!(entries(&client).await.iter().all(|entry| entry.2 != lease));
    soon(front.writer.shutdown()).await;
    assert_eq!(entries(&client).await, []);
}

#[tokio::test]
async fn binds_do_not_wait_for_an_etcd_that_is_away_and_are_written_when_it_is_back() {
    let mut etcd = Etcd::start();
    let client = client(&etcd);
    let front = Frontend::start(&etcd, "front-1");
    front.bind("stays").await;
    front.bind("leaves").await;
    etcd.kill();
    for number in 0..10 {
        front.bind(&format!("u{number}")).await;
    }
    front.unbind("leaves");
    etcd.restart_same_port();
    until(&client, "etcd shows who is here", |entries| {
        entries.len() == 11
            && entries.iter().all(|(key, value, _)| {
                value == "front-1" && key != "game/bindings/connector/leaves"
            })
    })
    .await;
    soon(front.writer.shutdown()).await;
}

#[tokio::test]
async fn a_bind_tells_whose_entry_it_has_replaced() {
    let etcd = Etcd::start();
    let (sender, mut told) = unbounded_channel();
    let telling = |id: &'static str| {
        let (notes, inlet) = BindingNotes::new();
        let sender = sender.clone();
        let inlet = inlet.telling(Box::new(move |uid, before| {
            let _ = sender.send(format!("{id}: {uid} was at {before}"));
        }));
        Frontend::over(&options(&etcd), id, (notes, inlet))
    };
    let (first, second) = (telling("front-1"), telling("front-2"));
    // The first of all, and the same frontend once more, replace nobody's.
    first.bind("ann").await;
    first.bind("ann").await;
    second.bind("ann").await;
    first.unbind("ann");
    first.bind("ann").await;
    first.bind("bob").await;
    second.bind("bob").await;
    for expected in [
        "front-2: ann was at front-1",
        "front-1: ann was at front-2",
        "front-2: bob was at front-1",
    ] {
        assert_eq!(soon(told.recv()).await.unwrap(), expected);
    }
    assert!(told.try_recv().is_err());
    soon(first.writer.shutdown()).await;
    soon(second.writer.shutdown()).await;
}

#[tokio::test]
async fn more_notes_than_are_kept_lead_to_the_truth_as_well() {
    let etcd = Etcd::start();
    let client = client(&etcd);
    // What an earlier note would have removed is on the lease that is given back.
    let (notes, inlet) = BindingNotes::new();
    for _ in 0..70_000 {
        notes.unbound("nobody");
    }
    let front = Frontend::over(&options(&etcd), "front-1", (notes, inlet));
    front.held.0.lock().unwrap().extend(["ann".into(), "bob".into()]);
    until(&client, "both are written", |entries| entries.len() == 2).await;
    let theirs = PutRequest {
        key: b"game/bindings/connector/eve".to_vec(),
        value: b"front-2".to_vec(),
        ..PutRequest::default()
    };
    soon(client.put(theirs)).await.unwrap();
    front.notes.unbound("eve");
    // Confirmed perhaps before it is written: many notes are in front of it.
    front.bind("last").await;
    until(&client, "the last one too, and not theirs", |entries| entries.len() == 4).await;
    soon(front.writer.shutdown()).await;
}
