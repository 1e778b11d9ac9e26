//! What a hosted application is told: handshakes, binds, ends of sessions, its own start and end.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};

use client::raw::{RawClient, RawError};
use gateway::builder::Builder;
use gateway::wrapper::{Filter, Passage};
use shared::packet::PacketType;
use worker::prelude::*;

use crate::backend::error_in;
use crate::world::{DRIVERS, SOON, World, error_of, tcp, until};

type Log = State<Sender<String>>;

fn note(log: &Log, text: impl Into<String>) {
    // The test may have ended.
    let _ = log.send(text.into());
}

fn app() -> (App, Receiver<String>) {
    let (log, told) = channel::<String>();
    let app = App::new("connector")
        .state(log)
        .handshake("version", |handshake| match handshake.sys.client_version.as_str() {
            "panic" => panic!("as the test asks"),
            "old" => bail!("CN-426", "too old"),
            _ => Ok(()),
        })
        .dictionary([("connector.entry.bind", 1), ("room.room.echo", 2)])
        .on_start(async |log: Log| note(&log, "start"))
        .on_shutdown(async |log: Log| note(&log, "shutdown"))
        .on("entry.bind", async |session: Session, log: Log, uid: String| -> Result<bool> {
            let bound = session.bind(&uid).await;
            note(&log, format!("answered {uid}"));
            bound.map(|()| true)
        })
        .on("entry.level", async |session: Session, level: u32| -> Result<bool> {
            session.set("level", level)?;
            session.save().await?;
            Ok(true)
        })
        .on("entry.who", async |session: Session| -> Result<String> {
            Ok(session.uid().unwrap_or_default())
        })
        .on("entry.tell", async |push: Push, uid: String| -> Result<bool> {
            push.to_users(&[uid], "connector", "onTold", "hello").await?;
            Ok(true)
        })
        .on_bind(async |session: Session, log: Log| -> Result<()> {
            let uid = session.uid().unwrap_or_default();
            note(&log, format!("binding {uid}"));
            match uid.as_str() {
                "banned" => Err(Error::new("CN-403", "you are banned").with("until", "tomorrow")),
                "panic" => panic!("as the test asks"),
                _ => Ok(()),
            }
        })
        .after_bind(async |session: Session, log: Log| -> Result<()> {
            let uid = session.uid().unwrap_or_default();
            note(&log, format!("bound {uid}"));
            if uid == "undone" {
                bail!("CN-500", "not now")
            }
            // The user can be pushed to already.
            session.push("onBound", &uid).await
        })
        .on_close(async |session: Session, reason: CloseReason, log: Log| -> Result<()> {
            let level: u32 = session.get("level")?.unwrap_or_default();
            let uid = session.uid().unwrap_or_default();
            note(&log, format!("closed {uid:?} {level} {}", reason.label()));
            assert!(uid != "last", "a function that panics, as the test asks");
            Ok(())
        });
    (app, told)
}

fn next(told: &Receiver<String>) -> String {
    told.recv_timeout(SOON).expect("something is told")
}

fn bind(client: &mut RawClient, uid: &str) -> Result<(), String> {
    let answer = client.request("entry.bind", format!("{uid:?}").as_bytes()).unwrap();
    if answer.is_error { Err(answer.text()) } else { Ok(()) }
}

