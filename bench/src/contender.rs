//! Who is compared: each contender has its own pair of pods with its own backend, its sidecars, and
//! one or two variants of itself. All are up at the same time; one that is idle costs nothing.

mod certificates;
mod heddle;
mod peers;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::load::{Target, first_answer};
use crate::netns::{self, Netns, Pair};
use crate::process::{Cpus, Launch, Process};

pub(crate) use heddle::heddle;
pub(crate) use peers::{envoy, haproxy, no_proxy};

/// Where everything a contender needs is, readable by every uid.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub dir: PathBuf,
    pub cpus: Cpus,
}

impl Workshop {
    /// Makes a directory for one contender.
    fn create_dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    /// Writes a configuration with `@DIR@` replaced by the directory it goes to.
    fn write_config(dir: &Path, name: &str, template: &str) -> anyhow::Result<PathBuf> {
        let path = dir.join(name);
        let text = template.replace("@DIR@", &dir.display().to_string());
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// A way of running a contender's sidecars, told apart by the port that is dialled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Variant {
    pub name: &'static str,
    pub http1: u16,
    /// Whether this is the variant that carries gRPC.
    pub grpc: bool,
    /// Whether this is the variant that carries a TCP stream.
    pub stream: bool,
}

/// One contender, up and running.
#[derive(Debug)]
pub(crate) struct Contender {
    pub name: &'static str,
    pub variants: &'static [Variant],
    /// Whether it takes connections to ports that nobody declared.
    pub takes_any_port: bool,
    address: Ipv4Addr,
    sidecars: Option<Sidecars>,
    cpus: Cpus,
    /// Killed before the namespaces they are in are removed: fields are dropped in this order.
    running: Vec<Process>,
    support: Vec<Process>,
    _backend: Backend,
    pair: Pair,
    _support_netns: Option<Netns>,
}

/// How the two sidecars are started.
#[derive(Debug)]
struct Sidecars {
    outbound: Launch,
    inbound: Launch,
}

impl Contender {
    fn new(
        name: &'static str,
        variants: &'static [Variant],
        cpus: Cpus,
        pair: Pair,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            variants,
            takes_any_port: false,
            address: netns::SERVER,
            sidecars: None,
            cpus,
            running: Vec::new(),
            support: Vec::new(),
            _backend: Backend::start(&pair.server, cpus.load)?,
            pair,
            _support_netns: None,
        })
    }

    pub(crate) fn has_sidecars(&self) -> bool {
        self.sidecars.is_some()
    }

    pub(crate) fn target(&self, port: u16) -> Target {
        Target { netns: Rc::clone(&self.pair.client), address: (self.address, port).into() }
    }

    /// The sidecars' processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.running.iter().map(Process::pid).collect()
    }

    /// Kills the sidecars and starts them again; says how long it took from the start of the first
    /// process to the first good answer. Nothing to do without sidecars.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Duration> {
        self.running.clear();
        let started = Instant::now();
        if let Some(Sidecars { outbound, inbound }) = &self.sidecars {
            let cpu = self.cpus.sidecars;
            self.running.push(Process::spawn(inbound, &self.pair.server, cpu)?);
            self.running.push(Process::spawn(outbound, &self.pair.client, cpu)?);
        }
        let answered = first_answer(&self.target(self.variants[0].http1), started).await;
        answered.with_context(|| format!("{}\n{}", self.name, self.last_words()))
    }

    /// Fails when a process of it has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        let mut processes = self.running.iter_mut().chain(&mut self.support);
        processes.try_for_each(Process::check_alive).context(self.name)
    }

    /// The ends of all its logs.
    pub(crate) fn last_words(&self) -> String {
        let processes = self.running.iter().chain(&self.support);
        processes.map(Process::last_words).collect::<Vec<_>>().join("\n")
    }
}
