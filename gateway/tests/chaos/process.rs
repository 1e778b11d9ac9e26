//! Processes of ours that can be killed, stopped, looked into and started again.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::servers::guarded;

/// How long anything may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Asks again and again until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "it takes too long: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// One program, perhaps running. Killed when it is dropped.
pub(crate) struct Program {
    child: Child,
    directory: TempDir,
    make: Box<dyn Fn() -> Command + Send + Sync>,
    /// How often it was killed; whoever was connected then has an excuse.
    kills: AtomicU64,
}

impl Program {
    /// Starts what `make` makes; its output goes to a file.
    pub(crate) fn start(make: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        let directory = TempDir::new().unwrap();
        let child = spawn(&make, &directory);
        Self { child, directory, make: Box::new(make), kills: AtomicU64::new(0) }
    }

    pub(crate) fn kills(&self) -> u64 {
        self.kills.load(Ordering::SeqCst)
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id();
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status();
        assert!(status.unwrap().success(), "signal {name} to {id}: {}", self.log_end());
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.kills.fetch_add(1, Ordering::SeqCst);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after a [`kill`](Self::kill).
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&*self.make, &self.directory);
    }

    /// Panics when it has ended by itself.
    pub(crate) fn check_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("a process ended by itself: {status}\n{}", self.log_end());
        }
    }

    /// The last lines that it has logged.
    pub(crate) fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Resident memory, bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let statistics = std::fs::read_to_string(self.proc("statm")).unwrap();
        let pages: u64 = statistics.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    /// Descriptors in use.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have been ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(make: &dyn Fn() -> Command, directory: &TempDir) -> Child {
    let log = File::options().create(true).append(true).open(directory.path().join("log")).unwrap();
    let mut command = make();
    command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
    guarded::spawn(command).unwrap()
}

/// A gateway process and where it listens.
pub(crate) struct GatewayProcess {
    pub(crate) program: Program,
    pub(crate) tcp: SocketAddr,
    pub(crate) ws: SocketAddr,
    pub(crate) admin: SocketAddr,
    _place: TempDir,
}

impl GatewayProcess {
    /// Starts the stock gateway with these flags on ports that the system chooses; later starts keep the ports.
    pub(crate) fn start(flags: &[String], environment: &[(String, String)]) -> Self {
        let place = TempDir::new().unwrap();
        let ports = place.path().join("ports");
        let (flags, environment, file) = (flags.to_vec(), environment.to_vec(), ports.clone());
        let program = Program::start(move || {
            let mut command = guarded::command(env!("CARGO_BIN_EXE_gateway"));
            let before = std::fs::read(&file).ok().map(|text| addresses(&text));
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let [tcp, ws, admin] = before.unwrap_or([any; 3]);
            command.args(["--tcp", &tcp.to_string(), "--ws", &ws.to_string()]);
            command.args(["--threads", "1", "--set", &format!("pitaya.admin.listen={admin}")]);
            command.arg("--ports-file").arg(&file).args(&flags);
            command.envs(environment.iter().cloned());
            command
        });
        let mut process = Self {
            program,
            tcp: SocketAddr::from(([0; 4], 0)),
            ws: SocketAddr::from(([0; 4], 0)),
            admin: SocketAddr::from(([0; 4], 0)),
            _place: place,
        };
        until("the gateway serves", || {
            process.program.check_alive();
            ports.exists()
        });
        [process.tcp, process.ws, process.admin] = addresses(&std::fs::read(&ports).unwrap());
        process
    }

    /// Whether it says that it serves.
    pub(crate) fn is_ready(&self) -> bool {
        http_get(self.admin, "/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// A counter, added up over its labels.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let (_, page) = http_get(self.admin, "/metrics").expect("the metrics");
        let lines = page.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    }

    /// Opened is closed and live; requests are answered, failed and dropped.
    pub(crate) fn check_accounts(&self) {
        let open = self.counter("pitaya_acceptor_connected_clients");
        let closed = self.counter("pitaya_acceptor_closed_total");
        assert_eq!(self.counter("pitaya_acceptor_accepted_total"), open + closed);
        let ended = self.counter("pitaya_handler_requests_replied_total")
            + self.counter("pitaya_handler_requests_failed_total")
            + self.counter("pitaya_handler_requests_dropped_total");
        assert_eq!(self.counter("pitaya_handler_requests_total"), ended);
    }
}

fn addresses(ports: &[u8]) -> [SocketAddr; 3] {
    let ports: serde_json::Value = serde_json::from_slice(ports).expect("the ports");
    ["tcp", "ws", "admin"].map(|name| ports[name].as_str().unwrap().parse().unwrap())
}

/// Status and body of a page.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(SOON)).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}
