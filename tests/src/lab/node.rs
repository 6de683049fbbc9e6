//! The node process: what kubelet, scheduler and controllers do in a cluster.
//!
//! One task owns everything below and takes events one by one: changed manifests, the state of each
//! pod, commands. After each batch it brings pods in line with the manifests and publishes what has
//! changed: files for the control plane, names for the pods, rules for pods without a proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

use super::cluster_ip::ClusterIps;
use super::control_plane::{self, ControlPlane};
use super::desired::Desired;
use super::endpoints::{PodView, compile_slices};
use super::launch::{self, NodeOptions, PodContext};
use super::layout::{Layout, PodKey};
use super::manifests::Manifests;
use super::network::{self, AddressPool, Addresses};
use super::pod::{self, Pod};
use super::pod_spec::PodSpec;
use super::protocol::{ControlPlaneStatus, PodStatus, Reply, Request, Status};
use super::published::Publisher;
use super::{hosts, service_proxy};

mod commands;
mod intake;

/// Something the node must know.
#[derive(Debug)]
pub(crate) enum Event {
    Pod(Box<PodStatus>),
    /// A pod has been deleted, with everything it had.
    Gone(PodKey),
    ControlPlane(Box<ControlPlaneStatus>),
    ManifestsChanged,
    TrustBundleChanged,
    Command(Request, oneshot::Sender<Reply>),
}

/// Events wait here when the node is busy; whoever sends more waits too.
const EVENTS: usize = 256;

struct Node {
    layout: Layout,
    options: NodeOptions,
    events: mpsc::Sender<Event>,
    manifests: Manifests,
    desired: Desired,
    cluster_ips: ClusterIps,
    addresses: AddressPool,
    pods: BTreeMap<PodKey, PodEntry>,
    /// Pods that a person has stopped: declared, but not wanted now.
    held: BTreeSet<PodKey>,
    control_plane: mpsc::Sender<control_plane::Command>,
    control_plane_status: ControlPlaneStatus,
    publisher: Publisher,
    hosts: BTreeMap<PodKey, String>,
    rules: String,
    problems: Vec<String>,
}

struct PodEntry {
    spec: PodSpec,
    context: Arc<PodContext>,
    deployment: Option<(String, String)>,
    commands: mpsc::Sender<pod::Command>,
    status: PodStatus,
    stopping: bool,
    /// Told when the pod is gone.
    waiting: Vec<oneshot::Sender<Reply>>,
}

/// Runs a node until it is killed.
///
/// # Errors
/// When the lab's own namespaces or files cannot be made.
pub async fn run(layout: Layout, options: NodeOptions) -> anyhow::Result<()> {
    let (events, mut queue) = mpsc::channel(EVENTS);
    prepare(&layout).await?;
    let _watchers = intake::watch(&layout, &events)?;
    intake::listen(&layout, &events)?;
    let (control_plane, commands) = mpsc::channel(16);
    let wanted = options.control_plane;
    if wanted {
        let task = ControlPlane::new(layout.clone(), options.clone(), commands, events.clone());
        tokio::spawn(task.run());
    }
    let mut node = Node {
        manifests: Manifests::new(layout.dir()),
        desired: Desired::default(),
        cluster_ips: ClusterIps::new(),
        addresses: AddressPool::new(),
        pods: BTreeMap::new(),
        held: BTreeSet::new(),
        control_plane,
        control_plane_status: control_plane::absent(&layout, wanted),
        publisher: Publisher::new(layout.state()),
        hosts: BTreeMap::new(),
        rules: String::new(),
        problems: Vec::new(),
        layout,
        options,
        events,
    };
    node.reload();
    node.settle().await;
    while let Some(event) = queue.recv().await {
        node.apply(event);
        while let Ok(event) = queue.try_recv() {
            node.apply(event);
        }
        node.settle().await;
    }
    Ok(())
}

