//! The load generator: many connections, little cost, honest figures.
//!
//! [`run`] is the coordinator: it starts the threads, waits until every connect has succeeded or failed, sets the
//! time at which all threads begin, reads the processes around the measured time, and merges what the threads
//! counted. A thread is one poll over nonblocking sockets ([`event_loop`]); there is no task a connection. It is not a
//! scenario tool: every request is the same, but for one with which players may join.

mod alarm;
mod company;
mod event_loop;
mod options;
mod pace;
mod player;
mod process;
mod report;
mod tally;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, getrlimit, setrlimit};
use shared::compression::Inflater;
use shared::dictionary::Dictionary;
use shared::handshake;
use shared::message::{MessageType, ROUTE_BYTES_MAX};

use company::{Company, Join};
use event_loop::{Control, EventLoop, Plan};
pub use options::{LoadOptions, Mode, ProcessName, ProcessNameError, TransportName};
use report::{Between, Readings};
pub use report::{Connections, Process, Report, Requests, Times};
use tally::Tally;

use crate::ConnectOptions;

/// Descriptors besides the connections: standard streams, polls, timers, `/proc`.
const DESCRIPTORS_SPARE: u64 = 64;
/// Between the coordinator's looks at the threads.
const LOOK: Duration = Duration::from_millis(20);
/// From the decision to start to the start, so that every thread sees it in time.
const START_DELAY_NS: u64 = 50_000_000;

/// Why a run could not be made. What goes wrong in a run is in its [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server's name has no address.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// The name.
        address: String,
        /// The resolver's answer.
        source: io::Error,
    },
    /// Not enough file descriptors.
    #[error(
        "{needed} connections need more file descriptors than the hard limit of {limit} (ulimit -Hn)"
    )]
    Descriptors {
        /// Connections asked for.
        needed: u32,
        /// The hard limit.
        limit: u64,
    },
    /// The route is too long for any message.
    #[error("the route is longer than {ROUTE_BYTES_MAX} bytes")]
    Route,
    /// A `--pid` that is no process of this machine.
    #[error("there is no process {pid} ({name})")]
    NoProcess {
        /// Its name.
        name: String,
        /// Its id.
        pid: u32,
    },
    /// A poll or timer failed.
    #[error("the event loop failed: {0}")]
    Loop(#[from] io::Error),
}

/// Makes a run. Blocks to its end: connecting, warm-up, the measured time, and the wait for the last answers.
pub fn run(options: &LoadOptions) -> Result<Report, LoadError> {
    let target = resolve(options)?;
    if options.route.len().max(options.join.as_ref().map_or(0, String::len)) > ROUTE_BYTES_MAX {
        return Err(LoadError::Route);
    }
    raise_descriptor_limit(options.connections)?;
    let mut readings = begin_readings(options)?;
    let control = Control::new();
    let (tally, between) = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for thread in 0..options.threads {
            let control = &control;
            let plan = plan(options, target, thread);
            let company = company(options);
            threads.push(scope.spawn(move || EventLoop::new(control, plan, company)?.run()));
        }
        let between = coordinate(options, &control, &threads, &mut readings);
        let mut total = Tally::new();
        for thread in threads {
            let tally = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            total.merge(&tally);
        }
        Ok::<_, io::Error>((total, between))
    })?;
    Ok(Report::new(options, &tally, &readings, between))
}

fn resolve(options: &LoadOptions) -> Result<SocketAddr, LoadError> {
    let address = options.address.authority();
    let failed = |source| LoadError::Resolve { address: address.clone(), source };
    let mut addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
    // `localhost` may name ::1 first where servers listen on 127.0.0.1 only.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let none = || failed(io::Error::new(io::ErrorKind::NotFound, "no address"));
    addresses.first().copied().ok_or_else(none)
}

/// Raises the soft limit of file descriptors to the hard one.
fn raise_descriptor_limit(connections: u32) -> Result<(), LoadError> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where raising is refused, connecting says so for each connection that finds no descriptor.
    let _ = setrlimit(Resource::Nofile, limit);
    match limit.maximum {
        Some(limit) if u64::from(connections) + DESCRIPTORS_SPARE > limit => {
            Err(LoadError::Descriptors { needed: connections, limit })
        }
        _ => Ok(()),
    }
}

