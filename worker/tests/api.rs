//! What game code does with sessions, groups, pushes and components, over a link in memory.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;
use serde_json::json;
use shared::metrics::{Exporter, ExporterOptions};
use support::{FRONTEND, Harness, request, with_timeout};
use worker::prelude::*;
use worker::{ClusterView, FixedServers, LinkError};

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Text {
    text: String,
}

fn session_app() -> App {
    App::new("room")
        .on("s.bind", async |session: Session, uid: String| {
            session.bind(&uid).await.map_err(|e| e.with("failed", "bind"))?;
            Ok::<_, Error>(session.uid())
        })
        .on("s.push", async |session: Session, text: Text| {
            session.push("onText", &text).await?;
            session.push("onRaw", &Bytes::from_static(b"\x00\xff")).await?;
            Ok::<_, Error>(1)
        })
        .on("s.kick", async |session: Session| {
            session.kick().await?;
            Ok::<_, Error>(1)
        })
        .on("s.data", async |session: Session| {
            let level: i64 = session.get("level")?.unwrap_or_default();
            session.set("level", level + 1)?;
            session.remove("old");
            session.save().await?;
            Ok::<_, Error>(level)
        })
        .on("s.twice", async |session: Session| {
            session.bind("one").await?;
            session.bind("two").await?;
            Ok::<_, Error>(1)
        })
}

fn bound(session: i64, uid: &str, route: &str, data: &str) -> proto::Request {
    let mut request = request(session, route, data.to_owned());
    request.session.as_mut().unwrap().uid = uid.into();
    request
}

