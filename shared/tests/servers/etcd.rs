//! What tests do to an etcd by hand: keys, leases, alarms, users.
//!
//! It goes through etcd's JSON gateway, so that it does not depend on the client under test. The server itself is
//! started by `servers`, which the test includes as well.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::thread;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::servers;

/// An etcd whose data can be changed by hand.
pub(crate) struct Etcd {
    server: servers::Etcd,
    /// Of the root user, once authentication is on.
    token: Option<String>,
}

impl Etcd {
    /// Starts one and waits until it answers.
    pub(crate) fn start() -> Self {
        Self { server: servers::Etcd::start(), token: None }
    }

    /// `host:port` for clients.
    pub(crate) fn endpoint(&self) -> String {
        self.address().to_string()
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

    /// Streams of clients that are open at the moment.
    pub(crate) fn open_streams(&self) -> i64 {
        let (status, page) = http(self.address(), "GET /metrics HTTP/1.0", "").expect("an answer");
        assert_eq!(status, 200, "{page}");
        let streams = page.lines().filter(|line| line.contains(r#"grpc_type="bidi_stream""#));
        let counts = streams.filter_map(|line| {
            let (series, count) = line.rsplit_once(' ')?;
            let count = count.parse::<i64>().ok()?;
            match series.split('{').next()? {
                "grpc_server_started_total" => Some(count),
                "grpc_server_handled_total" => Some(-count),
                _ => None,
            }
        });
        counts.sum()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        // etcd takes an empty token for a wrong one.
        let token = self.token.as_ref().map(|token| format!("\r\nAuthorization: {token}"));
        let head = format!("POST /v3/{path} HTTP/1.0{}", token.unwrap_or_default());
        let (status, answer) = http(self.address(), &head, &body.to_string()).expect("an answer");
        assert_eq!(status, 200, "{path} {body}: {answer}");
        serde_json::from_str(&answer).expect("a JSON answer")
    }
}

impl Deref for Etcd {
    type Target = servers::Etcd;

    fn deref(&self) -> &servers::Etcd {
        &self.server
    }
}

impl DerefMut for Etcd {
    fn deref_mut(&mut self) -> &mut servers::Etcd {
        &mut self.server
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of etcd:\n{}", self.log());
        }
    }
}

/// One exchange. HTTP/1.0: the answer ends with the connection, and is not cut into chunks.
fn http(address: SocketAddr, head: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
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

fn base64(text: &str) -> String {
    BASE64.encode(text.as_bytes())
}

fn unbase64(text: &str) -> String {
    String::from_utf8(BASE64.decode(text.as_bytes()).expect("base64")).expect("text")
}
