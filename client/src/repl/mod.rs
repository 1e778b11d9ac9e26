//! The interactive client: pitaya-cli's commands, at a terminal, from a pipe or from a file.
//!
//! At a terminal a failed command is told and the next one read. A file stops at the first failure, as with
//! pitaya-cli; a pipe goes on and the failure is remembered for the exit code. The connection lives on a thread of its
//! own, so that pushes and heartbeats go on while a line is being edited.

mod command;
mod console;
mod docs;
mod shell;
mod text;

use std::io;
use std::path::PathBuf;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

use command::Command;
use console::{Console, Routes};
use shell::Shell;

use crate::tls::Trust;

/// Arguments of `client repl`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ReplOptions {
    /// Route that answers with the server's documentation; needed for protobuf servers
    #[arg(long, short = 'd', value_name = "ROUTE")]
    pub docs: Option<String>,
    /// Certificates to trust on tls:// and wss://, as PEM, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Trust every server on tls:// and wss://; only for servers of your own
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// File with the commands to run
    #[arg(long, short = 'f', value_name = "FILE")]
    pub filename: Option<PathBuf>,
    /// Spread JSON over lines
    #[arg(long, short = 'p')]
    pub pretty: bool,
}

impl ReplOptions {
    fn trust(&self) -> Trust {
        match &self.ca {
            _ if self.insecure => Trust::Anybody,
            Some(path) => Trust::File(path.clone()),
            None => Trust::System,
        }
    }
}

/// Runs until `exit` or the end of input. False when a command failed that nobody was there to see.
pub fn run(options: &ReplOptions) -> io::Result<bool> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let driver = std::thread::spawn(move || {
        // Ends when the sender is dropped.
        let _ = runtime.block_on(stopped);
    });
    let result = read_commands(options, &handle);
    drop(stop);
    driver.join().map_err(|_| io::Error::other("the connection's thread panicked"))?;
    result
}

fn read_commands(options: &ReplOptions, runtime: &tokio::runtime::Handle) -> io::Result<bool> {
    let routes = Routes::default();
    let (mut console, printer) = Console::open(options.filename.as_deref(), &routes)?;
    let mut shell = Shell::new(printer.clone(), routes, options);
    let mut is_content = true;
    if console.is_interactive() {
        printer.print("Dragonfruit REPL client; try help");
    }
    while let Some(line) = console.read_line()? {
        let mut command = Command::parse(&line);
        match &command {
            Ok(Command::Exit) => break,
            Ok(Command::Clear) => console.clear(),
            Ok(Command::Connect(None)) => {
                let Some(address) = console.read_prompted("address: ")? else { break };
                command = Ok(Command::Connect(Some(address.trim().to_owned())));
            }
            _ => {}
        }
        let result = command.map_err(|error| error.to_string()).and_then(|command| {
            runtime.block_on(shell.handle(command)).map_err(|error| error.to_string())
        });
        if let Err(error) = result {
            printer.print(&format!("error: {error}"));
            is_content &= console.is_interactive();
            if options.filename.is_some() {
                break;
            }
        }
    }
    // Without a connection there is nothing to close.
    let _ = runtime.block_on(shell.disconnect());
    Ok(is_content)
}
