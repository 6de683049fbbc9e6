//! `heddle-demo`: what `make demo` runs. Ends with 0 when every promise held, with 1 when one did
//! not, and cleans up in every case but kill -9, also on Ctrl-C and SIGTERM.

use std::process::ExitCode;
use std::sync::mpsc::sync_channel;

use clap::Parser;
use heddle_tests::demo::{self, Options, Patience};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

#[derive(Parser)]
#[command(name = "heddle-demo", about = "The whole mesh on this machine, with live traffic")]
struct CommandLine {
    #[command(flatten)]
    options: Options,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let CommandLine { options } = CommandLine::parse();
    match run(options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("heddle-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The demo blocks on processes and files, so it has a thread of its own; this one waits for
/// signals.
async fn run(options: Options) -> anyhow::Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (interrupted, patience) = sync_channel(1);
    let (done, mut outcome) = oneshot::channel();
    std::thread::spawn(move || {
        // Nobody waits any more only when this process ends.
        let _ = done.send(demo::run(&options, &Patience::new(patience)));
    });
    loop {
        tokio::select! {
            outcome = &mut outcome => return outcome?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // Full: it was told already, and is cleaning up.
        let _ = interrupted.try_send(());
    }
}
