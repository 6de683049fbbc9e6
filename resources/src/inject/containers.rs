//! The two containers and two volumes of a meshed pod, as JSON.
//!
//! `heddle-init` is the one privileged step: root with NET_ADMIN and nothing else, because a
//! container that is not root gets no capability from Kubernetes unless it may escalate privileges,
//! which no container of ours may. It ends before anything else of the pod runs.

use std::time::Duration;

use heddle_api::names::{
    INIT_CONTAINER, METRICS_PORT, PROBE_PORT, PROXY_CONTAINER, PROXY_UID, TOKEN_AUDIENCE,
    TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY,
};
use heddle_api::probes;
use serde_json::{Map, Value, json};

use super::edit::Editor;
use super::overrides::Overrides;
use super::pod::{PodView, list};
use super::settings::{Requirements, Settings};
use super::{IDENTITY_VOLUME, RUN_VOLUME};

/// Where the proxy looks for its token and the trust bundle.
const IDENTITY_PATH: &str = "/var/run/secrets/heddle";
/// Where the proxy keeps its control socket.
const RUN_PATH: &str = "/var/run/heddle";
/// A socket and a lock.
const RUN_SIZE: &str = "1Mi";
/// A pod waits for a control plane that is away; a proxy that is restarted meanwhile gains nothing.
const STARTUP_FAILURES: u32 = 600;
/// What an ending pod needs after its drain: a sixth of its grace period, at most this.
const MAX_RESERVE_S: u64 = 10;
const MIN_DRAIN: Duration = Duration::from_millis(500);

/// Adds containers before the application's own init containers, and the volumes.
pub(super) fn insert(
    edit: &mut Editor,
    view: &PodView<'_>,
    settings: &Settings,
    overrides: &Overrides,
    table: Option<&str>,
) {
    let containers = ["spec", "initContainers"];
    edit.ensure(&containers, || json!([]));
    edit.insert(&containers, 0, init(settings, overrides));
    edit.insert(&containers, 1, proxy(settings, overrides, view.grace_seconds(), table));
    let volumes = ["spec", "volumes"];
    edit.ensure(&volumes, || json!([]));
    edit.append(&volumes, identity_volume(settings));
    let memory = json!({ "medium": "Memory", "sizeLimit": RUN_SIZE });
    edit.append(&volumes, json!({ "name": RUN_VOLUME, "emptyDir": memory }));
}

/// Replaces the table of checks of a proxy that is there already.
pub(super) fn declare(edit: &mut Editor, proxy: usize, table: &str) {
    let proxy = proxy.to_string();
    let env = ["spec", "initContainers", proxy.as_str(), "env"];
    edit.ensure(&env, || json!([]));
    let variable = json!({ "name": probes::VARIABLE, "value": table });
    let found = edit.find(&env).and_then(|variables| {
        list(variables).position(|variable| variable["name"] == probes::VARIABLE)
    });
    match found {
        Some(index) => {
            let index = index.to_string();
            let path = ["spec", "initContainers", &proxy, "env", &index, "value"];
            edit.set(&path, json!(table));
        }
        None => edit.append(&env, variable),
    }
}

