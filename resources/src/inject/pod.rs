//! A pod as injection sees it: raw JSON, read field by field, and what makes it unfit for a proxy.

use heddle_api::names::{INIT_CONTAINER, PROXY_CONTAINER, PROXY_PORTS, PROXY_UID};
use heddle_api::probes::{self, Table};
use serde_json::Value;

use super::{IDENTITY_VOLUME, RUN_VOLUME, SkipReason};

/// The two lists of containers in which something is injected or rewritten.
pub(super) const LISTS: [&str; 2] = ["initContainers", "containers"];

#[derive(Debug)]
pub(super) struct PodView<'a> {
    pod: &'a Value,
    injected: Result<Injected, String>,
}

/// Whether the pod has our containers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Injected {
    No,
    Yes {
        /// Index of the proxy in `initContainers`.
        proxy: usize,
        /// The checks it performs, if it was told of any.
        table: Option<Table>,
    },
}

/// One container and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Container<'a> {
    pub list: &'static str,
    pub index: usize,
    pub value: &'a Value,
}

impl<'a> PodView<'a> {
    pub(super) fn new(pod: &'a Value) -> Self {
        Self { pod, injected: injected(pod) }
    }

    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        self.pod["metadata"]["labels"].get(name)?.as_str()
    }

    /// Every annotation, in order.
    pub(super) fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let annotations = self.pod["metadata"]["annotations"].as_object();
        annotations.into_iter().flatten().map(|(name, value)| (name.as_str(), value))
    }

    pub(super) fn spec(&self) -> &'a Value {
        &self.pod["spec"]
    }

    pub(super) fn grace_seconds(&self) -> u64 {
        self.spec()["terminationGracePeriodSeconds"].as_u64().unwrap_or(30)
    }

    /// Every container, ours included.
    pub(super) fn containers(&self) -> impl Iterator<Item = Container<'a>> {
        containers(self.pod)
    }

    /// The application's containers that stay: no init container ends before it is probed.
    pub(super) fn application(&self) -> impl Iterator<Item = Container<'a>> {
        self.containers().filter(|container| !container.is_ours() && container.stays())
    }

    /// [`PodView::refuse`] has seen that there is an answer.
    pub(super) fn injected(&self) -> &Injected {
        self.injected.as_ref().unwrap_or(&Injected::No)
    }

    /// What no proxy can be in.
    pub(super) fn unsuitable(&self) -> Option<SkipReason> {
        let spec = self.spec();
        let selector = &spec["nodeSelector"]["kubernetes.io/os"];
        let windows = |value: &Value| value.as_str() == Some("windows");
        if windows(&spec["os"]["name"]) || windows(selector) {
            return Some(SkipReason::Windows);
        }
        (spec["hostNetwork"] == true).then_some(SkipReason::HostNetwork)
    }

    /// Notes everything that must not be injected as it is.
    pub(super) fn refuse(&self, mistakes: &mut Vec<String>) {
        if self.spec()["containers"].as_array().is_none_or(Vec::is_empty) {
            mistakes.push("spec.containers: is required; list at least one container".to_owned());
        }
        mistakes.extend(self.injected.as_ref().err().cloned());
        let uid = &self.spec()["securityContext"]["runAsUser"];
        if *uid == PROXY_UID {
            mistakes.push(claims_uid("spec.securityContext.runAsUser"));
        }
        for container in self.containers().filter(|container| !container.is_ours()) {
            if container.value["securityContext"]["runAsUser"] == PROXY_UID {
                mistakes.push(claims_uid(&container.field("securityContext.runAsUser")));
            }
            for (index, port) in list(&container.value["ports"]).enumerate() {
                let number = &port["containerPort"];
                if PROXY_PORTS.iter().any(|taken| *number == *taken) {
                    let field = container.field(&format!("ports[{index}].containerPort"));
                    mistakes.push(format!(
                        "{field}: {number} is a port of the proxy, which shares the pod's network: \
                         choose another"
                    ));
                }
            }
        }
        if self.injected == Ok(Injected::No) {
            for (index, volume) in list(&self.spec()["volumes"]).enumerate() {
                if volume["name"] == IDENTITY_VOLUME || volume["name"] == RUN_VOLUME {
                    mistakes.push(format!(
                        "spec.volumes[{index}].name: {} is the proxy's volume: choose another",
                        volume["name"]
                    ));
                }
            }
        }
    }
}

impl Container<'_> {
    pub(super) fn name(&self) -> &str {
        self.value["name"].as_str().unwrap_or_default()
    }

    /// For messages.
    pub(super) fn field(&self, field: &str) -> String {
        format!("spec.{}[{}].{field}", self.list, self.index)
    }

    fn is_ours(&self) -> bool {
        self.list == LISTS[0] && matches!(self.name(), PROXY_CONTAINER | INIT_CONTAINER)
    }

    /// A container of the pod's life, or a native sidecar.
    fn stays(&self) -> bool {
        self.list == LISTS[1] || self.value["restartPolicy"] == "Always"
    }

    /// A container of the pod's life alone.
    pub(super) fn is_main(&self) -> bool {
        self.list == LISTS[1]
    }

    fn runs_as_proxy(&self) -> bool {
        let security = &self.value["securityContext"];
        self.value["restartPolicy"] == "Always" && security["runAsUser"] == PROXY_UID
    }

    fn may_redirect(&self) -> bool {
        let added = &self.value["securityContext"]["capabilities"]["add"];
        list(added).any(|capability| capability == "NET_ADMIN")
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = Container<'_>> {
    LISTS.into_iter().flat_map(move |name| {
        let entries = list(&pod["spec"][name]).enumerate();
        entries.map(move |(index, value)| Container { list: name, index, value })
    })
}

/// Tells our own containers from others that have taken their names.
fn injected(pod: &Value) -> Result<Injected, String> {
    let named = |name: &str| containers(pod).find(|container| container.name() == name);
    let (proxy, init) = (named(PROXY_CONTAINER), named(INIT_CONTAINER));
    let foreign = |container: &Container<'_>, what: &str| {
        Err(format!(
            "{}: {} is the mesh's own container, and this one {what}: choose another name, or \
             remove it to have it injected",
            container.field("name"),
            container.name()
        ))
    };
    let (proxy, init) = match (proxy, init) {
        (None, None) => return Ok(Injected::No),
        (Some(proxy), Some(init)) => (proxy, init),
        (Some(only), None) | (None, Some(only)) => return foreign(&only, "stands alone"),
    };
    if !proxy.is_ours() || !proxy.runs_as_proxy() {
        return foreign(&proxy, "is not a native sidecar that runs as the proxy's user");
    }
    if !init.is_ours() || !init.may_redirect() {
        return foreign(&init, "is not an init container that may redirect (NET_ADMIN)");
    }
    let mut env = list(&proxy.value["env"]);
    let table = env.find(|variable| variable["name"] == probes::VARIABLE);
    let table =
        match table.and_then(|variable| variable["value"].as_str()) {
            None => None,
            Some(text) => Some(Table::parse(text).map_err(|error| {
                format!("{}: {}: {error}", proxy.field("env"), probes::VARIABLE)
            })?),
        };
    Ok(Injected::Yes { proxy: proxy.index, table })
}

fn claims_uid(field: &str) -> String {
    format!(
        "{field}: {PROXY_UID} is the proxy's uid, whose traffic is not redirected: choose another"
    )
}

/// The entries of a list; of anything else, none.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A person's text in a message: escaped and short.
pub(super) fn quote(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}
