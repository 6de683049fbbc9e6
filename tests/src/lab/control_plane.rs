//! The control plane's process, in a network namespace of its own. A task owns it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, bail};
use heddle_api::names;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::enter::{Capabilities, Enter, EtcFile};
use super::launch::{self, NodeOptions};
use super::layout::Layout;
use super::network::Addresses;
use super::node::Event;
use super::pod::{Done, describe, last_line};
use super::probe::{Check, Origin, Probe};
use super::probe_loop::{self, Checker, Report};
use super::protocol::{ControlPlanePorts, ControlPlaneStatus};

/// What it can be told.
#[derive(Debug)]
pub(crate) enum Command {
    Signal { signal: Signal, done: Done },
    Start { done: Done },
}

/// The control plane's task.
pub(crate) struct ControlPlane {
    layout: Layout,
    options: NodeOptions,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    running: Option<Running>,
    ready: bool,
    message: Option<String>,
}

struct Running {
    pid: Pid,
    child: Child,
    prober: AbortHandle,
    reports: mpsc::Receiver<Report>,
}

/// What wakes the task.
enum Wake {
    Command(Option<Command>),
    Exit(std::io::Result<ExitStatus>),
    Report(Option<Report>),
}

impl ControlPlane {
    pub(crate) fn new(
        layout: Layout,
        options: NodeOptions,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { layout, options, commands, events, running: None, ready: false, message: None }
    }

    /// Lives as long as the node.
    pub(crate) async fn run(mut self) {
        self.start();
        loop {
            // The node outlives this task, but for its own end.
            let _ = self.events.send(Event::ControlPlane(Box::new(self.status()))).await;
            match self.wake().await {
                Wake::Command(None) => return,
                Wake::Command(Some(Command::Signal { signal, done })) => {
                    let _ = done.send(self.signal(signal));
                }
                Wake::Command(Some(Command::Start { done })) => {
                    self.start();
                    let _ = done.send(Ok(()));
                }
                Wake::Exit(status) => self.note_exit(status.unwrap_or_default()),
                Wake::Report(report) => self.note_report(report),
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let Some(running) = &mut self.running else {
            return Wake::Command(self.commands.recv().await);
        };
        tokio::select! {
            command = self.commands.recv() => Wake::Command(command),
            status = running.child.wait() => Wake::Exit(status),
            report = running.reports.recv() => Wake::Report(report),
        }
    }

    fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        self.message = Some("starting".to_owned());
        match self.spawn() {
            Ok(running) => self.running = Some(running),
            Err(error) => self.message = Some(format!("{error:#}")),
        }
    }

    fn spawn(&self) -> anyhow::Result<Running> {
        let child = launch::spawn(self.enter(), &self.layout.control_plane_log())?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.context("the process ended before it had a pid")?);
        let probe = Probe {
            check: Check::Http {
                port: names::CONTROL_PLANE_ADMIN_PORT,
                path: "/readyz".into(),
                headers: Vec::new(),
            },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            successes: 1,
            failures: 1,
        };
        let origin = Origin {
            netns: self.layout.control_plane_netns(),
            address: Ipv4Addr::LOCALHOST.into(),
            uid: 0,
        };
        let (reporter, reports) = mpsc::channel(4);
        let task = probe_loop::run(0, pid, probe, Checker::Network(origin), reporter);
        Ok(Running { pid, child, prober: tokio::spawn(task).abort_handle(), reports })
    }

    fn enter(&self) -> Enter {
        let state = self.layout.state();
        let text = |path: PathBuf| path.display().to_string();
        let any = |port| SocketAddr::new(IpAddr::from([0_u16; 8]), port).to_string();
        let mut argv = vec![
            text(self.layout.bin().join("heddle-control-plane")),
            "--source".into(),
            "files".into(),
            "--dir".into(),
            text(self.layout.dir().to_owned()),
            "--listen".into(),
            any(names::CONTROL_PLANE_PORT),
            "--admin".into(),
            any(names::CONTROL_PLANE_ADMIN_PORT),
            "--token-key-file".into(),
            text(state.join("token-key")),
        ];
        argv.extend(self.options.control_plane_args.iter().cloned());
        let mut env = launch::base_env(&self.layout);
        env.push(("HEDDLE_LOG".into(), self.options.log.clone()));
        let hosts = EtcFile { name: "hosts".into(), source: self.layout.run().join("hosts") };
        Enter {
            netns: self.layout.control_plane_netns(),
            hostname: "heddle-control-plane".into(),
            etc: vec![hosts],
            uid: 0,
            gid: 0,
            capabilities: Capabilities::ReadFiles,
            cwd: PathBuf::from("/"),
            env,
            argv,
            parent: None,
        }
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Some(running) = &self.running else {
            bail!("the control plane does not run; `heddle-lab start control-plane` starts it");
        };
        kill(running.pid, signal).context("signal the control plane")
    }

    fn note_exit(&mut self, status: ExitStatus) {
        if let Some(running) = self.running.take() {
            running.prober.abort();
        }
        self.ready = false;
        let line = last_line(&self.layout.control_plane_log());
        self.message = Some(format!("{}: {line}", describe(status)));
    }

    fn note_report(&mut self, report: Option<Report>) {
        let Some(report) = report else { return };
        if let Some(ready) = report.ready {
            self.ready = ready;
        }
        self.message = report.complaint;
    }

    fn status(&self) -> ControlPlaneStatus {
        ControlPlaneStatus {
            pid: self.running.as_ref().map(|running| running.pid.as_raw()),
            ready: self.ready,
            message: self.message.clone(),
            ..absent(&self.layout, true)
        }
    }
}

/// The state of a control plane that has not been heard of yet, or is not wanted.
pub(crate) fn absent(layout: &Layout, wanted: bool) -> ControlPlaneStatus {
    ControlPlaneStatus {
        wanted,
        ready: false,
        pid: None,
        netns: layout.control_plane_netns(),
        addresses: Addresses::control_plane().both().to_vec(),
        ports: ControlPlanePorts {
            discovery: names::CONTROL_PLANE_PORT,
            admin: names::CONTROL_PLANE_ADMIN_PORT,
        },
        message: None,
    }
}
