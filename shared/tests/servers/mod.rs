//! Real servers for tests: each test starts its own nats-server, etcd or redis-server on a free port of the loopback
//! and ends it.
//!
//! Other crates include this file with `#[path = "../../shared/tests/servers/mod.rs"] mod servers;`. It needs the
//! standard library and `tempfile`. A program is looked for in the environment (`DRAGONFRUIT_NATS_SERVER`,
//! `DRAGONFRUIT_ETCD`, `DRAGONFRUIT_REDIS_SERVER`), then in `PATH`, then in `<repository>/.servers/*/`. If there is
//! none, the test says so loudly and fails; tests of jobs, which few need, are left out then. Servers end with the test's process,
//! also when that is killed (guarded.rs).
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use tempfile::TempDir;

pub(crate) mod guarded;

/// How long a server may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A nats-server. It is killed when this is dropped.
pub(crate) struct Nats {
    process: Process,
    arguments: Vec<String>,
    port: u16,
}

impl Nats {
    /// Starts a server with additional arguments and waits until it takes connections.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let process = Process::new("nats-server", "DRAGONFRUIT_NATS_SERVER");
        let mut nats = Self { process, arguments, port: 0 };
        nats.launch();
        nats
    }

    /// Starts a server with the text of a configuration file, for what has no command line argument.
    pub(crate) fn start_configured(configuration: &str) -> Self {
        let process = Process::new("nats-server", "DRAGONFRUIT_NATS_SERVER");
        let file = process.directory().join("nats.conf");
        fs::write(&file, configuration).unwrap();
        let arguments = vec!["-c".to_owned(), file.to_str().unwrap().to_owned()];
        let mut nats = Self { process, arguments, port: 0 };
        nats.launch();
        nats
    }

    fn launch(&mut self) {
        let directory = self.process.directory().join("ports");
        // A file from an earlier life must not be taken for the answer.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        // -1 asks the operating system for a free port.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let command = self.process.command();
        command.args(["-a", "127.0.0.1", "-p", &port, "--ports_file_dir"]).arg(&directory);
        command.args(&self.arguments);
        self.process.spawn();
        let port = self.process.wait_for("its port", || {
            let file = fs::read_dir(&directory).ok()?.next()?.ok()?;
            let text = fs::read_to_string(file.path()).ok()?;
            // {"nats":["nats://127.0.0.1:4222"]}
            let port = text.split("127.0.0.1:").nth(1)?.split('"').next()?.parse().ok()?;
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(|_| port)
        });
        self.port = port.unwrap();
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The address as clients are configured with it, without credentials.
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Has the server announce its end and send its clients away.
    pub(crate) fn lame_duck(&self) {
        self.process.signal("USR2");
    }

    /// Gives a server that was started with [`Nats::start_configured`] another configuration while it runs.
    pub(crate) fn reconfigure(&self, configuration: &str) {
        fs::write(self.process.directory().join("nats.conf"), configuration).unwrap();
        self.process.signal("HUP");
    }

    /// Starts the server again on its port, ending it first if it still runs.
    pub(crate) fn restart_same_port(&mut self) {
        self.process.kill();
        self.launch();
    }
}

/// A single etcd without data. It is killed when this is dropped.
pub(crate) struct Etcd {
    process: Process,
    client_port: u16,
    peer_port: u16,
}

impl Etcd {
    /// Starts a server and waits until it answers.
    pub(crate) fn start() -> Self {
        on_free_ports(|[client_port, peer_port]| {
            let process = Process::new("etcd", "DRAGONFRUIT_ETCD");
            let mut etcd = Self { process, client_port, peer_port };
            etcd.launch().map(|()| etcd)
        })
    }

    fn launch(&mut self) -> Result<(), String> {
        let client = self.url();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let data = self.process.directory().join("data");
        let command = self.process.command();
        command.args(["--name", "test", "--logger", "zap", "--log-level", "warn"]);
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        self.process.spawn();
        let address = self.address();
        self.process.wait_for("its health", || is_healthy(address).then_some(()))
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.client_port).into()
    }

    /// The address as clients are configured with it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Ends the server, and starts it again on its ports without its data.
    pub(crate) fn restart_empty(&mut self) {
        self.process.kill();
        fs::remove_dir_all(self.process.directory().join("data")).unwrap();
        self.launch().unwrap();
    }

    /// Starts the server again on its ports and with its data, ending it first if it still runs.
    pub(crate) fn restart_same_port(&mut self) {
        self.process.kill();
        self.launch().unwrap();
    }
}

/// A redis-server that keeps every write. It is killed when this is dropped.
pub(crate) struct Redis {
    process: Process,
    port: u16,
}

impl Redis {
    /// Starts a server with additional arguments and waits until it takes connections; none when there is no program.
    pub(crate) fn start(arguments: &[&str]) -> Option<Self> {
        let (name, variable) = ("redis-server", "DRAGONFRUIT_REDIS_SERVER");
        find(name, variable)?;
        Some(on_free_ports(|[port]| {
            let mut redis = Self { process: Process::new(name, variable), port };
            redis.launch(arguments).map(|()| redis)
        }))
    }

