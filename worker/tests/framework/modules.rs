//! Modules, the order of a server's life, and the module that is another program.

use std::time::Duration;

use worker::BinaryModule;
use worker::prelude::*;

use crate::Journal;
use crate::support::{Harness, request};

const LIMIT: Duration = Duration::from_secs(30);

struct Part {
    name: &'static str,
    journal: Journal,
    fails: bool,
}

impl Part {
    fn new(name: &'static str, journal: &Journal) -> Self {
        Self { name, journal: journal.clone(), fails: false }
    }

    fn note(&self, what: &str) {
        self.journal.note(format!("{what} {}", self.name));
    }
}

impl Module for Part {
    async fn init(&self, ctx: Ctx) -> Result<()> {
        assert_eq!(ctx.server_id(), "room-1");
        self.note("init");
        if self.fails { Err(Error::new("GAME-9", "no database")) } else { Ok(()) }
    }

    async fn after_init(&self, _: Ctx) {
        self.note("after init");
    }

    async fn before_shutdown(&self, _: Ctx) {
        self.note("before shutdown");
        assert!(self.name != "bad", "a module that panics");
    }

    async fn shutdown(&self, _: Ctx) -> Result<()> {
        self.note("shutdown");
        if self.name == "bad" { Err(Error::unknown("still open")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn modules_and_components_start_and_end_in_pitayas_order() {
    let journal = Journal::default();
    let app = App::new("room")
        .on_start(journal.step("start 1"))
        .on_ready(journal.step("ready 1"))
        .module("a", Part::new("a", &journal))
        .module("bad", Part::new("bad", &journal))
        .module_first("z", Part::new("z", &journal))
        .on_start(journal.step("start 2"))
        .on_ready(journal.step("ready 2"))
        .before_shutdown(journal.step("before 1"))
        .before_shutdown(async || -> Result<()> { panic!("a hook that panics") })
        .before_shutdown(journal.step("before 2"))
        .on_shutdown(journal.step("end 1"))
        .on_shutdown(journal.step("end 2"));
    let harness = Harness::new(app).await;
    let start = ["start 1", "start 2", "ready 1", "ready 2", "init z", "init a", "init bad"];
    let ready = ["after init z", "after init a", "after init bad"];
    assert_eq!(journal.take(), [&start[..], &ready].concat());
    harness.service.shut_down(LIMIT).await;
    let before = ["before shutdown bad", "before shutdown a", "before shutdown z"];
    let end = ["shutdown bad", "shutdown a", "shutdown z"];
    let components = ["before 2", "before 1", "end 2", "end 1"];
    assert_eq!(journal.take(), [&before[..], &end, &components].concat());
}

#[tokio::test]
async fn a_module_that_cannot_start_ends_the_start_and_those_before_it() {
    let journal = Journal::default();
    let app = App::new("room")
        .module("a", Part::new("a", &journal))
        .module("b", Part { fails: true, ..Part::new("b", &journal) })
        .module("c", Part::new("c", &journal));
    let error = Harness::try_new(app).await.err().unwrap();
    assert_eq!((error.code.as_ref(), error.metadata["module"].as_str()), ("GAME-9", "b"));
    assert_eq!(journal.take(), ["init a", "init b", "shutdown a"]);
}

#[tokio::test]
async fn modules_are_found_by_name_and_type() {
    let journal = Journal::default();
    let app = App::new("room").module("a", Part::new("a", &journal)).on(
        "room.find",
        async |modules: Modules| {
            assert_eq!(modules.find::<Part>("a")?.name, "a");
            let wrong = modules.find::<BinaryModule>("a").err().unwrap();
            assert!(wrong.msg.contains("is not a"), "{}", wrong.msg);
            modules.find::<Part>("b").map(|_| 1)
        },
    );
    let harness = Harness::new(app).await;
    let error = harness.send(&request(1, "room.room.find", "")).error().await;
    assert_eq!(error.1, "module with name b not found");
    let twice = App::new("room")
        .module("a", Part::new("a", &journal))
        .module_first("a", Part::new("a", &journal));
    let error = Harness::try_new(twice).await.err().unwrap();
    assert_eq!(error.msg, "module with name a already exists");
}

/// Runs a shell script as a module of a server, and gives the module to the test.
async fn with_script<T>(
    script: &str,
    change: impl FnOnce(BinaryModule) -> BinaryModule,
    test: impl AsyncFnOnce(std::sync::Arc<BinaryModule>, Harness) -> T,
) -> T {
    let (give, given) = tokio::sync::oneshot::channel();
    let give = std::sync::Mutex::new(Some(give));
    let module = change(BinaryModule::new("/bin/sh").argument("-c").argument(script));
    let app = App::new("room").module("script", module).on("room.find", move |modules: Modules| {
        let give = give.lock().unwrap().take().unwrap();
        async move {
            let _ = give.send(modules.find::<BinaryModule>("script")?);
            Ok::<_, Error>(1)
        }
    });
    let harness = Harness::new(app).await;
    harness.send(&request(1, "room.room.find", "")).data().await;
    test(given.await.unwrap(), harness).await
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}/stat")).exists()
}

#[tokio::test]
async fn a_program_lives_as_long_as_the_server_and_its_output_is_logged() {
    let directory = tempfile::tempdir().unwrap();
    let ended = directory.path().join("ended");
    // `read` notices the end of its input, which only comes if the server dies without a word.
    let script = format!(
        "trap 'echo over > {}; exit 7' TERM; echo hello; echo trouble >&2; while :; do sleep 0.05; done",
        ended.display()
    );
    let log = LogLines::new();
    let _guard = log.install();
    with_script(
        &script,
        |module| module.variable("GAME", "chess"),
        async |module, harness| {
            let pid = module.process_id().unwrap();
            assert!(is_alive(pid));
            log.wait_for("INFO hello").await;
            log.wait_for("ERROR trouble").await;
            harness.service.shut_down(LIMIT).await;
            assert_eq!(module.exited().await.code(), Some(7));
            assert_eq!((module.process_id(), is_alive(pid)), (None, false));
            assert_eq!(std::fs::read_to_string(&ended).unwrap(), "over\n");
        },
    )
    .await;
}

#[tokio::test]
async fn a_program_that_does_not_end_is_killed_after_its_grace() {
    let log = LogLines::new();
    let _guard = log.install();
    let grace = |module: BinaryModule| module.grace(Duration::from_millis(50));
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    with_script(script, grace, async |module, harness| {
        log.wait_for("INFO ready").await;
        harness.service.shut_down(LIMIT).await;
        assert_eq!(module.exited().await.code(), None, "killed by a signal");
        log.wait_for("timeout waiting to binary module to die").await;
    })
    .await;
}

#[tokio::test]
async fn a_program_that_ends_by_itself_or_cannot_start_is_reported() {
    let log = LogLines::new();
    let _guard = log.install();
    with_script(
        "exit 3",
        |module| module,
        async |module, harness| {
            assert_eq!(module.exited().await.code(), Some(3));
            log.wait_for("ended by itself").await;
            assert_eq!(module.process_id(), None);
            harness.service.shut_down(LIMIT).await;
        },
    )
    .await;
    let app = App::new("room").module("none", BinaryModule::new("/no/such/program"));
    let error = Harness::try_new(app).await.err().unwrap();
    assert!(error.msg.contains("/no/such/program"), "{}", error.msg);
}

/// The log of one thread.
#[derive(Clone, Default)]
struct LogLines(std::sync::Arc<(std::sync::Mutex<String>, tokio::sync::Notify)>);

impl LogLines {
    fn new() -> Self {
        Self::default()
    }

    fn install(&self) -> tracing::subscriber::DefaultGuard {
        let lines = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .with_writer(move || lines.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    async fn wait_for(&self, text: &str) {
        let found = async {
            loop {
                let changed = self.0.1.notified();
                // Levels are padded to the longest.
                if self.0.0.lock().unwrap().contains(text) {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, found).await;
        assert!(waited.is_ok(), "{text:?} is not in the log: {}", self.0.0.lock().unwrap());
    }
}

impl std::io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        self.0.1.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
