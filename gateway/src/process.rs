//! What a gateway asks of its process: signals and descriptors. The first SIGTERM, SIGINT or SIGQUIT asks for an end in
//! order, the second ends at once; SIGHUP reads the configuration again. Where players are waited for after SIGTERM, the
//! next signal ends that wait.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use crate::control::Command;

/// What a shell expects of a process that an interrupt has ended.
const EXIT_CODE: i32 = 130;

/// How far the end has come.
enum Stage {
    Serving,
    Draining,
    Stopping,
}

/// Follows the signals from a thread of its own. `is_draining` says whether SIGTERM waits for the players.
///
/// Errors: no thread, or no runtime.
pub fn watch(commands: Sender<Command>, is_draining: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
            let (Ok(mut hangup), [Ok(mut terminate), Ok(mut interrupt), Ok(mut quit)]) =
                (signal(SignalKind::hangup()), kinds.map(signal))
            else {
                tracing::error!("cannot watch for signals");
                return;
            };
            let mut stage = Stage::Serving;
            loop {
                let is_terminate = tokio::select! {
                    _ = hangup.recv() => {
                        // What becomes of it is logged, and a gateway that has ended needs no command.
                        let (done, _) = oneshot::channel();
                        let _ = commands.send(Command::Reload { done }).await;
                        continue;
                    }
                    _ = terminate.recv() => true,
                    _ = interrupt.recv() => false,
                    _ = quit.recv() => false,
                };
                let command = match stage {
                    Stage::Serving if is_draining && is_terminate => {
                        stage = Stage::Draining;
                        Command::Drain
                    }
                    Stage::Serving | Stage::Draining => {
                        stage = Stage::Stopping;
                        Command::Stop
                    }
                    Stage::Stopping => std::process::exit(EXIT_CODE),
                };
                if commands.send(command).await.is_err() {
                    std::process::exit(EXIT_CODE);
                }
            }
        });
    })?;
    Ok(())
}

/// Each player needs a descriptor; the soft limit is often far below what the process may have.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
