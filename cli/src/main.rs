//! `heddle`, also installed as `kubectl-heddle`: looks into a mesh from outside. Data goes to
//! standard output, everything else to standard error.
//!
//! Exit codes: 0 all is well, 1 something that was checked is not, 2 the question could not be asked.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod check;
mod cluster;
mod edges;
mod inject;
mod output;
mod proxies;
mod stat;
mod traffic;
mod version;

use cluster::Access;
use output::Printed;

/// Looks into a Heddle mesh.
#[derive(Debug, Parser)]
#[command(name = "heddle", version, disable_help_subcommand = true)]
struct CommandLine {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Whether the cluster is ready for Heddle, and whether Heddle in it is well
    Check(check::Options),
    /// Add the sidecar to manifests, as the webhook would
    Inject(inject::Options),
    /// The proxies: identity, version, what they run and what they reject
    #[command(visible_alias = "proxies")]
    Status(proxies::Options),
    /// The same, as `heddle proxy list`
    #[command(hide = true, subcommand)]
    Proxy(ProxyCommand),
    /// Success rate, requests per second and latency of workloads, over the last minute
    Stat(stat::Options),
    /// Who calls whom, with which identity, in mesh TLS or in plaintext
    Edges(edges::Options),
    /// Versions of this program, the control plane and the proxies
    Version(version::Options),
    /// Completion for a shell: source <(heddle completion bash)
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
enum ProxyCommand {
    /// See `heddle status`
    List(proxies::Options),
}

fn main() -> ExitCode {
    // May be installed already, by nobody: the one provider of the whole mesh.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let command_line = CommandLine::parse();
    match run(command_line) {
        Ok(Printed { text, is_well }) => {
            // A reader that has gone away wants no more of it.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("heddle: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command_line: CommandLine) -> anyhow::Result<Printed> {
    let CommandLine { access, command } = command_line;
    if let Command::Completion { shell } = command {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut CommandLine::command(), "heddle", &mut text);
        return Ok(Printed::well(String::from_utf8(text)?));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Check(options) => check::run(&access, &options).await,
            Command::Inject(options) => inject::run(&options),
            Command::Status(options) | Command::Proxy(ProxyCommand::List(options)) => {
                proxies::run(&access, &options).await
            }
            Command::Stat(options) => stat::run(&access, &options).await,
            Command::Edges(options) => edges::run(&access, &options).await,
            Command::Version(options) => version::run(&access, &options).await,
            Command::Completion { .. } => unreachable!("answered above"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn kubectls_flags_are_understood_before_and_after_the_command() {
        for line in [
            "heddle -n shop stat",
            "heddle stat -n shop --context kind -o json",
            "heddle --kubeconfig /x stat -A",
        ] {
            let parsed = CommandLine::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
    }
}
