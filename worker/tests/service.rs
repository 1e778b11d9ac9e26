//! The service over a link in memory: order, bounds, time, panics and the table of errors.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod support;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prost::Message;
use support::{Harness, notify, request, with_timeout};
use tokio::sync::{Notify, Semaphore};
use worker::prelude::*;
use worker::{Counter, Limits};

/// Holds handlers back until the test lets them go, and notes who started.
struct Gate {
    started: Mutex<Vec<i64>>,
    changed: Notify,
    open: Semaphore,
}

impl Gate {
    fn new() -> Arc<Self> {
        let (started, changed) = (Mutex::default(), Notify::new());
        Arc::new(Self { started, changed, open: Semaphore::new(0) })
    }

    async fn pass(&self, who: i64) {
        self.started.lock().unwrap().push(who);
        self.changed.notify_one();
        self.open.acquire().await.unwrap().forget();
    }

    async fn wait_for_started(&self, count: usize) {
        while self.started.lock().unwrap().len() < count {
            self.changed.notified().await;
        }
    }
}

fn gated(gate: &Arc<Gate>) -> App {
    let (slow, wide) = (Arc::clone(gate), Arc::clone(gate));
    App::new("room")
        .on("gate.slow", move |number: i64| {
            let gate = Arc::clone(&slow);
            async move {
                gate.pass(number).await;
                Ok::<_, Error>(number)
            }
        })
        .on("gate.wide", move |number: i64| {
            let gate = Arc::clone(&wide);
            async move {
                gate.pass(number).await;
                Ok::<_, Error>(number)
            }
        })
        .on("gate.echo", async |data: Bytes| Ok::<_, Error>(data))
        .concurrent("gate.wide")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_of_one_session_run_in_the_order_of_arrival() {
    let seen: Arc<Mutex<Vec<(i64, u32)>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let app = App::new("room").on("a.b", move |session: Session, number: u32| {
        let noted = Arc::clone(&noted);
        async move {
            // Ready handlers, waiting ones and ones that hop threads take turns.
            for _ in 0..number % 3 {
                tokio::task::yield_now().await;
            }
            noted.lock().unwrap().push((session.id(), number));
        }
    });
    // Nothing is refused, however slow the machine is at the moment.
    let limits = Limits {
        session_waiting_max: 500,
        waiting_age_max: Duration::from_secs(3_600),
        ..Limits::default()
    };
    let harness = Harness::new(app.limits(limits)).await;
    let mut answers = Vec::new();
    for number in 0..400u32 {
        for session in 1..=8 {
            answers.push(harness.send(&notify(session, "room.a.b", number.to_string())));
        }
    }
    for answer in answers {
        assert_eq!(&answer.data().await[..], b"ack");
    }
    let seen = seen.lock().unwrap();
    for session in 1..=8 {
        let numbers = seen.iter().filter(|(id, _)| *id == session).map(|(_, number)| *number);
        assert!(numbers.eq(0..400), "session {session}");
    }
}

#[tokio::test]
async fn a_slow_handler_holds_up_its_session_and_no_other() {
    let gate = Gate::new();
    let harness = Harness::new(gated(&gate)).await;
    let slow = harness.send(&request(1, "room.gate.slow", "1"));
    let behind = harness.send(&request(1, "room.gate.echo", "behind"));
    gate.wait_for_started(1).await;
    assert_eq!(&harness.send(&request(2, "room.gate.echo", "other")).data().await[..], b"other");
    assert_eq!(harness.service.in_flight(), 2);
    gate.open.add_permits(1);
    assert_eq!(&slow.data().await[..], b"1");
    assert_eq!(&behind.data().await[..], b"behind");
}

#[tokio::test]
async fn requests_may_come_from_threads_without_a_runtime() {
    let gate = Gate::new();
    let harness = Arc::new(Harness::new(gated(&gate)).await);
    let other = Arc::clone(&harness);
    let thread = std::thread::spawn(move || other.send(&request(1, "room.gate.echo", "x")));
    let answer = thread.join().expect("a gateway's reactor has no runtime");
    assert_eq!(&answer.data().await[..], b"x");
}

#[tokio::test]
async fn no_more_handlers_run_at_once_than_allowed() {
    let gate = Gate::new();
    let limits = Limits { running_max: 2, ..Limits::default() };
    let harness = Harness::new(gated(&gate).limits(limits)).await;
    let slow: Vec<_> = (1..=2).map(|s| harness.send(&request(s, "room.gate.slow", "1"))).collect();
    gate.wait_for_started(2).await;
    assert_eq!(harness.service.running(), 2);
    let waiting = harness.send(&with_timeout(request(3, "room.gate.slow", "3"), "50ms"));
    assert_eq!(waiting.error().await.1, "rpc client: request timeout");
    gate.open.add_permits(2);
    for answer in slow {
        answer.data().await;
    }
    assert_eq!(*gate.started.lock().unwrap(), [1, 1]);
    harness.send(&request(3, "room.gate.echo", "")).data().await;
}

#[tokio::test]
async fn the_same_session_id_of_two_gateways_is_two_sessions() {
    let gate = Gate::new();
    let harness = Harness::new(gated(&gate)).await;
    let slow = harness.send(&request(1, "room.gate.slow", "1"));
    gate.wait_for_started(1).await;
    let mut other = request(1, "room.gate.echo", "x");
    other.frontend_id = "front-2".into();
    harness.send(&other).data().await;
    gate.open.add_permits(1);
    slow.data().await;
}

#[tokio::test]
async fn a_concurrent_route_runs_side_by_side() {
    let gate = Gate::new();
    let harness = Harness::new(gated(&gate)).await;
    let answers: Vec<_> =
        (0..3).map(|n| harness.send(&request(1, "room.gate.wide", n.to_string()))).collect();
    gate.wait_for_started(3).await;
    gate.open.add_permits(3);
    for answer in answers {
        answer.data().await;
    }
}

#[tokio::test]
async fn a_full_window_answers_busy_at_once_and_recovers() {
    let gate = Gate::new();
    let limits = Limits { window: 3, ..Limits::default() };
    let harness = Harness::new(gated(&gate).limits(limits)).await;
    let held: Vec<_> = (1..=3).map(|s| harness.send(&request(s, "room.gate.slow", "1"))).collect();
    let (code, _) = harness.send(&request(9, "room.gate.echo", "")).error().await;
    assert_eq!(code, "PIT-503");
    assert_eq!(harness.service.counters().read(Counter::Busy), 1);
    gate.open.add_permits(3);
    for answer in held {
        answer.data().await;
    }
    harness.service.drain(Duration::from_secs(5)).await;
    harness.send(&request(9, "room.gate.echo", "")).data().await;
}

#[tokio::test(start_paused = true)]
async fn what_would_wait_too_long_for_a_handler_is_refused_and_a_slow_handler_alone_refuses_nobody()
{
    let gate = Gate::new();
    let waiting_age_max = Duration::from_millis(100);
    let limits = Limits { running_max: 2, waiting_age_max, ..Limits::default() };
    let harness = Harness::new(gated(&gate).limits(limits)).await;
    let slow = harness.send(&request(1, "room.gate.slow", "1"));
    gate.wait_for_started(1).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    harness.send(&request(2, "room.gate.echo", "")).data().await;
    let slow_too = harness.send(&request(2, "room.gate.slow", "1"));
    gate.wait_for_started(2).await;
    let first = harness.send(&request(3, "room.gate.echo", ""));
    tokio::time::advance(Duration::from_millis(99)).await;
    let second = harness.send(&request(4, "room.gate.echo", ""));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(harness.send(&request(5, "room.gate.echo", "")).error().await.0, "PIT-503");
    gate.open.add_permits(2);
    for answer in [slow, slow_too, first, second] {
        answer.data().await;
    }
    harness.send(&request(5, "room.gate.echo", "")).data().await;
}

#[tokio::test]
async fn a_full_session_queue_answers_busy_and_hurts_no_other_session() {
    let gate = Gate::new();
    let limits = Limits { session_waiting_max: 1, ..Limits::default() };
    let harness = Harness::new(gated(&gate).limits(limits)).await;
    let running = harness.send(&request(1, "room.gate.slow", "1"));
    let waiting = harness.send(&request(1, "room.gate.echo", ""));
    assert_eq!(harness.send(&request(1, "room.gate.echo", "")).error().await.0, "PIT-503");
    harness.send(&request(2, "room.gate.echo", "")).data().await;
    gate.open.add_permits(1);
    running.data().await;
    waiting.data().await;
}

#[tokio::test(start_paused = true)]
async fn what_expired_in_the_queue_is_not_started() {
    let gate = Gate::new();
    let harness = Harness::new(gated(&gate)).await;
    let running = harness.send(&with_timeout(request(1, "room.gate.slow", "1"), "2s"));
    let expired = harness.send(&with_timeout(request(1, "room.gate.slow", "2"), "1s"));
    let alive = harness.send(&with_timeout(request(1, "room.gate.echo", "3"), "3s"));
    let late = ("PIT-500".to_owned(), "rpc client: request timeout".to_owned());
    assert_eq!(running.error().await, late);
    assert_eq!(expired.error().await, late);
    assert_eq!(&alive.data().await[..], b"3");
    assert_eq!(*gate.started.lock().unwrap(), [1]);
    let counters = harness.service.counters();
    assert_eq!((counters.read(Counter::Cancelled), counters.read(Counter::Expired)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_dropped_at_its_deadline() {
    struct NoteDrop(Arc<AtomicU32>);
    impl Drop for NoteDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::<AtomicU32>::default();
    let note = Arc::clone(&dropped);
    let app = App::new("room").on("a.b", move || {
        let note = NoteDrop(Arc::clone(&note));
        async move {
            let _note = note;
            std::future::pending::<Result<u8>>().await
        }
    });
    let harness = Harness::new(app).await;
    let start = tokio::time::Instant::now();
    let answer = harness.send(&with_timeout(request(1, "room.a.b", ""), "250ms"));
    assert_eq!(answer.error().await.1, "rpc client: request timeout");
    assert_eq!(start.elapsed(), Duration::from_millis(250));
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    // Without a timeout of its own a request gets the default one.
    let mut open = request(1, "room.a.b", "");
    open.metadata = "{}".into();
    harness.send(&open).error().await;
    assert_eq!(start.elapsed(), Duration::from_millis(5250));
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_session_goes_on() {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let app = App::new("room")
        .on("a.text", async || -> Result<u8> { panic!("out of {}", "cheese") })
        .on("a.value", async || -> Result<u8> { std::panic::panic_any(7u8) })
        .on("a.early", |_: Bytes| -> std::future::Ready<Result<u8>> { panic!("early") })
        .on("a.drop", async || -> Result<u8> {
            let _trap = PanicsWhenDropped;
            std::future::pending().await
        })
        .on("a.ok", async || Ok::<_, Error>(1));
    let harness = Harness::new(app).await;
    let error = async |route: &str| {
        let request = with_timeout(request(1, route, ""), "100ms");
        harness.send(&request).error().await
    };
    assert_eq!(error("room.a.text").await, ("PIT-000".into(), "out of cheese".into()));
    let (code, text) = error("room.a.value").await;
    assert_eq!(code, "PIT-000");
    assert!(text.starts_with("rpc call internal error - value: "), "{text}");
    assert_eq!(error("room.a.early").await.1, "early");
    assert_eq!(error("room.a.drop").await.1, "dropped");
    assert_eq!(&harness.send(&request(1, "room.a.ok", "")).data().await[..], b"1");
    assert_eq!(harness.service.in_flight(), 0);
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

fn table() -> App {
    App::new("room")
        .on("a.hello", async |name: Name| Ok::<_, Error>(format!("hello {}", name.name)))
        .on("a.told", async |_: Name| {})
        .on("a.plain", async || -> Result<u8> { Err("x".parse::<u8>().unwrap_err())? })
        .on("a.coded", async || -> Result<u8> { bail!("GAME-42", "pit failure") })
        .on("a.none", async || Ok::<Option<u8>, Error>(None))
        .remote("rem.echo", async |doc: Pb<proto::Doc>| Ok::<_, Error>(doc))
}

#[tokio::test]
async fn each_wrong_request_gets_the_answer_of_the_table() {
    let harness = Harness::new(table()).await;
    let ask = async |request: proto::Request| harness.send(&request).error().await;
    let base = || request(1, "room.a.hello", "{\"name\":\"bob\"}");
    let check = |(code, text): (String, String), wanted: &str, part: &str| {
        assert!(code == wanted && text.contains(part), "{code} {text} instead of {wanted} {part}");
    };
    check(harness.send_bytes(&b"\xff\xff"[..]).error().await, "PIT-400", "");
    check(harness.send_bytes(&b""[..]).error().await, "PIT-400", "");
    check(ask(proto::Request { msg: None, ..base() }).await, "PIT-400", "");
    check(
        ask(proto::Request { metadata: Bytes::new(), ..base() }).await,
        "PIT-500",
        "no context found",
    );
    check(ask(proto::Request { metadata: "[]".into(), ..base() }).await, "PIT-500", "");
    check(ask(with_timeout(base(), "abc")).await, "PIT-500", "time: invalid duration \"abc\"");
    check(ask(with_timeout(base(), "-1s")).await, "PIT-500", "rpc client: request timeout");
    check(ask(request(1, "ok", "")).await, "PIT-400", "cannot decode route");
    check(ask(proto::Request { r#type: 7, ..base() }).await, "PIT-400", "invalid rpc type");
    let mut session = base();
    session.session.as_mut().unwrap().data = "[1]".into();
    check(ask(session).await, "PIT-500", "");
    let unknown = request(1, "room.room.nope", "");
    check(ask(unknown).await, "PIT-404", "pitaya/handler: room.room.nope not found");
    check(ask(request(1, "room.a.told", "{}")).await, "PIT-400", "tried to request a notify route");
    check(ask(request(1, "room.a.hello", "")).await, "PIT-400", "unexpected end of JSON input");
    check(ask(request(1, "room.a.hello", "{}")).await, "PIT-400", "missing field");
    check(ask(request(1, "room.a.plain", "")).await, "PIT-000", "invalid digit");
    check(ask(request(1, "room.a.coded", "")).await, "GAME-42", "pit failure");
    check(ask(request(1, "room.a.none", "")).await, "PIT-000", "reply must not be null");
    let user = |route| proto::Request { r#type: 1, session: None, ..request(0, route, "\n\u{1}x") };
    check(ask(user("room.rem.nope")).await, "PIT-404", "route not found");
    check(ask(user("room.a.hello")).await, "PIT-404", "route not found");
    assert_eq!(&harness.send(&user("room.rem.echo")).data().await[..], b"\x0a\x01x");
    assert_eq!(harness.service.in_flight(), 0);
}

#[tokio::test]
async fn the_order_of_the_checks_is_pitayas() {
    let harness = Harness::new(table()).await;
    let mut all_wrong = proto::Request { r#type: 7, metadata: "{".into(), ..request(1, "ok", "") };
    all_wrong.session.as_mut().unwrap().data = "[".into();
    let code = async |request: &proto::Request| harness.send(request).error().await;
    assert_eq!(code(&all_wrong).await.0, "PIT-500");
    all_wrong.metadata = r#"{"reqTimeout":"abc"}"#.into();
    assert!(code(&all_wrong).await.1.contains("duration"));
    all_wrong.metadata = "{}".into();
    assert_eq!(code(&all_wrong).await.1, "cannot decode route");
    all_wrong.msg.as_mut().unwrap().route = "room.a.nope".into();
    assert_eq!(code(&all_wrong).await.1, "invalid rpc type");
    all_wrong.r#type = 0;
    assert_eq!(code(&all_wrong).await.0, "PIT-500");
    all_wrong.session = None;
    assert_eq!(code(&all_wrong).await.0, "PIT-404");
}

#[tokio::test]
async fn a_notify_is_acknowledged_also_by_a_request_handler() {
    let harness = Harness::new(table()).await;
    for route in ["room.a.told", "a.told", "room.a.hello"] {
        assert_eq!(&harness.send(&notify(1, route, "{\"name\":\"x\"}")).data().await[..], b"ack");
    }
    assert_eq!(harness.send(&notify(1, "room.a.coded", "")).error().await.0, "GAME-42");
}

#[tokio::test]
async fn an_answer_above_the_largest_payload_is_an_error_that_fits() {
    let app = App::new("room").on("a.echo", async |data: Bytes| Ok::<_, Error>(data));
    let harness = Harness::new(app).await;
    harness.service.set_answer_bytes_max(1000);
    harness.send(&request(1, "room.a.echo", vec![1; 900])).data().await;
    let response = harness.send(&request(1, "room.a.echo", vec![1; 1000])).response().await;
    assert!(response.encoded_len() <= 1000);
    assert_eq!(response.error.unwrap().msg, "nats: maximum payload exceeded");
}

#[tokio::test]
async fn unknown_routes_and_errors_can_be_taken_over() {
    let app = App::new("room")
        .on("a.fails", async || -> Result<u8> { bail!("X-1", "as ever") })
        .fallback(async |ctx: Ctx| Ok::<_, Error>(ctx.route().to_owned()))
        .map_error(|error| error.with("game", "chess"));
    let harness = Harness::new(app).await;
    assert_eq!(
        &harness.send(&request(1, "room.no.such", "")).data().await[..],
        b"\"room.no.such\""
    );
    let error = harness.send(&request(1, "room.a.fails", "")).response().await.error.unwrap();
    assert_eq!(error.metadata["game"], "chess");
}

#[tokio::test]
async fn all_mistakes_of_registration_are_reported_together() {
    let app = App::new("room")
        .on("a.b", async |_: State<u64>| {})
        .on("a.b", async |_: State<u64>| {})
        .on("room.a.c", async || {})
        .concurrent("a.d")
        .on_start(async || Ok::<u8, Error>(1));
    let text = Harness::try_new(app).await.err().unwrap().msg;
    for part in ["two handlers of a.b", "State<u64>", "\"room.a.c\"", "a.d is concurrent", "hook"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn hooks_run_in_order_and_the_end_waits_for_what_runs() {
    let steps: Arc<Mutex<Vec<&str>>> = Arc::default();
    let step = |name: &'static str| {
        let steps = Arc::clone(&steps);
        move || {
            let steps = Arc::clone(&steps);
            async move { steps.lock().unwrap().push(name) }
        }
    };
    let gate = Gate::new();
    let app = gated(&gate)
        .state(AtomicU64::new(1))
        .on_start(step("start 1"))
        .on_start(step("start 2"))
        .before_shutdown(step("before 1"))
        .before_shutdown(step("before 2"))
        .on_shutdown(step("after"));
    let harness = Harness::new(app).await;
    assert_eq!(*steps.lock().unwrap(), ["start 1", "start 2"]);
    let answer = harness.send(&request(1, "room.gate.slow", "1"));
    gate.wait_for_started(1).await;
    let end = harness.service.shut_down(Duration::from_secs(30));
    let (left, ()) = tokio::join!(end, async { gate.open.add_permits(1) });
    assert_eq!(left, 0);
    assert_eq!(&answer.data().await[..], b"1");
    assert_eq!(steps.lock().unwrap()[2..], ["before 2", "before 1", "after"]);
}
