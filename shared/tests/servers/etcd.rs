//! A real etcd for one test: on free ports, with its data in a directory of its own, gone when the test ends.
//!
//! What tests do to it by hand goes through its JSON gateway, so that it does not depend on the client under test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

#[allow(clippy::duplicate_mod, reason = "the worker's tests start all kinds of servers")]
mod guarded;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running etcd, or one that was stopped and can be started again on the same port and data.
pub(crate) struct Etcd {
    directory: TempDir,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
    /// Of the root user, once authentication is on.
    token: Option<String>,
}

impl Etcd {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        // Somebody else may take a port between the look and the use, so a server that ends at once is tried again.
        for _ in 0..5 {
            let [client_port, peer_port] = free_ports();
            let directory = tempfile::tempdir().expect("a temporary directory");
            let mut etcd = Self { directory, client_port, peer_port, process: None, token: None };
            if etcd.try_start() {
                return etcd;
            }
            eprintln!("etcd did not start:\n{}", etcd.log());
        }
        panic!("etcd did not start five times in a row");
    }

    /// `host:port` for clients.
    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Kills it as a crash would; the data stays.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again on the same port and data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        assert!(self.try_start(), "etcd did not start again:\n{}", self.log());
    }

    /// Deletes all data. Only while it does not run.
    pub(crate) fn wipe(&mut self) {
        assert!(self.process.is_none(), "the data of a running etcd cannot be wiped");
        std::fs::remove_dir_all(self.directory.path().join("data")).expect("the data directory");
    }

    /// Stops it from doing anything; its connections stay open.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on after [`Etcd::pause`].
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// Writes a key, on a lease unless that is 0.
    pub(crate) fn put(&self, key: &str, value: &str, lease: i64) {
        self.post(
            "kv/put",
            &json!({"key": base64(key), "value": base64(value), "lease": lease.to_string()}),
        );
    }

    /// Deletes a key.
    pub(crate) fn delete(&self, key: &str) {
        self.post("kv/deleterange", &json!({"key": base64(key)}));
    }

    /// Value and lease of a key.
    pub(crate) fn key(&self, key: &str) -> Option<(String, i64)> {
        let answer = self.post("kv/range", &json!({"key": base64(key)}));
        let found = answer["kvs"].get(0)?;
        let lease = found["lease"].as_str().map_or(0, |lease| lease.parse().expect("a lease id"));
        Some((unbase64(found["value"].as_str().unwrap_or("")), lease))
    }

    /// Ends a lease.
    pub(crate) fn revoke(&self, lease: i64) {
        self.post("lease/revoke", &json!({"ID": lease.to_string()}));
    }

    /// Forgets all revisions before a new one; returns that.
    pub(crate) fn compact(&self) -> i64 {
        // The same revision twice would be an error.
        let answer = self.post("kv/put", &json!({"key": base64("compaction")}));
        let revision = answer["header"]["revision"].as_str().expect("a revision");
        self.post("kv/compaction", &json!({"revision": revision, "physical": true}));
        revision.parse().expect("a revision")
    }

    /// Makes it refuse writes as if its disk quota was used up.
    pub(crate) fn run_out_of_space(&self) {
        self.post("maintenance/alarm", &json!({"action": "ACTIVATE", "alarm": "NOSPACE"}));
    }

    /// Ends [`Etcd::run_out_of_space`].
    pub(crate) fn end_alarm(&self) {
        self.post("maintenance/alarm", &json!({"action": "DEACTIVATE", "alarm": "NOSPACE"}));
    }

    /// Sets the password of a user, whose tokens become invalid by that.
    pub(crate) fn change_password(&self, user: &str, password: &str) {
        self.post("auth/user/changepw", &json!({"name": user, "password": password}));
    }

    /// Switches authentication on, with a user who may do everything below `prefix`. Everything done by hand is done
    /// by root from then on, until the next restart.
    pub(crate) fn require_password(&mut self, user: &str, password: &str, prefix: &str) {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix") += 1;
        let end = base64(std::str::from_utf8(&end).expect("a text prefix"));
        let permission = json!({"permType": "READWRITE", "key": base64(prefix), "range_end": end});
        self.post("auth/user/add", &json!({"name": "root", "password": "root"}));
        self.post("auth/role/add", &json!({"name": "root"}));
        self.post("auth/user/grant", &json!({"user": "root", "role": "root"}));
        self.post("auth/user/add", &json!({"name": user, "password": password}));
        self.post("auth/role/add", &json!({"name": "servers"}));
        self.post("auth/role/grant", &json!({"name": "servers", "perm": permission}));
        self.post("auth/user/grant", &json!({"user": user, "role": "servers"}));
        self.post("auth/enable", &json!({}));
        let answer = self.post("auth/authenticate", &json!({"name": "root", "password": "root"}));
        self.token = answer["token"].as_str().map(str::to_owned);
    }

    fn try_start(&mut self) -> bool {
        let client_url = format!("http://127.0.0.1:{}", self.client_port);
        let peer_url = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.log_path()).expect("a log file");
        let mut command = guarded::command(binary());
        command
            .args(["--name", "test", "--logger", "zap", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("test={peer_url}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = guarded::spawn(command).expect("etcd can be started");
        let process = self.process.insert(child);
        let started_at = Instant::now();
        while process.try_wait().expect("the state of etcd").is_none() {
            if is_healthy(self.client_port) {
                return true;
            }
            assert!(started_at.elapsed() < START_TIMEOUT, "etcd does not become healthy");
            thread::sleep(Duration::from_millis(20));
        }
        self.process = None;
        false
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        // etcd takes an empty token for a wrong one.
        let token = self.token.as_ref().map(|token| format!("\r\nAuthorization: {token}"));
        let head = format!("POST /v3/{path} HTTP/1.0{}", token.unwrap_or_default());
        let (status, answer) = http(self.client_port, &head, &body.to_string()).expect("an answer");
        assert_eq!(status, 200, "{path} {body}: {answer}");
        serde_json::from_str(&answer).expect("a JSON answer")
    }

    fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("etcd runs").id();
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status();
        assert!(status.expect("a shell").success(), "cannot send {name} to etcd");
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of etcd:\n{}", self.log());
        }
        self.kill();
    }
}

