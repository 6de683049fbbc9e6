//! `heddle-proxy`: arguments → configuration → app → exit code.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use heddle_proxy::app::App;
use heddle_proxy::config::{Config, ControlConfig, LogFormat};
use heddle_proxy::control;
use heddle_runtime::drain::Drained;
use heddle_runtime::signal::Termination;
use heddle_runtime::telemetry::{self, Format};

/// Answers come at once, but for a renewal.
const PATIENCE: Duration = Duration::from_secs(20);
/// One for certificates, one for discovery.
const LOOKUP_THREADS: usize = 2;

/// The sidecar of the Heddle service mesh. Configured by HEDDLE_* variables.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy (the default).
    Run,
    /// Tell the running proxy to take on nothing new, and wait until its connections are gone.
    Drain,
    /// Print what the running proxy acts on, as JSON.
    Dump,
    /// Change what the running proxy logs, for instance to debug or warn,heddle_proxy=debug.
    LogLevel {
        /// The new filter.
        filter: String,
    },
    /// Obtain a new certificate now and print its serial number.
    Renew,
    /// Exit with 0 when the running proxy is ready, else say what is missing.
    Ready,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command.unwrap_or(Command::Run) {
        Command::Run => run(),
        Command::Drain => drain(),
        Command::Dump => ask("dump", PATIENCE),
        Command::LogLevel { filter } => ask(&format!("log-level {filter}"), PATIENCE),
        Command::Renew => ask("renew", PATIENCE),
        Command::Ready => ask("ready", PATIENCE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("heddle-proxy: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Only names are looked up there, and a resolver that does not answer must not gather them.
        .max_blocking_threads(LOOKUP_THREADS)
        .build()
        .context("no runtime can be made")?;
    let code = runtime.block_on(serve());
    // A lookup that hangs is not worth waiting for.
    runtime.shutdown_background();
    code
}

async fn serve() -> anyhow::Result<ExitCode> {
    let config = Config::from_env()?;
    let format = match config.log_format {
        LogFormat::Plain => Format::Plain,
        LogFormat::Json => Format::Json,
    };
    let level = telemetry::init(format, &config.log).context("HEDDLE_LOG")?;
    let mut termination = Termination::catch()?;
    // A core dump would hold the private key, and another process of the uid could read it.
    nix::sys::prctl::set_dumpable(false).context("PR_SET_DUMPABLE")?;
    raise_file_limit();
    let app = App::start(config, Some(level)).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), metrics = %app.metrics_address, "started");

    let signal = termination.next().await;
    tracing::info!(signal, "finishing what is in flight; a second signal ends it");
    let code = tokio::select! {
        drained = app.finish() => {
            if let Drained::Aborted { left } = drained {
                tracing::warn!(left, "connections were cut at the drain timeout");
            }
            ExitCode::SUCCESS
        }
        signal = termination.next() => {
            tracing::warn!(signal, "ended by a second signal");
            app.abort();
            ExitCode::FAILURE
        }
    };
    app.join();
    Ok(code)
}

/// The soft limit is often a leftover of `select(2)`; the hard one is the administrator's word.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

fn drain() -> anyhow::Result<ExitCode> {
    let timeout = ControlConfig::from_env()?.drain_timeout;
    ask("drain", timeout + PATIENCE)
}

#[expect(clippy::print_stdout, reason = "the answer is what was asked for")]
#[tokio::main(flavor = "current_thread")]
async fn ask(line: &str, patience: Duration) -> anyhow::Result<ExitCode> {
    let config = ControlConfig::from_env()?;
    let answer = control::ask(&config.socket, line, patience).await?;
    print!("{answer}");
    Ok(ExitCode::SUCCESS)
}
