//! Jobs in a real Redis: the keys and texts of go-workers, and what is left after failures, crashes and outages.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

#[path = "../../shared/tests/servers/mod.rs"]
mod servers;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::ConnectionManager;
use serde_json::{Value, json};
use servers::{Etcd, Nats, Redis};
use shared::config::{Binary, Config};
use support::Harness;
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, Notify, mpsc};
use tokio::time::{sleep, timeout};
use worker::prelude::*;
use worker::{JobOptions, RetryOptions};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A job as a Go server of Pitaya enqueues it.
const GO_JOB: &str = r#"{"queue":"rpc","class":"","args":{"Route":"room.jobs.log","Metadata":{"n":5,"stack":"green"},"Arg":{"id":9007199254740993,"uid":"u\u003c1\u003e","data":"AQID"},"Reply":{}},"jid":"03d604874deeffc7b80320d6","enqueued_at":1795221096.5367367,"retry":true,"retry_max":2,"retry_options":{"exp":5,"min_delay":10,"max_delay":10,"max_rand":0},"connection_options":{"Address":"","Password":"","Database":"","ProcessID":"","Namespace":"","PoolSize":0,"PoolInterval":0,"DialOptions":null}}"#;

#[derive(Serialize, Deserialize, Debug, PartialEq, Clone)]
struct Log {
    id: i64,
    uid: String,
    #[serde(with = "worker::go_bytes")]
    data: Bytes,
}

fn log(id: i64) -> Log {
    Log { id, uid: "u<1>".into(), data: Bytes::from_static(&[1, 2, 3]) }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let reached = async {
        while !ask().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(PATIENCE, reached).await.is_ok(), "it takes too long: {what}");
}

async fn client(redis: &Redis) -> ConnectionManager {
    let client = redis::Client::open(format!("redis://{}", redis.address())).unwrap();
    soon(ConnectionManager::new(client)).await.unwrap()
}

/// Somebody who makes jobs.
async fn jobs(options: JobOptions) -> (Harness, Jobs) {
    let (sender, receiver) = std_mpsc::channel();
    let app = App::new("room").job_options(options).on_start(move |jobs: Jobs| {
        sender.send(jobs).unwrap();
        std::future::ready(Ok::<_, Error>(()))
    });
    let harness = Harness::new(app).await;
    (harness, receiver.recv().unwrap())
}

/// Servers that consumers need.
struct World {
    nats: Nats,
    etcd: Etcd,
    redis: Redis,
}

impl World {
    /// None, said loudly, when there is no redis-server.
    fn start() -> Option<Self> {
        let redis = Redis::start(&[])?;
        Some(Self { nats: Nats::start(&[]), etcd: Etcd::start(), redis })
    }

    fn config(&self, more: &[(&str, &str)]) -> Config {
        let (nats, etcd, redis) = (self.nats.url(), self.etcd.url(), self.redis.address());
        let mut flags = vec![
            ("pitaya.nats.connect", nats.as_str()),
            ("pitaya.cluster.sd.etcd.endpoints", etcd.as_str()),
            ("pitaya.cluster.sd.etcd.shutdown.delay", "10ms"),
            ("pitaya.worker.redis.serverurl", redis.as_str()),
            ("pitaya.server.id", "room-1"),
            ("pitaya.admin.listen", "127.0.0.1:0"),
        ];
        flags.extend(more);
        let flags: Vec<_> =
            flags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Config::load(Binary::Worker, None, std::iter::empty(), &flags).unwrap()
    }

    /// A consumer in a runtime of its own, so that it can be killed.
    fn consumer(&self, app: App, more: &[(&str, &str)]) -> Consumer {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let config = self.config(more);
        let (stop, stops) = mpsc::channel(4);
        let end = runtime.spawn(async move { app.run_until(&config, stops).await });
        Consumer { runtime, stop, end }
    }
}

struct Consumer {
    runtime: Runtime,
    stop: mpsc::Sender<()>,
    end: tokio::task::JoinHandle<worker::Result<()>>,
}

impl Consumer {
    async fn stop(self) {
        self.stop.send(()).await.unwrap();
        soon(self.end).await.unwrap().unwrap();
        self.runtime.shutdown_background();
    }

