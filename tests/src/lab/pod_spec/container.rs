//! One container of a Pod, field by field.

use std::path::PathBuf;
use std::time::Duration;

use heddle_api::names;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{APPLICATION_UID, Check, ContainerSpec, EnvValue, FieldRef, PROXY, Probe, Refusals};

pub(super) fn parse(
    container: &core::Container,
    path: &str,
    pod_security: Option<&core::PodSecurityContext>,
    refusals: &mut Refusals,
) -> ContainerSpec {
    refuse_fields(container, path, refusals);
    let mut argv = container.command.clone().unwrap_or_default();
    if argv.is_empty() {
        refusals.add(
            format!("{path}.command"),
            "name the program: the lab runs no images, so there is no entry point to fall back on",
        );
    }
    argv.extend(container.args.clone().unwrap_or_default());
    let (uid, gid) = parse_user(container.security_context.as_ref(), pod_security, path, refusals);
    ContainerSpec {
        name: container.name.clone(),
        argv,
        env: parse_env(container, path, refusals),
        working_dir: container.working_dir.as_ref().map(PathBuf::from),
        uid,
        gid,
        readiness: container.readiness_probe.as_ref().map(|probe| {
            parse_probe(probe, container, &format!("{path}.readinessProbe"), refusals)
        }),
        pre_stop: parse_lifecycle(container, path, refusals),
    }
}

fn refuse_fields(container: &core::Container, path: &str, refusals: &mut Refusals) {
    if [PROXY, names::PROXY_CONTAINER, names::INIT_CONTAINER].contains(&container.name.as_str()) {
        refusals.add(
            format!("{path}.name"),
            format!(
                "{:?} is what the mesh's own container is called: choose another",
                container.name
            ),
        );
    }
    let at = |field: &str| format!("{path}.{field}");
    refusals.unless_absent(
        container.env_from.as_ref(),
        at("envFrom"),
        "list the variables in `env`",
    );
    refusals.unless_absent(
        container.volume_mounts.as_ref(),
        at("volumeMounts"),
        "the lab mounts none: remove it",
    );
    refusals.unless_absent(container.volume_devices.as_ref(), at("volumeDevices"), "remove it");
    refusals.unless_absent(
        container.startup_probe.as_ref(),
        at("startupProbe"),
        "write it as the readinessProbe: nothing is restarted for starting slowly",
    );
    refusals.unless_absent(container.stdin.as_ref(), at("stdin"), "use `heddle-lab exec`");
    refusals.unless_absent(container.tty.as_ref(), at("tty"), "use `heddle-lab exec`");
    for (index, port) in container.ports.iter().flatten().enumerate() {
        if port.host_port.is_some() {
            refusals.add(format!("{path}.ports[{index}].hostPort"), "remove it: use a Service");
        }
    }
    let Some(security) = &container.security_context else { return };
    if security.privileged == Some(true) {
        refusals.add(at("securityContext.privileged"), "no container keeps a capability here");
    }
    if security.capabilities.as_ref().is_some_and(|c| c.add.as_ref().is_some_and(|a| !a.is_empty()))
    {
        refusals
            .add(at("securityContext.capabilities.add"), "no container keeps a capability here");
    }
}

/// The application must not be the proxy: the proxy's uid is exempt from redirection.
fn parse_user(
    own: Option<&core::SecurityContext>,
    pod: Option<&core::PodSecurityContext>,
    path: &str,
    refusals: &mut Refusals,
) -> (u32, u32) {
    let uid = own.and_then(|c| c.run_as_user).or_else(|| pod.and_then(|c| c.run_as_user));
    let gid = own.and_then(|c| c.run_as_group).or_else(|| pod.and_then(|c| c.run_as_group));
    let non_root =
        own.and_then(|c| c.run_as_non_root).or_else(|| pod.and_then(|c| c.run_as_non_root));
    let field = format!("{path}.securityContext.runAsUser");
    let uid = uid.unwrap_or_else(|| i64::from(APPLICATION_UID));
    if uid == i64::from(names::PROXY_UID) {
        refusals.add(
            &field,
            format!("{uid} is the proxy's uid, whose traffic is not redirected: choose another"),
        );
    }
    if uid == 0 && non_root == Some(true) {
        refusals.add(&field, "0 contradicts runAsNonRoot: true");
    }
    let id = |id: i64, field: &str, refusals: &mut Refusals| {
        u32::try_from(id).unwrap_or_else(|_| {
            refusals.add(field, format!("{id} is not a user or group id"));
            APPLICATION_UID
        })
    };
    let uid = id(uid, &field, refusals);
    let gid =
        gid.map_or(uid, |gid| id(gid, &format!("{path}.securityContext.runAsGroup"), refusals));
    (uid, gid)
}