    fn launch(&mut self, arguments: &[&str]) -> Result<(), String> {
        let directory = self.process.directory().to_owned();
        let port = self.port.to_string();
        let command = self.process.command();
        command
            .args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--dir"])
            .arg(directory);
        command.args(["--appendonly", "yes", "--appendfsync", "always"]).args(arguments);
        self.process.spawn();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        self.process.wait_for("its answer", || {
            let mut stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            stream.write_all(b"PING\r\n").ok()?;
            let mut first = [0];
            stream.read_exact(&mut first).ok()?;
            // "+PONG", or "-NOAUTH"; while it reads its data it says "-LOADING".
            let mut rest = [0; 4];
            stream.read_exact(&mut rest).ok()?;
            (&rest != b"LOAD").then_some(())
        })
    }

    /// The address as it is configured.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the server again on its port and with its data, ending it first if it still runs.
    pub(crate) fn restart_same_port(&mut self) {
        self.process.kill();
        self.launch(&[]).unwrap();
    }
}

/// Whether an etcd answers its health check with success, which it does once it has elected itself.
fn is_healthy(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer).map(|_| answer)
    };
    ask().is_ok_and(|answer: String| answer.contains("200 OK"))
}

/// Starts a server on ports of its own. Somebody else may take one between the look and the use, so one that does not
/// start is tried again.
fn on_free_ports<const COUNT: usize, S>(
    mut start: impl FnMut([u16; COUNT]) -> Result<S, String>,
) -> S {
    for _ in 0..5 {
        match start(free_ports()) {
            Ok(server) => return server,
            Err(trouble) => eprintln!("{trouble}"),
        }
    }
    panic!("it did not start five times in a row");
}

/// Ports that were free a moment ago. They are held until all are known, so that they differ.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = [(); COUNT].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// What all servers can be told as processes.
macro_rules! is_process {
    ($($server:ty)*) => {$(
        impl Deref for $server {
            type Target = Process;

            fn deref(&self) -> &Process {
                &self.process
            }
        }

        impl DerefMut for $server {
            fn deref_mut(&mut self) -> &mut Process {
                &mut self.process
            }
        }
    )*};
}

is_process!(Nats Etcd Redis);

/// One server program, its directory and its running process.
pub(crate) struct Process {
    program: PathBuf,
    command: Option<Command>,
    child: Option<Child>,
    directory: TempDir,
}

impl Process {
    fn new(name: &str, variable: &str) -> Self {
        let program = find(name, variable).unwrap_or_else(|| panic!("no {name}"));
        let directory = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        Self { program, command: None, child: None, directory }
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn log_file(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// What the server has said since its last start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn command(&mut self) -> &mut Command {
        self.command.insert(guarded::command(&self.program))
    }

    fn spawn(&mut self) {
        let log = File::create(self.log_file()).unwrap();
        let mut command = self.command.take().expect("the command was made");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(guarded::spawn(command).unwrap());
    }

    /// Asks again and again, with short pauses, until there is an answer. Fails when the server ends or takes too long.
    fn wait_for<T>(&mut self, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            let exited = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            if exited.is_some() || Instant::now() > deadline {
                let (program, log) = (self.program.display(), self.log());
                return Err(format!("{program}: no {what} (ended: {exited:?})\n{log}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by the shell's own `kill`, which needs neither unsafe code nor a crate.
    fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("the server runs").id();
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status();
        assert!(status.unwrap().success(), "signal {name}");
    }

    /// Freezes the server: connections stay open, nothing is answered.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen server go on.
    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    /// Ends the server in good order and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        // A frozen server would not see its end.
        self.signal("CONT");
        let deadline = Instant::now() + PATIENCE;
        while self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none()) {
            assert!(Instant::now() < deadline, "{} does not end", self.program.display());
            thread::sleep(Duration::from_millis(10));
        }
        self.child = None;
    }

    /// Ends the server at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Says so loudly if there is none.
fn find(name: &str, variable: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    let in_path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&in_path).map(|directory| directory.join(name));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .filter(|directory| directory.join("Cargo.lock").exists())
        .last();
    let fetched = repository
        .and_then(|directory| fs::read_dir(directory.join(".servers")).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join(name)));
    let found = match named {
        // Who names a program does not want another one.
        Some(path) => Some(path).filter(|path| path.is_file()),
        None => installed.chain(fetched).find(|path| path.is_file()),
    };
    if found.is_none() {
        eprintln!("\n*** {name} IS MISSING: THIS TEST NEEDS THE REAL SERVER ***");
        eprintln!(
            "*** set {variable}, or put it in PATH or <repository>/.servers/<version>/ ***\n"
        );
    }
    found
}
