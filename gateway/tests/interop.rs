//! The gateway and the worker against peers written in Go, over a real NATS server and a real etcd: Go clients in front
//! of the gateway, Go backends behind it, and a Go frontend in front of the worker.
//!
//! The peers are the program in `interop/` (its head says what it is and what it is not). They are driven by JSON lines
//! on their standard streams and end when these close. The demo worker and the Go backend answer the same test routes:
//! `test.echo`, `.bind {name}`, `.data {…}`, `.push {name, n, size}`, `.fail {code, msg}`, `.sleep {ms}`, `.kick`.
//! Without Go, nats-server or etcd a test says so loudly and checks nothing.
//!
//! The tests in `pitaya` and `differential` run against Pitaya itself, with the programs in `interop/pitaya/`, a Go
//! module that depends on it. They build it with plain `go build`, under the operator's own Go settings, and say so loudly
//! when Go cannot have it. DRAGONFRUIT_PITAYA_BIN_DIR, a folder with ready-made `pitaya-client` and `pitaya-server`, takes
//! the place of the build, as DRAGONFRUIT_NATS_SERVER and DRAGONFRUIT_ETCD name the other servers.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "interop/cases.rs"]
mod cases;
#[path = "interop/differential.rs"]
mod differential;
#[path = "../../shared/tests/servers/guarded.rs"]
mod guarded;
#[path = "interop/pitaya.rs"]
mod pitaya;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// More than a Go backend's 25 dispatchers and 30 handlers, so that its queue is used as well.
const BURST_REQUESTS: usize = 60;
const PUSHES: u64 = 20;
/// Near the longest packet that a gateway takes from a client by default.
const LARGE_BYTES: usize = 60_000;

#[test]
fn a_go_client_talks_through_the_gateway_to_go_backends_over_tcp_and_websocket() {
    let Some(cluster) = Cluster::start() else { return };
    for flavor in ["v2", "v3"] {
        let room = format!("goroom{flavor}");
        let mut backend = cluster.go_peer("gobackend", &["--type", &room, "--flavor", flavor]);
        let gateway = cluster.gateway();
        for transport in ["tcp", "ws"] {
            let address = gateway.address(transport);
            let uid = format!("{flavor}-{transport}");
            let mut client = GoClient::connect(transport, &address);
            client.play_through(&room, &uid);
            client.notify(&format!("{room}.test.notify"), &json!({ "n": transport }));
            assert_eq!(backend.next_event("notified")["body"], json!({ "n": transport }));
            client.is_kicked_by(&room);
        }
    }
}

#[test]
fn a_go_client_talks_through_the_gateway_to_the_worker() {
    let Some(cluster) = Cluster::start() else { return };
    let _worker = cluster.worker();
    let gateway = cluster.gateway();
    for transport in ["tcp", "ws"] {
        let mut client = GoClient::connect(transport, &gateway.address(transport));
        client.play_through("room", &format!("user-{transport}"));
        client.answers_come_in_order("room");
        client.is_kicked_by("room");
    }
}

#[test]
fn a_go_frontend_forwards_to_the_worker() {
    let Some(cluster) = Cluster::start() else { return };
    let _worker = cluster.worker();
    for flavor in ["v2", "v3"] {
        let kind = format!("connector{flavor}");
        let frontend = cluster.go_peer("gofrontend", &["--type", &kind, "--flavor", flavor]);
        let address = frontend.address.clone();
        let mut client = GoClient::connect("tcp", &address);
        client.play_through("room", &format!("behind-{flavor}"));
        client.is_kicked_by("room");
    }
}

#[test]
fn a_user_who_moves_to_a_go_frontend_is_kicked_from_the_gateway() {
    let Some(cluster) = Cluster::start() else { return };
    let _backend = cluster.go_peer("gobackend", &["--type", "room"]);
    let gateway = cluster.gateway();
    let mut first = GoClient::connect("tcp", &gateway.address("tcp"));
    first.bind("room", "wanderer");

    let frontend = cluster.go_peer("gofrontend", &["--type", "connector"]);
    let address = frontend.address.clone();
    let mut second = GoClient::connect("tcp", &address);
    second.bind("room", "wanderer");

    first.is_kicked();
    assert_eq!(second.request("room.test.echo", &json!({ "still": "here" }))["event"], "response");
}

/// Writes past the capture of test output: a run that checked nothing must be seen to have checked nothing.
fn say_skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {reason}; the interop test checked nothing\n");
}

/// A process that ends with its owner, by its own id.
struct Process {
    child: Child,
    name: String,
}

impl Process {
    fn start(name: &str, command: &mut Command) -> Process {
        // It goes to the thread that starts all of them.
        let command = std::mem::replace(command, Command::new(name));
        let child = guarded::spawn(command).unwrap_or_else(|error| panic!("{name}: {error}"));
        Process { child, name: name.to_owned() }
    }

