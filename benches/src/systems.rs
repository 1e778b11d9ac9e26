//! The two systems: a frontend and a backend each, behind its own nats-server, with one etcd for both.
//!
//! They share nothing but the machine and etcd, and only one of them is under load at a time. Both run with their
//! defaults, except for what [`Setup`] says.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use client::load::{self, LoadOptions};
use serde::Serialize;
use tempfile::TempDir;

use crate::programs::{Program, find, free_ports, repository, rest};
use crate::run::load_options;
use crate::scenario::{Compression, Scenario};

/// Names a folder with Go Pitaya's `pitaya-server`.
pub const GO_FOLDER_VARIABLE: &str = "DRAGONFRUIT_PITAYA_BIN_DIR";
const GO_SERVER: &str = "pitaya-server";
/// Requests that may fail until a frontend has seen its backend.
const PROBES_MAX: usize = 1000;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemName {
    /// Gateway and worker of this repository.
    Dragonfruit,
    /// Frontend and backend in Go.
    Pitaya,
}

impl SystemName {
    /// The name for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Dragonfruit => "Dragonfruit",
            Self::Pitaya => "Go Pitaya",
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug, Serialize)]
pub struct Binaries {
    /// nats-server.
    pub nats_server: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// Our gateway.
    pub gateway: PathBuf,
    /// Our worker.
    pub worker: PathBuf,
    /// Go Pitaya's server; absent when there is none, and then Go is not measured.
    pub pitaya_server: Option<PathBuf>,
}

impl Binaries {
    /// Finds them.
    ///
    /// Errors: a program that is needed is missing; the text says how to get it.
    pub fn find() -> Result<Self> {
        let server = |name, variable| {
            find(name, variable).with_context(|| {
                format!("{name} is missing: set {variable}, or run ./dev servers install")
            })
        };
        let beside = std::env::current_exe()?;
        let folder = beside.parent().context("this program is in no folder")?;
        let own = |name: &str| {
            let path = folder.join(name);
            if !path.is_file() {
                bail!("{} is missing; build it first", path.display());
            }
            Ok(path)
        };
        let go = std::env::var_os(GO_FOLDER_VARIABLE).map(|folder| {
            let path = PathBuf::from(folder).join(GO_SERVER);
            if path.is_file() { Ok(path) } else { bail!("{} is missing", path.display()) }
        });
        Ok(Self {
            nats_server: server("nats-server", "DRAGONFRUIT_NATS_SERVER")?,
            etcd: server("etcd", "DRAGONFRUIT_ETCD")?,
            gateway: own("gateway")?,
            worker: own("worker")?,
            pitaya_server: go.transpose()?.or_else(built_pitaya_server),
        })
    }
}

/// Where `./dev` builds it.
fn built_pitaya_server() -> Option<PathBuf> {
    let path = repository().join(".servers/pitaya").join(GO_SERVER);
    path.is_file().then_some(path)
}

/// How systems are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Compression of messages to clients.
    pub compression: Compression,
    /// Reactors of our gateway; Go uses all cores by itself.
    pub reactors: u32,
    /// Our gateway's driver: `auto`, `uring` or `epoll`.
    pub driver: String,
    /// Runs one program of ours under callgrind.
    pub instrument: Option<Instrument>,
}

/// A program that runs under callgrind, counting nothing until it is told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instrument {
    /// `gateway` or `worker`.
    pub program: String,
    /// Where valgrind is.
    pub valgrind: PathBuf,
    /// Where the counts go when the program ends.
    pub out: PathBuf,
}

impl Setup {
    /// The command that starts a program of ours.
    fn command(&self, name: &str, path: &Path) -> Command {
        let Some(instrument) = self.instrument.as_ref().filter(|one| one.program == name) else {
            return Command::new(path);
        };
        let mut command = Command::new(&instrument.valgrind);
        command.args(["--tool=callgrind", "--instr-atstart=no"]);
        command.arg(format!("--callgrind-out-file={}", instrument.out.display())).arg(path);
        command
    }
}

/// etcd and the systems, running. Fields are dropped in order: systems first.
pub struct Systems {
    /// The systems, ours first.
    pub systems: Vec<System>,
    _etcd: Program,
    _folder: TempDir,
}

/// One system, running.
pub struct System {
    /// Which.
    pub name: SystemName,
    tcp: String,
    ws: Option<String>,
    /// Frontend, backend, nats-server: the order of their start reversed, so that a frontend leaves first.
    programs: Vec<Program>,
}

impl System {
    /// What a load connects to; `None` when this system does not serve that transport.
    pub fn address(&self, scenario: &Scenario) -> Option<String> {
        if scenario.is_web_socket { self.ws.clone() } else { Some(self.tcp.clone()) }
    }

    /// Roles and process ids: `gateway`, `worker`, `nats-server`; Go's frontend and backend have the same roles.
    pub fn processes(&self) -> impl Iterator<Item = (&str, u32)> {
        self.programs.iter().map(|program| (program.name.as_str(), program.id()))
    }
}

