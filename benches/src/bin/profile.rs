//! Says where our gateway or worker spends its time under the load that the comparison is about: a flame graph by
//! perf, and instructions a request by callgrind, which need no quiet machine and no counters of the processor.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use benches::flame::Flame;
use benches::programs::{build_release, end_on_signals, find, rest};
use benches::run::{Run, run};
use benches::scenario::{self, Compression, Scenario};
use benches::systems::{Binaries, Instrument, Setup, System, Systems};
use clap::Parser;

/// Samples a second; a prime, so that nothing periodic is in step with it.
const SAMPLES_PER_SECOND: u32 = 4_999;
/// Functions that are printed.
const FUNCTIONS: usize = 25;
/// Requests a second under callgrind, which makes programs fifty times slower.
const CALLGRIND_RATE: u32 = 500;

/// Looks at a file until it is there.
const LOOKS_MAX: usize = 1_000;

/// Profiles the gateway, or the worker, under load.
#[derive(Parser)]
#[command(name = "profile", version)]
struct Flags {
    /// Which program: gateway or worker
    #[arg(long, default_value = "gateway", value_parser = ["gateway", "worker"])]
    program: String,
    /// Load by its name in the comparison
    #[arg(long, default_value = "headline")]
    load: String,
    /// Seconds that are profiled
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Reactors of the gateway
    #[arg(long, default_value_t = 1)]
    reactors: u32,
    /// Where the flame graph goes
    #[arg(long, default_value = "flame.svg", value_name = "FILE")]
    svg: PathBuf,
}

fn main() -> ExitCode {
    match profile(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn profile(flags: &Flags) -> Result<()> {
    let load =
        scenario::ALL.iter().find(|scenario| scenario.name == flags.load && !scenario.is_idle);
    let load = load.with_context(|| format!("there is no load called {}", flags.load))?;
    build_release()?;
    let binaries = Binaries { pitaya_server: None, ..Binaries::find()? };
    let folder = tempfile::Builder::new().prefix("dragonfruit-profile").tempdir()?;
    end_on_signals(folder.path().to_path_buf())?;
    let tool = |name, variable| {
        let path = find(name, variable);
        if path.is_none() {
            println!(
                "{name} is not installed: no {}",
                if name == "perf" { "flame graph" } else { "instruction count" }
            );
        }
        path
    };
    if let Some(perf) = tool("perf", "DRAGONFRUIT_PERF") {
        draw_flame(&perf, flags, load, &binaries, folder.path())?;
    }
    if let Some(valgrind) = tool("valgrind", "DRAGONFRUIT_VALGRIND") {
        count_instructions(&valgrind, flags, load, &binaries, folder.path())?;
    }
    Ok(())
}

fn setup(flags: &Flags, driver: &str, instrument: Option<Instrument>) -> Setup {
    let (compression, reactors) = (Compression::Default, flags.reactors);
    Setup { compression, reactors, driver: driver.to_owned(), instrument }
}

fn pid_of(system: &System, program: &str) -> Result<u32> {
    let mut processes = system.processes();
    let found = processes.find(|(name, _)| *name == program);
    found.map(|(_, pid)| pid).context("the program does not run")
}

/// Runs the load in the background while `act` looks at the program.
fn under_load<T: Send>(
    load: &Scenario,
    system: &System,
    duration: Duration,
    act: impl FnOnce() -> Result<T> + Send,
) -> Result<(Run, T)> {
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        let outcome = run(load, system, 0, duration)?.context("the system does not serve this")?;
        let acted =
            acting.join().map_err(|_| anyhow::anyhow!("the profiler's thread panicked"))??;
        Ok((outcome, acted))
    })
}

