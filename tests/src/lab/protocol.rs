//! What the commands say to the lab's node process over its socket: one JSON line each way.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::enter::Enter;
use super::layout::PodKey;
use super::pod_spec::PROXY;

/// A command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    Status,
    /// Sends a signal by its number.
    Signal {
        target: Target,
        signal: i32,
    },
    /// Starts what was killed or stopped, or has ended.
    Start {
        target: Target,
    },
    /// Deletes a pod as Kubernetes does; answered when it is gone.
    Stop {
        pod: String,
    },
    /// What to become to run a command in a pod.
    Enter {
        pod: String,
        container: Option<String>,
        argv: Vec<String>,
    },
}

/// The answer to a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    Status(Status),
    Enter(Box<Enter>),
    Done,
    Failed { message: String },
}

/// What `kill` and `start` act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Target {
    ControlPlane,
    /// Every process of the pod.
    Pod(PodKey),
    /// One container; the proxy's is called `proxy`.
    Container(PodKey, String),
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "control-plane" {
            return Ok(Self::ControlPlane);
        }
        match text.split_once(':') {
            None => Ok(Self::Pod(text.parse()?)),
            Some((pod, container)) => Ok(Self::Container(pod.parse()?, container.to_owned())),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlPlane => f.write_str("control-plane"),
            Self::Pod(pod) => pod.fmt(f),
            Self::Container(pod, container) => write!(f, "{pod}:{container}"),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

/// The state of a lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub dir: PathBuf,
    pub id: String,
    /// The node process.
    pub pid: i32,
    pub node_netns: String,
    pub control_plane: ControlPlaneStatus,
    pub pods: Vec<PodStatus>,
    /// What stands in the manifests and cannot be done, each with its file, line and field.
    pub problems: Vec<String>,
}

/// The state of the control plane's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlaneStatus {
    /// False when the lab was started without one.
    pub wanted: bool,
    pub ready: bool,
    pub pid: Option<i32>,
    pub netns: String,
    pub addresses: Vec<IpAddr>,
    pub ports: ControlPlanePorts,
    /// Why it is not ready.
    pub message: Option<String>,
}

/// Where the control plane listens, on its own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlanePorts {
    pub discovery: u16,
    pub admin: u16,
}

/// The state of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub addresses: Vec<IpAddr>,
    pub netns: String,
    pub meshed: bool,
    pub ready: bool,
    pub phase: Phase,
    /// Asked to stop, and not gone yet.
    pub terminating: bool,
    /// Every container, the proxy first.
    pub containers: Vec<String>,
    /// The first process of each running container.
    pub pids: BTreeMap<String, i32>,
    /// Containers that run and pass their readiness probe.
    pub ready_containers: Vec<String>,
    /// Why it is not ready.
    pub message: Option<String>,
    /// Seconds since the Unix epoch.
    pub created_s: i64,
    pub deleted_s: Option<i64>,
}

impl PodStatus {
    #[must_use]
    pub fn key(&self) -> PodKey {
        PodKey::new(&self.namespace, &self.name)
    }

    /// The proxy's process, while there is one.
    #[must_use]
    pub fn proxy_pid(&self) -> Option<i32> {
        self.pids.get(PROXY).copied()
    }
}

/// Kubernetes' own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// A finished pod owns no address any more.
    #[must_use]
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl Status {
    /// Everything that keeps the lab from being as declared, one line each.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let mut lines = self.problems.clone();
        if self.control_plane.wanted && !self.control_plane.ready {
            let why = self.control_plane.message.as_deref().unwrap_or("starting");
            lines.push(format!("control-plane: {why}"));
        }
        let waiting = self.pods.iter().filter(|pod| !pod.ready && pod.phase != Phase::Succeeded);
        lines.extend(
            waiting.map(|pod| {
                format!("{}: {}", pod.key(), pod.message.as_deref().unwrap_or("starting"))
            }),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_print_as_they_are_read() {
        for (text, want) in [
            ("control-plane", "control-plane"),
            ("web-1", "default/web-1"),
            ("shop/web-1:proxy", "shop/web-1:proxy"),
            ("default/control-plane", "default/control-plane"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), want);
        }
        assert!("a/b/c".parse::<Target>().is_err());
    }
}
