//! Requests captured from Go gateways get the bytes that Go servers answered (cluster protocol 25).

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use support::{Harness, notify};
use worker::prelude::*;
use worker::{ClusterView, FixedServers, Server};

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Serialize)]
struct Reply {
    msg: String,
}

/// The handlers of the servers that the vectors were captured from.
fn captured() -> App {
    App::new("room")
        .on("room.echo", async |name: Name| {
            Ok::<_, Error>(Reply { msg: format!("hi {}", name.name) })
        })
        .on("room.note", async |_: Name| {})
        .on("room.fail", async || -> Result<Reply> { Err(Error::unknown("plain failure")) })
        .on("room.failp", async || -> Result<Reply> {
            Err(Error::new("GAME-42", "pit failure").with("k", "v"))
        })
        .on("room.slow", async || std::future::pending::<Result<Reply>>().await)
        .remote("rem.ok", async |Pb(doc): Pb<proto::Doc>| {
            Ok::<_, Error>(Pb(proto::Doc { doc: format!("re:{}", doc.doc) }))
        })
        .remote("connectorremote.remotefunc", async |_: Pb<proto::Doc>| {
            Ok::<_, Error>(Pb(proto::DocMsg { get_protos: true }))
        })
}

fn vectors() -> BTreeMap<String, Vec<u8>> {
    let file = include_str!("../../proto/tests/vectors.json");
    let file: serde_json::Value = serde_json::from_str(file).unwrap();
    let list = file.get("vectors").unwrap_or(&file).as_array().unwrap().clone();
    list.iter()
        .map(|vector| {
            let hex = vector["hex"].as_str().unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            (vector["name"].as_str().unwrap().to_owned(), bytes)
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn captured_requests_get_the_captured_answers() {
    let harness = Harness::new(captured()).await;
    let vectors = vectors();
    for name in [
        "sys_request_unbound",
        "sys_notify",
        "sys_error_plain",
        "sys_error_coded",
        "sys_route_not_found",
        "sys_backend_timeout",
        "user_rpc_from_frontend",
        "user_rpc_route_not_found",
        "user_rpc_from_backend",
    ] {
        let request = vectors[&format!("{name}.request")].clone();
        let wanted = &vectors[&format!("{name}.response")];
        let answer = harness.send_bytes(request).response().await.encode_to_vec();
        assert_eq!(&answer, wanted, "{name}");
    }
    for name in ["sys_request_with_otel", "sys_request_v2"] {
        let answer = harness.send_bytes(vectors[name].clone()).data().await;
        assert_eq!(&answer[..], b"{\"msg\":\"hi a\"}", "{name}");
    }
}

#[tokio::test]
async fn the_captured_error_answers_are_ours_byte_for_byte() {
    let harness = Harness::new(captured()).await;
    let vectors = vectors();
    let base = proto::Request::decode(&vectors["user_rpc_from_frontend.request"][..]).unwrap();
    let with_route = |route: &str| proto::Request {
        msg: Some(proto::Msg { route: route.into(), ..base.msg.clone().unwrap() }),
        ..base.clone()
    };
    let timeout = Bytes::from_static(br#"{"reqTimeout":"abc"}"#);
    for (name, request) in [
        ("error_no_context", proto::Request { metadata: Bytes::new(), ..base.clone() }),
        ("error_bad_route", with_route("ok")),
        ("error_bad_rpc_type", proto::Request { r#type: 7, ..base.clone() }),
        ("error_bad_duration", proto::Request { metadata: timeout, ..base.clone() }),
    ] {
        let answer = harness.send(&request).response().await.encode_to_vec();
        assert_eq!(answer, vectors[name], "{name}");
    }
}

/// The digits of `req-start-time` as zeros: the only bytes that differ from call to call.
fn without_time(mut bytes: Vec<u8>) -> Vec<u8> {
    let key = b"\"req-start-time\":";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    bytes[at..].iter_mut().take_while(|byte| byte.is_ascii_digit()).for_each(|byte| *byte = b'0');
    bytes
}

fn server(id: &str, server_type: &str) -> Server {
    let (id, server_type) = (id.into(), server_type.into());
    Server { id, server_type, metadata: BTreeMap::new(), frontend: false, hostname: String::new() }
}

const GATEWAY: &str = "7dfc7114-5665-441d-8313-8de431c0a25c";
const BACKEND: &str = "91e47eed-e4fb-4c7d-8cca-bbeceb07b7a1";

fn doc(text: &str) -> proto::Doc {
    proto::Doc { doc: text.into() }
}

/// What servers of Pitaya sent while they served a client's request is what ours send in their place.
#[tokio::test(start_paused = true)]
async fn calls_are_encoded_to_the_captured_bytes() {
    let connector = App::new("connector").on(
        "connector.rpc",
        async |rpc: Rpc, Pb(route): Pb<proto::Doc>| -> Result<()> {
            rpc.call(&route.doc, &doc("x")).await
        },
    );
    let room = App::new("room")
        .on("room.rpc", async |rpc: Rpc| -> Result<()> {
            rpc.call_to(GATEWAY, "connector.connectorremote.remotefunc", &doc("q")).await
        })
        .on("room.bind", async |session: Session| session.bind("uid-1").await);
    let servers =
        || Arc::new(FixedServers::new([server(BACKEND, "room"), server(GATEWAY, "connector")]));
    let connector_view = ClusterView { is_frontend: true, ..ClusterView::new(GATEWAY, servers()) };
    let connector = Harness::with_view(connector, connector_view).await.unwrap();
    let room = Harness::with_view(room, ClusterView::new(BACKEND, servers())).await.unwrap();

    let vectors = vectors();
    for (name, harness, route) in [
        ("user_rpc_from_frontend", &connector, "connector.connector.rpc"),
        ("user_rpc_route_not_found", &connector, "connector.connector.rpc"),
        ("user_rpc_from_backend", &room, "room.room.rpc"),
        ("sys_bindsession", &room, "room.room.bind"),
    ] {
        let wanted = vectors[&format!("{name}.request")].clone();
        let captured = proto::Request::decode(&wanted[..]).unwrap();
        let called = captured.msg.unwrap().route;
        // What the caller had received carries the correlation id.
        let mut received = notify(1, route, doc(&called).encode_to_vec());
        received.metadata = captured.metadata;
        received.frontend_id = GATEWAY.into();
        harness.send(&received).response().await;
        let sent = harness.link.requested.lock().unwrap().pop().unwrap().payload.to_vec();
        assert_eq!(without_time(sent), without_time(wanted), "{name}");
    }
}
