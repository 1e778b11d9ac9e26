//! Whom a call goes to: by configuration and by code.

use std::collections::BTreeMap;

use worker::prelude::*;

use crate::world::{Worker, World, soon};

fn metagame() -> App {
    App::new("metagame").remote("player.who", async |ctx: Ctx| {
        Ok::<_, Error>(Pb(proto::Doc { doc: ctx.server_id().into() }))
    })
}

async fn who(rpc: &Rpc) -> String {
    soon(rpc.call::<proto::Doc>("metagame.player.who", &())).await.unwrap().doc
}

async fn counts(rpc: &Rpc, calls: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        *counts.entry(who(rpc).await).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_chosen_as_the_configuration_and_the_code_say() {
    let world = World::start();
    let ids = ["m1", "m2", "m3"];
    let mut servers: Vec<Worker> = Vec::new();
    for id in ids {
        servers.push(world.worker(id, metagame(), &[]).await);
    }
    let routed = |policy| [("pitaya.routing", policy)];
    let app = || App::new("room").route_by("metagame", Policy::RoundRobin);
    let turns = world.worker("r1", app(), &[]).await;
    // The configuration counts before the code, and one type before all.
    let hashed = routed("default=random,metagame=consistent-hash");
    let hashed = world.worker("r2", app(), &hashed).await;
    let sticky = world.worker("r3", App::new("room"), &routed("default=sticky")).await;
    let chosen = App::new("room").route("metagame", |request| {
        assert!(request.session.is_none() && request.servers.len() == 3);
        match request.payload {
            b"\x0a\x02no" => Err(Error::new("GAME-1", "not today")),
            b"\x0a\x03out" => panic!("the application's mistake"),
            _ => Ok(request.table.by_id("m2").unwrap().clone()),
        }
    });
    let chosen = world.worker("r4", chosen, &[]).await;
    for worker in [&turns, &hashed, &sticky, &chosen] {
        worker.knows(&ids).await;
    }

    let even = ids.map(|id| (id.to_owned(), 7)).into();
    assert_eq!(counts(&turns.rpc, 21).await, even);
    assert_eq!(counts(&chosen.rpc, 9).await, BTreeMap::from([("m2".to_owned(), 9)]));
    let ask = async |text: &str| {
        let doc = proto::Doc { doc: text.into() };
        chosen.rpc.call::<()>("metagame.player.who", &doc).await.unwrap_err().code
    };
    assert_eq!((ask("no").await, ask("out").await), ("GAME-1".into(), "PIT-500".into()));

    for worker in [&hashed, &sticky] {
        let mut homes = BTreeMap::new();
        for user in 0..24 {
            let rpc = worker.rpc.key(format!("user-{user}"));
            let home = who(&rpc).await;
            assert_eq!(counts(&rpc, 3).await, BTreeMap::from([(home.clone(), 3)]));
            homes.insert(user, home);
        }
        assert!(ids.iter().all(|id| homes.values().any(|home| home == id)), "{homes:?}");
    }
    // One server knows nothing of the other's choices, and makes the same.
    let again = routed("metagame=consistent-hash");
    let again = world.worker("r5", App::new("room"), &again).await;
    again.knows(&ids).await;
    for user in 0..24 {
        let key = format!("user-{user}");
        assert_eq!(who(&again.rpc.key(&key)).await, who(&hashed.rpc.key(&key)).await);
    }
    for worker in servers.into_iter().chain([turns, hashed, sticky, chosen, again]) {
        worker.stop().await;
    }
}
