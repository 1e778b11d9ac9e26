//! A gateway with an application of its own: what handlers can do with sessions whose connections are in the same
//! process, what the application asks of its clients, and how both end together.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, unreachable_pub)] // Its `main` is for people.
#[path = "../examples/auth.rs"]
mod auth;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/metrics.rs"]
mod metrics;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use client::raw::{Closed, RawClient};
use gateway::control::plan::Plan;
use gateway::gateway::{Commands, Gateway};
use metrics::eventually;
use shared::config::{Binary, Config};
use worker::prelude::*;
use worker::{Encode, Payload, version_at_least};

const DRIVERS: [&str; 2] = ["uring", "epoll"];
const SOON: Duration = Duration::from_secs(20);

fn plan(driver: &str, settings: &[(&str, &str)], app: App) -> Result<Plan, Vec<String>> {
    let mut all = vec![
        ("pitaya.gateway.tcp", "127.0.0.1:0"),
        ("pitaya.gateway.ws", "127.0.0.1:0"),
        ("pitaya.admin.listen", "off"),
        ("pitaya.gateway.threads", "2"),
        ("pitaya.gateway.driver", driver),
    ];
    all.extend(settings);
    let all: Vec<_> =
        all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let config = Config::load(Binary::Gateway, None, std::iter::empty(), &all).unwrap();
    Plan::new(&config, Some(app))
}

fn start(driver: &str, settings: &[(&str, &str)], app: App) -> Gateway {
    Gateway::start(plan(driver, settings, app).unwrap(), Commands::new()).unwrap()
}

fn connect(gateway: &Gateway) -> RawClient {
    let mut client = RawClient::connect_tcp(gateway.addresses().tcp[0]).unwrap();
    client.set_timeout(SOON);
    client
}

fn established(gateway: &Gateway) -> RawClient {
    let mut client = connect(gateway);
    client.establish().unwrap();
    client
}

/// What an application tells its test.
fn channel<T>() -> (impl Fn(T) + Clone + Send + Sync + 'static, mpsc::Receiver<T>)
where
    T: Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let sender = Arc::new(Mutex::new(sender));
    (move |value| drop(sender.lock().unwrap().send(value)), receiver)
}

fn sessions(ended: impl Fn(String) + Clone + Send + Sync + 'static) -> App {
    App::new("room")
        .on("s.push", async |session: Session, text: String| {
            assert!(session.is_frontend());
            session.push("onText", &text).await?;
            Ok::<_, Error>(1)
        })
        .on("s.bind", async |session: Session, uid: String| {
            session.bind(&uid).await?;
            Ok::<_, Error>(1)
        })
        .on("s.set", async |session: Session, level: u32| session.set("level", level).map(|()| 1))
        .on("s.read", async |session: Session| Ok::<_, Error>(session.int("level")))
        .on("s.kick", async |session: Session| session.kick().await)
        .on("s.close", async |session: Session| session.close().await)
        .on("s.client", async |session: Session| {
            let client = session.client().await?.expect("the gateway is here");
            let handshake = client.handshake.expect("after the handshake");
            Ok::<_, Error>(format!("{} {}", client.address.ip(), handshake.sys.platform))
        })
        .on("s.users", async |push: Push, uids: Vec<String>| {
            assert_eq!(push.frontend_type()?, "connector");
            let failed = push.to_users(&uids, "", "onText", "all").await.err();
            Ok::<_, Error>(failed.map_or_else(Vec::new, |failed| failed.uids))
        })
        .on("s.elsewhere", async |push: Push| {
            let failed = push.kick(&["ann"], "other").await.unwrap_err();
            assert_eq!(failed.uids, ["ann"]);
            Ok::<_, Error>(1)
        })
        .on_close(async || -> Result<()> { panic!("a function that panics") })
        .on_close(move |session: Session| {
            let ended = ended.clone();
            async move {
                let uid = session.uid().unwrap_or_default();
                ended(format!("{uid} {}", session.int("level")));
            }
        })
}

