//! The gateway and the worker against Pitaya itself: its Go client in front of the gateway, its servers behind the
//! gateway, in front of the worker, and beside the gateway as another frontend of the same type.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use client::{Client, CloseCause, ConnectOptions};
use serde_json::{Value, json};

use super::{BURST_REQUESTS, Cluster, GoClient, GoPeer, PUSHES, guarded, say_skipped};

#[test]
fn its_client_talks_through_the_gateway_to_the_worker_over_tcp_and_websocket() {
    let Some((cluster, programs)) = start() else { return };
    let _worker = cluster.worker();
    let gateway = cluster.gateway();
    for transport in ["tcp", "ws"] {
        let mut client = programs.client(transport, &gateway.address(transport));
        client.play_through("room", &format!("user-{transport}"));
        let joined = client.answer("room.room.join", &json!({}));
        assert_eq!(joined["result"], json!("success"));
        client.answers_come_in_order("room");
        client.is_kicked_by("room");
    }
}

#[test]
fn its_backend_serves_clients_of_the_gateway() {
    let Some((cluster, programs)) = start() else { return };
    let mut backend = programs.server(&cluster, &["-type", "room"]);
    let gateway = cluster.gateway();
    for transport in ["tcp", "ws"] {
        let mut client = programs.client(transport, &gateway.address(transport));
        client.play_through("room", &format!("user-{transport}"));
        client.all_are_answered("room");
        client.notify("room.test.notify", &json!({ "n": transport }));
        assert_eq!(backend.next_event("notified")["body"], json!({ "n": transport }));
        client.is_kicked_by("room");
    }
}

#[test]
fn its_backend_pushes_to_and_kicks_other_users_of_the_gateway() {
    let Some((cluster, programs)) = start() else { return };
    let _backend = programs.server(&cluster, &["-type", "room"]);
    let gateway = cluster.gateway();
    let mut speaker = programs.client("tcp", &gateway.address("tcp"));
    let mut listener = programs.client("ws", &gateway.address("ws"));
    speaker.bind("room", "speaker");
    listener.bind("room", "listener");

    speaker.answer("room.test.push", &json!({ "name": "listener", "n": PUSHES }));
    for number in 0..PUSHES {
        let push = listener.peer.ask(&json!({ "do": "await_push" }));
        assert_eq!(
            (&push["route"], &push["hex"]),
            (&json!("onPush"), &json!(format!("{number:016x}")))
        );
    }
    speaker.answer("room.test.kickUser", &json!({ "name": "listener" }));
    listener.is_kicked();
    assert_eq!(speaker.answer("room.test.echo", &json!(1)), json!(1));
}

#[test]
fn its_frontend_forwards_to_the_worker_what_its_client_and_ours_send() {
    let Some((cluster, programs)) = start() else { return };
    let _worker = cluster.worker();
    for compression in ["-compression=true", "-compression=false"] {
        let frontend = programs.frontend(&cluster, &[compression]);
        for transport in ["tcp", "ws"] {
            let address = frontend.listens_at(transport);
            let mut client = programs.client(transport, address);
            client.play_through("room", &format!("theirs-{transport}"));
            client.all_are_answered("room");
            client.is_kicked_by("room");
            let url = format!("{transport}://{address}");
            in_runtime(our_client_plays_through(&url, &format!("ours-{transport}")));
        }
    }
}

#[test]
fn a_user_has_one_session_across_the_gateway_and_its_frontend() {
    let Some((cluster, programs)) = start() else { return };
    let _worker = cluster.worker();
    let _backend = programs.server(&cluster, &["-type", "goroom"]);
    let gateway = cluster.gateway();
    let frontend = programs.frontend(&cluster, &[]);
    for room in ["room", "goroom"] {
        let uid = format!("wanderer-{room}");
        let mut first = programs.client("tcp", &gateway.address("tcp"));
        first.bind(room, &uid);
        let mut second = programs.client("tcp", frontend.listens_at("tcp"));
        second.bind(room, &uid);
        first.is_kicked();
        let mut third = programs.client("ws", &gateway.address("ws"));
        third.bind(room, &uid);
        second.is_kicked();
        let mut fourth = programs.client("tcp", &gateway.address("tcp"));
        fourth.bind(room, &uid);
        third.is_kicked();
        assert_eq!(fourth.answer(&format!("{room}.test.echo"), &json!("here")), json!("here"));
    }
}

