//! A `gateway` process with the demo, for attacks on what a process has: descriptors, log, memory.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::RwLockReadGuard;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::field::{beside, eventually};
use crate::guarded;

/// A running process, killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    directory: TempDir,
    /// Its clients have sockets, which nobody may count for theirs.
    _beside: RwLockReadGuard<'static, ()>,
    /// Where TCP clients connect.
    pub tcp: SocketAddr,
    /// Where WebSocket clients connect.
    pub ws: SocketAddr,
    /// Where it tells how it is.
    pub admin: SocketAddr,
    /// Where TCP clients with TLS connect.
    pub tls: Option<SocketAddr>,
    /// Where WebSocket clients with TLS connect.
    pub wss: Option<SocketAddr>,
}

impl Process {
    /// Starts a gateway that may hold this many descriptors.
    pub(crate) fn start(driver: &str, descriptors: u32, settings: &[&str]) -> Self {
        let beside = beside();
        let directory = TempDir::new().unwrap();
        let ports = directory.path().join("ports");
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut command = guarded::command("sh");
        command.arg("-c").arg(format!(r#"ulimit -n {descriptors} && exec "$0" "$@""#));
        command.arg(env!("CARGO_BIN_EXE_gateway"));
        command.args([
            "--demo",
            "--test-routes",
            "--tcp",
            "127.0.0.1:0",
            "--ws",
            "127.0.0.1:0",
            "--threads",
            "1",
        ]);
        command.arg("--ports-file").arg(&ports);
        let config = directory.path().join("config.toml");
        std::fs::write(&config, "").unwrap();
        command.arg("--config").arg(&config);
        let driver = format!("pitaya.gateway.driver={driver}");
        for setting in ["pitaya.admin.listen=127.0.0.1:0", &driver].iter().chain(settings) {
            command.args(["--set", setting]);
        }
        // Huge pages let memory grow in steps of 2 MiB, and what a session costs would drown in them.
        command.env("MIMALLOC_ALLOW_THP", "0");
        command.stdout(Stdio::null()).stderr(log);
        let child = guarded::spawn(command).unwrap();
        let mut started = Self {
            child,
            directory,
            _beside: beside,
            tcp: SocketAddr::from(([0; 4], 0)),
            ws: SocketAddr::from(([0; 4], 0)),
            admin: SocketAddr::from(([0; 4], 0)),
            tls: None,
            wss: None,
        };
        eventually("the gateway serves", || {
            assert!(started.child.try_wait().unwrap().is_none(), "{}", started.log());
            ports.exists()
        });
        let ports: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&ports).unwrap()).unwrap();
        started.tcp = ports["tcp"].as_str().unwrap().parse().unwrap();
        started.ws = ports["ws"].as_str().unwrap().parse().unwrap();
        started.admin = ports["admin"].as_str().unwrap().parse().unwrap();
        let secured = |name: &str| ports[name].as_str().map(|address| address.parse().unwrap());
        (started.tls, started.wss) = (secured("tls"), secured("wss"));
        started
    }

    /// Writes its configuration file anew and asks it to read it.
    pub(crate) fn reload(&self, config: &str) {
        std::fs::write(self.directory.path().join("config.toml"), config).unwrap();
        self.signal(Signal::HUP);
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it ends by itself; whether with success.
    pub(crate) fn ends_well(&mut self) -> bool {
        let mut status = None;
        eventually("the gateway ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.is_some_and(|status| status.success())
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// Everything that it has logged.
    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("log")).unwrap();
        String::from_utf8(bytes).expect("the log is UTF-8")
    }

    /// Resident memory, bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        let statistics = std::fs::read_to_string(self.proc("statm")).unwrap();
        let pages: usize = statistics.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    }

    /// Processor time used, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let statistics = std::fs::read_to_string(self.proc("stat")).unwrap();
        let behind_name = statistics.rsplit(") ").next().unwrap();
        behind_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Descriptors in use.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
