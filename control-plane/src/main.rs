//! Arguments, configuration, application, exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use heddle_control_plane::app::{App, Handle};
use heddle_control_plane::config::{Command, CommandLine, Config};
use heddle_control_plane::control;
use heddle_runtime::signal::Termination;
use heddle_runtime::telemetry;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Threads at most: the work is spread over subscribers, and none of it is in a request's path.
const THREADS_MAX: usize = 4;

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let done = match command_line.command {
        Some(Command::Ctl { state_dir, verb }) => runtime(1)
            .and_then(|runtime| runtime.block_on(control::call(&state_dir, &verb)))
            .and_then(|answer| Ok(std::io::stdout().write_all(answer.as_bytes())?)),
        None => command_line.serve.check().map_err(Into::into).and_then(|config| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            runtime(threads.min(THREADS_MAX))?.block_on(run(config))
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "heddle-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(threads).enable_all().build()?)
}

async fn run(config: Config) -> anyhow::Result<()> {
    let level = telemetry::init(config.log_format, &config.log)?;
    raise_file_limit();
    let drain_timeout = config.drain_timeout;
    let mut signals = Termination::catch()?;
    let handle: Handle = App::start(config, Some(level)).await?;
    let signal = signals.next().await;
    tracing::info!(signal, "draining; a second signal ends the process");
    tokio::select! {
        drained = handle.shutdown(drain_timeout) => tracing::info!(?drained, "ended"),
        signal = signals.next() => anyhow::bail!("ended by a second {signal}"),
    }
    Ok(())
}

/// Every proxy holds a connection. Failing leaves the limit as it was, and connections are bounded
/// by what it is.
fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
