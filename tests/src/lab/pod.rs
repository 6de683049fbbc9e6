//! One pod: its namespace, its processes, its readiness. A task per pod, which alone knows and
//! changes the pod's state and reports every change.
//!
//! Order of a start: namespace, redirection rules, proxy, and only when the proxy's startup check
//! has passed, the application. Nothing is restarted by itself.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use heddle_api::names;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use super::enter::Enter;
use super::launch::{self, PodContext};
use super::node::Event;
use super::pod_spec::{ContainerSpec, PROXY};
use super::probe::{Check, Origin, Probe};
use super::probe_loop::{self, Checker, Report};
use super::{network, processes};

mod state;
mod stop;

pub(crate) use state::{describe, last_line};
pub(crate) use stop::DRAINED_PATH;

/// How long `heddle-init` may take.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);
/// Tokens live an hour.
const TOKEN_REFRESH: Duration = Duration::from_secs(600);

/// The outcome of a command, for a person.
pub(crate) type Done = oneshot::Sender<anyhow::Result<()>>;

/// What a pod can be told.
#[derive(Debug)]
pub(crate) enum Command {
    /// `None`: every process of the pod.
    Signal {
        container: Option<String>,
        signal: Signal,
        done: Done,
    },
    /// `None`: every container that does not run.
    Start {
        container: Option<String>,
        done: Done,
    },
    Stop,
}

/// A pod's task.
pub(crate) struct Pod {
    context: Arc<PodContext>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    /// The proxy first, when there is one.
    containers: Vec<Container>,
    exits: JoinSet<(usize, ExitStatus)>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    created_s: i64,
    deleted_s: Option<i64>,
    /// Why the pod cannot run at all.
    failure: Option<String>,
    initialized: bool,
}

struct Container {
    name: String,
    role: Role,
    state: State,
}

enum Role {
    Proxy,
    Application(Box<ContainerSpec>),
}

enum State {
    Waiting,
    Running { pid: Pid, ready: bool, prober: Option<AbortHandle>, complaint: Option<String> },
    Ended(ExitStatus),
}

impl Pod {
    pub(crate) fn new(
        context: Arc<PodContext>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let mut containers = Vec::new();
        if context.spec.meshed {
            containers.push(Container::new(PROXY, Role::Proxy));
        }
        for spec in &context.spec.containers {
            containers.push(Container::new(&spec.name, Role::Application(Box::new(spec.clone()))));
        }
        let (reporter, reports) = mpsc::channel(16);
        Self {
            context,
            commands,
            events,
            containers,
            exits: JoinSet::new(),
            reports,
            reporter,
            created_s: state::now_s(),
            deleted_s: None,
            failure: None,
            initialized: false,
        }
    }

