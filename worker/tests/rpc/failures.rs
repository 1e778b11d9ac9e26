//! Calls that fail, each with Pitaya's code, text and metadata, and calls that are saved.

use std::sync::Arc;

use tokio::sync::Notify;
use worker::prelude::*;

use crate::world::{World, soon};

/// Tells when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn trouble(dropped: Arc<Notify>) -> App {
    App::new("metagame")
        .remote("bad.coded", async || -> Result<()> {
            Err(Error::new("MG-001", "not enough").with("gold", "7"))
        })
        .remote("bad.plain", async || -> Result<()> { Err(Error::unknown("plain failure")) })
        .remote("bad.panics", async || -> Result<()> { panic!("out of gold") })
        .remote("bad.huge", async || Ok::<_, Error>(Bytes::from(vec![7; 2 << 20])))
        .remote("bad.typed", async |_: Pb<proto::Doc>| {})
        .remote("bad.slow", move || {
            let dropped = Dropped(Arc::clone(&dropped));
            async move {
                let _dropped = dropped;
                std::future::pending::<Result<()>>().await
            }
        })
        .remote("good.size", async |data: Bytes| Ok::<_, Error>(data.slice(..1)))
}

async fn failure(rpc: &Rpc, route: &str) -> Error {
    soon(rpc.call::<()>(route, &())).await.unwrap_err()
}

fn is(error: &Error, code: &str, text: &str) {
    assert_eq!((error.code.as_ref(), error.msg.as_str()), (code, text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_has_pitayas_code_and_text() {
    let world = World::start();
    let dropped = Arc::new(Notify::new());
    let metagame = world.worker("m1", trouble(Arc::clone(&dropped)), &[]).await;
    let room = world.worker("r1", App::new("room"), &[]).await;
    room.knows(&["m1"]).await;
    let rpc = &room.rpc;

    let error = failure(rpc, "metagame.bad.coded").await;
    is(&error, "MG-001", "not enough");
    assert_eq!(error.metadata["gold"], "7");
    is(&failure(rpc, "metagame.bad.plain").await, "PIT-000", "plain failure");
    is(&failure(rpc, "metagame.bad.panics").await, "PIT-000", "out of gold");
    let error = failure(rpc, "metagame.bad.nope").await;
    is(&error, "PIT-404", "route not found");
    assert_eq!(error.metadata["route"], "bad.nope");
    let error = rpc.raw("metagame.bad.typed", Bytes::from_static(b"\xff")).await.unwrap_err();
    assert_eq!(error.code, "PIT-400");

    is(&failure(rpc, "hall.bad.plain").await, "PIT-500", "no servers available of this type");
    let error = rpc.call_to::<()>("m9", "metagame.bad.plain", &()).await.unwrap_err();
    is(&error, "PIT-000", "server not found");
    let text = "no server type chosen for sending RPC, send a full route in the format server.service.component";
    is(&failure(rpc, "bad.plain").await, "PIT-000", text);
    is(&failure(rpc, "metagame..plain").await, "PIT-000", "route field can not be empty");
    is(&failure(rpc, "metagame.bad.pl\nain").await, "PIT-000", "invalid route");
    is(&failure(rpc, "a.b.c.d").await, "PIT-000", "invalid route");
    for wild in ["*.bad.plain", ">.bad.plain", "meta game.bad.plain"] {
        assert_eq!(failure(rpc, wild).await.code, "PIT-500");
    }
    for id in ["*", ">", "m1 ", "", "m1\r\nPUB x 0"] {
        let error = rpc.call_to::<()>(id, "metagame.bad.plain", &()).await.unwrap_err();
        is(&error, "PIT-000", "server not found");
    }

    let error = failure(&rpc.timeout(Duration::from_millis(80)), "metagame.bad.slow").await;
    // Whose clock is faster is open; both mean a timeout.
    assert!(["PIT-408", "PIT-500"].contains(&error.code.as_ref()), "{error:?}");
    assert_eq!(error.msg, "rpc client: request timeout");
    soon(dropped.notified()).await;

    // What NATS takes goes through to the last byte, what it does not take fails at once, in both directions.
    let fits = Bytes::from(vec![0; (1 << 20) - 4096]);
    assert_eq!(&rpc.raw("metagame.good.size", fits).await.unwrap()[..], b"\0");
    let text = "nats: maximum payload exceeded";
    let large = Bytes::from(vec![0; 1 << 20]);
    is(&rpc.raw("metagame.good.size", large).await.unwrap_err(), "PIT-000", text);
    is(&failure(rpc, "metagame.bad.huge").await, "PIT-000", text);

    room.stop().await;
    metagame.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_reached_nobody_goes_to_another_server() {
    let world = World::start();
    let _deaf = [world.phantom("metagame", "d1").await, world.phantom("metagame", "d2").await];
    let room = world.worker("r1", App::new("room"), &[]).await;
    room.knows(&["d1", "d2"]).await;
    let nobody = "nats: no responders available for request";
    is(&failure(&room.rpc, "metagame.good.size").await, "PIT-000", nobody);

    let metagame = world.worker("m1", trouble(Arc::default()), &[]).await;
    room.knows(&["m1"]).await;
    for _ in 0..20 {
        soon(room.rpc.raw("metagame.good.size", Bytes::from_static(b"x"))).await.unwrap();
    }
    // Who names a server means it.
    let error = room.rpc.call_to::<()>("d1", "metagame.good.size", &()).await.unwrap_err();
    is(&error, "PIT-000", nobody);

    metagame.stop().await;
    room.forgets("m1").await;
    is(&failure(&room.rpc, "metagame.good.size").await, "PIT-000", nobody);
    room.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_nats_fails_at_once_and_works_again_afterwards() {
    let mut world = World::start();
    let metagame = world.worker("m1", trouble(Arc::default()), &[]).await;
    let room = world.worker("r1", App::new("room"), &[]).await;
    room.knows(&["m1"]).await;
    world.nats.stop();
    let rpc = room.rpc.timeout(Duration::from_secs(3));
    let lost = async {
        loop {
            let error = rpc.call::<()>("metagame.bad.plain", &()).await.unwrap_err();
            if error.code == "PIT-503" {
                return error;
            }
        }
    };
    is(&soon(lost).await, "PIT-503", "nats: not connected");
    world.nats.restart_same_port();
    let back = async {
        while let Err(error) = rpc.raw("metagame.good.size", Bytes::from_static(b"x")).await {
            assert_ne!(error.code, "PIT-408");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(back).await;
    room.stop().await;
    metagame.stop().await;
}