impl Systems {
    /// Starts what there is and waits until each answers a request through all of its parts.
    ///
    /// Errors: a program cannot be started, or does not get ready; with the end of its log.
    pub fn start(binaries: &Binaries, setup: &Setup, folder: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("systems").tempdir_in(folder)?;
        let (etcd, endpoint) = start_etcd(&binaries.etcd, folder.path())?;
        let mut systems = vec![start_ours(binaries, setup, &endpoint, folder.path())?];
        if let Some(server) = &binaries.pitaya_server {
            systems.push(start_go(binaries, server, setup, &endpoint, folder.path())?);
        }
        Ok(Self { systems, _etcd: etcd, _folder: folder })
    }
}

fn start_etcd(path: &Path, folder: &Path) -> Result<(Program, String)> {
    let [client_port, peer_port] = free_ports()?;
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let mut command = Command::new(path);
    command.args(["--name", "compare", "--data-dir"]).arg(folder.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("compare={peer}"), "--log-level", "warn"]);
    let mut etcd = Program::start("etcd", folder, &mut command)?;
    etcd.wait_for("its port", || TcpStream::connect((Ipv4Addr::LOCALHOST, client_port)).ok())?;
    Ok((etcd, format!("127.0.0.1:{client_port}")))
}

fn start_nats(path: &Path, folder: &Path) -> Result<(Program, String)> {
    let [port] = free_ports()?;
    let mut command = Command::new(path);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
    let mut nats = Program::start("nats-server", folder, &mut command)?;
    nats.wait_for("its port", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())?;
    Ok((nats, format!("nats://127.0.0.1:{port}")))
}

fn start_ours(binaries: &Binaries, setup: &Setup, endpoint: &str, folder: &Path) -> Result<System> {
    let folder = &folder.join("ours");
    fs::create_dir_all(folder)?;
    let (nats, url) = start_nats(&binaries.nats_server, folder)?;
    let cluster = |command: &mut Command| {
        command.args(["--set", &format!("pitaya.nats.connect={url}")]);
        command.args(["--set", &format!("pitaya.cluster.sd.etcd.endpoints={endpoint}")]);
        command.args(["--set", "pitaya.cluster.sd.etcd.prefix=ours/"]);
        command.args(["--set", "pitaya.admin.listen=127.0.0.1:0", "--log", "warn"]);
    };
    let mut command = setup.command("worker", &binaries.worker);
    command.arg("--test-routes");
    cluster(&mut command);
    let worker = Program::start("worker", folder, &mut command)?;
    let ports = folder.join("ports.json");
    let mut command = setup.command("gateway", &binaries.gateway);
    command.args(["--tcp", "127.0.0.1:0", "--ws", "127.0.0.1:0", "--ports-file"]).arg(&ports);
    command.args(["--threads", &setup.reactors.to_string()]);
    command.args(["--set", &format!("pitaya.gateway.driver={}", setup.driver)]);
    if setup.compression == Compression::Off {
        command.args(["--set", "pitaya.handler.messages.compression=false"]);
    }
    cluster(&mut command);
    let mut gateway = Program::start("gateway", folder, &mut command)?;
    let ports = gateway.wait_for("its addresses", || {
        serde_json::from_slice::<serde_json::Value>(&fs::read(&ports).ok()?).ok()
    })?;
    let address = |name: &str| ports.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let system = System {
        name: SystemName::Dragonfruit,
        tcp: address("tcp").context("the gateway has no TCP address")?,
        ws: address("ws").map(|address| format!("ws://{address}/")),
        programs: vec![gateway, worker, nats],
    };
    probed(system)
}

fn start_go(
    binaries: &Binaries,
    server: &Path,
    setup: &Setup,
    endpoint: &str,
    folder: &Path,
) -> Result<System> {
    let folder = &folder.join("go");
    fs::create_dir_all(folder)?;
    let (nats, url) = start_nats(&binaries.nats_server, folder)?;
    let [tcp, ws] = free_ports()?;
    let compression = setup.compression != Compression::Off;
    let command = || {
        let mut command = Command::new(server);
        command.args(["-nats", &url, "-etcd", endpoint, "-prefix", "go/"]);
        command.arg(format!("-compression={compression}"));
        command
    };
    let worker = Program::start("worker", folder, command().args(["-type", "room"]))?;
    let mut frontend = command();
    frontend.args(["-frontend", "-type", "connector"]);
    frontend.args(["-tcp", &format!("127.0.0.1:{tcp}"), "-ws", &format!("127.0.0.1:{ws}")]);
    let mut gateway = Program::start("gateway", folder, &mut frontend)?;
    gateway.wait_for("its port", || TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).ok())?;
    let system = System {
        name: SystemName::Pitaya,
        tcp: format!("127.0.0.1:{tcp}"),
        ws: Some(format!("ws://127.0.0.1:{ws}/")),
        programs: vec![gateway, worker, nats],
    };
    probed(system)
}

/// Sends requests until one is answered without error: then the frontend has seen its backend.
fn probed(mut system: System) -> Result<System> {
    let probe = Scenario::probe();
    for attempt in 0..PROBES_MAX {
        let options: LoadOptions = load_options(&probe, &system.tcp, &[])?;
        let report = load::run(&options)?;
        if report.requests.answered > 0 && report.errors == 0 {
            return Ok(system);
        }
        if attempt + 1 == PROBES_MAX {
            let errors = &report.requests.errors;
            bail!("{} answers no request: {errors:?}", system.name.text());
        }
        for program in &mut system.programs {
            program.wait_for("the first answer", || Some(()))?;
        }
        rest();
    }
    Ok(system)
}