    /// Lives until the pod is deleted.
    pub(crate) async fn run(mut self) {
        self.report().await;
        match self.create().await {
            Ok(()) => {
                self.initialized = true;
                self.start_due();
            }
            Err(error) => self.failure = Some(format!("{error:#}")),
        }
        let first = tokio::time::Instant::now() + TOKEN_REFRESH;
        let mut refresh = tokio::time::interval_at(first, TOKEN_REFRESH);
        loop {
            self.report().await;
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Signal { container, signal, done }) => {
                        let _ = done.send(self.signal(container.as_deref(), signal));
                    }
                    Some(Command::Start { container, done }) => {
                        let _ = done.send(self.start(container.as_deref()));
                    }
                    Some(Command::Stop) | None => break,
                },
                Some(Ok((index, status))) = self.exits.join_next() => self.note_exit(index, status),
                Some(report) = self.reports.recv() => self.note_report(report),
                _ = refresh.tick() => self.refresh_token(),
            }
        }
        self.stop().await;
        let node = self.context.layout.node_netns();
        network::delete_pod(&node, &self.context.netns(), self.context.addresses).await;
        let _ = std::fs::remove_dir_all(self.context.layout.pod(&self.context.spec.key));
        self.send(Event::Gone(self.context.spec.key.clone())).await;
    }

    async fn create(&mut self) -> anyhow::Result<()> {
        let context = &self.context;
        network::create_pod(&context.layout.node_netns(), &context.netns(), context.addresses)
            .await?;
        context.create_files()?;
        if !context.spec.meshed {
            return Ok(());
        }
        let log = context.layout.log(&context.spec.key, names::INIT_CONTAINER);
        let mut init = launch::spawn(context.init(), &log)?;
        let Ok(status) = tokio::time::timeout(INIT_TIMEOUT, init.wait()).await else {
            // Nobody else waits for it.
            let _ = init.kill().await;
            bail!("heddle-init did not end within {} s", INIT_TIMEOUT.as_secs());
        };
        let status = status.context("wait for heddle-init")?;
        if !status.success() {
            bail!("heddle-init: {status}: {}", state::last_line(&log));
        }
        Ok(())
    }

    /// Starts what waits and may start.
    fn start_due(&mut self) {
        for index in 0..self.containers.len() {
            let gate = match self.containers.first() {
                Some(Container { role: Role::Proxy, state, .. }) if index > 0 => state.is_ready(),
                _ => true,
            };
            if gate
                && matches!(self.containers[index].state, State::Waiting)
                && let Err(error) = self.start_container(index)
            {
                self.failure = Some(format!("{}: {error:#}", self.containers[index].name));
            }
        }
    }

    fn start_container(&mut self, index: usize) -> anyhow::Result<()> {
        let container = &self.containers[index];
        let log = self.context.layout.log(&self.context.spec.key, &container.name);
        let enter = match &container.role {
            Role::Proxy => self.context.proxy("run"),
            Role::Application(spec) => self.context.container(spec, spec.argv.clone()),
        };
        let mut child: Child = launch::spawn(enter, &log)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(pid.context("the process ended before it had a pid")?);
        let prober = self.prober(index).map(|(probe, checker)| {
            let task = probe_loop::run(index, pid, probe, checker, self.reporter.clone());
            tokio::spawn(task).abort_handle()
        });
        let ready = prober.is_none();
        self.containers[index].state = State::Running { pid, ready, prober, complaint: None };
        self.exits.spawn(async move {
            // Waiting fails only for a process that is not ours.
            let status = child.wait().await.unwrap_or_default();
            (index, status)
        });
        Ok(())
    }

    /// The check of a container's readiness, and how to make it.
    fn prober(&self, index: usize) -> Option<(Probe, Checker)> {
        let origin = |address: IpAddr| Origin {
            netns: self.context.netns(),
            address,
            uid: names::PROXY_UID,
        };
        match &self.containers[index].role {
            Role::Proxy => {
                let probe = Probe {
                    check: Check::Http {
                        port: names::METRICS_PORT,
                        path: "/readyz".into(),
                        headers: Vec::new(),
                    },
                    initial_delay: Duration::ZERO,
                    period: Duration::from_secs(1),
                    timeout: Duration::from_secs(1),
                    successes: 1,
                    failures: 1,
                };
                Some((probe, Checker::Network(origin(Ipv4Addr::LOCALHOST.into()))))
            }
            Role::Application(spec) => {
                let probe = spec.readiness.clone()?;
                let checker = match &probe.check {
                    Check::Exec { argv } => {
                        Checker::Exec(Box::new(self.context.container(spec, argv.clone())))
                    }
                    Check::Http { .. } | Check::Tcp { .. } => {
                        Checker::Network(origin(self.context.addresses.v4.into()))
                    }
                };
                Some((probe, checker))
            }
        }
    }

    fn note_exit(&mut self, index: usize, status: ExitStatus) {
        let ended = std::mem::replace(&mut self.containers[index].state, State::Ended(status));
        if let State::Running { pid, prober, .. } = ended {
            // What the container's first process leaves behind ends with it, as in a PID namespace.
            let _ = killpg(pid, Signal::SIGKILL);
            if let Some(prober) = prober {
                prober.abort();
            }
        }
        // A pod that has finished needs no proxy any more.
        if self.phase().is_finished()
            && let Some(Container { role: Role::Proxy, state: State::Running { pid, .. }, .. }) =
                self.containers.first()
        {
            let _ = kill(*pid, Signal::SIGTERM);
        }
    }

    fn note_report(&mut self, report: Report) {
        let State::Running { pid, ready, complaint, .. } = &mut self.containers[report.index].state
        else {
            return;
        };
        // A report about the process before this one may still have been on its way.
        if *pid != report.pid {
            return;
        }
        if let Some(now) = report.ready {
            *ready = now;
        }
        *complaint = report.complaint;
        self.start_due();
    }

    fn signal(&self, container: Option<&str>, signal: Signal) -> anyhow::Result<()> {
        let name = container.unwrap_or("pod");
        let running: Vec<_> = self
            .containers
            .iter()
            .filter(|candidate| container.is_none_or(|name| candidate.is_called(name)))
            .filter_map(|candidate| candidate.state.pid())
            .collect();
        if running.is_empty() {
            bail!("{}: {name}: no such process runs{}", self.context.spec.key, self.choices());
        }
        // These are the kernel's, not the process's, to act on: they hit everything at once.
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCONT) {
            processes::signal_all(&running, signal);
        } else if container.is_none() {
            processes::signal_all(&processes::in_netns(&self.context.netns()), signal);
        } else {
            for pid in running {
                let _ = killpg(pid, signal);
            }
        }
        Ok(())
    }

    fn start(&mut self, container: Option<&str>) -> anyhow::Result<()> {
        if !self.initialized {
            bail!("{}: never came up; `stop` and `start` it", self.context.spec.key);
        }
        let mut found = false;
        for candidate in &mut self.containers {
            if container.is_none_or(|name| candidate.is_called(name)) {
                found = true;
                if matches!(candidate.state, State::Ended(_)) {
                    candidate.state = State::Waiting;
                }
            }
        }
        if !found {
            let name = container.unwrap_or("pod");
            bail!("{}: no container {name:?}{}", self.context.spec.key, self.choices());
        }
        self.failure = None;
        self.start_due();
        Ok(())
    }

    fn choices(&self) -> String {
        let names: Vec<_> = self.containers.iter().map(|c| c.name.as_str()).collect();
        format!(" (containers: {})", names.join(", "))
    }

    fn refresh_token(&self) {
        if self.initialized
            && self.context.spec.meshed
            && let Err(error) = self.context.write_token()
        {
            tracing::warn!("{}: renew the bootstrap token: {error:#}", self.context.spec.key);
        }
    }

    async fn send(&self, event: Event) {
        // The node outlives its pods, but for its own end.
        let _ = self.events.send(event).await;
    }

    /// Runs a hook to its end; its failure is nobody's business but the log's.
    fn spawn_hook(&self, enter: Enter, container: &str) -> Option<Child> {
        let log = self.context.layout.log(&self.context.spec.key, container);
        launch::spawn(enter, &log)
            .inspect_err(|error| tracing::warn!("{}: hook: {error:#}", self.context.spec.key))
            .ok()
    }
}
