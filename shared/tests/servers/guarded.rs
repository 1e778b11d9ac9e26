//! Processes that end with the test that started them, however it ends.
//!
//! A test that is killed runs no destructors, so on Linux the kernel is asked to kill the children (PR_SET_PDEATHSIG).
//! The kernel's parent is a thread and not a process, and tests hand servers from one thread to another; so all children
//! have one thread as their parent, which lives as long as the process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::{env, io, thread};

type Order = (Command, Sender<io::Result<Child>>);

/// A command for this program that is killed when the process dies that starts it with [`spawn`]. `setpriv`, of
/// util-linux, sets that up and then becomes the program; it needs neither unsafe code nor a crate. Where it is missing,
/// as on a Mac, the program is started as it is.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    static SETPRIV: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = program.as_ref();
    let Some(setpriv) = SETPRIV.get_or_init(setpriv) else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The whole path, because who starts a program may clear its environment. One that cannot do it, such as BusyBox's, is
/// none.
fn setpriv() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let setpriv = env::split_paths(&path).map(|place| place.join("setpriv"));
    let setpriv = setpriv.into_iter().find(|file| file.is_file())?;
    let trial = Command::new(&setpriv).args(["--pdeathsig", "KILL", "--", "true"]).output();
    trial.is_ok_and(|output| output.status.success()).then_some(setpriv)
}

/// Starts it.
///
/// Errors: as [`Command::spawn`].
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, received) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, done) in received {
                // Whoever asked waits for it.
                let _ = done.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (done, started) = channel();
    orders.lock().expect("nobody panics with it").send((command, done)).expect("it never ends");
    started.recv().expect("it never ends")
}