    /// Waits until the condition gives a value; a process that ends meanwhile fails the test.
    fn wait_for<T>(&mut self, mut condition: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(value) = condition() {
                return value;
            }
            if let Some(status) = self.child.try_wait().expect("the process can be asked") {
                panic!("{} ended before it was ready: {status}", self.name);
            }
            assert!(began.elapsed() < START_TIMEOUT, "{} is not ready in time", self.name);
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A NATS server and an etcd on free ports. Fields are dropped in this order.
struct Cluster {
    _nats: Process,
    _etcd: Process,
    nats_url: String,
    etcd_endpoint: String,
    scratch: TempDir,
}

impl Cluster {
    /// None, with a loud line, when something that only the machine can provide is missing, Go included.
    fn start() -> Option<Cluster> {
        if go_program().is_none() {
            say_skipped("Go is not installed");
            return None;
        }
        Cluster::start_servers()
    }

    fn start_servers() -> Option<Cluster> {
        let (Some(nats), Some(etcd)) = (
            find_server("DRAGONFRUIT_NATS_SERVER", "nats-server"),
            find_server("DRAGONFRUIT_ETCD", "etcd"),
        ) else {
            say_skipped("nats-server or etcd is not installed (./dev servers install)");
            return None;
        };
        let scratch = TempDir::new().expect("a scratch folder");
        let (nats, nats_address) = start_nats(&nats);
        let (etcd, etcd_endpoint) = start_etcd(&etcd, scratch.path());
        Some(Cluster {
            _nats: nats,
            _etcd: etcd,
            nats_url: format!("nats://{nats_address}"),
            etcd_endpoint,
            scratch,
        })
    }

    fn configure<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("PITAYA_CLUSTER_RPC_CLIENT_NATS_CONNECT", &self.nats_url)
            .env("PITAYA_CLUSTER_RPC_SERVER_NATS_CONNECT", &self.nats_url)
            .env("PITAYA_CLUSTER_SD_ETCD_ENDPOINTS", &self.etcd_endpoint)
            .env("PITAYA_ADMIN_LISTEN", "127.0.0.1:0")
    }

    /// Starts a Go peer of the cluster and waits until it says that it is ready.
    fn go_peer(&self, role: &str, flags: &[&str]) -> GoPeer {
        let mut command = guarded::command(go_program().expect("there when the cluster started"));
        self.join(role, command.arg(role).args(flags))
    }

    /// Starts a server in Go that takes the flags of both kinds of peer, and waits until it is ready.
    fn join(&self, name: &str, command: &mut Command) -> GoPeer {
        command.args(["--nats", &self.nats_url, "--etcd", &self.etcd_endpoint]);
        let mut peer = GoPeer::start(name, command);
        let ready = peer.next_event("ready");
        ready["address"].as_str().unwrap_or_default().clone_into(&mut peer.address);
        ready["ws"].as_str().unwrap_or_default().clone_into(&mut peer.ws_address);
        peer
    }

    fn gateway(&self) -> Gateway {
        let ports_file = self.scratch.path().join("ports.json");
        let _ = fs::remove_file(&ports_file);
        let mut command = guarded::command(env!("CARGO_BIN_EXE_gateway"));
        command
            .args(["--set", "pitaya.server.type=connector"])
            .args(["--tcp", "127.0.0.1:0", "--ws", "127.0.0.1:0", "--ports-file"])
            .arg(&ports_file);
        let mut process = Process::start("gateway", self.configure(&mut command));
        let ports = process.wait_for(|| serde_json::from_slice(&fs::read(&ports_file).ok()?).ok());
        Gateway { _process: process, ports }
    }

    fn worker(&self) -> Process {
        let admin = free_address();
        let mut command = guarded::command(worker_binary());
        command.arg("--test-routes");
        self.configure(&mut command).env("PITAYA_ADMIN_LISTEN", &admin);
        let mut process = Process::start("worker", &mut command);
        process.wait_for(|| is_ready(&admin).then_some(()));
        process
    }
}

/// Whether a server says over HTTP that it is registered and serves.
fn is_ready(admin: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(admin) else { return false };
    let asked =
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    asked.is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200 ")
}

struct Gateway {
    _process: Process,
    ports: Value,
}

impl Gateway {
    fn address(&self, transport: &str) -> String {
        let address = self.ports[transport].as_str();
        address.unwrap_or_else(|| panic!("no {transport} in {}", self.ports)).to_owned()
    }
}

/// A Go peer: lines out of it arrive in order, each a JSON object with the member `event`.
struct GoPeer {
    // Before the process: its end is how the peer learns that it is time to leave the cluster.
    commands: Option<ChildStdin>,
    events: Receiver<Value>,
    address: String,
    ws_address: String,
    process: Process,
}

impl GoPeer {
    fn start(role: &str, command: &mut Command) -> GoPeer {
        let mut process =
            Process::start(role, command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let commands = process.child.stdin.take();
        let output = process.child.stdout.take().expect("the output is piped");
        let (sender, events) = channel();
        // Ends with the process, whose output it reads.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("a peer writes JSON lines");
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        GoPeer { commands, events, address: String::new(), ws_address: String::new(), process }
    }

    fn next(&mut self) -> Value {
        let received = self.events.recv_timeout(ANSWER_TIMEOUT);
        received.unwrap_or_else(|error| panic!("{}: {error}", self.process.name))
    }

    /// The next event of this name; others before it are passed over.
    fn next_event(&mut self, name: &str) -> Value {
        loop {
            let event = self.next();
            if event["event"] == name {
                return event;
            }
        }
    }

    fn connect(&mut self, transport: &str, address: &str) -> Value {
        let answer =
            self.ask(&json!({ "do": "connect", "transport": transport, "address": address }));
        assert_eq!(answer["event"], "connected", "{transport} {address}: {answer}");
        answer
    }

    fn tell(&mut self, command: &Value) {
        let commands = self.commands.as_mut().expect("open until the peer is dropped");
        writeln!(commands, "{command}").expect("the peer reads its commands");
    }

    fn ask(&mut self, command: &Value) -> Value {
        self.tell(command);
        self.next()
    }
}

impl Drop for GoPeer {
    fn drop(&mut self) {
        drop(self.commands.take());
        // Its channel closes when the process has ended by itself; a peer that hangs is ended by its owner.
        let deadline = Instant::now() + START_TIMEOUT;
        while self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {
        }
    }
}

struct GoClient {
    peer: GoPeer,
    /// Whether it can be relied on to tell a kick from a plain end.
    notices_kicks: bool,
}

impl GoClient {
    fn connect(transport: &str, address: &str) -> GoClient {
        let program = go_program().expect("there when the cluster started");
        let mut peer = GoPeer::start("goclient", guarded::command(program).arg("goclient"));
        let answer = peer.connect(transport, address);
        assert_eq!(answer["body"]["sys"]["serializer"], "json");
        GoClient { peer, notices_kicks: true }
    }