#[test]
fn a_session_of_the_own_process_needs_no_uid_to_be_pushed_to_kicked_and_closed() {
    for driver in DRIVERS {
        let (ended, ends) = channel();
        let gateway = start(driver, &[], sessions(ended));
        let mut client = established(&gateway);
        let id = client.send_request("s.push", b"\"hello\"").unwrap();
        let push = client.read_message(SOON).unwrap();
        assert_eq!((push.route.as_str(), push.text().as_str()), ("onText", "\"hello\""));
        assert_eq!(client.read_message(SOON).unwrap().id, id);
        let about = client.request("s.client", b"").unwrap().text();
        assert!(about.starts_with("\"127.0.0.1 "), "{about}");
        // What a handler sets is there for the next one, without a call to save it.
        client.request("s.set", b"7").unwrap();
        assert_eq!(client.request("s.read", b"").unwrap().text(), "7");
        client.notify("s.kick", b"").unwrap();
        client.expect_kick(SOON).unwrap();
        assert_eq!(ends.recv_timeout(SOON).unwrap(), " 7");

        let mut client = established(&gateway);
        client.request("s.bind", b"\"ann\"").unwrap();
        assert_eq!(
            client.request("s.users", br#"["ann","bob","a b"]"#).unwrap().text(),
            r#"["bob","a b"]"#
        );
        assert!(!client.request("s.elsewhere", b"").unwrap().is_error);
        client.notify("s.close", b"").unwrap();
        let closed = client.expect_close(SOON).unwrap();
        assert_eq!(closed, Closed::Finished, "{driver}");
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "ann 0", "{driver}");
        gateway.stop();
    }
}

#[test]
fn the_ends_of_sessions_at_a_stop_are_told_before_modules_and_components_end() {
    struct Store(mpsc::Sender<String>);
    impl Module for Store {
        async fn shutdown(&self, _: Ctx) -> Result<()> {
            let _ = self.0.send("module".into());
            Ok(())
        }
    }
    for driver in DRIVERS {
        let (sender, steps) = mpsc::channel();
        let (closed, ended) = (sender.clone(), sender.clone());
        let app = App::new("room")
            .module("store", Store(sender.clone()))
            .on_close(move |session: Session| {
                let _ = closed.send(format!("session {}", session.id()));
                async {}
            })
            .on_shutdown(move || {
                let _ = ended.send("component".into());
                async {}
            });
        let gateway = start(driver, &[], app);
        let _client = established(&gateway);
        gateway.stop();
        let steps: Vec<String> = steps.try_iter().collect();
        assert_eq!(steps, ["session 1", "module", "component"], "{driver}");
    }
}