fn parse_env(
    container: &core::Container,
    path: &str,
    refusals: &mut Refusals,
) -> Vec<(String, EnvValue)> {
    let mut env = Vec::new();
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        let value = match &variable.value_from {
            None => EnvValue::Text(variable.value.clone().unwrap_or_default()),
            Some(source) => {
                match source.field_ref.as_ref().map(|field| field.field_path.as_str()) {
                    Some("metadata.name") => EnvValue::Field(FieldRef::Name),
                    Some("metadata.namespace") => EnvValue::Field(FieldRef::Namespace),
                    Some("metadata.uid") => EnvValue::Field(FieldRef::Uid),
                    Some("status.podIP") => EnvValue::Field(FieldRef::PodIp),
                    Some("status.podIPs") => EnvValue::Field(FieldRef::PodIps),
                    Some("status.hostIP") => EnvValue::Field(FieldRef::HostIp),
                    Some("spec.nodeName") => EnvValue::Field(FieldRef::NodeName),
                    Some("spec.serviceAccountName") => {
                        EnvValue::Field(FieldRef::ServiceAccountName)
                    }
                    other => {
                        refusals.add(
                            format!("{path}.valueFrom"),
                            format!(
                                "{}: write a `value`, or a fieldRef to metadata.name, \
                             metadata.namespace, metadata.uid, status.podIP, status.podIPs, \
                             status.hostIP, spec.nodeName or spec.serviceAccountName",
                                other.unwrap_or("not a fieldRef")
                            ),
                        );
                        continue;
                    }
                }
            }
        };
        env.push((variable.name.clone(), value));
    }
    env
}

fn parse_lifecycle(
    container: &core::Container,
    path: &str,
    refusals: &mut Refusals,
) -> Option<Vec<String>> {
    let lifecycle = container.lifecycle.as_ref()?;
    refusals.unless_absent(
        lifecycle.post_start.as_ref(),
        format!("{path}.lifecycle.postStart"),
        "do it in the command",
    );
    let pre_stop = lifecycle.pre_stop.as_ref()?;
    if let Some(argv) = pre_stop.exec.as_ref().and_then(|exec| exec.command.clone()) {
        return Some(argv);
    }
    if let Some(sleep) = &pre_stop.sleep {
        return Some(vec!["sleep".into(), sleep.seconds.to_string()]);
    }
    refusals.add(format!("{path}.lifecycle.preStop"), "write an `exec` or a `sleep`");
    None
}

/// Kubernetes' defaults, but for the period: a lab should be up in a moment.
fn parse_probe(
    probe: &core::Probe,
    container: &core::Container,
    path: &str,
    refusals: &mut Refusals,
) -> Probe {
    let seconds = |value: Option<i32>, default: u64| {
        value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    let count = |value: Option<i32>, default: u32| {
        value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    Probe {
        check: parse_check(probe, container, path, refusals),
        initial_delay: Duration::from_secs(seconds(probe.initial_delay_seconds, 0)),
        period: Duration::from_secs(seconds(probe.period_seconds, 1)),
        timeout: Duration::from_secs(seconds(probe.timeout_seconds, 1)),
        successes: count(probe.success_threshold, 1),
        failures: count(probe.failure_threshold, 3),
    }
}

fn parse_check(
    probe: &core::Probe,
    container: &core::Container,
    path: &str,
    refusals: &mut Refusals,
) -> Check {
    if let Some(http) = &probe.http_get {
        if http.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
            refusals.add(format!("{path}.httpGet.scheme"), "only HTTP here: use a tcpSocket probe");
        }
        let headers = http.http_headers.iter().flatten();
        return Check::Http {
            port: resolve_port(&http.port, container, &format!("{path}.httpGet.port"), refusals),
            path: http.path.clone().unwrap_or_else(|| "/".into()),
            headers: headers.map(|h| (h.name.clone(), h.value.clone())).collect(),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        let path = format!("{path}.tcpSocket.port");
        return Check::Tcp { port: resolve_port(&tcp.port, container, &path, refusals) };
    }
    if let Some(argv) = probe.exec.as_ref().and_then(|exec| exec.command.clone()) {
        return Check::Exec { argv };
    }
    refusals.add(path, "write an httpGet, a tcpSocket or an exec probe");
    Check::Exec { argv: Vec::new() }
}

fn resolve_port(
    port: &IntOrString,
    container: &core::Container,
    path: &str,
    refusals: &mut Refusals,
) -> u16 {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port),
    };
    number.and_then(|number| u16::try_from(number).ok()).unwrap_or_else(|| {
        refusals.add(path, "neither a port number nor the name of a port of this container");
        0
    })
}
