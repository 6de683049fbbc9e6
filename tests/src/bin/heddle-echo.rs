//! `heddle-echo`: the workload of the Gateway API conformance suite. Called by the name `client` or
//! `server` it is that command, as in the suite's own image. Everything it does is in
//! `heddle_tests::echo`.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use heddle_tests::echo::{client, server};

#[derive(Parser)]
#[command(name = "heddle-echo", about = "A server that tells what it was asked, and its client")]
enum Command {
    /// Listens.
    Server(server::Options),
    /// Asks.
    Client(client::Options),
}

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().and_then(|path| Path::new(path).file_name()).map(OsString::from);
    if let Some(name) = name.filter(|name| name == "client" || name == "server") {
        arguments.insert(1, name);
    }
    match run(Command::parse_from(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heddle-echo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Server(options) => server::run(options).await,
            Command::Client(options) => {
                let answered = client::run(options).await?;
                Ok(std::io::stdout().write_all(answered.as_bytes())?)
            }
        }
    })
}