#[test]
fn binds_are_asked_for_and_told_of_and_ends_come_last_with_their_reason() {
    let world = World::new();
    for driver in DRIVERS {
        let (app, told) = app();
        let gateway = world.hosting(driver, app, &[]);
        assert_eq!(next(&told), "start");
        let mut client = tcp(&gateway);
        client.request("entry.level", b"5").unwrap();
        bind(&mut client, "ann").unwrap();
        assert_eq!(client.read_push(SOON).unwrap().text(), r#""ann""#, "{driver}");
        assert_eq!(
            [next(&told), next(&told), next(&told)],
            ["binding ann", "bound ann", "answered ann"]
        );
        // A second session of the user takes its place.
        let mut second = tcp(&gateway);
        bind(&mut second, "ann").unwrap();
        client.expect_kick(SOON).unwrap();
        let mut events = [next(&told), next(&told), next(&told), next(&told)];
        events.sort();
        let expected = ["answered ann", "binding ann", "bound ann", r#"closed "ann" 5 replaced"#];
        assert_eq!(events, expected, "{driver}");
        drop(second);
        assert_eq!(next(&told), r#"closed "ann" 0 peer_closed"#, "{driver}");
        // Nobody is told of who never got through the handshake.
        drop(RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap());
        let mut last = tcp(&gateway);
        bind(&mut last, "last").unwrap();
        assert_eq!(
            [next(&told), next(&told), next(&told)],
            ["binding last", "bound last", "answered last"]
        );
        gateway.stop();
        assert_eq!(next(&told), r#"closed "last" 0 shutdown"#, "{driver}");
        assert_eq!(next(&told), "shutdown", "{driver}: also after a panic");
    }
}

#[test]
fn a_bind_that_is_refused_or_fails_afterwards_leaves_nothing_behind() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let (app, told) = app();
        let gateway = world.hosting(driver, app, &[]);
        let mut client = tcp(&gateway);
        let refusals = [
            (
                "banned",
                r#"{"code":"CN-403","msg":"you are banned","metadata":{"until":"tomorrow"}}"#,
            ),
            ("undone", r#"{"code":"CN-500","msg":"not now"}"#),
        ];
        for (uid, error) in refusals {
            assert_eq!(bind(&mut client, uid).unwrap_err(), error, "{driver}");
            assert_eq!(client.request("entry.who", b"").unwrap().text(), r#""""#, "{driver}");
            client.request("entry.tell", format!("{uid:?}").as_bytes()).unwrap();
        }
        assert!(bind(&mut client, "panic").is_err(), "{driver}");
        // The same for a backend that asks, and the session can still be bound.
        let session = backend.session_id(&mut client);
        let refused = ("CN-403".to_owned(), "you are banned".to_owned());
        assert_eq!(error_in(&backend.caller.bind(session, "banned")), refused, "{driver}");
        bind(&mut client, "ann").unwrap();
        let push = client.read_push(SOON).unwrap();
        assert_eq!(push.text(), r#""ann""#, "{driver}: nothing came for the uids before");
        assert!(error_of(&mut client, "entry.bind", br#""bob""#).contains("already bound"));
        until("everything is told", || (next(&told) == "answered bob").then_some(()));
        gateway.stop();
    }
}

#[test]
fn a_session_that_ends_while_the_application_thinks_is_not_bound() {
    let world = World::new();
    let backend = world.backend("room-1");
    for driver in DRIVERS {
        let (go, may_go) = tokio::sync::watch::channel(false);
        let app = App::new("connector").state(may_go).on_bind(
            async |may_go: State<tokio::sync::watch::Receiver<bool>>| {
                let mut may_go = tokio::sync::watch::Receiver::clone(&may_go);
                let _ = may_go.wait_for(|may_go| *may_go).await;
            },
        );
        let gateway = world.hosting(driver, app, &[]);
        let mut client = tcp(&gateway);
        let session = backend.session_id(&mut client);
        let answers = backend.caller.subscribe("answers");
        let request = crate::backend::user_request(
            "sys.bindsession",
            &crate::backend::session_of(session, "ann", ""),
        );
        let subject = crate::backend::server_subject(crate::world::GATE);
        let call = (subject, Some("answers".to_owned()), request);
        backend.caller.publish_all([call.clone(), call]);
        let bound = "session is already bound to an uid";
        assert_eq!(error_in(&answers.recv_timeout(SOON).unwrap().payload).1, bound, "{driver}");
        drop(client);
        until("the session is gone", || {
            let answer = error_in(&backend.caller.bind(session, "bob"));
            (answer.1 == "session not found").then_some(())
        });
        go.send(true).unwrap();
        let answer = answers.recv_timeout(SOON).unwrap();
        assert_eq!(error_in(&answer.payload).1, "session not found", "{driver}");
        gateway.stop();
    }
}

#[test]
fn handshakes_are_judged_and_a_check_that_panics_refuses_only_its_client() {
    let world = World::new();
    for driver in DRIVERS {
        let (app, _told) = app();
        let gateway = world.hosting(driver, app, &[]);
        let mut others = tcp(&gateway);
        for version in ["old", "panic"] {
            let mut client = RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap();
            let body = format!(r#"{{"sys":{{"clientVersion":"{version}"}},"user":{{}}}}"#);
            let refused = client.handshake_with(body.as_bytes());
            assert!(!matches!(refused, Ok(response) if response.code == 200), "{driver} {version}");
            assert!(matches!(client.expect_close(SOON), Ok(_) | Err(RawError::Closed(..))));
        }
        let mut client = RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap();
        let accepted = client.establish().unwrap();
        assert_eq!(accepted.code, 200);
        let codes: Vec<(&str, u16)> = accepted.dictionary.iter().collect();
        assert_eq!(codes, [("connector.entry.bind", 1), ("room.room.echo", 2)], "{driver}");
        bind(&mut others, "ann").unwrap();
        gateway.stop();
    }
}

/// Judges packets by their first byte.
struct FirstByte;

impl Filter for FirstByte {
    fn handle_packet(&mut self, kind: PacketType, body: &[u8]) -> Passage {
        match (kind, body.windows(5).find(|part| part.starts_with(b"!"))) {
            (PacketType::Data, Some(b"!drop")) => Passage::Drop,
            (PacketType::Data, Some(b"!shut")) => Passage::Close,
            (PacketType::Data, Some(b"!boom")) => panic!("as the test asks"),
            _ => Passage::Pass,
        }
    }
}

#[test]
fn wrappers_see_every_packet_first_and_one_that_panics_closes_only_its_client() {
    let world = World::new();
    for driver in DRIVERS {
        let (seen, packets) = channel();
        let seen = std::sync::Mutex::new(seen);
        let builder = Builder::new(world.config(driver, &[]))
            .application(
                App::new("connector")
                    .on("entry.echo", async |body: String| -> Result<_> { Ok(body) }),
            )
            .wrap(|_: SocketAddr| Some(Box::new(FirstByte) as Box<dyn Filter>))
            .wrap(move |peer: SocketAddr| {
                let seen = seen.lock().unwrap().clone();
                let count = move |kind: PacketType| seen.send((peer, kind)).unwrap();
                Some(Box::new(Seen(count)) as Box<dyn Filter>)
            });
        let gateway = builder.start().unwrap();
        let mut client = tcp(&gateway);
        let mut others = tcp(&gateway);
        let dropped = client.send_request("entry.echo", br#""!drop""#).unwrap();
        let answer = client.request("entry.echo", br#""passes""#).unwrap();
        assert!(answer.id > dropped && answer.text() == r#""passes""#, "{driver}");
        let address = client.socket().local_addr().unwrap();
        let of_client: Vec<PacketType> = packets
            .try_iter()
            .filter_map(|(peer, kind)| (peer == address).then_some(kind))
            .collect();
        let expected = [PacketType::Handshake, PacketType::HandshakeAck, PacketType::Data];
        assert_eq!(
            of_client, expected,
            "{driver}: what the inner one drops, the outer one never sees"
        );
        for bad in ["!shut", "!boom"] {
            let mut client = tcp(&gateway);
            client.send_request("entry.echo", format!("{bad:?}").as_bytes()).unwrap();
            client.expect_close(SOON).unwrap();
        }
        assert_eq!(others.request("entry.echo", br#""here""#).unwrap().text(), r#""here""#);
        gateway.stop();

        let refusing = Builder::new(world.config(driver, &[]))
            .application(App::new("connector"))
            .wrap(|_: SocketAddr| None::<Box<dyn Filter>>);
        let gateway = refusing.start().unwrap();
        let mut client = RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap();
        assert!(client.handshake().is_err(), "{driver}");
        gateway.stop();
    }
}

struct Seen<F>(F);

impl<F: FnMut(PacketType) + Send + 'static> Filter for Seen<F> {
    fn handle_packet(&mut self, kind: PacketType, _: &[u8]) -> Passage {
        (self.0)(kind);
        Passage::Pass
    }
}
