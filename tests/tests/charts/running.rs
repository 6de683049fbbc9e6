//! The control plane itself, with the settings that the chart gives it and the permissions that the
//! chart grants it, and with nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{CommandFactory as _, Parser as _};
use heddle_api::names::{TRUST_BUNDLE_CONFIG_MAP, TRUST_BUNDLE_KEY, TRUST_ROOT_SECRET};
use heddle_control_plane::app::{App, Handle};
use heddle_control_plane::config::{CommandLine, Config};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::cluster::{self, Cluster, GROUPS, USER};
use super::helm::{self, NAMESPACE, Rendering};

const PATIENCE: Duration = Duration::from_secs(60);
const POD: &str = "heddle-control-plane-under-test";

/// The variables of the rendered Deployment, as the command line of the same meaning. A variable
/// that the control plane does not know is a value of the chart that nothing would read.
fn arguments(rendering: &Rendering) -> Result<BTreeMap<String, String>> {
    let deployment = rendering.one("Deployment", "heddle-control-plane");
    let variables = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    let command = CommandLine::command();
    let mut arguments = BTreeMap::new();
    let mut unknown = Vec::new();
    for variable in variables.as_array().context("the container has variables")? {
        let name = variable["name"].as_str().context("a variable has a name")?;
        let is_it = |argument: &&clap::Arg| argument.get_env().is_some_and(|env| env == name);
        match command.get_arguments().find(is_it).and_then(clap::Arg::get_long) {
            Some(option) => drop(arguments.insert(option.to_owned(), value(variable)?)),
            // Others are the operator's own, for the libraries.
            None if !name.starts_with("HEDDLE_") => {}
            None => unknown.push(name),
        }
    }
    ensure!(unknown.is_empty(), "the control plane reads none of {unknown:?}");
    Ok(arguments)
}

fn value(variable: &Value) -> Result<String> {
    if let Some(text) = variable["value"].as_str() {
        return Ok(text.to_owned());
    }
    Ok(match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
        Some("metadata.namespace") => NAMESPACE.to_owned(),
        Some("metadata.name") => POD.to_owned(),
        _ => bail!("{variable} comes from somewhere else"),
    })
}

/// Every rendering is settings that the control plane takes.
pub(crate) fn settings_are_taken(text: &str) -> Result<()> {
    settings(arguments(&Rendering::parse(text))?).map(drop)
}

fn settings(arguments: BTreeMap<String, String>) -> Result<Config> {
    let options = arguments.into_iter().map(|(option, value)| format!("--{option}={value}"));
    let command = CommandLine::try_parse_from(std::iter::once(POD.to_owned()).chain(options))?;
    Ok(command.serve.check()?)
}

/// Starts it as the chart would, on ports of its own and with the service account's permissions.
pub(crate) async fn start(cluster: &Cluster) -> Result<Handle> {
    let text = helm::template(&[], "").map_err(anyhow::Error::msg)?;
    let mut arguments = arguments(&Rendering::parse(&text))?;
    let kubeconfig = cluster.api.kubeconfig_for(USER, &GROUPS)?;
    for (option, value) in [
        ("kubeconfig", kubeconfig.display().to_string()),
        ("listen", "127.0.0.1:0".to_owned()),
        ("admin", "127.0.0.1:0".to_owned()),
        ("webhook-listen", "127.0.0.1:0".to_owned()),
    ] {
        arguments.insert(option.to_owned(), value);
    }
    Ok(App::start(settings(arguments)?, None).await?)
}

/// It becomes ready, leads, makes its authority, brings the roots to a labelled namespace and tells
/// the API server whom to believe at its webhooks.
pub(crate) async fn does_its_work(cluster: &Cluster, handle: &Handle) -> Result<()> {
    let shop = "{apiVersion: v1, kind: Namespace, metadata: {name: wanted, labels: {heddle.io/inject: enabled}}}";
    cluster.api.apply(shop).await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let leases: Api<Lease> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "wanted");
    let begun = Instant::now();
    let page = loop {
        let page = fetch(handle, "/readyz").await?;
        let bundle = maps.get_opt(TRUST_BUNDLE_CONFIG_MAP).await?;
        let roots =
            bundle.and_then(|map| map.data).and_then(|mut map| map.remove(TRUST_BUNDLE_KEY));
        let roots = roots.is_some_and(|pem| pem.contains("CERTIFICATE"));
        let told = cluster::authorities(cluster).await?.len() == cluster::WEBHOOKS;
        if page.starts_with("HTTP/1.1 200") && roots && told {
            break page;
        }
        ensure!(begun.elapsed() < PATIENCE, "{page}\n{}", fetch(handle, "/metrics").await?);
        sleep(Duration::from_millis(100)).await;
    };
    ensure!(secrets.get_opt(TRUST_ROOT_SECRET).await?.is_some(), "no authority: {page}");
    let lease = leases.get("heddle-control-plane").await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    ensure!(holder.as_deref() == Some(POD), "{holder:?} leads");
    Ok(())
}

/// How many requests the API server has refused for want of permission, whoever asked.
pub(crate) async fn refused(cluster: &Cluster) -> Result<String> {
    // RBAC has no other word than that it knows no permission.
    const COUNTER: &str = "authorization_attempts_total{result=\"no-opinion\"} ";
    let page = cluster.api.kubectl(&["get", "--raw", "/metrics"]).await?.ok()?.out;
    let count = page.lines().find_map(|line| line.strip_prefix(COUNTER));
    Ok(count.unwrap_or("0").to_owned())
}

/// Asks for what the control plane must not have, as the control plane.
pub(crate) async fn is_refused_something(cluster: &Cluster) -> Result<bool> {
    let secrets: Api<Secret> = Api::all(cluster.control_plane.clone());
    Ok(secrets.list(&ListParams::default()).await.is_err())
}

/// A page of the admin port.
pub(crate) async fn fetch(handle: &Handle, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(handle.addresses.admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}