    fn request(&mut self, route: &str, body: &Value) -> Value {
        self.peer.ask(&json!({ "do": "request", "route": route, "body": body }))
    }

    fn answer(&mut self, route: &str, body: &Value) -> Value {
        let answer = self.request(route, body);
        assert_eq!(answer["event"], "response", "{route}: {answer}");
        answer["body"].clone()
    }

    fn notify(&mut self, route: &str, body: &Value) {
        let answer = self.peer.ask(&json!({ "do": "notify", "route": route, "body": body }));
        assert_eq!(answer["event"], "sent", "{route}: {answer}");
    }

    /// Binds. A backend may hear of a new frontend a moment after the frontend is ready: until then it cannot call back.
    fn bind(&mut self, room: &str, uid: &str) {
        let began = Instant::now();
        loop {
            let answer = self.request(&format!("{room}.test.bind"), &json!({ "name": uid }));
            if answer["event"] == "response" {
                return;
            }
            let message = answer["message"].as_str().unwrap_or_default();
            let is_unknown = ["can't find", "server not found"].map(|text| message.contains(text));
            assert!(
                is_unknown.contains(&true) && began.elapsed() < START_TIMEOUT,
                "bind: {answer}"
            );
        }
    }

    /// Everything that a session does, once.
    fn play_through(&mut self, room: &str, uid: &str) {
        let route = |method: &str| format!("{room}.test.{method}");
        let text = json!({ "text": "zażółć <&> \u{2028}", "list": [1, 2.5, null] });
        assert_eq!(self.answer(&route("echo"), &text), text);
        let large = json!({ "filler": "x".repeat(LARGE_BYTES) });
        assert_eq!(self.answer(&route("echo"), &large), large);

        self.fails(&route("nothing"), &json!({}), "PIT-404");
        self.fails("nowhere.test.echo", &json!({}), "PIT-500");
        let refusal = json!({ "code": "GAME-42", "msg": "not now" });
        let refused = self.fails(&route("fail"), &refusal, "GAME-42");
        assert_eq!(refused["message"], "not now");

        self.bind(room, uid);
        let second = self.request(&route("bind"), &json!({ "name": "other" }));
        assert_eq!(second["event"], "error", "a second bind: {second}");
        let stored = self.answer(&route("data"), &json!({ "level": 7, "name": "<ana>" }));
        assert_eq!((&stored["level"], &stored["name"]), (&json!(7), &json!("<ana>")));
        // The next request may reach another backend: what it has came from the frontend.
        assert_eq!(self.answer(&route("data"), &json!({})), stored);

        self.answer(&route("push"), &json!({ "name": uid, "n": PUSHES, "size": 8 }));
        for number in 0..PUSHES {
            let push = self.peer.ask(&json!({ "do": "await_push" }));
            assert_eq!(push["route"], "onPush", "{push}");
            assert_eq!(push["hex"], format!("{number:016x}"), "{push}");
        }
    }

