//! A Kubernetes Pod as the lab runs it: every container a plain process.
//!
//! What the lab cannot honour is an error that says what to write instead. Accepted without effect
//! is only what cannot change how the pod behaves here: image and its pull policy, resources,
//! scheduling fields, liveness probes (the lab restarts nothing by itself, whatever `restartPolicy`
//! says), and hardening that the lab applies to everything anyway.

use std::collections::BTreeMap;
use std::path::PathBuf;

use heddle_api::names;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::layout::PodKey;
use super::probe::{Check, Probe};

mod container;

/// The uid of application containers that name none.
pub(crate) const APPLICATION_UID: u32 = 65532;

/// What the lab calls the proxy's container, as in `logs POD -c proxy`.
pub(crate) const PROXY: &str = "proxy";

/// A pod to run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodSpec {
    pub key: PodKey,
    pub meshed: bool,
    pub hostname: String,
    pub service_account: String,
    pub node: String,
    pub zone: Option<String>,
    pub grace_s: u64,
    /// `restartPolicy: Never` or `OnFailure`: an end with status 0 is success.
    pub may_finish: bool,
    pub containers: Vec<ContainerSpec>,
    /// `env` of an initContainer `heddle-proxy` in the manifest, as one overrides the sidecar in a
    /// cluster; the same of `heddle-init`.
    pub proxy_env: Vec<(String, String)>,
    pub init_env: Vec<(String, String)>,
    /// What is published, filled in.
    pub manifest: core::Pod,
}

/// One container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerSpec {
    pub name: String,
    pub argv: Vec<String>,
    pub env: Vec<(String, EnvValue)>,
    pub working_dir: Option<PathBuf>,
    pub uid: u32,
    pub gid: u32,
    pub readiness: Option<Probe>,
    pub pre_stop: Option<Vec<String>>,
}

/// The value of a variable; some are known only when the pod has an address.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum EnvValue {
    Text(String),
    Field(FieldRef),
}

/// Downward API fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldRef {
    Name,
    Namespace,
    Uid,
    PodIp,
    PodIps,
    HostIp,
    NodeName,
    ServiceAccountName,
}

/// A field of a manifest that the lab refuses, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub(crate) struct Refusal {
    pub path: String,
    pub message: String,
}

/// Collects refusals, so that a manifest's mistakes are all reported at once.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<Refusal>);

impl Refusals {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Refusal { path: path.into(), message: message.into() });
    }

    /// Refuses a field when it is there.
    fn unless_absent<T>(&mut self, field: Option<&T>, path: String, message: &str) {
        if field.is_some() {
            self.add(path, message);
        }
    }
}

impl PodSpec {
    /// Reads a Pod; `namespace_labels` are those of its Namespace.
    ///
    /// # Errors
    /// Every field that the lab cannot honour.
    pub(crate) fn new(
        manifest: &core::Pod,
        namespace_labels: &BTreeMap<String, String>,
    ) -> Result<Self, Vec<Refusal>> {
        let mut refusals = Refusals::default();
        let meta = &manifest.metadata;
        let name = meta.name.clone().unwrap_or_default();
        let namespace = meta.namespace.clone().unwrap_or_else(|| "default".into());
        let spec = manifest.spec.clone().unwrap_or_default();
        refuse_fields(&spec, &mut refusals);
        let labels = meta.labels.clone().unwrap_or_default();
        let meshed = is_meshed(&labels, namespace_labels, &mut refusals);
        let containers = spec
            .containers
            .iter()
            .enumerate()
            .map(|(index, container)| {
                container::parse(
                    container,
                    &format!("spec.containers[{index}]"),
                    spec.security_context.as_ref(),
                    &mut refusals,
                )
            })
            .collect();
        let (proxy_env, init_env) = sidecar_overrides(&spec, &mut refusals);
        if !refusals.0.is_empty() {
            return Err(refusals.0);
        }
        let pod = Self {
            hostname: spec.hostname.clone().unwrap_or_else(|| name.clone()),
            key: PodKey { namespace, name },
            meshed,
            service_account: spec.service_account_name.unwrap_or_else(|| "default".into()),
            node: spec.node_name.unwrap_or_else(|| "lab".into()),
            zone: labels.get("topology.kubernetes.io/zone").cloned(),
            grace_s: spec
                .termination_grace_period_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .unwrap_or(30),
            may_finish: spec.restart_policy.is_some_and(|policy| policy != "Always"),
            containers,
            proxy_env,
            init_env,
            manifest: manifest.clone(),
        };
        Ok(pod)
    }

