//! A pod's state, as the rest of the lab sees it.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{SystemTime, UNIX_EPOCH};

use heddle_api::names;
use nix::unistd::Pid;

use super::{Container, Event, Pod, Role, State};
use crate::lab::protocol::{Phase, PodStatus};

impl Pod {
    /// Tells the node how the pod is.
    pub(super) async fn report(&self) {
        self.send(Event::Pod(Box::new(self.status()))).await;
    }

    pub(crate) fn status(&self) -> PodStatus {
        let spec = &self.context.spec;
        let ready = self.failure.is_none()
            && self.initialized
            && self.containers.iter().all(|container| container.state.is_ready());
        let pids = self.containers.iter().filter_map(|container| {
            Some((container.name.clone(), container.state.pid()?.as_raw()))
        });
        let ready_containers = self.containers.iter().filter(|c| c.state.is_ready());
        PodStatus {
            name: spec.key.name.clone(),
            namespace: spec.key.namespace.clone(),
            uid: self.context.uid.clone(),
            addresses: self.context.addresses.both().to_vec(),
            netns: self.context.netns(),
            meshed: spec.meshed,
            ready,
            phase: self.phase(),
            terminating: self.deleted_s.is_some(),
            containers: self.containers.iter().map(|c| c.name.clone()).collect(),
            pids: pids.collect(),
            ready_containers: ready_containers.map(|c| c.name.clone()).collect(),
            message: if ready { None } else { self.complaint() },
            created_s: self.created_s,
            deleted_s: self.deleted_s,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        let applications: Vec<_> = self
            .containers
            .iter()
            .filter(|container| matches!(container.role, Role::Application(_)))
            .map(|container| &container.state)
            .collect();
        let ends: Vec<_> = applications
            .iter()
            .filter_map(|state| match state {
                State::Ended(status) => Some(status.success()),
                State::Waiting | State::Running { .. } => None,
            })
            .collect();
        if self.context.spec.may_finish && ends.len() == applications.len() {
            return if ends.iter().all(|success| *success) {
                Phase::Succeeded
            } else {
                Phase::Failed
            };
        }
        if applications.iter().all(|state| matches!(state, State::Waiting)) {
            return Phase::Pending;
        }
        Phase::Running
    }

    /// The first thing that keeps the pod from being ready.
    fn complaint(&self) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(failure.clone());
        }
        let key = &self.context.spec.key;
        self.containers.iter().find_map(|container| {
            let name = &container.name;
            match &container.state {
                State::Running { ready: true, .. } => None,
                State::Running { complaint, .. } => {
                    let why = complaint.as_deref().unwrap_or("its first probe is not answered yet");
                    Some(format!("{name} is not ready: {why}"))
                }
                State::Ended(status) => {
                    let log = self.context.layout.log(key, name);
                    Some(format!("{name} {}: {}", describe(*status), last_line(&log)))
                }
                State::Waiting => Some(format!("{name} waits for the proxy")),
            }
        })
    }
}

impl Container {
    pub(super) fn new(name: &str, role: Role) -> Self {
        Self { name: name.to_owned(), role, state: State::Waiting }
    }

    /// The proxy answers to the name it has in a cluster, too.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.name == name || (matches!(self.role, Role::Proxy) && name == names::PROXY_CONTAINER)
    }
}

impl State {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Self::Running { ready: true, .. })
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        if let Self::Running { pid, .. } = self { Some(*pid) } else { None }
    }
}

/// How a process ended, for a person.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The last line of a log that says anything.
pub(crate) fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output");
    line.chars().take(400).collect()
}

pub(super) fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
