//! Programs that a comparison starts: where they are, that they are ready, and that they end with it.
//!
//! The invariant: a program that was started here is ended by its id, whether the comparison ends in order, by an
//! error, a panic, or a signal.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// How long a program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a program may take to end by itself.
const END_PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// Lines of a program's log that an error shows.
const LOG_LINES: usize = 15;

/// Ids of the programs that run, and the folder of their logs, for the end by a signal.
static RUNNING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<i32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all programs and this one when a signal asks for it. `folder` is removed.
///
/// Errors: the thread that waits for signals cannot be made.
pub fn end_on_signals(folder: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = kinds.map(signal) else {
                eprintln!("warning: signals cannot be watched");
                return;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // The lock is kept, so that nothing is started meanwhile.
        let ids = running();
        for id in ids.iter().filter_map(|id| Pid::from_raw(*id)) {
            let _ = kill_process(id, Signal::KILL);
        }
        let _ = fs::remove_dir_all(folder);
        std::process::exit(130);
    })?;
    Ok(())
}

/// Looks for a program: where `variable` says, in `PATH`, then in `.servers/*/` of the repository.
pub fn find(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable).map(PathBuf::from) {
        // Who names a program does not want another one.
        return Some(path).filter(|path| path.is_file());
    }
    let in_path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&in_path).map(|folder| folder.join(name));
    let fetched = fs::read_dir(repository().join(".servers")).into_iter().flatten();
    let fetched = fetched.filter_map(|entry| Some(entry.ok()?.path().join(name)));
    installed.chain(fetched).find(|path| path.is_file())
}

/// The folder of the workspace.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Gateway and worker in release mode, beside this program: figures of a debug build would say nothing.
///
/// Errors: this is a debug build itself, or cargo fails.
pub fn build_release() -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("this is a debug build; use ./dev bench, or cargo run --release");
    }
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--locked", "--quiet"]);
    // This package too: cargo unites the features of what it builds together, and with another set it would build all
    // dependencies a second time.
    command.args([
        "-p",
        "dragonfruit-benches",
        "-p",
        "dragonfruit-gateway",
        "-p",
        "dragonfruit-worker",
    ]);
    let status = command.current_dir(repository()).status().context("cargo cannot be started")?;
    if !status.success() {
        bail!("gateway and worker cannot be built");
    }
    Ok(())
}

/// First line of what a program says of its version; empty when it says nothing.
pub fn version(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().trim().to_owned()
}

/// Ports of loopback that were free a moment ago. They are held until all are known, so that they differ.
///
/// Errors: there are none.
pub fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let mut listeners = Vec::new();
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// A program that runs; ended when this is dropped.
pub struct Program {
    /// What it is here: `gateway`, `nats-server`.
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program; what it prints goes to `NAME.log` in `folder`.
    ///
    /// Errors: it cannot be started.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut ids = running();
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        ids.insert(child.id() as i32);
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks again and again until there is an answer.
    ///
    /// Errors: the program has ended, or takes too long; with the end of its log.
    pub fn wait_for<T>(&mut self, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended before {what}: {status}\n{}", self.name, self.log_end());
            }
            if Instant::now() > deadline {
                bail!("{}: no {what} after {PATIENCE:?}\n{}", self.name, self.log_end());
            }
            rest();
        }
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    /// Asks for an end in order first, so that a server leaves its cluster.
    fn drop(&mut self) {
        let id = self.child.id() as i32;
        if let Some(id) = Pid::from_raw(id)
            && !self.has_ended()
        {
            let _ = kill_process(id, Signal::TERM);
        }
        let deadline = Instant::now() + END_PATIENCE;
        while !self.has_ended() && Instant::now() < deadline {
            rest();
        }
        // Out of the list before it is waited for: afterwards the id may be another program's.
        running().remove(&id);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Between two looks at a program whose progress sends no signal.
pub fn rest() {
    thread::sleep(LOOK);
}
