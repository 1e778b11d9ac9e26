//! Whom a client's message goes to: by policy and by functions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::raw::RawClient;
use gateway::gateway::{Commands, Gateway};
use shared::error::Error;

use crate::backend::{Backend, Echo, NESTED_ACK, session_of};
use crate::world::{DRIVERS, GATE, SOON, World, tcp, until, until_answered};

const IDS: [&str; 3] = ["room-1", "room-2", "room-3"];

/// Three servers that answer with their names.
fn rooms(world: &World) -> Vec<Echo> {
    IDS.map(|id| world.backend(id).say(id)).into()
}

fn who(client: &mut RawClient) -> String {
    until_answered(client, "room.room.who", b"").text()
}

/// Waits until the gateway knows all three.
fn warm(gateway: &Gateway) {
    let mut client = tcp(gateway);
    let mut seen = BTreeSet::new();
    until("all servers are known", || {
        seen.insert(who(&mut client));
        (seen.len() == IDS.len()).then_some(())
    });
}

#[test]
fn turns_are_taken_exactly_where_the_configuration_says_so() {
    let world = World::new();
    let _rooms = rooms(&world);
    for driver in DRIVERS {
        let settings = [
            ("pitaya.routing", "default=random,room=round-robin"),
            ("pitaya.gateway.threads", "1"),
        ];
        let gateway = world.gateway(driver, &settings);
        warm(&gateway);
        let mut counts = BTreeMap::<String, usize>::new();
        let mut clients = [tcp(&gateway), tcp(&gateway)];
        for _ in 0..15 {
            for client in &mut clients {
                *counts.entry(who(client)).or_default() += 1;
            }
        }
        assert_eq!(counts, IDS.map(|id| (id.to_owned(), 10)).into(), "{driver}");
        gateway.stop();
    }
}

#[test]
fn a_sticky_session_stays_with_its_server_also_on_another_reactor() {
    let world = World::new();
    let mut rooms = rooms(&world);
    for driver in DRIVERS {
        let gateway = world.gateway(driver, &[("pitaya.routing", "room=sticky")]);
        until_answered(&mut tcp(&gateway), "room.room.who", b"");
        let homes = until("sessions are spread", || {
            let mut clients: Vec<_> = (0..12).map(|_| tcp(&gateway)).collect();
            let homes: Vec<_> = clients.iter_mut().map(who).collect();
            let is_spread = homes.iter().collect::<BTreeSet<_>>().len() == IDS.len();
            is_spread.then(|| clients.into_iter().zip(homes).collect::<Vec<_>>())
        });
        let check = |homes: &mut Vec<(RawClient, String)>| {
            for (client, home) in homes {
                for _ in 0..5 {
                    assert_eq!(who(client), *home, "{driver}");
                }
            }
        };
        let mut homes = homes;
        check(&mut homes);
        gateway.move_connections(0, 1);
        check(&mut homes);
        gateway.move_connections(1, 0);
        check(&mut homes);
        if driver == DRIVERS[1] {
            // Of those that lose their server each finds another, and stays there; the others stay where they are.
            let left = rooms.remove(0);
            world.withdraw(left.discovery);
            for (client, home) in &mut homes {
                if home == IDS[0] {
                    *home =
                        until("the server is left", || Some(who(client)).filter(|id| id != IDS[0]));
                }
            }
            check(&mut homes);
        }
        gateway.stop();
    }
}

#[test]
fn a_user_is_hashed_to_the_same_server_from_every_gateway() {
    let world = World::new();
    let rooms = IDS.map(|id| world.backend(id));
    // Whichever server gets the request; returns its name and the session.
    let ask = |client: &mut RawClient| {
        let request = client.send_request("room.room.who", b"").unwrap();
        let (name, call) = until("a call", || {
            let next = |room: &Backend| room.next_within(Duration::from_millis(2));
            rooms.iter().zip(IDS).find_map(|(room, name)| Some((name, next(room)?)))
        });
        call.answer(b"");
        client.read_response(request, SOON).unwrap();
        (name, call.session())
    };
    let homes = [GATE, "gate-2"].map(|id| {
        let settings = [
            ("pitaya.routing", "room=consistent-hash"),
            ("pitaya.server.id", id),
            ("pitaya.session.unique", "false"),
        ];
        let gateway = world.gateway(DRIVERS[0], &settings);
        let mut seen = BTreeSet::new();
        let mut nobody = tcp(&gateway);
        until("all servers are known", || {
            let answer = nobody.request("hall.room.who", b"").unwrap();
            assert!(answer.is_error);
            seen.insert(ask(&mut nobody).0);
            (seen.len() == IDS.len()).then_some(())
        });
        let homes = (0..12).map(|user| {
            let mut client = tcp(&gateway);
            let (_, session) = ask(&mut client);
            let argument = session_of(session, &format!("user-{user}"), "");
            assert_eq!(rooms[0].caller.call(id, "sys.bindsession", &argument), NESTED_ACK);
            let home = ask(&mut client).0;
            assert!((0..3).all(|_| ask(&mut client).0 == home));
            home
        });
        let homes: Vec<_> = homes.collect();
        gateway.stop();
        homes
    });
    assert_eq!(homes[0], homes[1]);
    assert!(homes[0].iter().any(|home| *home != homes[0][0]), "{homes:?}");
}

#[test]
fn a_function_of_the_application_chooses_and_refuses() {
    let world = World::new();
    let _rooms = rooms(&world);
    for driver in DRIVERS {
        let plan = world.plan(driver, &[("pitaya.routing", "room=random")]);
        let plan = plan.route("room", |request: &shared::routing::RouteRequest<'_>| {
            let session = request.session.expect("a client asks");
            assert!(session.uid.is_empty() && session.data.starts_with(b"{\"ipversion\""));
            let id = std::str::from_utf8(request.payload).unwrap_or_default();
            assert_ne!(id, "panic");
            let server = request.table.by_id(id).cloned();
            server.ok_or_else(|| Error::new("GAME-404", "no such room"))
        });
        let gateway = Gateway::start(plan, Commands::new()).expect("the gateway starts");
        let mut client = tcp(&gateway);
        for id in IDS {
            for _ in 0..4 {
                let answer = until_answered(&mut client, "room.room.who", id.as_bytes());
                assert_eq!(answer.text(), id, "{driver}");
            }
        }
        for (wish, code) in [("room-9", "GAME-404"), ("panic", "PIT-500")] {
            let answer = client.request("room.room.who", wish.as_bytes()).unwrap();
            assert!(answer.is_error && answer.text().contains(code), "{driver}: {}", answer.text());
        }
        gateway.stop();
    }
}