    fn fails(&mut self, route: &str, body: &Value, code: &str) -> Value {
        let answer = self.request(route, body);
        assert_eq!(answer["event"], "error", "{route}: {answer}");
        assert_eq!(answer["code"], code, "{route}: {answer}");
        answer
    }

    /// Between the gateway and the worker the answers of one session keep the order of its requests.
    fn answers_come_in_order(&mut self, room: &str) {
        let bodies: Vec<Value> = (0..BURST_REQUESTS).map(|number| json!({ "n": number })).collect();
        self.peer.tell(
            &json!({ "do": "burst", "route": format!("{room}.test.echo"), "bodies": bodies }),
        );
        for body in &bodies {
            let answer = self.peer.next();
            assert_eq!((&answer["event"], &answer["body"]), (&json!("response"), body));
        }
    }

    fn is_kicked_by(&mut self, room: &str) {
        self.notify(&format!("{room}.test.kick"), &json!({}));
        self.is_kicked();
    }

    fn is_kicked(&mut self) {
        let ended = self.peer.ask(&json!({ "do": "await_end" }));
        assert_eq!(ended["event"], "ended", "{ended}");
        assert!(ended["kicked"] == json!(true) || !self.notices_kicks, "{ended}");
    }
}

/// The Go program, built once a run; None when there is no Go.
fn go_program() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            Command::new("go").arg("version").stdout(Stdio::null()).status().ok()?;
            let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-peer");
            let built = Command::new("go")
                .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop"))
                .args(["build", "-o"])
                .arg(&program)
                .arg(".")
                .status()
                .expect("go was there a moment ago");
            assert!(built.success(), "the Go peer does not build: {built}");
            Some(program)
        })
        .as_ref()
}

fn find_server(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(given) = env::var_os(variable).filter(|given| !given.is_empty()) {
        return Some(PathBuf::from(given));
    }
    // Debian keeps nats-server where only root's search path looks.
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").to_string()
}

fn start_nats(path: &Path) -> (Process, String) {
    let address = free_address();
    let port = address.rsplit(':').next().unwrap_or_default();
    let mut command = guarded::command(path);
    command.args(["--addr", "127.0.0.1", "--port", port]).stderr(Stdio::null());
    let mut process = Process::start("nats-server", &mut command);
    process.wait_for(|| TcpStream::connect(&address).ok());
    (process, address)
}

fn start_etcd(path: &Path, scratch: &Path) -> (Process, String) {
    let address = free_address();
    let (client, peer) = (format!("http://{address}"), format!("http://{}", free_address()));
    let mut command = guarded::command(path);
    command
        .args(["--name", "test", "--log-level", "error", "--data-dir"])
        .arg(scratch.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .stderr(Stdio::null());
    let mut process = Process::start("etcd", &mut command);
    process.wait_for(|| TcpStream::connect(&address).ok());
    (process, address)
}

/// The worker stands next to the gateway. It is another package's binary, so cargo does not promise to have built it
/// for this test: it is built here when it is missing or older than what it is made of.
fn worker_binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let binary = Path::new(env!("CARGO_BIN_EXE_gateway")).with_file_name("worker");
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace");
        let newest = ["worker", "shared", "proto"]
            .iter()
            .filter_map(|name| newest_source(&workspace.join(name)))
            .max();
        let built = fs::metadata(&binary).and_then(|data| data.modified()).ok();
        if built < newest {
            let profile = binary.parent().and_then(Path::file_name).is_some_and(|n| n == "release");
            let status = Command::new(env!("CARGO"))
                .current_dir(workspace)
                .args(["build", "-p", "dragonfruit-worker", "--bin", "worker"])
                .args(profile.then_some("--release"))
                .status()
                .expect("cargo runs this test, so it can run again");
            assert!(status.success(), "the worker does not build: {status}");
        }
        binary
    })
}

/// The time of the last change below a package's `src`.
fn newest_source(folder: &Path) -> Option<SystemTime> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                let is_test = path.ends_with("tests") || path.ends_with("target");
                return if is_test { None } else { newest_source(&path) };
            }
            path.extension().filter(|ending| *ending == "rs")?;
            entry.metadata().ok()?.modified().ok()
        })
        .max()
}