fn init(settings: &Settings, overrides: &Overrides) -> Value {
    let cidrs: Vec<_> = settings.skip_outbound_cidrs.iter().map(ToString::to_string).collect();
    let env: Vec<_> = [
        ("HEDDLE_SKIP_INBOUND_PORTS", overrides.skip_inbound_ports.to_string()),
        ("HEDDLE_SKIP_OUTBOUND_PORTS", overrides.skip_outbound_ports.to_string()),
        ("HEDDLE_SKIP_OUTBOUND_CIDRS", cidrs.join(",")),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| json!({ "name": name, "value": value }))
    .collect();
    json!({
        "name": INIT_CONTAINER,
        "image": settings.init_image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": env,
        "resources": resources(&settings.init),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy(settings: &Settings, overrides: &Overrides, grace: u64, table: Option<&str>) -> Value {
    json!({
        "name": PROXY_CONTAINER,
        "image": settings.proxy_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",
        "env": proxy_env(settings, overrides, grace, table),
        "ports": [
            { "name": "heddle-metrics", "containerPort": METRICS_PORT, "protocol": "TCP" },
            { "name": "heddle-probes", "containerPort": PROBE_PORT, "protocol": "TCP" },
        ],
        "resources": resources(&overrides.requirements),
        "securityContext": {
            "runAsUser": PROXY_UID,
            "runAsGroup": PROXY_UID,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": IDENTITY_VOLUME, "mountPath": IDENTITY_PATH, "readOnly": true },
            { "name": RUN_VOLUME, "mountPath": RUN_PATH },
        ],
        // Holds everything else of the pod back until it has the mesh.
        "startupProbe": health("/readyz", 1, 2, STARTUP_FAILURES),
        "readinessProbe": health("/readyz", 2, 2, 3),
        // Generous: a node that is short of CPU must not lose its proxies as well.
        "livenessProbe": health("/livez", 10, 5, 6),
        "lifecycle": { "preStop": { "exec": { "command": [PROXY_CONTAINER, "drain"] } } },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

fn proxy_env(
    settings: &Settings,
    overrides: &Overrides,
    grace: u64,
    table: Option<&str>,
) -> Vec<Value> {
    let text = |name: &str, value: &str| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let mut env = vec![
        text("HEDDLE_CONTROL_PLANE", &settings.control_plane),
        text("HEDDLE_TRUST_DOMAIN", &settings.trust_domain),
        field("HEDDLE_NAMESPACE", "metadata.namespace"),
        field("HEDDLE_POD", "metadata.name"),
        field("HEDDLE_NODE", "spec.nodeName"),
        text("HEDDLE_LOG", &overrides.log),
        text("HEDDLE_LOG_FORMAT", &settings.log_format),
        text("HEDDLE_ACCESS_LOG", &settings.access_log),
        text("HEDDLE_DRAIN_TIMEOUT", &drain_timeout(grace, settings.drain_timeout)),
    ];
    env.extend(table.map(|table| text(probes::VARIABLE, table)));
    env
}

/// Less than the pod's grace period: the application still has to end after the drain, and the
/// proxy after the application.
fn drain_timeout(grace: u64, limit: Duration) -> String {
    let reserve = (grace / 6).clamp(1, MAX_RESERVE_S);
    let room = Duration::from_secs(grace.saturating_sub(reserve)).max(MIN_DRAIN);
    format!("{}ms", room.min(limit).as_millis())
}

fn health(path: &str, period: u32, timeout: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": METRICS_PORT, "scheme": "HTTP" },
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    })
}

fn resources(requirements: &Requirements) -> Value {
    let amounts = |cpu: &Option<_>, memory: &Option<_>| {
        let both = [("cpu", cpu), ("memory", memory)];
        let named = both.into_iter().filter_map(|(name, amount): (_, &Option<super::Quantity>)| {
            Some((name.to_owned(), json!(amount.as_ref()?.to_string())))
        });
        named.collect::<Map<_, _>>()
    };
    json!({
        "requests": amounts(&requirements.cpu_request, &requirements.memory_request),
        "limits": amounts(&requirements.cpu_limit, &requirements.memory_limit),
    })
}

/// Token and roots in one place, so that neither is there without the other.
fn identity_volume(settings: &Settings) -> Value {
    json!({
        "name": IDENTITY_VOLUME,
        "projected": {
            "sources": [
                { "serviceAccountToken": {
                    "audience": TOKEN_AUDIENCE,
                    "expirationSeconds": settings.token_seconds,
                    "path": "token",
                } },
                { "configMap": {
                    "name": TRUST_BUNDLE_CONFIG_MAP,
                    "items": [{ "key": TRUST_BUNDLE_KEY, "path": TRUST_BUNDLE_KEY }],
                } },
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_ends_before_the_grace_period() {
        for (grace, limit, want) in [
            (0, 30, "500ms"),
            (1, 30, "500ms"),
            (2, 30, "1000ms"),
            (10, 30, "9000ms"),
            (30, 30, "25000ms"),
            (60, 30, "30000ms"),
            (60, 3600, "50000ms"),
            (120, 3600, "110000ms"),
        ] {
            assert_eq!(drain_timeout(grace, Duration::from_secs(limit)), want, "{grace} {limit}");
        }
    }
}
