//! What a cluster's controllers would fill in, as files below the manifests.
//!
//! The control plane reads them as part of its source. Each file is replaced in one step, and only
//! when it changes.

use std::path::{Path, PathBuf};

use heddle_api::names;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::endpoints::PodView;
use super::network::GATEWAY_V4;
use super::pod::DRAINED_PATH;
use super::pod_spec::PROXY;

/// Writes the published files.
#[derive(Debug)]
pub(crate) struct Publisher {
    dir: PathBuf,
    written: [String; 3],
}

const FILES: [&str; 3] = ["pods.yaml", "services.yaml", "endpointslices.yaml"];

impl Publisher {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, written: Default::default() }
    }

    /// Publishes pods, then Services, then endpoints: nothing refers to what is not there yet.
    pub(crate) fn publish(
        &mut self,
        pods: &[PodView<'_>],
        services: &[core::Service],
        slices: &[EndpointSlice],
    ) -> anyhow::Result<()> {
        let pods: Vec<_> = pods.iter().map(pod_object).collect();
        let texts = [documents(&pods)?, documents(services)?, documents(slices)?];
        for ((name, text), written) in FILES.iter().zip(texts).zip(&mut self.written) {
            if text != *written {
                replace_file(&self.dir.join(name), text.as_bytes())?;
                *written = text;
            }
        }
        Ok(())
    }
}

fn documents<T: Serialize>(objects: &[T]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(object)?);
    }
    Ok(text)
}

/// Replaces a file in one step.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&staged, content)?;
    std::fs::rename(&staged, path)
}

/// The pod as a cluster would show it: injected, scheduled, with its status.
fn pod_object(pod: &PodView<'_>) -> core::Pod {
    let PodView { spec, status } = pod;
    let mut object = spec.manifest.clone();
    let meta = &mut object.metadata;
    meta.namespace = Some(status.namespace.clone());
    meta.uid = Some(status.uid.clone());
    meta.creation_timestamp = time(status.created_s);
    meta.deletion_timestamp = status.deleted_s.and_then(time);
    let pod_spec = object.spec.get_or_insert_default();
    pod_spec.node_name = Some(spec.node.clone());
    pod_spec.service_account_name = Some(spec.service_account.clone());
    if spec.meshed {
        inject(pod_spec);
    }
    let ips = status.addresses.iter().map(ToString::to_string);
    object.status = Some(core::PodStatus {
        phase: Some(status.phase.as_str().into()),
        host_ip: Some(GATEWAY_V4.to_string()),
        pod_ip: status.addresses.first().map(ToString::to_string),
        pod_ips: Some(ips.map(|ip| core::PodIP { ip }).collect()),
        conditions: Some(vec![
            condition("PodScheduled", true),
            condition("Initialized", status.phase != super::protocol::Phase::Pending),
            condition("ContainersReady", status.ready),
            condition("Ready", status.ready),
        ]),
        message: status.message.clone(),
        ..core::PodStatus::default()
    });
    object
}

/// The two containers that injection adds in a cluster, and the hook of the others; what the
/// manifest said of them stays.
fn inject(spec: &mut core::PodSpec) {
    let containers = spec.init_containers.get_or_insert_default();
    for (name, restart) in [(names::INIT_CONTAINER, None), (names::PROXY_CONTAINER, Some("Always"))]
    {
        let position = containers.iter().position(|container| container.name == name);
        let position = position.unwrap_or_else(|| {
            containers.push(core::Container { name: name.into(), ..Default::default() });
            containers.len() - 1
        });
        let container = &mut containers[position];
        container.image.get_or_insert_with(|| "heddle".into());
        container.restart_policy = restart.map(Into::into);
        if name == names::PROXY_CONTAINER {
            let security = container.security_context.get_or_insert_default();
            security.run_as_user = Some(i64::from(names::PROXY_UID));
        }
    }
    for container in &mut spec.containers {
        debug_assert!(container.name != PROXY);
        let lifecycle = container.lifecycle.get_or_insert_default();
        lifecycle.pre_stop.get_or_insert_with(await_drain);
    }
}

/// The application outlives the last request: see `pod/stop.rs`, which does as this says.
fn await_drain() -> core::LifecycleHandler {
    let get = core::HTTPGetAction {
        path: Some(DRAINED_PATH.into()),
        port: IntOrString::Int(names::METRICS_PORT.into()),
        ..core::HTTPGetAction::default()
    };
    core::LifecycleHandler { http_get: Some(get), ..core::LifecycleHandler::default() }
}

fn condition(kind: &str, holds: bool) -> core::PodCondition {
    core::PodCondition {
        type_: kind.into(),
        status: if holds { "True" } else { "False" }.into(),
        ..core::PodCondition::default()
    }
}

fn time(seconds: i64) -> Option<Time> {
    Timestamp::from_second(seconds).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::tests::pod;
    use super::*;

    #[test]
    fn published_objects_are_what_the_sources_reader_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let (spec, status) = pod(
            "web-1",
            5,
            "{ metadata: { labels: { app: 'true', n: '1', nothing: 'null' } }, spec: { \
             initContainers: [{ name: heddle-proxy, env: [{ name: HEDDLE_LOG, value: debug }] }], \
             containers: [{ name: a, command: [sh, -c, 'a: b # c'], args: ['- x', \"multi\\nline\"] }] } }",
        );
        let view = PodView { spec: &spec, status: &status };
        Publisher::new(dir.path().to_owned()).publish(&[view, view], &[], &[]).unwrap();
        let text = std::fs::read_to_string(dir.path().join("pods.yaml")).unwrap();
        let reading =
            heddle_resources::reader::read("pods.yaml", &text.replacen("web-1", "web-0", 1));
        assert_eq!(reading.errors, [], "{text}");
        let heddle_resources::Object::Pod(read) = &reading.objects[1].object else { panic!() };
        assert_eq!(**read, pod_object(&view));
        let spec = read.spec.as_ref().unwrap();
        let injected: Vec<_> = spec
            .init_containers
            .iter()
            .flatten()
            .map(|c| (c.name.as_str(), c.restart_policy.as_deref(), c.env.iter().flatten().count()))
            .collect();
        assert_eq!(injected, [("heddle-proxy", Some("Always"), 1), ("heddle-init", None, 0)]);
        let hook = spec.containers[0].lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
        let get = hook.and_then(|hook| hook.http_get.as_ref()).unwrap();
        assert_eq!((get.path.as_deref(), &get.port), (Some("/drained"), &IntOrString::Int(15109)));
    }
}
