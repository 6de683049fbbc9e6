//! `heddle-cluster`: real Kubernetes on this machine. The commands; what they do is in the library.
//!
//! Has one thread until a command needs more: `exec` and the inner commands enter namespaces.

use std::io::{Write as _, stdout};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use heddle_tests::cluster::layout::{FIRST_NODE, Layout};
use heddle_tests::cluster::programs::{API, Programs};
use heddle_tests::cluster::{compact, down, forward, hold, process, up};
use nix::sys::signal::Signal;

/// A Kubernetes cluster of one or two nodes in namespaces of this machine. It needs root and the
/// programs of `scripts/prepare cluster`; it changes nothing of the host, and `down` leaves nothing.
#[derive(Debug, Parser)]
#[command(name = "heddle-cluster", version)]
struct CommandLine {
    /// Which cluster; several run side by side.
    #[arg(long, global = true, env = "HEDDLE_CLUSTER", default_value = "default")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster; return when its nodes are Ready and names are resolved.
    Up {
        #[arg(long, default_value_t = 1)]
        nodes: u8,
        /// An archive of images for every node; repeatable.
        #[arg(long)]
        image: Vec<PathBuf>,
        /// How long it may take, in seconds.
        #[arg(long, default_value_t = 180)]
        timeout: u64,
    },
    /// Remove a cluster: processes, control groups, files. Works on whatever a crash has left, too.
    Down,
    /// Show the clusters and their programs.
    Status,
    /// Load archives of images (OCI or `docker save`) into every node.
    LoadImage { archives: Vec<PathBuf> },
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Run kubectl as administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command in a node's namespaces.
    Exec {
        #[arg(default_value = FIRST_NODE)]
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// End a program (as `status` calls it), and leave it so.
    Stop {
        program: String,
        /// Ask it to end, instead of killing it.
        #[arg(long)]
        gently: bool,
    },
    /// Start a program that was stopped or has died.
    Start { program: String },
    /// Make etcd forget the past, so that no watch can resume from before.
    Compact,
    #[command(name = "__hold", hide = true)]
    Hold { node: String },
    #[command(name = "__enter", hide = true)]
    Enter { program: String },
    #[command(name = "__forward", hide = true)]
    Forward,
}

fn main() -> ExitCode {
    match run(CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heddle-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command_line: CommandLine) -> anyhow::Result<()> {
    let layout = Layout::new(&command_line.name)?;
    match command_line.command {
        Command::Up { nodes, image, timeout } => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
            let patience = Duration::from_secs(timeout);
            let options = up::Options { nodes, images: image, patience };
            runtime()?.block_on(up::up(&layout, &options))?;
            writeln!(stdout(), "export KUBECONFIG={}", layout.kubeconfig().display())?;
        }
        Command::Down => runtime()?.block_on(down::down(&layout))?,
        Command::Status => print_status()?,
        Command::LoadImage { archives } => {
            let runtime = runtime()?;
            for archive in archives {
                runtime.block_on(up::load_image(&layout, &archive))?;
            }
        }
        Command::Kubeconfig => {
            layout.nodes()?;
            writeln!(stdout(), "{}", layout.kubeconfig().display())?;
        }
        Command::Kubectl { arguments } => {
            layout.nodes()?;
            let kubectl = Programs::find(&API)?.path("kubectl");
            let mut command = std::process::Command::new(&kubectl);
            command.args(arguments).env("KUBECONFIG", layout.kubeconfig());
            return Err(command.exec()).with_context(|| format!("run {}", kubectl.display()));
        }
        Command::Exec { node, command } => {
            let cwd = std::env::current_dir()?;
            process::become_command(&layout, &node, &cwd, &command)?;
        }
        Command::Stop { program, gently } => {
            let signal = if gently { Signal::SIGTERM } else { Signal::SIGKILL };
            runtime()?.block_on(process::stop(&layout, &program, signal))?;
        }
        Command::Start { program } => {
            process::restart(&layout, &program)?;
        }
        Command::Compact => runtime()?.block_on(compact(&layout))?,
        Command::Hold { node } => {
            hold::hold(&layout, &node)?;
        }
        Command::Enter { program } => {
            process::become_program(&layout, &program)?;
        }
        Command::Forward => {
            forward::run(&layout)?;
        }
    }
    Ok(())
}

fn print_status() -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let all = Layout::all();
    if all.is_empty() {
        writeln!(out, "no cluster is up")?;
    }
    for layout in all {
        let state = match layout.nodes() {
            Ok(nodes) => format!("up, {} nodes", nodes.len()),
            Err(_) => "not ready; `down` removes what there is".into(),
        };
        writeln!(out, "{}: {state}", layout.name())?;
        for (launch, runs) in process::list(&layout)? {
            let state = if runs { "running" } else { "stopped" };
            writeln!(out, "  {:<28} {state}", launch.name)?;
        }
    }
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