    /// As a crash: nothing is finished, nothing is given back.
    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

fn in_progress(process: &str) -> String {
    format!("queue:rpc:{process}:inprogress")
}

fn own_process() -> String {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    format!("{}:room-1", hostname.trim())
}

/// An application that hands over the arguments of its jobs.
fn collector() -> (App, mpsc::UnboundedReceiver<Log>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let app = App::new("room").on_job("room.jobs.log", move |log: Log| {
        let _ = sender.send(log);
        std::future::ready(Ok::<_, Error>(()))
    });
    (app, receiver)
}

#[tokio::test]
async fn a_job_of_ours_lies_where_go_consumers_look_with_what_they_read() {
    let Some(redis) = Redis::start(&["--requirepass", "secret"]) else { return };
    let retry = RetryOptions {
        is_enabled: true,
        max: 2,
        exponential: 5,
        min_delay_s: 10,
        max_delay_s: 10,
        max_random_s: 0,
    };
    let options = JobOptions {
        address: redis.address(),
        password: "secret".into(),
        namespace: "game".into(),
        retry,
        ..JobOptions::default()
    };
    let (_harness, jobs) = jobs(options).await;
    let jobs = jobs.with("n", 5).with("stack", "green");
    let jid = soon(jobs.enqueue("room.jobs.log", &log(9_007_199_254_740_993))).await.unwrap();
    let url = format!("redis://:secret@{}", redis.address());
    let client = redis::Client::open(url).unwrap();
    let mut client = soon(ConnectionManager::new(client)).await.unwrap();
    let queues: Vec<String> = client.smembers("game:queues").await.unwrap();
    assert_eq!(queues, ["rpc"]);
    let mut texts: Vec<String> = client.lrange("game:queue:rpc", 0, -1).await.unwrap();
    let mut ours: Value = serde_json::from_str(&texts.pop().unwrap()).unwrap();
    let mut theirs: Value = serde_json::from_str(GO_JOB).unwrap();
    assert_eq!(ours["jid"], json!(jid));
    for volatile in ["jid", "enqueued_at"] {
        assert_eq!(ours[volatile].is_number(), theirs[volatile].is_number());
        ours[volatile].take();
        theirs[volatile].take();
    }
    assert_eq!(ours, theirs);

    soon(jobs.retry(RetryOptions { is_enabled: false, max: 0, ..retry }).enqueue("a.b.c", &1))
        .await
        .unwrap();
    let newest: Vec<String> = client.lrange("game:queue:rpc", 0, 0).await.unwrap();
    assert!(!newest[0].contains("\"retry\":"), "{}", newest[0]);
}

#[tokio::test]
async fn jobs_of_go_servers_are_run_and_counted() {
    let Some(world) = World::start() else { return };
    let mut client = client(&world.redis).await;
    let (app, mut ran) = collector();
    let consumer = world.consumer(app, &[]);
    let () = client.lpush("queue:rpc", GO_JOB).await.unwrap();
    assert_eq!(soon(ran.recv()).await.unwrap(), log(9_007_199_254_740_993));
    until("its end is written", async || {
        client.clone().llen::<_, usize>(in_progress(&own_process())).await.unwrap() == 0
            && client.clone().get::<_, Option<u32>>("stat:processed").await.unwrap() == Some(1)
    })
    .await;
    let days: Vec<String> = client.keys("stat:processed:*").await.unwrap();
    assert_eq!(days.len(), 1);
    assert_eq!(days[0].len(), "stat:processed:2006-01-02".len(), "{days:?}");
    consumer.stop().await;
    let left: Vec<String> = client.keys("dragonfruit:*").await.unwrap();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn failed_jobs_wait_for_their_next_try_as_go_workers_expect_it() {
    let Some(world) = World::start() else { return };
    let mut client = client(&world.redis).await;
    let app = App::new("room").on_job("room.jobs.log", async |log: Log| -> Result<()> {
        assert_ne!(log.id, 1, "a panic fails a job too");
        bail!("GAME-1", "not today")
    });
    let consumer = world.consumer(app, &[("pitaya.worker.namespace", "game")]);
    let never = GO_JOB.replace(r#""retry":true,"#, "");
    let panics = GO_JOB.replace("9007199254740993", "1");
    let nobody = GO_JOB.replace("room.jobs.log", "room.jobs.nobody");
    let texts = [GO_JOB, &never, "no job at all", &panics, &nobody];
    let () = client.lpush("game:queue:rpc", &texts[..]).await.unwrap();
    until("all have failed", async || {
        client.clone().get::<_, Option<u32>>("game:stat:failed").await.unwrap() == Some(5)
    })
    .await;
    let retries: Vec<(String, f64)> =
        client.zrange_withscores("game:goretry", 0, -1).await.unwrap();
    let find = |part: &str| {
        let (text, due_s) = retries.iter().find(|(text, _)| text.contains(part)).unwrap();
        (serde_json::from_str::<Value>(text).unwrap(), *due_s)
    };
    assert_eq!(retries.len(), 3, "{retries:?}");
    let (job, due_s) = find("not today");
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!((due_s - now_s.as_secs_f64()).abs() < 15.0);
    assert_eq!((&job["queue"], &job["retry_count"]), (&json!("game:rpc"), &json!(0)));
    assert_eq!(job["args"]["Arg"]["id"], json!(9_007_199_254_740_993_i64));
    assert!(job["failed_at"].as_str().unwrap().ends_with(" UTC"));
    assert!(find("a panic fails").0["jid"].is_string());
    assert_eq!(find("nobody").0["error_message"], json!("nobody handles jobs of room.jobs.nobody"));
    consumer.stop().await;
    let left: Vec<String> = client.keys("game:queue:*").await.unwrap();
    assert_eq!(left, [""; 0], "nothing is in hand or waits");
}

#[tokio::test]
async fn due_jobs_and_those_of_dead_consumers_are_run() {
    let Some(world) = World::start() else { return };
    let mut client = client(&world.redis).await;
    let job = |id: u32| GO_JOB.replace("9007199254740993", &id.to_string());
    let put_back = job(1).replace(r#""queue":"rpc""#, r#""queue":"game:rpc""#);
    let () = client.zadd("game:goretry", put_back, 1).await.unwrap();
    let () = client.zadd("game:goretry", job(99), 4e9).await.unwrap();
    let () = client.zadd("game:goretry", "no job", 2).await.unwrap();
    let () = client.zadd("game:schedule", job(2), 1).await.unwrap();
    // Somebody who is dead, somebody who lives, and a Go consumer, who gives no sign of life.
    let () = client.sadd("game:dragonfruit:consumers", &["dead", "alive"][..]).await.unwrap();
    let () = client.set("game:dragonfruit:alive:alive", 1).await.unwrap();
    for (process, id) in [("dead", 3), ("alive", 98), ("gohost", 97)] {
        let () = client.lpush(format!("game:{}", in_progress(process)), job(id)).await.unwrap();
    }
    // Of this very process, from an earlier life.
    let own = format!("game:{}", in_progress(&own_process()));
    let () = client.lpush(own, job(4)).await.unwrap();
    let (app, mut ran) = collector();
    let consumer = world.consumer(app, &[("pitaya.worker.namespace", "game")]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(soon(ran.recv()).await.unwrap().id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4]);
    consumer.stop().await;
    assert!(ran.recv().await.is_none(), "each once");
    let left: Vec<String> = client.keys("game:queue:*").await.unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(client.zcard::<_, usize>("game:goretry").await.unwrap(), 1);
}

#[tokio::test]
async fn a_killed_consumer_loses_no_job() {
    let Some(world) = World::start() else { return };
    let mut client = client(&world.redis).await;
    let began = Arc::new(Notify::new());
    let begins = Arc::clone(&began);
    let app = App::new("room").on_job("room.jobs.log", move |_: Log| {
        begins.notify_one();
        std::future::pending::<Result<()>>()
    });
    let consumer = world.consumer(app, &[]);
    for id in 0..3 {
        let job = GO_JOB.replace("9007199254740993", &id.to_string());
        let () = client.lpush("queue:rpc", job).await.unwrap();
    }
    soon(began.notified()).await;
    consumer.kill();
    let (app, mut ran) = collector();
    let consumer = world.consumer(app, &[]);
    for id in 0..3 {
        assert_eq!(soon(ran.recv()).await.unwrap().id, id);
    }
    consumer.stop().await;
    assert_eq!(client.llen::<_, usize>(in_progress(&own_process())).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stop_waits_for_jobs_and_jobs_run_side_by_side() {
    let Some(world) = World::start() else { return };
    let mut client = client(&world.redis).await;
    let barrier = Arc::new(Barrier::new(4));
    let (ended, meet) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&barrier));
    let counter = Arc::clone(&ended);
    let app = App::new("room").on_job("room.jobs.log", move |_: Log| {
        let (barrier, ended) = (Arc::clone(&meet), Arc::clone(&counter));
        async move {
            barrier.wait().await;
            barrier.wait().await;
            ended.fetch_add(1, Ordering::Relaxed);
        }
    });
    let consumer = world.consumer(app, &[("pitaya.worker.concurrency", "3")]);
    for _ in 0..3 {
        let () = client.lpush("queue:rpc", GO_JOB).await.unwrap();
    }
    // All three are running now, although their texts are equal.
    soon(barrier.wait()).await;
    consumer.stop.send(()).await.unwrap();
    let waiting = sleep(Duration::from_millis(100));
    assert!(!consumer.end.is_finished());
    waiting.await;
    assert!(!consumer.end.is_finished(), "jobs are waited for");
    soon(barrier.wait()).await;
    soon(consumer.end).await.unwrap().unwrap();
    consumer.runtime.shutdown_background();
    assert_eq!(ended.load(Ordering::Relaxed), 3);
    assert_eq!(client.get::<_, u32>("stat:processed").await.unwrap(), 3);
    assert_eq!(client.keys::<_, Vec<String>>("queue:*").await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn losing_redis_ends_nothing_and_loses_no_job() {
    let Some(mut world) = World::start() else { return };
    let (release, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (sender, mut ran) = mpsc::unbounded_channel();
    let (waits, begins) = (Arc::clone(&release), Arc::clone(&began));
    let app = App::new("room").on_job("room.jobs.log", move |log: Log| {
        let (waits, begins, sender) = (Arc::clone(&waits), Arc::clone(&begins), sender.clone());
        async move {
            if log.id == 1 {
                begins.notify_one();
                waits.notified().await;
            }
            sender.send(log.id).unwrap();
        }
    });
    let consumer = world.consumer(app, &[]);
    let options = JobOptions { address: world.redis.address(), ..JobOptions::default() };
    let (_harness, jobs) = jobs(options).await;
    soon(jobs.enqueue("room.jobs.log", &log(1))).await.unwrap();
    soon(began.notified()).await;
    world.redis.kill();
    let error = soon(jobs.enqueue("room.jobs.log", &log(2))).await.unwrap_err();
    assert_eq!(error.code, "PIT-500", "{error}");
    // The job ends while nobody can be told.
    release.notify_one();
    assert_eq!(soon(ran.recv()).await.unwrap(), 1);
    world.redis.restart_same_port();
    let client = client(&world.redis).await;
    until("its end is written", async || {
        client.clone().get::<_, Option<u32>>("stat:processed").await.unwrap() == Some(1)
    })
    .await;
    soon(async { while jobs.enqueue("room.jobs.log", &log(3)).await.is_err() {} }).await;
    assert_eq!(soon(ran.recv()).await.unwrap(), 3);
    world.redis.pause();
    assert!(soon(jobs.enqueue("room.jobs.log", &log(4))).await.is_err());
    world.redis.resume();
    // What was sent to the frozen server may have been taken, which is what the error says.
    soon(async { while jobs.enqueue("room.jobs.log", &log(5)).await.is_err() {} }).await;
    while soon(ran.recv()).await.unwrap() != 5 {}
    consumer.stop().await;
    assert_eq!(client.clone().keys::<_, Vec<String>>("queue:*").await.unwrap(), [""; 0]);
}
