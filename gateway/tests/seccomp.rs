//! The profile of system calls in deploy/: gateway and worker do everything that they do under it.
//!
//! The profile is loaded as a container's runtime loads it, except that a call which is not on its list ends the process,
//! so that none goes unnoticed. What its rules say of arguments is left to the runtimes.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/metrics.rs"]
mod metrics;
#[path = "../../shared/tests/servers/mod.rs"]
mod servers;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "support/tls.rs"]
mod tls;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use client::raw::RawClient;
use metrics::{eventually, value};
use servers::guarded;
use servers::{Etcd, Nats};
use tempfile::TempDir;
use tls::Identity;
use worker::demo::{self, DemoOptions};

const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/seccomp-gateway.json");
/// The kernel's own list of names and numbers, of the package that every linker for C comes with.
const NUMBERS: [&str; 2] =
    ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"];
/// Says to this program that it is a worker, and with which settings: `key=value`, one a line.
const VARIABLE: &str = "DRAGONFRUIT_SECCOMP_WORKER";
const LONG: Duration = Duration::from_secs(60);

/// The numbers of all calls by name; `None` where the list is missing.
fn numbers() -> Option<BTreeMap<String, u32>> {
    let text = NUMBERS.iter().find_map(|path| fs::read_to_string(path).ok())?;
    let calls = text.lines().filter_map(|line| {
        let (name, number) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    });
    Some(calls.collect())
}

/// The profile as the kernel's program: what each call is answered with, and the end for all others.
fn filter(numbers: &BTreeMap<String, u32>) -> Vec<libc::sock_filter> {
    // Loads the call's number, which is the first word of what the filter sees.
    let instruction =
        |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let answer = |k: u32| instruction(libc::BPF_RET | libc::BPF_K, 0, k);
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    let profile: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(PROFILE).unwrap()).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO", "what is not named is not allowed");
    for rule in profile["syscalls"].as_array().unwrap() {
        let action = match rule["action"].as_str().unwrap() {
            "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
            "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | rule["errnoRet"].as_u64().unwrap() as u32,
            action => panic!("what is {action}?"),
        };
        for name in rule["names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let number = numbers.get(name).unwrap_or_else(|| panic!("the kernel has no {name}"));
            program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, *number));
            program.push(answer(action));
        }
    }
    program.push(answer(libc::SECCOMP_RET_KILL_PROCESS));
    program
}

/// Has the program that the command starts live under the filter from its first call on.
fn confine(command: &mut Command, mut filter: Vec<libc::sock_filter>) {
    let load = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: both calls take plain numbers, and a pointer to a program that lives as long as the call.
        let outcome = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(load) };
}

