//! `heddle`, also installed as `kubectl-heddle`.

use std::process::ExitCode;

use clap::Parser;

/// Looks into the mesh from outside.
#[derive(Debug, Parser)]
#[command(name = "heddle", version)]
struct CommandLine {}

fn main() -> ExitCode {
    let CommandLine {} = CommandLine::parse();
    ExitCode::SUCCESS
}