#[test]
fn handshakes_are_judged_by_the_applications_checks() {
    for driver in DRIVERS {
        let app = App::new("room")
            .handshake("version", |handshake| {
                if !version_at_least(&handshake.sys.client_version, "1.0.6") {
                    bail!("AUTH-426", "please update")
                }
                Ok(())
            })
            .handshake("token", |handshake| {
                let token: String = handshake.user("token")?;
                assert!(token != "panic", "a check that panics");
                if token == "secret" { Ok(()) } else { Err(Error::new("AUTH-401", "who are you")) }
            })
            .on("s.token", async |session: Session| {
                session.handshake().await?.expect("accepted").user::<String>("token")
            });
        let gateway = start(driver, &[], app);
        let body = |version: &str, user: &str| {
            format!(r#"{{"sys":{{"clientVersion":"{version}"}},"user":{user}}}"#).into_bytes()
        };
        for refused in [
            body("1.0.5", r#"{"token":"secret"}"#),
            body("1.0.6", r#"{"token":"guess"}"#),
            body("1.0.6", r#"{"token":"panic"}"#),
            body("1.0.6", r#"{"token":7}"#),
            body("1.0.6", "{}"),
        ] {
            let mut client = connect(&gateway);
            assert_eq!(client.handshake_with(&refused).unwrap().code, 400);
            client.expect_close(SOON).unwrap();
        }
        let mut client = connect(&gateway);
        let accepted = client.handshake_with(&body("1.0.10", r#"{"token":"secret"}"#)).unwrap();
        assert_eq!(accepted.code, 200);
        client.ack().unwrap();
        assert_eq!(client.request("s.token", b"").unwrap().text(), "\"secret\"", "{driver}");
        gateway.stop();
    }
}

#[test]
fn a_reactor_that_hangs_in_a_check_is_reported_until_it_turns_again() {
    for driver in DRIVERS {
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let app = App::new("room").handshake("hangs", move |_| {
            // An error says that this test has failed and gone.
            let _ = released.lock().unwrap().recv();
            Ok(())
        });
        let gateway = start(driver, &[("pitaya.admin.listen", "127.0.0.1:0")], app);
        let admin = gateway.addresses().admin[0];
        let count = |name: &str| metrics::value(&metrics::metrics(admin), name, "");
        assert_eq!(count("pitaya_reactor_stalled") + count("pitaya_reactor_stalls_total"), 0);
        let mut client = connect(&gateway);
        let held = std::thread::spawn(move || client.handshake().unwrap().code);
        eventually("it is reported", || count("pitaya_reactor_stalled") == 1);
        assert_eq!(count("pitaya_reactor_stalls_total"), 1, "{driver}");
        release.send(()).unwrap();
        assert_eq!(held.join().unwrap(), 200, "{driver}");
        eventually("it turns again", || count("pitaya_reactor_stalled") == 0);
        assert_eq!(count("pitaya_reactor_stalls_total"), 1, "{driver}");
        gateway.stop();
    }
}

#[test]
fn clients_learn_the_applications_route_dictionary() {
    let app = || {
        App::new("room")
            .on("s.echo", async |body: Bytes| Ok::<_, Error>(body))
            .on("s.push", async |session: Session| session.push("onText", "x").await)
            .dictionary([("room.s.echo", 7), ("onText", 8), ("room.s.other", 9)])
    };
    for driver in DRIVERS {
        let gateway = start(driver, &[("pitaya.gateway.dictionary", "room.s.other=10")], app());
        let mut client = connect(&gateway);
        let response = client.establish().unwrap();
        let codes =
            ["room.s.echo", "onText", "room.s.other"].map(|route| response.dictionary.code(route));
        assert_eq!(codes, [Some(7), Some(8), Some(10)], "what the operator gives counts more");
        *client.dictionary_mut() = response.dictionary;
        assert_eq!(client.request("room.s.echo", b"hello").unwrap().payload, b"hello");
        client.notify("room.s.push", b"").unwrap();
        assert_eq!(client.read_push(SOON).unwrap().route, "onText", "{driver}");
        gateway.stop();
    }
    for bad in [("r", 0), ("", 1), ("other", 7)] {
        let plan = plan("epoll", &[], App::new("room").dictionary([("room.s.echo", 7), bad]));
        let started = plan.map(|plan| Gateway::start(plan, Commands::new()).is_ok());
        assert!(!started.unwrap_or(false), "{bad:?}");
    }
}

/// A serializer of the application's own: fields in a line, with bars between them.
#[derive(Debug, PartialEq)]
struct Bars<T>(T);

impl Payload for Bars<Vec<String>> {
    fn decode(bytes: &Bytes) -> Result<Self> {
        let text = std::str::from_utf8(bytes).code("PIT-400")?;
        Ok(Self(text.split('|').map(str::to_owned).collect()))
    }
}

impl Encode for Bars<Vec<String>> {
    fn encode(&self) -> Result<Bytes> {
        Ok(self.0.join("|").into())
    }
}

#[test]
fn an_application_may_bring_its_own_serializer() {
    for driver in DRIVERS {
        let app = App::new("room").on(
            "s.turn",
            async |session: Session, Bars(mut fields): Bars<Vec<String>>| {
                fields.reverse();
                session.push("onBars", &Bars(fields.clone())).await?;
                Ok::<_, Error>(Bars(fields))
            },
        );
        let gateway = start(driver, &[], app);
        let mut client = established(&gateway);
        client.send_request("s.turn", b"a|b|c").unwrap();
        assert_eq!(client.read_message(SOON).unwrap().text(), "c|b|a");
        assert_eq!(client.read_message(SOON).unwrap().text(), "c|b|a");
        let refused = client.request("s.turn", b"\xff").unwrap();
        assert!(refused.is_error && refused.text().contains("PIT-400"), "{driver}");
        gateway.stop();
    }
}

#[test]
fn protobuf_goes_from_end_to_end_errors_included() {
    use proto::Message;
    for driver in DRIVERS {
        let app =
            App::new("room").on("s.doc", async |session: Session, Pb(doc): Pb<proto::Doc>| {
                if doc.doc.is_empty() {
                    return Err(Error::new("GAME-1", "nothing").with("why", "empty"));
                }
                session.push("onDoc", &Pb(doc.clone())).await?;
                Ok(Pb(proto::Doc { doc: doc.doc + "!" }))
            });
        let gateway = start(driver, &[("pitaya.serializertype", "2")], app);
        let mut client = connect(&gateway);
        assert_eq!(client.establish().unwrap().serializer, "protobuf");
        let doc = proto::Doc { doc: "hello".into() }.encode_to_vec();
        client.send_request("s.doc", &doc).unwrap();
        assert_eq!(client.read_message(SOON).unwrap().payload, doc);
        let answer = client.read_message(SOON).unwrap().payload;
        assert_eq!(proto::Doc::decode(&answer[..]).unwrap().doc, "hello!");
        for (bad, code) in
            [(&b""[..], "GAME-1"), (b"\x0a\xff", "PIT-400"), (b"\x0a\x01\xff", "PIT-400")]
        {
            let answer = client.request("s.doc", bad).unwrap();
            assert!(answer.is_error);
            let error = proto::Error::decode(&answer.payload[..]).unwrap();
            assert_eq!(error.code, code, "{driver}");
        }
        gateway.stop();
    }
}

#[test]
fn struct_validation_is_a_setting() {
    #[derive(Serialize, Deserialize)]
    struct Age(u8);
    impl Validate for Age {
        fn validate(&self) -> Result<()> {
            if self.0 < 18 { Err(Error::unknown("too young")) } else { Ok(()) }
        }
    }
    for (setting, is_refused) in [("false", false), ("true", true)] {
        let app =
            App::new("room").on("s.age", async |age: Age| Ok::<_, Error>(age)).validate::<Age>();
        let key = "pitaya.defaultpipelines.structvalidation.enabled";
        let gateway = start("epoll", &[(key, setting)], app);
        let mut client = established(&gateway);
        let answer = client.request("s.age", b"17").unwrap();
        assert_eq!(answer.is_error, is_refused, "{setting}: {}", answer.text());
        assert!(!client.request("s.age", b"18").unwrap().is_error);
        gateway.stop();
    }
}

#[test]
fn the_example_lets_only_players_with_a_good_token_in() {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"secret");
    let gateway = start("epoll", &[], auth::app(&key));
    let body = |version: &str, token: &str| {
        format!(r#"{{"sys":{{"clientVersion":"{version}"}},"user":{{"token":"{token}"}}}}"#)
            .into_bytes()
    };
    let good = auth::sign(&key, "ann", u64::MAX);
    let mut client = connect(&gateway);
    assert_eq!(client.handshake_with(&body("1.0.10", &good)).unwrap().code, 200);
    client.ack().unwrap();
    assert_eq!(client.request("game.entry.enter", b"").unwrap().text(), "\"ann\"");
    let other_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"guess");
    let forged = auth::sign(&other_key, "ann", u64::MAX);
    let cut = &good[..good.len() - 1];
    for (version, token) in [
        ("1.0.5", good.as_str()),
        ("1.0.6", &forged),
        ("1.0.6", &auth::sign(&key, "ann", 1)),
        ("1.0.6", cut),
        ("1.0.6", ""),
    ] {
        let mut client = connect(&gateway);
        assert_eq!(client.handshake_with(&body(version, token)).unwrap().code, 400, "{token}");
    }
    gateway.stop();
}