/// Makes what all pods share.
async fn prepare(layout: &Layout) -> anyhow::Result<()> {
    let run = layout.run();
    for dir in ["pods", "logs"] {
        fs::create_dir_all(run.join(dir))?;
    }
    fs::write(run.join("nsswitch.conf"), hosts::NSSWITCH)?;
    fs::write(run.join("resolv.conf"), hosts::RESOLV_CONF)?;
    fs::write(run.join("hosts"), "127.0.0.1 localhost\n::1 localhost ip6-localhost\n")?;
    fs::create_dir_all(layout.state())?;
    write_token_key(&layout.state().join("token-key"))?;
    network::create_node(&layout.node_netns()).await?;
    let home = layout.control_plane_netns();
    network::create_pod(&layout.node_netns(), &home, Addresses::control_plane()).await
}

fn write_token_key(path: &Path) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("make {}", path.display()))?;
    let key: [u8; 32] = rand::random();
    std::io::Write::write_all(&mut file, &key)?;
    Ok(())
}

impl Node {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Pod(status) => {
                if let Some(entry) = self.pods.get_mut(&status.key()) {
                    entry.status = *status;
                }
            }
            Event::Gone(key) => {
                self.hosts.remove(&key);
                for waiter in self.pods.remove(&key).into_iter().flat_map(|entry| entry.waiting) {
                    // Whoever asked may have given up.
                    let _ = waiter.send(Reply::Done);
                }
            }
            Event::ControlPlane(status) => self.control_plane_status = *status,
            Event::ManifestsChanged => self.reload(),
            Event::TrustBundleChanged => {
                if let Err(error) = launch::copy_trust_bundle(&self.layout) {
                    tracing::warn!("{error:#}");
                }
            }
            Event::Command(request, reply) => self.command(request, reply),
        }
    }

    fn reload(&mut self) {
        self.manifests.reload();
        let (objects, problems) = self.manifests.objects();
        self.desired = Desired::new(&objects, problems, &mut self.cluster_ips);
    }

    /// Brings everything in line with what is known now.
    async fn settle(&mut self) {
        self.problems.clear();
        self.reconcile();
        if let Err(error) = self.publish().await {
            tracing::error!("publish: {error:#}");
            self.problems.push(format!("publish: {error:#}"));
        }
    }

    fn reconcile(&mut self) {
        let missing: Vec<_> = self
            .desired
            .pods
            .iter()
            .filter(|(key, _)| !self.pods.contains_key(key) && !self.held.contains(key))
            .map(|(_, spec)| spec.clone())
            .collect();
        for spec in missing {
            if let Err(error) = self.create_pod(spec) {
                self.problems.push(format!("{error:#}"));
            }
        }
        let keys: Vec<_> = self.pods.keys().cloned().collect();
        for key in keys {
            match self.desired.pods.get(&key) {
                Some(spec) => {
                    let entry = self.pods.get_mut(&key).expect("the keys are the map's own");
                    if entry.spec.needs_replacement(spec) {
                        entry.stop();
                    } else {
                        entry.spec = spec.clone();
                    }
                }
                None if self.may_go(&key) => {
                    self.pods.get_mut(&key).expect("the keys are the map's own").stop();
                }
                None => {}
            }
        }
    }

    /// Whether a pod that is not declared may be deleted now. A Deployment's old pods stay until all
    /// of its new ones are ready: a rolling update that adds everything before it takes away.
    fn may_go(&self, key: &PodKey) -> bool {
        if self.desired.refused.contains(key) {
            return false;
        }
        let deployment = self.pods.get(key).and_then(|entry| entry.deployment.as_ref());
        let Some(deployment) = deployment else { return true };
        let mut successors =
            self.desired.deployments.iter().filter(|(_, owner)| *owner == deployment);
        successors.all(|(successor, _)| {
            self.held.contains(successor)
                || self.pods.get(successor).is_some_and(|entry| entry.status.ready)
        })
    }

    fn create_pod(&mut self, spec: PodSpec) -> anyhow::Result<()> {
        let key = spec.key.clone();
        let addresses = self.addresses.allocate()?;
        let (commands, receiver) = mpsc::channel(16);
        let context = PodContext {
            layout: self.layout.clone(),
            spec: spec.clone(),
            uid: random_uid(),
            addresses,
            options: self.options.clone(),
            trust_domain: self.desired.trust_domain.clone(),
        };
        // The hosts file must be there before the first process is.
        fs::create_dir_all(self.layout.pod(&key))?;
        let context = Arc::new(context);
        let task = Pod::new(context.clone(), receiver, self.events.clone());
        let entry = PodEntry {
            deployment: self.desired.deployments.get(&key).cloned(),
            status: task.status(),
            commands,
            context,
            spec,
            stopping: false,
            waiting: Vec::new(),
        };
        self.pods.insert(key.clone(), entry);
        self.write_hosts(&key)?;
        tokio::spawn(task.run());
        Ok(())
    }

    fn slices(&self) -> Vec<k8s_openapi::api::discovery::v1::EndpointSlice> {
        let views: Vec<_> = self.pods.values().map(PodEntry::view).collect();
        let services = self.desired.services.iter();
        services.flat_map(|service| compile_slices(service, &views)).collect()
    }

    fn write_hosts(&mut self, key: &PodKey) -> anyhow::Result<()> {
        let mut slices = self.slices();
        slices.extend(self.desired.slices.iter().cloned());
        let Some(entry) = self.pods.get(key) else { return Ok(()) };
        let text = hosts::render(
            key,
            &entry.spec.hostname,
            &entry.status.addresses,
            &self.desired.services,
            &slices,
        );
        if self.hosts.get(key) != Some(&text) {
            hosts::write_in_place(&self.layout.pod(key).join("hosts"), &text)?;
            self.hosts.insert(key.clone(), text);
        }
        Ok(())
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        let mut slices = self.slices();
        let views: Vec<_> = self.pods.values().map(PodEntry::view).collect();
        self.publisher.publish(&views, &self.desired.services, &slices)?;
        slices.extend(self.desired.slices.iter().cloned());
        let addresses: Vec<_> =
            self.pods.values().flat_map(|entry| entry.status.addresses.clone()).collect();
        let rules = service_proxy::render(&self.desired.services, &slices, &addresses);
        let keys: Vec<_> = self.pods.keys().cloned().collect();
        for key in keys {
            self.write_hosts(&key)?;
        }
        if rules != self.rules {
            let netns = self.layout.node_netns();
            let nft = ["netns", "exec", &netns, "nft", "-f", "-"];
            network::run("ip", &nft, &rules).await.context("write the Services' rules")?;
            self.rules = rules;
        }
        Ok(())
    }

    fn status(&self) -> Status {
        let mut problems = self.desired.problems.clone();
        problems.extend(self.problems.iter().cloned());
        problems.extend(
            self.held
                .iter()
                .map(|key| format!("{key}: stopped; `heddle-lab start {key}` brings it back")),
        );
        Status {
            dir: self.layout.dir().to_owned(),
            id: self.layout.id().to_owned(),
            pid: nix::unistd::Pid::this().as_raw(),
            node_netns: self.layout.node_netns(),
            control_plane: self.control_plane_status.clone(),
            pods: self.pods.values().map(|entry| entry.status.clone()).collect(),
            problems,
        }
    }
}

impl PodEntry {
    fn view(&self) -> PodView<'_> {
        PodView { spec: &self.spec, status: &self.status }
    }

    fn stop(&mut self) {
        if !self.stopping {
            // The queue is empty but for commands of people; a full one is tried again.
            self.stopping = self.commands.try_send(pod::Command::Stop).is_ok();
        }
    }
}

/// As Kubernetes makes them: a random UUID.
fn random_uid() -> String {
    let bits: u128 = rand::random();
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
