//! What a gateway says of itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use shared::close::CloseReason;

/// Longer than anything here takes, even on a machine with other work.
const LONG: Duration = Duration::from_secs(60);

/// The gateway's metrics as text.
pub(crate) fn metrics(admin: SocketAddr) -> String {
    let mut socket = TcpStream::connect(admin).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// The sum of all series of this name whose labels contain `label`.
pub(crate) fn value(metrics: &str, name: &str, label: &str) -> u64 {
    let series = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// How many connections ended for this reason.
pub(crate) fn closed_total(metrics: &str, reason: CloseReason) -> u64 {
    let label = format!(r#"reason="{}""#, reason.label());
    value(metrics, "pitaya_acceptor_closed_total", &label)
}

/// Waits until `is_so`, with a generous deadline.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
