//! An administrator: asks a gateway to do things.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

const LONG: Duration = Duration::from_secs(20);

/// Sends one request, with further header lines, each with its line end; returns status and body.
pub(crate) fn ask_with(
    admin: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, Value) {
    let mut socket = TcpStream::connect(admin).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{headers}\r\n{body}"
    );
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// Sends one request.
pub(crate) fn ask(admin: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
    ask_with(admin, method, path, "", body)
}

/// Bans; returns how far the ban reaches.
pub(crate) fn ban(admin: SocketAddr, body: &str) -> String {
    let (status, answer) = ask(admin, "POST", "/bans", body);
    assert_eq!(status, 200, "{answer}");
    answer["scope"].as_str().unwrap().to_owned()
}

/// Lifts a ban.
pub(crate) fn unban(admin: SocketAddr, subject: &str) {
    let (status, answer) = ask(admin, "DELETE", &format!("/bans?subject={subject}"), "");
    assert_eq!(status, 200, "{answer}");
}
