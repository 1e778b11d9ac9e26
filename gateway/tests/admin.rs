//! The port for administrators over plain sockets, as curl and Prometheus see it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gateway::admin::{Admin, AdminSources, CONNECTIONS_MAX, Readiness};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn start(count: usize, readiness: Readiness) -> (Admin, Arc<Readiness>) {
    let readiness = Arc::new(readiness);
    let scrapes = AtomicUsize::new(0);
    let metrics =
        move || format!("scrapes_total {}\n", scrapes.fetch_add(1, Ordering::Relaxed) + 1);
    let sources = AdminSources {
        metrics: Arc::new(metrics),
        readiness: Arc::clone(&readiness),
        actions: None,
    };
    let admin = Admin::start(&vec![loopback(); count], sources).await.expect("free ports");
    (admin, readiness)
}

/// Sends a whole request on a connection of its own; returns the whole answer.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    timeout(PATIENCE, exchange).await.expect("in time").expect("an answer")
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, &request).await;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), answer)
}

#[tokio::test]
async fn metrics_are_rendered_for_each_scrape() {
    let (admin, _) = start(1, Readiness::standalone()).await;
    for number in 1..=2 {
        let (status, answer) = get(admin.addresses()[0], "/metrics").await;
        assert_eq!(status, 200);
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with(&format!("\r\n\r\nscrapes_total {number}\n")), "{answer}");
    }
}

#[tokio::test]
async fn readiness_follows_the_conditions_and_names_them() {
    let (admin, readiness) = start(1, Readiness::cluster(2)).await;
    let address = admin.addresses()[0];
    let (status, answer) = get(address, "/readyz").await;
    assert_eq!(status, 503);
    let body = r#"{"bus":[false,false],"discovery":false,"listeners":false,"ready":false}"#;
    assert!(answer.ends_with(&format!("\r\n\r\n{body}\n")), "{answer}");
    assert_eq!(get(address, "/healthz").await.0, 200, "alive although not ready");

    readiness.set_listeners(true);
    readiness.set_registered(true);
    readiness.set_bus(0, true);
    assert_eq!(get(address, "/readyz").await.0, 503);
    readiness.set_bus(1, true);
    let (status, answer) = get(address, "/readyz").await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    readiness.set_bus(0, false);
    let (status, answer) = get(address, "/readyz").await;
    assert!(status == 503 && answer.contains(r#""bus":[false,true]"#), "{answer}");
}

#[tokio::test]
async fn every_address_answers() {
    let (admin, _) = start(3, Readiness::standalone()).await;
    assert_eq!(admin.addresses().len(), 3);
    for address in admin.addresses() {
        assert_eq!(get(*address, "/healthz").await.0, 200);
    }
}

#[tokio::test]
async fn unknown_paths_methods_and_garbage_are_refused() {
    let (admin, _) = start(1, Readiness::standalone()).await;
    let address = admin.addresses()[0];
    assert_eq!(get(address, "/").await.0, 404);
    let post =
        "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(exchange(address, post).await.starts_with("HTTP/1.1 405 "));
    let garbage = exchange(address, "\u{1}\u{2}\r\n\r\n").await;
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400 "), "{garbage}");
    let head =
        exchange(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn an_address_in_use_is_named_in_the_error() {
    let taken = TcpListener::bind(loopback()).await.expect("a free port");
    let address = taken.local_addr().expect("an address");
    let readiness = Arc::new(Readiness::standalone());
    let sources = AdminSources { metrics: Arc::new(String::new), readiness, actions: None };
    let error = Admin::start(&[loopback(), address], sources).await.err().expect("an error");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_others_end() {
    let (admin, _) = start(1, Readiness::standalone()).await;
    let address = admin.addresses()[0];
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // An answer proves that this one has its place.
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
        let mut first = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut first))
            .await
            .expect("in time")
            .expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
        idle.push(stream);
    }
    let waiting = tokio::spawn(get(address, "/healthz"));
    let early = timeout(Duration::from_millis(100), get(address, "/healthz")).await;
    assert!(early.is_err(), "one connection too many was served");
    idle.pop();
    idle.pop();
    assert_eq!(timeout(PATIENCE, waiting).await.expect("in time").expect("no panic").0, 200);
}

#[tokio::test]
async fn shutdown_closes_the_port_and_idle_connections() {
    let (admin, _) = start(1, Readiness::standalone()).await;
    let address = admin.addresses()[0];
    let mut kept = TcpStream::connect(address).await.expect("a connection");
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
    let mut first = [0; 12];
    timeout(PATIENCE, kept.read_exact(&mut first)).await.expect("in time").expect("an answer");
    timeout(PATIENCE, admin.shutdown()).await.expect("a bounded shutdown");
    let mut rest = Vec::new();
    timeout(PATIENCE, kept.read_to_end(&mut rest)).await.expect("in time").expect("a clean end");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_half_sent_request_does_not_hold_up_the_shutdown() {
    let (admin, _) = start(1, Readiness::standalone()).await;
    let mut slow = TcpStream::connect(admin.addresses()[0]).await.expect("a connection");
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHos").await.expect("half a request");
    assert_eq!(get(admin.addresses()[0], "/healthz").await.0, 200);
    timeout(PATIENCE, admin.shutdown()).await.expect("a bounded shutdown");
}
