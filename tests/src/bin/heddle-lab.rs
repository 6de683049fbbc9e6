//! `heddle-lab`: a mesh on one machine. The commands; what they do is in the library.
//!
//! Has one thread until a command needs more: `exec` turns this very process into the command.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use heddle_tests::lab::enter::Enter;
use heddle_tests::lab::launch::NodeOptions;
use heddle_tests::lab::layout::{Layout, PodKey};
use heddle_tests::lab::protocol::{Phase, Reply, Request, Status, Target};
use heddle_tests::lab::up::{UpOptions, lock};
use heddle_tests::lab::{client, down, node, up};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the Pods of a directory of Kubernetes manifests as network namespaces on this machine, with
/// the mesh between them.
#[derive(Debug, Parser)]
#[command(name = "heddle-lab", version)]
struct CommandLine {
    /// The lab meant, by its directory of manifests. Default: the only one that is up.
    #[arg(long, global = true, env = "HEDDLE_LAB_DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the lab of DIR; return when everything declared is ready.
    Up(Up),
    /// Run a command in a pod, as its application's uid. The exit status is the command's.
    Exec {
        pod: String,
        /// Whose uid, environment and working directory. Default: the first container's.
        #[arg(short, long)]
        container: Option<String>,
        #[arg(long, env = "TERM", hide = true, default_value = "dumb")]
        term: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print what a container has written ("control-plane" instead of a pod: the control plane).
    Logs {
        pod: String,
        /// A container; "proxy" is the sidecar, "heddle-init" wrote the rules. Default: the first
        /// of the application.
        #[arg(short, long)]
        container: Option<String>,
        /// Go on printing.
        #[arg(short, long)]
        follow: bool,
    },
    /// Show pods and control plane.
    Status {
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Signal every process of a POD, a POD:CONTAINER (POD:proxy is the sidecar), or the
    /// control-plane.
    Kill {
        target: Target,
        /// By name or number.
        #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
        signal: Signal,
    },
    /// Start what was killed or stopped or has ended; return when it is ready.
    Start {
        target: Target,
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// Delete a pod as Kubernetes does; return when it is gone. `start` makes it anew.
    Stop { pod: String },
    /// Remove the lab: processes, namespaces, files. Works on whatever a crash has left, too.
    Down {
        /// Its directory, like --dir.
        directory: Option<PathBuf>,
    },
    /// Run a command (bash, make demo, …) as root of a user namespace, for those who are not root on
    /// this machine. When it ends, every lab in it is gone.
    Userns {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(name = "__node", hide = true)]
    Node { directory: PathBuf },
    #[command(name = "__enter", hide = true)]
    Enter { what: String },
}

#[derive(Debug, clap::Args)]
struct Up {
    /// Directory of manifests.
    directory: PathBuf,
    /// How long everything may take to be ready.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// Where heddle-proxy, heddle-init and heddle-control-plane are. Default: beside this program.
    #[arg(long, env = "HEDDLE_BIN_DIR")]
    bin_dir: Option<PathBuf>,
    /// A program of yours to copy to where every pod finds it on its search path; repeatable.
    #[arg(long)]
    program: Vec<PathBuf>,
    /// Start no control plane: for pods that are all unmeshed.
    #[arg(long)]
    no_control_plane: bool,
    /// An argument more for the control plane; repeatable.
    #[arg(long, allow_hyphen_values = true)]
    control_plane_arg: Vec<String>,
    /// A variable (NAME=VALUE) for every proxy; repeatable. A pod's own are set in its manifest: an
    /// initContainer "heddle-proxy" with `env`.
    #[arg(long, value_parser = parse_variable)]
    proxy_env: Vec<(String, String)>,
    /// What proxies and control plane log.
    #[arg(long, default_value = "info")]
    log: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    let executes = matches!(command_line.command, Command::Exec { .. } | Command::Enter { .. });
    match run(command_line) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("heddle-lab: {error:#}");
            // As shells do it for a command that cannot be run.
            let missing = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
                == Some(std::io::ErrorKind::NotFound);
            match (executes, missing) {
                (true, true) => ExitCode::from(127),
                (true, false) => ExitCode::from(126),
                (false, _) => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command_line: CommandLine) -> anyhow::Result<ExitCode> {
    let dir = command_line.dir;
    let find = || Layout::find(dir.as_deref());
    match command_line.command {
        Command::Up(options) => return runtime()?.block_on(start(options)),
        Command::Exec { pod, container, term, command } => {
            let request = Request::Enter { pod, container, argv: command };
            let Reply::Enter(mut enter) = client::request(&find()?, &request)? else {
                bail!("unexpected answer");
            };
            enter.env.push(("TERM".to_owned(), term));
            enter.exec()?;
        }
        Command::Logs { pod, container, follow } => {
            print_log(&find()?, &pod, container.as_deref(), follow)?;
        }
        Command::Status { output } => print_status(&client::status(&find()?)?, output)?,
        Command::Kill { target, signal } => {
            client::request(&find()?, &Request::Signal { target, signal: signal as i32 })?;
        }
        Command::Start { target, timeout } => {
            let layout = find()?;
            client::request(&layout, &Request::Start { target: target.clone() })?;
            runtime()?.block_on(wait_for(&layout, &target, timeout))?;
        }
        Command::Stop { pod } => {
            client::request(&find()?, &Request::Stop { pod })?;
        }
        Command::Down { directory } => {
            let layout = match directory.or(dir) {
                None if Layout::all().is_empty() => {
                    eprintln!("no lab is up");
                    return Ok(ExitCode::SUCCESS);
                }
                directory => Layout::find(directory.as_deref())?,
            };
            let _lock = lock(&layout)?;
            runtime()?.block_on(down::down(&layout))?;
        }
        Command::Userns { command } => userns(&command)?,
        Command::Node { directory } => {
            // Not the terminal's any more: a Ctrl-C there is not meant for the lab.
            nix::unistd::setsid().context("leave the terminal")?;
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
            let layout = Layout::of(&directory)?;
            let options = std::fs::read(layout.run().join("options.json"))?;
            runtime()?.block_on(node::run(layout, serde_json::from_slice(&options)?))?;
        }
        Command::Enter { what } => {
            serde_json::from_str::<Enter>(&what)?.exec()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The namespaces of a container: user (with subordinate uids for proxies and applications), network
/// and mounts to make more of, and processes, so that nothing outlives the command.
fn userns(command: &[String]) -> anyhow::Result<()> {
    let namespaces = ["--user", "--map-root-user", "--map-auto", "--mount", "--net", "--pid"];
    let error = std::process::Command::new("unshare")
        .args(namespaces)
        .args(["--fork", "--kill-child", "--mount-proc", "sh", "-c"])
        .arg("mount -t tmpfs heddle-lab /run && exec \"$@\"")
        .arg("sh")
        .args(command)
        .exec();
    Err(error).context("cannot run `unshare`: install the package util-linux")
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")
}

async fn start(up: Up) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&up.directory)?;
    let beside = || Ok(std::env::current_exe()?.parent().context("no directory")?.to_owned());
    let options = UpOptions {
        bin_dir: up.bin_dir.map_or_else(beside, anyhow::Ok)?,
        programs: up.program,
        timeout: up.timeout,
        node: NodeOptions {
            control_plane: !up.no_control_plane,
            control_plane_args: up.control_plane_arg,
            proxy_env: up.proxy_env,
            log: up.log,
        },
    };
    let _lock = lock(&layout)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        status = up::up(&layout, &options) => {
            let status = status?;
            let pods = status.pods.len();
            eprintln!("the lab of {} is up: {pods} pods ready", status.dir.display());
            return Ok(ExitCode::SUCCESS);
        }
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("interrupted: removing what was made");
    down::down(&layout).await?;
    Ok(ExitCode::from(130))
}

async fn wait_for(layout: &Layout, target: &Target, timeout: Duration) -> anyhow::Result<()> {
    let mut why = String::from("it has not been made yet");
    let ready = async {
        loop {
            let status = client::status(layout)?;
            match readiness(&status, target) {
                Ok(()) => return Ok(()),
                Err(message) => why = message,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(timeout, ready).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("{target} is not ready after {} s: {why}", timeout.as_secs()),
    }
}

fn readiness(status: &Status, target: &Target) -> Result<(), String> {
    let (key, container) = match target {
        Target::ControlPlane if status.control_plane.ready => return Ok(()),
        Target::ControlPlane => {
            return Err(status.control_plane.message.clone().unwrap_or_default());
        }
        Target::Pod(key) => (key, None),
        Target::Container(key, container) => (key, Some(container)),
    };
    let Some(pod) = status.pods.iter().find(|pod| pod.key() == *key) else {
        return Err("it has not been made yet".to_owned());
    };
    let ready = match container {
        None => pod.ready,
        Some(container) => pod.ready_containers.contains(container),
    };
    if ready && !pod.terminating { Ok(()) } else { Err(pod.message.clone().unwrap_or_default()) }
}

fn print_log(
    layout: &Layout,
    pod: &str,
    container: Option<&str>,
    follow: bool,
) -> anyhow::Result<()> {
    let path = match (pod, container) {
        ("control-plane", None) => layout.control_plane_log(),
        (_, Some("heddle-proxy")) => layout.log(&pod.parse()?, "proxy"),
        (_, Some(container)) => layout.log(&pod.parse()?, container),
        (_, None) => default_log(layout, &pod.parse()?)?,
    };
    let mut file =
        std::fs::File::open(&path).with_context(|| format!("no log at {}", path.display()))?;
    let mut stdout = std::io::stdout().lock();
    std::io::copy(&mut file, &mut stdout)?;
    if !follow {
        return Ok(());
    }
    runtime()?.block_on(async {
        let mut chunk = Vec::new();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let position = file.stream_position()?;
            file.seek(SeekFrom::Start(position))?;
            chunk.clear();
            file.read_to_end(&mut chunk)?;
            stdout.write_all(&chunk)?;
            stdout.flush()?;
        }
    })
}

/// The log of the first container that is not the mesh's own.
fn default_log(layout: &Layout, pod: &PodKey) -> anyhow::Result<PathBuf> {
    let status = client::status(layout)?;
    let found = status.pods.iter().find(|candidate| candidate.key() == *pod);
    let names = found.into_iter().flat_map(|pod| &pod.containers);
    match names.into_iter().find(|name| *name != "proxy") {
        Some(name) => Ok(layout.log(pod, name)),
        None => bail!("no pod {pod}; name a container with -c to read the log of an earlier one"),
    }
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn print_status(status: &Status, output: Output) -> anyhow::Result<()> {
    if let Output::Json = output {
        println!("{}", serde_json::to_string_pretty(status)?);
        return Ok(());
    }
    let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let control_plane = &status.control_plane;
    if control_plane.wanted {
        let state = if control_plane.ready { "ready" } else { "not ready" };
        println!("control-plane {state}, pid {}", pid(control_plane.pid));
    }
    println!("{:<32} {:<10} {:<7} {:<14} PIDS", "POD", "PHASE", "MESHED", "ADDRESS");
    for pod in &status.pods {
        let phase = match (pod.terminating, pod.phase) {
            (true, _) => "Stopping",
            (false, Phase::Running) if pod.ready => "Ready",
            (false, phase) => phase.as_str(),
        };
        let pids: Vec<_> = pod.pids.iter().map(|(name, pid)| format!("{name}={pid}")).collect();
        println!(
            "{:<32} {phase:<10} {:<7} {:<14} {}",
            pod.key().to_string(),
            if pod.meshed { "yes" } else { "no" },
            pod.addresses.first().map(ToString::to_string).unwrap_or_default(),
            pids.join(" ")
        );
    }
    for line in status.unready() {
        println!("! {line}");
    }
    Ok(())
}

fn parse_signal(text: &str) -> anyhow::Result<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).with_context(|| format!("{number} is not a signal"));
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse().with_context(|| format!("{text:?} is not a signal: write KILL, TERM, STOP, …"))
}

fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        _ => bail!("{text:?} is not a duration: write 60s, 500ms or 2m"),
    };
    let number: f64 =
        number.parse().with_context(|| format!("{text:?} is not a duration: write 60s"))?;
    Ok(Duration::try_from_secs_f64(number * seconds)?)
}

fn parse_variable(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) =
        text.split_once('=').with_context(|| format!("{text:?}: write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