/// A confined process; it must live until it is asked to end.
struct Confined {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Confined {
    fn start(name: &'static str, mut command: Command, place: &Path) -> Self {
        let filter = filter(&numbers().expect("looked for before"));
        confine(&mut command, filter);
        let log = place.join(name);
        let file = File::create(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: guarded::spawn(command).unwrap(), name, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn check(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let name = self.name;
            let hint = match status.signal() {
                Some(libc::SIGSYS) => "it made a call that is not on the list; strace -f names it",
                _ => "it ended by itself",
            };
            panic!("{name}: {hint}: {status}\n{}", self.log());
        }
    }

    fn wait(&mut self, what: &str, mut is_so: impl FnMut() -> bool) {
        eventually(what, || {
            self.check();
            is_so()
        });
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Its standard input ends, and it may be asked to end as well; that must go well.
    fn end(mut self, signal: Option<rustix::process::Signal>) {
        drop(self.child.stdin.take());
        if let Some(signal) = signal {
            self.signal(signal);
        }
        let mut status = None;
        eventually("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{}: {status:?}\n{}", self.name, self.log());
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: the worker of the others, when this program is started as one. It serves until its standard
/// input ends.
#[test]
fn a_worker_process_serves_when_it_is_started_as_one() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let settings = text.lines().filter_map(|line| line.split_once('='));
    let settings: Vec<_> =
        settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let load = shared::config::Config::load;
    let config = load(shared::config::Binary::Worker, None, std::iter::empty(), &settings).unwrap();
    let (stop, stops) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.blocking_send(());
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let app = demo::app(DemoOptions { test_routes: true });
    runtime.block_on(app.run_until(&config, stops)).unwrap();
}

fn worker(nats: &Nats, etcd: &Etcd, place: &Path) -> Confined {
    let mut command = guarded::command(std::env::current_exe().unwrap());
    command.args(["--exact", "a_worker_process_serves_when_it_is_started_as_one", "--nocapture"]);
    let settings = [
        ("pitaya.nats.connect", nats.url()),
        ("pitaya.cluster.sd.etcd.endpoints", etcd.url()),
        ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms".to_owned()),
        ("pitaya.server.id", "room-1".to_owned()),
        ("pitaya.admin.listen", "127.0.0.1:0".to_owned()),
    ];
    let lines: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    command.env(VARIABLE, lines.join("\n"));
    Confined::start("worker", command, place)
}

fn gateway(driver: &str, nats: &Nats, etcd: &Etcd, place: &Path, identity: &Identity) -> Confined {
    let mut command = guarded::command(env!("CARGO_BIN_EXE_gateway"));
    command.arg("--ports-file").arg(place.join("ports"));
    command.arg("--config").arg(place.join("config.toml"));
    let mut settings = vec![
        ("pitaya.gateway.tcp", "127.0.0.1:0".to_owned()),
        ("pitaya.gateway.ws", "127.0.0.1:0".to_owned()),
        ("pitaya.gateway.tls.tcp", "127.0.0.1:0".to_owned()),
        ("pitaya.admin.listen", "127.0.0.1:0".to_owned()),
        ("pitaya.gateway.threads", "2".to_owned()),
        ("pitaya.gateway.driver", driver.to_owned()),
        ("pitaya.server.type", "connector".to_owned()),
        ("pitaya.nats.connect", nats.url()),
        ("pitaya.cluster.sd.etcd.endpoints", etcd.url()),
        ("pitaya.cluster.sd.etcd.shutdown.delay", "50ms".to_owned()),
    ];
    settings.extend(identity.settings());
    for (key, value) in settings {
        command.args(["--set", &format!("{key}={value}")]);
    }
    Confined::start("gateway", command, place)
}

/// Everything that clients and an operator do in a day.
fn a_day(driver: &str) {
    let (mut nats, etcd) = (Nats::start(&[]), Etcd::start());
    let (place, identity) = (TempDir::new().unwrap(), Identity::new());
    fs::write(place.path().join("config.toml"), "").unwrap();
    let mut worker = worker(&nats, &etcd, place.path());
    let mut gateway = gateway(driver, &nats, &etcd, place.path(), &identity);
    let ports = place.path().join("ports");
    gateway.wait("the gateway serves", || ports.exists());
    assert!(gateway.log().contains(driver), "{}", gateway.log());
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(&ports).unwrap()).unwrap();
    let [tcp, ws, tls, admin]: [SocketAddr; 4] =
        ["tcp", "ws", "tls", "admin"].map(|name| ports[name].as_str().unwrap().parse().unwrap());
    let mut clients = [
        RawClient::connect_tcp(tcp).unwrap(),
        RawClient::connect_ws(ws, "/").unwrap(),
        tls::connect(tls, &identity.client()).unwrap(),
    ];
    for client in &mut clients {
        client.set_timeout(LONG);
        client.establish().unwrap();
    }
    let mut play = |gateway: &mut Confined, worker: &mut Confined| {
        for client in &mut clients {
            gateway.wait("an answer", || {
                worker.check();
                !client.request("room.test.echo", b"x").unwrap().is_error
            });
            let flood = client.request("room.test.flood", br#"{"n":0}"#).unwrap();
            assert!(!flood.is_error, "{}", flood.text());
            let id = client.send_request("room.test.flood", br#"{"n":20,"size":2000}"#).unwrap();
            for _ in 0..20 {
                client.read_push(LONG).unwrap();
            }
            assert!(!client.read_response(id, LONG).unwrap().is_error);
        }
    };
    play(&mut gateway, &mut worker);
    assert!(value(&metrics::metrics(admin), "pitaya_handler_requests_total", "") > 0);
    identity.renew();
    fs::write(place.path().join("config.toml"), "[pitaya.log]\nlevel = \"debug\"\n").unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    let log = gateway.log.clone();
    let was_read = || fs::read_to_string(&log).unwrap().contains("was read again");
    gateway.wait("the reload", was_read);
    nats.restart_same_port();
    play(&mut gateway, &mut worker);
    drop(clients);
    gateway.end(Some(rustix::process::Signal::TERM));
    worker.end(None);
}

#[test]
fn gateway_and_worker_need_no_call_that_the_profile_does_not_list() {
    if numbers().is_none() {
        eprintln!("\n*** NO LIST OF SYSTEM CALLS ON THIS MACHINE: THE PROFILE IS NOT TESTED ***\n");
        return;
    }
    for driver in ["uring", "epoll"] {
        a_day(driver);
    }
}