fn begin_readings(options: &LoadOptions) -> Result<Vec<Readings>, LoadError> {
    let own = Readings {
        name: "load".to_owned(),
        pid: std::process::id(),
        before: process::read(std::process::id()),
        start: None,
        end: None,
    };
    let mut readings = vec![own];
    for ProcessName { name, pid } in &options.processes {
        let before = process::read(*pid);
        if before.is_none() {
            return Err(LoadError::NoProcess { name: name.clone(), pid: *pid });
        }
        readings.push(Readings { name: name.clone(), pid: *pid, before, start: None, end: None });
    }
    Ok(readings)
}

fn plan(options: &LoadOptions, target: SocketAddr, thread: u32) -> Plan {
    Plan {
        target,
        share: options.share(thread),
        connections_total: options.connections,
        mode: options.mode(),
        warmup_ns: options.warmup.as_nanos() as u64,
        duration_ns: options.duration.as_nanos() as u64,
    }
}

fn company(options: &LoadOptions) -> Company {
    Company {
        tally: Tally::new(),
        transport: options.chosen_transport(),
        authority: options.address.authority(),
        path: options.address.path.clone(),
        handshake: handshake::encode_request(&ConnectOptions::default().handshake),
        kind: if options.notify { MessageType::Notify } else { MessageType::Request },
        route: options.route.clone(),
        payload: options.payload_content(),
        join: options
            .join
            .clone()
            .map(|route| Join { route, payload: options.join_payload.clone() }),
        senders: options.senders.unwrap_or(u32::MAX),
        timeout_ns: options.timeout.as_nanos() as u64,
        in_flight_max: options.in_flight as usize,
        dictionary: Dictionary::default(),
        serializer: String::new(),
        heartbeat_ns: 0,
        inflater: Inflater::new(),
    }
}

/// Leads the threads through the run; returns what happened between the last two readings.
fn coordinate(
    options: &LoadOptions,
    control: &Control,
    threads: &[ScopedJoinHandle<'_, io::Result<Tally>>],
    readings: &mut [Readings],
) -> Between {
    let progress = ProgressBar::new(u64::from(options.connections));
    let style = ProgressStyle::with_template("{wide_bar} {msg}");
    progress.set_style(style.expect("a constant template that parses"));
    let has_ended = || threads.iter().any(ScopedJoinHandle::is_finished);
    while control.settled.load(Ordering::Acquire) < u64::from(options.threads) && !has_ended() {
        let connected = control.connected.load(Ordering::Relaxed);
        progress.set_position(connected);
        progress.set_message(format!("{connected} connected"));
        std::thread::sleep(LOOK);
    }
    if control.connected.load(Ordering::Relaxed) == 0 || has_ended() {
        control.is_stopping.store(true, Ordering::Relaxed);
        progress.finish_and_clear();
        return Between::default();
    }
    let start_ns = control.now_ns() + START_DELAY_NS;
    control.start_ns.store(start_ns, Ordering::Release);
    let from_ns = start_ns + options.warmup.as_nanos() as u64;
    let to_ns = from_ns + options.duration.as_nanos() as u64;
    progress.set_length((to_ns - start_ns) / 1_000_000);
    let watch = |until_ns: u64| {
        let mut last = (control.now_ns(), control.completed.load(Ordering::Relaxed));
        loop {
            let now_ns = control.now_ns();
            if now_ns >= until_ns || has_ended() {
                return;
            }
            progress.set_position(now_ns.saturating_sub(start_ns) / 1_000_000);
            if now_ns - last.0 > 500_000_000 {
                let completed = control.completed.load(Ordering::Relaxed);
                let per_second = (completed - last.1) * 1_000_000_000 / (now_ns - last.0);
                let failed = control.failed.load(Ordering::Relaxed);
                progress.set_message(format!("{per_second}/s, {failed} failed"));
                last = (now_ns, completed);
            }
            std::thread::sleep(LOOK.min(Duration::from_nanos(until_ns - now_ns)));
        }
    };
    let ended =
        || control.completed.load(Ordering::Relaxed) + control.failed.load(Ordering::Relaxed);
    watch(from_ns);
    let first = (control.now_ns(), ended());
    for readings in &mut *readings {
        readings.start = process::read(readings.pid);
    }
    watch(to_ns);
    let last = (control.now_ns(), ended());
    for readings in &mut *readings {
        readings.end = process::read(readings.pid);
    }
    progress.finish_and_clear();
    Between { seconds: (last.0 - first.0) as f64 / 1e9, requests: last.1 - first.1 }
}
