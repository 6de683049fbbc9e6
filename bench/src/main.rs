//! Side-by-side benchmarks: no proxy, Heddle, Envoy and HAProxy on the same path, in one interleaved
//! run, with every answer checked. Writes a report and judges what was promised.

mod backend;
mod contender;
mod environment;
mod goals;
mod load;
mod netns;
mod process;
mod report;
mod rounds;
mod table;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::contender::{Contender, Workshop};
use crate::load::Timing;
use crate::process::{Cpus, Pinned};
use crate::report::{Environment, Report, Samples};
use crate::rounds::{Plan, Run};

/// Every file of a run is here, swept before and after.
const WORKSHOP: &str = "/var/cache/heddle-bench";
/// Held while a run is alive: two would measure each other.
const LOCK: &str = "/run/heddle-bench.lock";

/// Compares Heddle with its peers.
#[derive(Debug, Parser)]
#[command(version)]
enum Arguments {
    /// Measure, and write report.json and report.md.
    Run(RunOptions),
    /// Write the page for the report of a full run; a quick one is not for keeping.
    Render {
        #[arg(long, default_value = "target/bench/report.json")]
        report: PathBuf,
        #[arg(long, default_value = "docs/performance.md")]
        to: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunOptions {
    /// Fewer and shorter rounds: under five minutes.
    #[arg(long)]
    quick: bool,
    /// Instead of 7, or 3 when quick.
    #[arg(long)]
    rounds: Option<u32>,
    /// Counted for each cell, in milliseconds, instead of 3000, or 800 when quick.
    #[arg(long)]
    counted_ms: Option<u64>,
    /// The Envoy program; bench/prepare says where it is.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// The HAProxy program.
    #[arg(long)]
    haproxy: Option<PathBuf>,
    /// Directory of Heddle's programs. [default: where this one is]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Leave Heddle out.
    #[arg(long)]
    without_heddle: bool,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let done = match Arguments::parse() {
        Arguments::Run(options) => run(&options),
        Arguments::Render { report, to } => render(&report, &to).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("heddle-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(options: &RunOptions) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run it as root");
    }
    let lock = File::create(LOCK).with_context(|| format!("create {LOCK}"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another run holds {LOCK}"))?;
    netns::sweep()?;
    // Connections of all contenders end in this process.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let cpus = Cpus::choose()?;
    let _pinned = cpus.load.map(Pinned::to).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            report = measure(options, cpus) => report,
            _ = interrupt.recv() => bail!("interrupted; everything has been removed"),
            _ = terminate.recv() => bail!("terminated; everything has been removed"),
        }
    })?;
    write_report(&report, &options.out)?;
    Ok(verdict(&report))
}

async fn measure(options: &RunOptions, cpus: Cpus) -> anyhow::Result<Report> {
    let program = std::env::current_exe()?;
    let own = program.parent().context("a program is in a directory")?;
    let removed = Removed::create(Path::new(WORKSHOP))?;
    let workshop = Workshop { dir: removed.0.clone(), cpus };
    let mut contenders = assemble(options, own, &workshop).await?;
    let plan = plan(options);
    let before = environment::CpuTime::now()?;
    let samples = Samples::default();
    let mut run = Run { contenders: &mut contenders, plan, samples, realtime: true };
    run.all().await;
    let (samples, realtime) = (run.samples, run.realtime);
    let results = samples.summarize();
    Ok(Report {
        environment: Environment {
            date: environment::today(),
            commit: environment::commit(),
            profile: own.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            quick: options.quick,
            rounds: plan.rounds,
            counted_seconds: plan.timing.counted.as_secs_f64(),
            kernel: environment::kernel(),
            cpu: environment::cpu(),
            cpus: cpus.allowed,
            pinned: cpus.sidecars.is_some(),
            realtime,
            steal_percent: environment::CpuTime::now()?.stolen_since(before),
            versions: environment::versions(options.envoy.as_deref(), options.haproxy.as_deref()),
        },
        gates: report::judge(&results),
        goals: goals::compare(&results),
        results,
        void: samples.void,
    })
}

async fn assemble(
    options: &RunOptions,
    own: &Path,
    workshop: &Workshop,
) -> anyhow::Result<Vec<Contender>> {
    let mut contenders = vec![contender::no_proxy(workshop)?];
    if !options.without_heddle {
        let programs = options.programs.as_deref().unwrap_or(own);
        contenders.push(contender::heddle(workshop, programs).await?);
    }
    if let Some(envoy) = &options.envoy {
        contenders.push(contender::envoy(workshop, envoy)?);
    }
    if let Some(haproxy) = &options.haproxy {
        contenders.push(contender::haproxy(workshop, haproxy)?);
    }
    Ok(contenders)
}

fn plan(options: &RunOptions) -> Plan {
    let (rounds, counted, rate) = if options.quick { (3, 800, 1200) } else { (7, 3000, 5000) };
    let counted = Duration::from_millis(options.counted_ms.unwrap_or(counted));
    let rate = Duration::from_millis(rate).max(counted);
    let warm_up = Duration::from_millis(300).min(counted);
    Plan {
        rounds: options.rounds.unwrap_or(rounds),
        timing: Timing { warm_up, counted },
        rate_timing: Timing { warm_up, counted: rate },
    }
}

fn write_report(report: &Report, out: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let page = table::markdown(report);
    let (json, markdown) = (out.join("report.json"), out.join("report.md"));
    fs::write(&json, serde_json::to_string_pretty(report)? + "\n")?;
    fs::write(&markdown, &page)?;
    std::io::stdout().write_all(page.as_bytes())?;
    eprintln!("heddle-bench: wrote {} and {}", json.display(), markdown.display());
    Ok(())
}

fn verdict(report: &Report) -> ExitCode {
    let failures = report.failures();
    for failure in &failures {
        eprintln!("heddle-bench: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn render(report: &Path, to: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(report)
        .with_context(|| format!("no report at {}: run `make bench` first", report.display()))?;
    let report: Report = serde_json::from_str(&text).context("not a report of this version")?;
    if let Some(reason) = report.environment.why_not_published() {
        eprintln!("heddle-bench: {} stays as it is: {reason}", to.display());
        return Ok(());
    }
    fs::write(to, table::markdown(&report)).with_context(|| format!("write {}", to.display()))
}

/// A directory that is removed when dropped.
struct Removed(PathBuf);

impl Removed {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
        }
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("heddle-bench: {} stays: {error}", self.0.display());
        }
    }
}