    /// Whether a running pod with this spec must be replaced to become `other`. Labels and
    /// annotations change in place; the rest of a pod does not change in a cluster either.
    pub(crate) fn needs_replacement(&self, other: &Self) -> bool {
        self.meshed != other.meshed || self.manifest.spec != other.manifest.spec
    }

    /// The number of a container's port.
    pub(crate) fn resolve_port(&self, port: &IntOrString) -> Option<u16> {
        match port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let spec = self.manifest.spec.as_ref()?;
                let mut ports = spec.containers.iter().filter_map(|c| c.ports.as_ref()).flatten();
                let found = ports.find(|port| port.name.as_ref() == Some(name))?;
                u16::try_from(found.container_port).ok()
            }
        }
    }
}

fn is_meshed(
    labels: &BTreeMap<String, String>,
    namespace_labels: &BTreeMap<String, String>,
    refusals: &mut Refusals,
) -> bool {
    let label = names::INJECT_LABEL;
    let choice = labels.get(label).or_else(|| namespace_labels.get(label));
    match choice.map(String::as_str) {
        None | Some("enabled") => true,
        Some("disabled") => false,
        Some(other) => {
            refusals.add(
                format!("metadata.labels[{label}]"),
                format!("{other:?} is neither \"enabled\" nor \"disabled\""),
            );
            false
        }
    }
}

fn refuse_fields(spec: &core::PodSpec, refusals: &mut Refusals) {
    let mut refuse = |present: bool, field: &str, instead: &str| {
        if present {
            refusals.add(format!("spec.{field}"), instead);
        }
    };
    let plain = "containers are plain processes here";
    refuse(
        spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()),
        "volumes",
        "the lab mounts none: remove it; every container has a writable working directory, and \
         sees the host's files as its uid may",
    );
    refuse(
        spec.host_network == Some(true),
        "hostNetwork",
        "every pod of the lab has its own network: remove it",
    );
    refuse(spec.host_pid == Some(true), "hostPID", "remove it");
    refuse(spec.host_ipc == Some(true), "hostIPC", "remove it");
    refuse(
        spec.dns_config.is_some(),
        "dnsConfig",
        "names are looked up in a hosts file: remove it",
    );
    refuse(spec.host_aliases.is_some(), "hostAliases", "make a Service with that name instead");
    refuse(spec.ephemeral_containers.is_some(), "ephemeralContainers", "use `heddle-lab exec`");
    refuse(spec.readiness_gates.is_some(), "readinessGates", "use a readinessProbe");
    refuse(spec.resource_claims.is_some(), "resourceClaims", plain);
    refuse(
        spec.active_deadline_seconds.is_some(),
        "activeDeadlineSeconds",
        "use `timeout` in the command",
    );
    refuse(spec.set_hostname_as_fqdn == Some(true), "setHostnameAsFQDN", "remove it");
    refuse(spec.containers.is_empty(), "containers", "a pod needs at least one container");
    let policy = spec.restart_policy.as_deref();
    refuse(
        !matches!(policy, None | Some("Always" | "OnFailure" | "Never")),
        "restartPolicy",
        "write Always, OnFailure or Never",
    );
    for (index, container) in spec.containers.iter().enumerate() {
        if spec.containers[..index].iter().any(|other| other.name == container.name) {
            refusals.add(
                format!("spec.containers[{index}].name"),
                format!("{:?} is the name of another container of the pod", container.name),
            );
        }
    }
}

type Env = Vec<(String, String)>;

/// The `env` of the two containers the mesh adds, when the manifest names them itself.
fn sidecar_overrides(spec: &core::PodSpec, refusals: &mut Refusals) -> (Env, Env) {
    let (mut proxy, mut init) = (Vec::new(), Vec::new());
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        let target = match container.name.as_str() {
            names::PROXY_CONTAINER => &mut proxy,
            names::INIT_CONTAINER => &mut init,
            _ => {
                refusals.add(
                    path,
                    format!(
                        "the lab runs none but its own; only {} and {} may stand here, to set \
                         their `env`",
                        names::PROXY_CONTAINER,
                        names::INIT_CONTAINER
                    ),
                );
                continue;
            }
        };
        for (position, variable) in container.env.iter().flatten().enumerate() {
            match &variable.value {
                Some(value) => target.push((variable.name.clone(), value.clone())),
                None => refusals.add(format!("{path}.env[{position}]"), "give it a `value`"),
            }
        }
    }
    (proxy, init)
}

#[cfg(test)]
mod tests;
