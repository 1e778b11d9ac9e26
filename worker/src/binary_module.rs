//! A module that is another program: it is started with the server, its output goes into the log, and it ends with the
//! server.
//!
//! A program that ends by itself is logged and not started again: whether the server can live without it is the game's
//! decision ([`BinaryModule::exited`]). The end is SIGTERM, then a pause, then SIGKILL; a server that is killed takes
//! the program with it only if the program watches its own standard input, which is closed then.

use std::ffi::{OsStr, OsString};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::extract::Ctx;
use crate::modules::Module;

/// Longer lines are cut, so that a program cannot fill the memory through our log.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// How long a program may take to end after SIGTERM, unless another time is given; Pitaya's.
const GRACE_DEFAULT: Duration = Duration::from_secs(15);

/// A program that lives as long as the server; added with [`App::module`](crate::App::module).
///
/// Its standard output becomes log lines of level info, its standard error lines of level error.
pub struct BinaryModule {
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    grace: Duration,
    running: Mutex<Option<Running>>,
    exit: watch::Sender<Option<ExitStatus>>,
}

struct Running {
    pid: u32,
    /// Asks the task that owns the child to end it.
    stop: oneshot::Sender<Duration>,
    ended: oneshot::Receiver<Result<()>>,
    /// Closed with us, also when we are killed.
    _input: Option<ChildStdin>,
}

impl BinaryModule {
    /// A program, by its path or by its name in `PATH`. Nothing happens before the server starts.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            grace: GRACE_DEFAULT,
            running: Mutex::new(None),
            exit: watch::Sender::new(None),
        }
    }

    /// Adds an argument.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds a variable to the environment that the program inherits.
    pub fn variable(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// How long the program may take to end after SIGTERM before it is killed; 15 s unless given.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The process id while the program runs.
    pub fn process_id(&self) -> Option<u32> {
        if self.exit.borrow().is_some() {
            return None;
        }
        self.running().as_ref().map(|running| running.pid)
    }

    /// Waits until the program has ended, for whatever reason, and tells how.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(status) = *exit.borrow_and_update() {
                return status;
            }
            // The sender lives as long as we do.
            let _ = exit.changed().await;
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Module for BinaryModule {
    async fn init(&self, _: Ctx) -> Result<()> {
        let name = self.program.to_string_lossy().into_owned();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its own group: Ctrl+C on our terminal is for us, and we end it in our order.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| Error::unknown(format!("cannot start {name}: {error}")))?;
        let pid = child.id().ok_or_else(|| Error::unknown(format!("{name} ended at once")))?;
        tracing::info!(program = name, pid, "started a program");
        let input = child.stdin.take();
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        // Ends with the program, which ends with us; `shutdown` waits for it.
        tokio::spawn(own(child, name, stopped, end, self.exit.clone()));
        *self.running() = Some(Running { pid, stop, ended, _input: input });
        Ok(())
    }

    async fn shutdown(&self, _: Ctx) -> Result<()> {
        let Some(Running { stop, ended, _input: input, .. }) = self.running().take() else {
            return Ok(());
        };
        drop(input);
        // The program may have ended by itself, and its task with it.
        let _ = stop.send(self.grace);
        ended.await.unwrap_or(Ok(()))
    }
}

/// Owns the program until it has ended, and its output until that has.
async fn own(
    mut child: Child,
    name: String,
    mut stop: oneshot::Receiver<Duration>,
    end: oneshot::Sender<Result<()>>,
    exit: watch::Sender<Option<ExitStatus>>,
) {
    let mut output = JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        let name = name.clone();
        output.spawn(lines(stdout, move |line| tracing::info!(program = name, "{line}")));
    }
    if let Some(stderr) = child.stderr.take() {
        let name = name.clone();
        output.spawn(lines(stderr, move |line| tracing::error!(program = name, "{line}")));
    }
    let mut outcome = Ok(());
    let mut is_asked = false;
    let status = tokio::select! {
        status = child.wait() => status,
        grace = &mut stop => {
            is_asked = true;
            match terminate(&mut child, grace.unwrap_or(Duration::ZERO)).await {
                Ok(status) => Ok(status),
                Err(killed) => {
                    outcome = Err(Error::unknown("timeout waiting to binary module to die"));
                    killed
                }
            }
        }
    };
    // What it wrote last; a grandchild that keeps the pipe open is not waited for.
    let rest = async { while output.join_next().await.is_some() {} };
    let _ = timeout(Duration::from_secs(1), rest).await;
    match status {
        Ok(status) => {
            if is_asked {
                tracing::info!(program = name, %status, "a program ended");
            } else {
                tracing::error!(program = name, %status, "a program ended by itself");
            }
            exit.send_replace(Some(status));
        }
        Err(error) => tracing::error!(program = name, %error, "cannot wait for a program"),
    }
    // Nobody waits for one that ended by itself.
    let _ = end.send(outcome);
}

/// SIGTERM, the grace, SIGKILL. `Err` says that it had to be killed.
async fn terminate(
    child: &mut Child,
    grace: Duration,
) -> Result<ExitStatus, std::io::Result<ExitStatus>> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended in this moment; then there is nobody to signal, and the wait returns at once.
        let _ = kill_process(pid, Signal::TERM);
    }
    match timeout(grace, child.wait()).await {
        Ok(status) => status.map_err(Err),
        Err(_) => {
            let _ = child.start_kill();
            Err(child.wait().await)
        }
    }
}

/// Hands each line on, the long ones cut.
async fn lines(from: impl AsyncRead + Unpin, mut log: impl FnMut(&str)) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        let Ok(available) = reader.fill_buf().await else { return };
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        let content = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
        line.extend_from_slice(content.get(..content.len().min(room)).unwrap_or_default());
        let is_over = available.is_empty();
        reader.consume(taken);
        if end.is_some() || (is_over && !line.is_empty()) {
            log(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        if is_over {
            return;
        }
    }
}