#[tokio::test]
async fn a_bind_calls_the_gateway_that_owns_the_session() {
    let harness = Harness::new(session_app()).await;
    let bind = with_timeout(request(7, "room.s.bind", "\"u1\""), "250ms");
    assert_eq!(&harness.send(&bind).data().await[..], b"\"u1\"");
    let (subject, call) = harness.link.calls().pop().unwrap();
    assert_eq!(subject, format!("pitaya/servers/connector/{FRONTEND}"));
    assert_eq!((call.r#type, call.session, call.frontend_id.as_str()), (1, None, ""));
    let msg = call.msg.unwrap();
    assert_eq!(msg.route, "sys.bindsession");
    let argument = proto::Session::decode(msg.data).unwrap();
    assert_eq!((argument.id, argument.uid.as_str()), (7, "u1"));
    let metadata: serde_json::Value = serde_json::from_slice(&call.metadata).unwrap();
    assert_eq!(
        (&metadata["peer.id"], &metadata["peer.service"]),
        (&json!("room-1"), &json!("room"))
    );
    let timeout = metadata["reqTimeout"].as_str().unwrap();
    assert!(timeout.ends_with("ms"), "what is left of 250ms, as Go writes it: {timeout}");
}

#[tokio::test]
async fn illegal_uids_and_second_binds_have_pitayas_texts_and_reach_nobody() {
    let harness = Harness::new(session_app()).await;
    for uid in ["", "a b", "a.*", "a..b", "\u{7f}"] {
        let bind = request(1, "room.s.bind", json!(uid).to_string());
        let error = harness.send(&bind).response().await.error.unwrap();
        assert_eq!(
            (error.code.as_str(), error.msg.as_str()),
            ("PIT-000", "illegal uid"),
            "{uid:?}"
        );
        assert_eq!(error.metadata["failed"], "bind");
    }
    let again = bound(1, "u0", "room.s.bind", "\"u1\"");
    let text = "session is already bound to an uid";
    assert_eq!(harness.send(&again).error().await.1, text);
    assert!(harness.link.calls().is_empty());
    assert_eq!(harness.send(&request(1, "room.s.twice", "")).error().await.1, text);
}

#[tokio::test]
async fn what_the_gateway_and_the_link_answer_reaches_the_client() {
    let harness = Harness::new(session_app()).await;
    let error =
        proto::Error { code: String::new(), msg: "session not found".into(), ..Default::default() };
    harness.link.answer_next(Ok(proto::Response { error: Some(error), ..Default::default() }));
    let bind = || harness.send(&request(1, "room.s.bind", "\"u1\""));
    assert_eq!(bind().error().await, ("PIT-000".into(), "session not found".into()));
    harness.link.answer_next(Err(LinkError::NoResponders));
    let text = "nats: no responders available for request";
    assert_eq!(bind().error().await, ("PIT-000".into(), text.into()));
    harness.link.answer_next(Err(LinkError::Timeout));
    let error = bind().response().await.error.unwrap();
    assert_eq!(
        (error.code.as_str(), error.msg.as_str()),
        ("PIT-408", "rpc client: request timeout")
    );
    assert_eq!(
        (error.metadata["peer.id"].as_str(), error.metadata["server"].as_str()),
        (FRONTEND, "room-1")
    );
    let mut stranger = request(1, "room.s.bind", "\"u1\"");
    stranger.frontend_id = "gone".into();
    let text = "can't find any server with the provided ID";
    assert_eq!(harness.send(&stranger).error().await.1, text);
}

#[tokio::test]
async fn pushes_go_to_the_users_subject_of_the_gateways_type() {
    let harness = Harness::new(session_app()).await;
    let unbound = request(1, "room.s.push", r#"{"text":"hi"}"#);
    let text = "you have to bind an UID to the session to do that";
    assert_eq!(harness.send(&unbound).error().await.1, text);
    harness.send(&bound(1, "u1", "room.s.push", r#"{"text":"hi"}"#)).data().await;
    let pushes = harness.link.pushes();
    assert!(pushes.iter().all(|(subject, _)| subject == "pitaya/connector/user/u1/push"));
    let of = |at: usize| {
        (pushes[at].1.route.as_str(), pushes[at].1.uid.as_str(), &pushes[at].1.data[..])
    };
    assert_eq!(of(0), ("onText", "u1", &br#"{"text":"hi"}"#[..]));
    assert_eq!(of(1), ("onRaw", "u1", &b"\x00\xff"[..]));
}

#[tokio::test]
async fn a_kick_needs_a_uid_and_names_it() {
    let harness = Harness::new(session_app()).await;
    assert_eq!(harness.send(&request(1, "room.s.kick", "")).error().await.0, "PIT-000");
    harness.send(&bound(1, "u1", "room.s.kick", "")).data().await;
    let msg = harness.link.calls().pop().unwrap().1.msg.unwrap();
    assert_eq!((msg.route.as_str(), &msg.data[..]), ("sys.kick", &b"\n\x02u1"[..]));
}

#[tokio::test]
async fn session_data_travels_as_a_whole_and_numbers_survive_go() {
    let harness = Harness::new(session_app()).await;
    let mut request = request(9, "room.s.data", "");
    let session = request.session.as_mut().unwrap();
    session.data = br#"{"ipversion":"ipv4","level":6.0,"old":1}"#[..].into();
    assert_eq!(&harness.send(&request).data().await[..], b"6");
    let msg = harness.link.calls().pop().unwrap().1.msg.unwrap();
    assert_eq!(msg.route, "sys.pushsession");
    let saved = proto::Session::decode(msg.data).unwrap();
    assert_eq!(saved.id, 9);
    assert_eq!(&saved.data[..], br#"{"ipversion":"ipv4","level":7}"#);
}

#[tokio::test]
async fn a_group_is_a_set_with_pitayas_errors() {
    let app = App::new("room")
        .on_start(async |groups: Groups| {
            groups.create("g").await?;
            let text = groups.create("g").await.unwrap_err().msg;
            assert_eq!(text, "group already exists");
            groups.create_with_ttl("short", Duration::ZERO).await
        })
        .on("g.all", async |groups: Groups| {
            let text = |result: Result<()>| result.unwrap_err().msg;
            groups.add("g", "a").await?;
            groups.add("g", "b").await?;
            groups.add("g", "c").await?;
            assert_eq!(text(groups.add("g", "b").await), "member already exists in group");
            assert_eq!(text(groups.add("g", "").await), "empty uid");
            assert_eq!(text(groups.add("no", "a").await), "group not found");
            groups.remove("g", "b").await?;
            assert_eq!(text(groups.remove("g", "b").await), "member not found in the group");
            assert_eq!(text(groups.renew_ttl("g").await), "memory group TTL not found");
            assert_eq!(groups.members("g").await?, ["a", "c"]);
            assert_eq!(groups.count("g").await?, 2);
            assert!(groups.contains("g", "c").await? && !groups.contains("g", "b").await?);
            groups.broadcast("g", "onText", &Text { text: "all".into() }).await?;
            groups.remove_all("g").await?;
            assert_eq!(groups.count("g").await?, 0);
            groups.delete("g").await?;
            assert_eq!(text(groups.delete("g").await), "group not found");
            Ok::<_, Error>(1)
        })
        .on("g.short", async |groups: Groups| groups.count("short").await);
    let harness = Harness::new(app).await;
    harness.send(&request(1, "room.g.all", "")).data().await;
    let subjects: Vec<_> = harness.link.pushes().into_iter().map(|(subject, _)| subject).collect();
    assert_eq!(subjects, ["pitaya/connector/user/a/push", "pitaya/connector/user/c/push"]);
    let over = harness.send(&request(1, "room.g.short", "")).error().await;
    assert_eq!(over.1, "group not found");
}

#[tokio::test]
async fn pushes_to_many_users_report_the_ones_that_cannot_be_reached() {
    let app = App::new("room").on("p.many", async |push: Push| {
        let failed = push.to_users(&["a"], "", "r", "x").await.unwrap_err();
        assert!(failed.error.msg.contains("valid frontendType") && failed.uids == ["a"]);
        for (frontend_type, route) in
            [("a.b", "r"), ("*", "r"), ("x y", "r"), ("c", ""), ("c", "a\nb")]
        {
            let failed = push.to_users(&["a", "b"], frontend_type, route, "x").await.unwrap_err();
            assert_eq!((failed.error.code.as_ref(), failed.uids.len()), ("PIT-400", 2));
        }
        let failed = push.to_users(&["a"], "connector", "r", &None::<u8>).await.unwrap_err();
        assert_eq!(failed.error.msg, "reply must not be null");
        assert_eq!(push.frontend_type()?, "connector");
        let failed = push.kick(&["a", "b c"], "connector").await.unwrap_err();
        assert_eq!(failed.error.msg, "failed to kick users, check array with failed uids");
        assert_eq!(failed.uids, ["b c"]);
        assert_eq!(Error::from(failed).metadata["uids"], "b c");
        let failed = push.to_users(&["a", "*", "b"], "connector", "onText", "x").await.unwrap_err();
        assert_eq!(
            failed.error.msg,
            "failed to push message to users, check array with failed uids"
        );
        Ok::<_, Error>(failed.uids)
    });
    let harness = Harness::new(app).await;
    assert_eq!(&harness.send(&request(1, "room.p.many", "")).data().await[..], b"[\"*\"]");
    assert_eq!(harness.link.pushes().len(), 2);
    let sent = harness.link.published.lock().unwrap()[0].clone();
    assert_eq!(
        (sent.subject.as_str(), &sent.payload[..]),
        ("pitaya/connector/user/a/kick", &b"\n\x01a"[..])
    );
}

struct Counter(AtomicU64);

#[handlers("counter")]
impl Counter {
    pub async fn on_start(&self) {
        self.0.fetch_add(100, Ordering::Relaxed);
    }

    pub async fn add_some(
        &self,
        session: Session,
        Pb(doc): Pb<proto::Doc>,
    ) -> Result<Pb<proto::Doc>> {
        let total = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Pb(proto::Doc { doc: format!("{} {} {total}", session.id(), doc.doc) }))
    }

    #[concurrent]
    pub async fn told(&self, _what: Text) {}

    #[remote]
    pub async fn read(&self, ctx: Ctx) -> Result<Pb<proto::Doc>> {
        Ok(Pb(proto::Doc { doc: format!("{} {}", ctx.server_id(), self.private()) }))
    }

    fn private(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_component_registers_its_public_methods() {
    let harness = Harness::new(App::new("room").component(Counter(AtomicU64::new(5)))).await;
    let answer = harness.send(&request(3, "room.counter.addsome", "\n\u{1}x")).data().await;
    assert_eq!(proto::Doc::decode(answer).unwrap().doc, "3 x 105");
    let told = harness.send(&request(3, "room.counter.told", "{}")).error().await;
    assert_eq!(told.1, "tried to request a notify route");
    let read = proto::Request { r#type: 1, session: None, ..request(0, "room.counter.read", "") };
    let answer = harness.send(&read).data().await;
    assert_eq!(proto::Doc::decode(answer).unwrap().doc, "room-1 106");
    assert_eq!(harness.send(&request(3, "room.counter.read", "")).error().await.0, "PIT-404");
    assert_eq!(harness.send(&request(3, "room.counter.private", "")).error().await.0, "PIT-404");
}

struct Purse(AtomicU64);

#[remotes("purse")]
impl Purse {
    pub async fn on_start(&self) {
        self.0.store(100, Ordering::Relaxed);
    }

    pub async fn take_gold(&self, ctx: Ctx, taken: Pb<proto::Doc>) -> Result<Pb<proto::Doc>> {
        let Ok(gold) = taken.0.doc.parse() else { bail!("T-400", "how much?") };
        let left = self.0.fetch_sub(gold, Ordering::Relaxed) - gold;
        Ok(Pb(proto::Doc { doc: format!("{} {left}", ctx.route()) }))
    }

    pub async fn lose(&self) {
        self.empty();
    }

    fn empty(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_component_of_remotes_answers_servers_and_no_clients() {
    let harness = Harness::new(App::new("room").component(Purse(AtomicU64::new(0)))).await;
    let call = |route: &'static str, message: &'static str| proto::Request {
        r#type: 1,
        session: None,
        ..request(0, route, message)
    };
    let answer = harness.send(&call("room.purse.takegold", "\n\u{2}30")).data().await;
    assert_eq!(proto::Doc::decode(answer).unwrap().doc, "room.purse.takegold 70");
    let refused = harness.send(&call("room.purse.takegold", "")).error().await;
    assert_eq!(refused, ("T-400".into(), "how much?".into()));
    assert!(harness.send(&call("room.purse.lose", "")).data().await.is_empty());
    let answer = harness.send(&call("room.purse.takegold", "\n\u{1}0")).data().await;
    assert_eq!(proto::Doc::decode(answer).unwrap().doc, "room.purse.takegold 0");
    for route in ["room.purse.takegold", "room.purse.lose"] {
        assert_eq!(harness.send(&request(3, route, "")).error().await.0, "PIT-404", "{route}");
    }
    for route in ["room.purse.empty", "room.purse.onstart"] {
        assert_eq!(harness.send(&call(route, "")).error().await.0, "PIT-404", "{route}");
    }
}

#[tokio::test]
async fn calls_are_measured_by_their_caller_with_the_code_that_they_ended_with() {
    let options = ExporterOptions { game: "", server_type: "room", const_labels: &[], custom: &[] };
    let exporter = Exporter::new(&options).unwrap();
    let metagame = Server {
        id: "metagame-1".into(),
        server_type: "metagame".into(),
        metadata: std::collections::BTreeMap::new(),
        frontend: false,
        hostname: String::new(),
    };
    let view = ClusterView {
        exporter: Some(exporter.clone()),
        ..ClusterView::new("room-1", Arc::new(FixedServers::new([metagame])))
    };
    let app = App::new("room").on("r.ask", async |rpc: Rpc| -> Result<bool> {
        rpc.raw("metagame.p.spend", Bytes::new()).await?;
        Ok(true)
    });
    let harness = Harness::with_view(app, view).await.unwrap();
    let ask = request(1, "room.r.ask", "");
    harness.send(&ask).data().await;
    let refusal = proto::Error { code: "GAME-1".into(), ..proto::Error::default() };
    let refused = proto::Response { error: Some(refusal), ..proto::Response::default() };
    harness.link.answer_next(Ok(refused));
    harness.send(&ask).error().await;
    harness.link.answer_next(Err(LinkError::Timeout));
    assert_eq!(harness.send(&ask).error().await.0, "PIT-408");
    let page = exporter.render();
    let ends = |status: &str, code: &str| {
        let labels = [
            "response_time_ns_count{".to_owned(),
            "type=\"rpc\"".to_owned(),
            "route=\"metagame.p.spend\"".to_owned(),
            format!("status=\"{status}\""),
            format!("code=\"{code}\""),
        ];
        let is_meant = |line: &&str| labels.iter().all(|label| line.contains(label));
        page.lines().find(is_meant).is_some_and(|line| line.ends_with(" 1"))
    };
    assert!(ends("ok", "") && ends("failed", "PIT-408") && ends("failed", "other"), "{page}");
}

#[tokio::test]
async fn a_session_is_refused_where_there_is_none() {
    let app = App::new("room")
        .remote("r.s", async |_: Session| Ok::<_, Error>(Pb(proto::Doc::default())));
    let harness = Harness::new(app).await;
    let call = proto::Request { r#type: 1, session: None, ..request(0, "room.r.s", "") };
    assert_eq!(harness.send(&call).error().await.1, "there is no session in this call");
    let app = App::new("room").on_start(async |_: Session| {});
    assert!(Harness::try_new(app).await.is_err());
}