/// Two different ports that are free at this moment.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

/// The program: named by `DRAGONFRUIT_ETCD`, or in the search path, or in `.servers` of the repository
/// or a directory below it.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("DRAGONFRUIT_ETCD") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "DRAGONFRUIT_ETCD names {}, which is not there", named.display());
        return named;
    }
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.servers");
    let installed = std::fs::read_dir(&servers).into_iter().flatten().flatten();
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&search_path)
        .chain([servers.clone()])
        .chain(installed.map(|entry| entry.path()))
        .map(|directory| directory.join("etcd"));
    candidates.find(|candidate| candidate.is_file()).unwrap_or_else(|| {
        panic!(
            "\n\nThese tests need a real etcd and found none: not in PATH and not in {}.\n\
             Install the package etcd or etcd-server, or set DRAGONFRUIT_ETCD to the program.\n",
            servers.display()
        )
    })
}

fn is_healthy(port: u16) -> bool {
    matches!(http(port, "GET /health HTTP/1.0", ""), Ok((200, body)) if body.contains("true"))
}

/// One exchange. HTTP/1.0: the answer ends with the connection, and is not cut into chunks.
fn http(port: u16, head: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    write!(stream, "{head}\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let malformed = || std::io::Error::other(format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(malformed)?, body.to_owned()))
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(text: &str) -> String {
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = char::from(BASE64[bits >> (18 - 6 * index) & 0x3f]);
            out.push(if index <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

fn unbase64(text: &str) -> String {
    let mut out = Vec::new();
    let (mut bits, mut bit_count) = (0_usize, 0);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value = BASE64.iter().position(|known| *known == digit).expect("a digit of base64");
        bits = (bits << 6 | value) & 0xffff;
        bit_count += 6;
        if bit_count >= 8 {
            bit_count -= 8;
            out.push((bits >> bit_count) as u8);
        }
    }
    String::from_utf8(out).expect("text")
}
