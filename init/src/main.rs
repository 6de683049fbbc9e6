//! `heddle-init`: redirects a pod's TCP to its proxy, once, before anything else of the pod runs.
//!
//! Writes, checks or removes one nftables table in the network namespace it is started in. It stays
//! on nobody's path: when it has ended, the kernel does the rest.

use std::process::ExitCode;

use clap::Parser as _;

mod check;
mod config;
mod error;
mod nft;
mod ruleset;

use crate::config::{Action, CommandLine};
use crate::ruleset::Ruleset;

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    match run(&command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heddle-init: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command_line: &CommandLine) -> anyhow::Result<()> {
    let ruleset = Ruleset::new(&command_line.skips);
    match command_line.action() {
        Action::Write => {
            nft::apply(&ruleset.transaction())?;
            // What the kernel took is what counts, not what it was told.
            check::compare(&ruleset, &nft::list()?)?;
            eprintln!("heddle-init: the redirection rules are in place");
        }
        Action::Check => {
            check::compare(&ruleset, &nft::list()?)?;
            eprintln!("heddle-init: the redirection rules are as they should be");
        }
        Action::Remove => nft::apply(&Ruleset::removal())?,
    }
    Ok(())
}