fn checked(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn draw_flame(
    perf: &Path,
    flags: &Flags,
    load: &Scenario,
    binaries: &Binaries,
    folder: &Path,
) -> Result<()> {
    let systems = Systems::start(binaries, &setup(flags, "auto", None), folder)?;
    let system = systems.systems.first().context("no system runs")?;
    let pid = pid_of(system, &flags.program)?;
    let (data, seconds) = (folder.join("perf.data"), flags.seconds.to_string());
    let record = || {
        let mut command = Command::new(perf);
        command.args(["record", "--quiet", "--event", "cpu-clock", "--call-graph", "fp"]);
        command.args(["--freq", &SAMPLES_PER_SECOND.to_string(), "--pid", &pid.to_string()]);
        checked(command.arg("--output").arg(&data).args(["--", "sleep", &seconds]))
    };
    // The load goes on a little longer than the recording takes to begin and to end.
    let (run, _) = under_load(load, system, Duration::from_secs(flags.seconds + 1), record)?;
    let mut command = Command::new(perf);
    command.args(["script", "--fields", "comm,ip,sym,dso", "--no-inline", "--input"]).arg(&data);
    let flame = Flame::read(&checked(&mut command)?);
    let title = format!("{}: {}", flags.program, load.title);
    std::fs::write(&flags.svg, flame.draw(&title))
        .with_context(|| format!("cannot write {}", flags.svg.display()))?;
    println!("{title}");
    println!(
        "{:.0} requests/s; flame graph in {}",
        run.report.requests.per_second,
        flags.svg.display()
    );
    for (name, samples) in flame.innermost().into_iter().take(FUNCTIONS) {
        println!("{:6.1} %  {name}", samples as f64 / flame.samples().max(1) as f64 * 100.0);
    }
    Ok(())
}

/// With the epoll driver: callgrind cannot wait in a ring. What lies above the drivers is the same.
fn count_instructions(
    valgrind: &Path,
    flags: &Flags,
    load: &Scenario,
    binaries: &Binaries,
    folder: &Path,
) -> Result<()> {
    let out = folder.join("callgrind.out");
    let instrument = Instrument {
        program: flags.program.clone(),
        valgrind: valgrind.to_path_buf(),
        out: out.clone(),
    };
    let load = Scenario { rate: CALLGRIND_RATE, in_flight: 100, ..load.clone() };
    let systems = Systems::start(binaries, &setup(flags, "epoll", Some(instrument)), folder)?;
    let system = systems.systems.first().context("no system runs")?;
    let pid = pid_of(system, &flags.program)?.to_string();
    let program = valgrind.with_file_name("callgrind_control");
    let control = |what: &str| checked(Command::new(&program).args([what, &pid]));
    let duration = Duration::from_secs(flags.seconds);
    let (run, _) = under_load(&load, system, duration, || control("--instr=on"))?;
    // Asked for, because a program that ends slowly under callgrind is killed before it has written anything.
    control("--dump=load")?;
    let text =
        checked(Command::new(valgrind.with_file_name("callgrind_annotate")).arg(dump(&out)?))?;
    // The warm-up is counted as well, on both sides of the division.
    let warm = run.report.warmup_s / run.report.duration_s;
    let answered = run.report.requests.answered as f64 * (1.0 + warm);
    println!(
        "\ninstructions a request, at {CALLGRIND_RATE} a second, outside the kernel (callgrind, epoll driver)"
    );
    for (count, name) in text.lines().filter_map(annotated).take(FUNCTIONS) {
        println!("{:10.0}  {name}", count / answered.max(1.0));
    }
    Ok(())
}

/// The first dump of a program under callgrind, once it is written.
fn dump(out: &Path) -> Result<PathBuf> {
    let mut name = out.as_os_str().to_owned();
    name.push(".1");
    let path = PathBuf::from(name);
    for _ in 0..LOOKS_MAX {
        // Written in one go when the program gets to it, and renamed by nobody: some bytes are not yet all.
        let bytes =
            |path: &Path| std::fs::metadata(path).map(|file| file.len()).unwrap_or_default();
        let before = bytes(&path);
        rest();
        if before > 0 && bytes(&path) == before {
            return Ok(path);
        }
    }
    bail!("callgrind has written nothing to {}", path.display())
}

/// A line `1,234 (5.6%)  what it belongs to`.
fn annotated(line: &str) -> Option<(f64, &str)> {
    let (count, rest) = line.trim_start().split_once(' ')?;
    let count = count.replace(',', "").parse().ok()?;
    let (_, name) = rest.split_once(')')?;
    Some((count, name.trim()))
}
