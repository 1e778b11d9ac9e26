//! Jobs of the application that a gateway hosts, over a real redis-server.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use worker::prelude::*;

use crate::servers::Redis;
use crate::world::{DRIVERS, SOON, World, tcp, until};

#[derive(Serialize, Deserialize)]
struct Reminder {
    uid: String,
    text: String,
}

/// Leaves reminders in Redis, and pushes them when their turn comes.
fn app() -> App {
    App::new("connector")
        .on("entry.bind", async |session: Session, uid: String| -> Result<bool> {
            session.bind(&uid).await?;
            Ok(true)
        })
        .on("entry.remind", async |jobs: Jobs, reminder: Reminder| -> Result<String> {
            jobs.enqueue("connector.jobs.remind", &reminder).await
        })
        .on_job("connector.jobs.remind", async |push: Push, reminder: Reminder| -> Result<()> {
            push.to_users(&[reminder.uid], "connector", "onReminder", &reminder.text).await?;
            Ok(())
        })
}

/// The number that Redis answers an inline command with.
fn number(redis: &Redis, command: &str) -> u64 {
    let mut stream = TcpStream::connect(redis.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "{command}\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().trim_start_matches([':', '*']).parse().unwrap()
}

#[test]
fn a_hosted_application_makes_and_runs_jobs_in_a_cluster_and_alone() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (world, address) = (World::new(), redis.address());
    for (driver, mode) in DRIVERS.into_iter().zip(["cluster", "standalone"]) {
        let settings = [("pitaya.mode", mode), ("pitaya.worker.redis.serverurl", address.as_str())];
        let gateway = world.hosting(driver, app(), &settings);
        let mut client = tcp(&gateway);
        assert!(!client.request("connector.entry.bind", b"\"ann\"").unwrap().is_error, "{mode}");
        for text in ["sleep", "eat"] {
            let reminder = format!(r#"{{"uid":"ann","text":"{text}"}}"#);
            // The push may come before the answer, and is kept then.
            let jid = client.request("connector.entry.remind", reminder.as_bytes()).unwrap();
            let push = client.read_push(SOON).unwrap();
            assert_eq!((push.route.as_str(), push.text()), ("onReminder", format!("{text:?}")));
            assert!(!jid.is_error && jid.text().len() == 2 + 24, "{mode}: {}", jid.text());
        }
        gateway.stop();
        // Nothing waits, nothing is in hand, and nobody is left to be taken for alive.
        assert_eq!(number(&redis, "KEYS queue:*"), 0, "{mode}");
        assert_eq!(number(&redis, "KEYS dragonfruit:*"), 0, "{mode}");
    }
}

#[test]
fn a_gateway_that_stops_waits_for_the_job_that_runs_and_leaves_the_next_one() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (world, address) = (World::new(), redis.address());
    let (began, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begins, ends) = (Arc::clone(&began), Arc::clone(&ended));
    let app = App::new("connector")
        .on("entry.work", async |jobs: Jobs| -> Result<String> {
            jobs.enqueue("connector.jobs.work", &()).await
        })
        .on_job("connector.jobs.work", move || {
            let (begins, ends) = (Arc::clone(&begins), Arc::clone(&ends));
            async move {
                begins.fetch_add(1, Ordering::SeqCst);
                // The work.
                tokio::time::sleep(Duration::from_millis(500)).await;
                ends.fetch_add(1, Ordering::SeqCst);
            }
        });
    let settings = [("pitaya.worker.redis.serverurl", address.as_str())];
    let gateway = world.hosting("uring", app, &settings);
    let mut client = tcp(&gateway);
    for _ in 0..3 {
        assert!(!client.request("connector.entry.work", b"").unwrap().is_error);
    }
    until("a job runs", || (began.load(Ordering::SeqCst) > 0).then_some(()));
    gateway.stop();
    let ended = ended.load(Ordering::SeqCst);
    assert_eq!(ended, began.load(Ordering::SeqCst), "what began has ended");
    assert_eq!(number(&redis, "LLEN queue:rpc") as usize, 3 - ended, "the rest waits for others");
    assert_eq!(number(&redis, "KEYS queue:rpc:*"), 0, "nothing is in hand");
}
