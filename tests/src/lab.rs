//! The lab: a mesh on one machine, every Pod of a directory of manifests a network namespace.
//!
//! [`Lab`] is what tests and the demo hold: a lab that goes down when it is dropped. It runs the
//! program `heddle-lab`, so that what is tested is what people use. `docs/lab.md` describes the
//! program; the modules below are its parts.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

pub mod client;
mod cluster_ip;
mod control_plane;
mod desired;
pub mod down;
mod endpoints;
pub mod enter;
mod hosts;
pub mod launch;
pub mod layout;
mod manifests;
mod network;
pub mod node;
mod pod;
mod pod_spec;
mod probe;
mod probe_loop;
mod processes;
pub mod protocol;
mod published;
mod service_proxy;
pub mod up;

pub use layout::{Layout, PodKey};
pub use protocol::{PodStatus, Status};

/// How a test wants its lab.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the programs are. Default: where this program is, or the tests' own build directory.
    pub bin_dir: Option<PathBuf>,
    /// Programs that pods find on their search path.
    pub programs: Vec<PathBuf>,
    pub timeout: Duration,
    pub control_plane: bool,
    pub control_plane_args: Vec<String>,
    /// Environment of every proxy.
    pub proxy_env: Vec<(String, String)>,
    pub log: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bin_dir: None,
            programs: Vec::new(),
            timeout: Duration::from_secs(60),
            control_plane: true,
            control_plane_args: Vec::new(),
            proxy_env: Vec::new(),
            log: "info".to_owned(),
        }
    }
}

/// A lab that is up; dropping it takes it down.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    program: PathBuf,
}

impl Lab {
    /// Starts the lab of `dir` and returns when everything in it is ready.
    ///
    /// # Errors
    /// Says what is not ready, and why; nothing of the lab is left then.
    pub fn up(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let bin_dir = match &options.bin_dir {
            Some(dir) => dir.clone(),
            None => default_bin_dir()?,
        };
        let program = bin_dir.join("heddle-lab");
        let layout = Layout::of(dir)?;
        let mut command = Command::new(&program);
        command.arg("up").arg(layout.dir()).arg("--bin-dir").arg(&bin_dir);
        command.arg("--timeout").arg(format!("{}s", options.timeout.as_secs()));
        command.arg("--log").arg(&options.log);
        for path in &options.programs {
            command.arg("--program").arg(path);
        }
        if !options.control_plane {
            command.arg("--no-control-plane");
        }
        for argument in &options.control_plane_args {
            command.arg(format!("--control-plane-arg={argument}"));
        }
        for (name, value) in &options.proxy_env {
            command.arg("--proxy-env").arg(format!("{name}={value}"));
        }
        // An older lab is not this one's to remove.
        let was_there = layout.run().exists();
        let output = command.output().with_context(|| {
            format!("{}: not found; build it with `make lab`", program.display())
        })?;
        let lab = Self { layout, program };
        if output.status.success() {
            return Ok(lab);
        }
        if was_there {
            std::mem::forget(lab);
        }
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
    }

    /// Names and paths.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How everything is.
    ///
    /// # Errors
    /// When the node process is gone.
    pub fn status(&self) -> anyhow::Result<Status> {
        client::status(&self.layout)
    }

    /// One pod's state.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn pod(&self, pod: &str) -> anyhow::Result<PodStatus> {
        let key: PodKey = pod.parse()?;
        let pods = self.status()?.pods;
        pods.into_iter().find(|pod| pod.key() == key).with_context(|| format!("no pod {key}"))
    }

    /// Runs a command in a pod, as its application's uid, to its end.
    ///
    /// # Errors
    /// When it cannot be run; its own failure is in the output's status.
    pub fn exec<S: AsRef<OsStr>>(&self, pod: &str, argv: &[S]) -> anyhow::Result<Output> {
        let mut command = self.exec_command(pod);
        command.args(argv).stdin(Stdio::null()).output().context("run heddle-lab exec")
    }

    /// A command to be run in a pod, to which the caller adds program, arguments and pipes.
    #[must_use]
    pub fn exec_command(&self, pod: &str) -> Command {
        let mut command = self.command("exec");
        command.arg(pod).arg("--");
        command
    }

    /// Starts a command in a pod, its output kept for the caller.
    ///
    /// # Errors
    /// When `heddle-lab` cannot be run.
    pub fn spawn<S: AsRef<OsStr>>(&self, pod: &str, argv: &[S]) -> anyhow::Result<Child> {
        let mut command = self.exec_command(pod);
        command.args(argv).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("run heddle-lab exec")
    }

    /// Signals `POD`, `POD:CONTAINER` or `control-plane`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn kill(&self, target: &str, signal: Signal) -> anyhow::Result<()> {
        let mut command = self.command("kill");
        self.run(command.arg(target).arg("-s").arg(signal.as_str()))
    }

    /// Starts what was killed or stopped, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(&self, target: &str) -> anyhow::Result<()> {
        self.run(self.command("start").arg(target))
    }

    /// Deletes a pod as Kubernetes does, and waits until it is gone.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn stop(&self, pod: &str) -> anyhow::Result<()> {
        self.run(self.command("stop").arg(pod))
    }

    /// What a container has written so far.
    ///
    /// # Errors
    /// When it has no log.
    pub fn logs(&self, pod: &str, container: &str) -> anyhow::Result<String> {
        let path = self.layout.log(&pod.parse()?, container);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// A pod's network namespace, as `ip netns` knows it.
    ///
    /// # Errors
    /// When `pod` is not a pod's name.
    pub fn netns(&self, pod: &str) -> anyhow::Result<String> {
        Ok(self.layout.pod_netns(&pod.parse()?))
    }

    /// The router's network namespace.
    #[must_use]
    pub fn node_netns(&self) -> String {
        self.layout.node_netns()
    }

    /// Takes the lab down and says whether that worked, which a drop cannot.
    ///
    /// # Errors
    /// Names what could not be removed.
    pub fn down(self) -> anyhow::Result<()> {
        let outcome = self.run(&mut self.command("down"));
        std::mem::forget(self);
        outcome
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--dir").arg(self.layout.dir()).arg(verb);
        command
    }

    fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let output = command.stdin(Stdio::null()).output().context("run heddle-lab")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.run(&mut self.command("down")) {
            tracing::error!("the lab of {} is not gone: {error:#}", self.layout.dir().display());
        }
    }
}

/// Beside this program; a test's own program is one directory further down.
fn default_bin_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().context("this program is in no directory")?;
    let is_test = dir.file_name() == Some(OsStr::new("deps"));
    let dir = if is_test { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}