/// Everything that a session does, once, with the client library of this project.
async fn our_client_plays_through(url: &str, uid: &str) {
    let client = Client::connect(url, ConnectOptions::default()).await.expect("connects");
    let mut pushes = client.subscribe("onPush");
    let text = json!({ "text": "zażółć <&> \u{2028}", "filler": "x".repeat(5000) });
    assert_eq!(ask(&client, "room.test.echo", &text).await, Ok(text));

    let refused = ask(&client, "room.test.fail", &json!({ "code": "GAME-42", "msg": "no" })).await;
    assert_eq!(refused, Err(("GAME-42".to_owned(), "no".to_owned())));
    let unknown = ask(&client, "room.test.nothing", &json!({})).await;
    assert_eq!(unknown.expect_err("there is no such handler").0, "PIT-404");

    ask(&client, "room.test.bind", &json!({ "name": uid })).await.expect("binds");
    let stored = json!({ "level": 7, "ipversion": "ipv4" });
    assert_eq!(ask(&client, "room.test.data", &json!({ "level": 7 })).await, Ok(stored.clone()));
    assert_eq!(ask(&client, "room.test.data", &json!({})).await, Ok(stored));

    let to_self = json!({ "name": uid, "n": PUSHES, "size": 8 });
    ask(&client, "room.test.push", &to_self).await.expect("pushes");
    for number in 0..PUSHES {
        let push = pushes.next().await.expect("a push");
        assert_eq!(push.payload[..], number.to_be_bytes());
    }
    client.notify("room.test.kick", b"{}").await.expect("is sent");
    assert!(matches!(client.closed().await, CloseCause::Kicked { .. }));
}

/// A request with a JSON body; the error is code and text.
async fn ask(client: &Client, route: &str, body: &Value) -> Result<Value, (String, String)> {
    match client.request(route, body.to_string().as_bytes()).await {
        Ok(answer) => Ok(serde_json::from_slice(&answer).expect("the answer is JSON")),
        Err(client::RequestError::Reply(error)) => Err((error.code.into_owned(), error.msg)),
        Err(error) => panic!("{route}: {error}"),
    }
}

fn in_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work);
}

impl GoPeer {
    pub(super) fn listens_at(&self, transport: &str) -> &str {
        if transport == "ws" { &self.ws_address } else { &self.address }
    }
}

impl GoClient {
    /// Pitaya's own servers answer side by side, in any order: the client sorts the answers by their requests.
    fn all_are_answered(&mut self, room: &str) {
        let bodies: Vec<Value> = (0..BURST_REQUESTS).map(|number| json!({ "n": number })).collect();
        let route = format!("{room}.test.echo");
        self.peer.tell(&json!({ "do": "burst", "route": route, "bodies": bodies }));
        for body in &bodies {
            assert_eq!(self.peer.next()["body"], *body);
        }
    }
}

/// The programs that stand for Pitaya.
pub(super) struct Programs {
    client: PathBuf,
    server: PathBuf,
}

/// A cluster without members, and the programs; None, with a loud line, when one of them cannot be had.
pub(super) fn start() -> Option<(Cluster, &'static Programs)> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    match PROGRAMS.get_or_init(find_or_build) {
        Ok(programs) => Some((Cluster::start_servers()?, programs)),
        Err(reason) => {
            say_skipped(&format!("Pitaya cannot be had: {reason}"));
            None
        }
    }
}

fn find_or_build() -> Result<Programs, String> {
    let given = env::var_os("DRAGONFRUIT_PITAYA_BIN_DIR").filter(|given| !given.is_empty());
    let folder = match given {
        Some(given) => PathBuf::from(given),
        None => build()?,
    };
    let (client, server) = (folder.join("pitaya-client"), folder.join("pitaya-server"));
    for program in [&client, &server] {
        assert!(program.is_file(), "{} is not there", program.display());
    }
    Ok(Programs { client, server })
}

/// An error is the reason why Go cannot have the modules. A program that does not compile is a failed test.
fn build() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-pitaya");
    go(&["version"]).map_err(|_| "Go is not installed".to_owned())?;
    let resolved = go(&["list", "-deps", "./..."]).expect("go was there a moment ago");
    if !resolved.status.success() {
        return Err(reason_of(&resolved));
    }
    let target = format!("{}/", folder.display());
    let built = go(&["build", "-o", &target, "./..."]).expect("go was there a moment ago");
    let complaints = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "the programs do not build: {complaints}");
    Ok(folder)
}

fn go(arguments: &[&str]) -> std::io::Result<Output> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/pitaya");
    Command::new("go").current_dir(module).args(arguments).output()
}

/// The first line that is a complaint rather than progress.
fn reason_of(failed: &Output) -> String {
    let complaints = String::from_utf8_lossy(&failed.stderr);
    let mut lines = complaints.lines().filter(|line| !line.starts_with("go: downloading"));
    lines.next().unwrap_or("go does not say why").to_owned()
}

impl Programs {
    fn client(&self, transport: &str, address: &str) -> GoClient {
        let mut peer = GoPeer::start("pitaya-client", &mut guarded::command(&self.client));
        peer.connect(transport, address);
        GoClient { peer, notices_kicks: false }
    }

    pub(super) fn server(&self, cluster: &Cluster, flags: &[&str]) -> GoPeer {
        let mut command = guarded::command(&self.server);
        cluster.join("pitaya-server", command.arg("-until-eof").args(flags))
    }

    /// A frontend of the same type as the gateway, with both acceptors.
    pub(super) fn frontend(&self, cluster: &Cluster, flags: &[&str]) -> GoPeer {
        let mut all = vec!["-frontend", "-type", "connector", "-ws", "127.0.0.1:0"];
        all.extend(flags);
        self.server(cluster, &all)
    }
}
