//! `heddle status`: every proxy that is connected.

use serde::{Deserialize, Serialize};

use crate::cluster::{Access, Cluster};
use crate::output::{Output, Printed, table};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    output: Output,
}

/// One proxy's stream, as a replica shows it.
#[derive(Debug, Deserialize)]
struct Subscriber {
    pod: String,
    identity: String,
    address: String,
    proxy_version: String,
    level: u32,
    version: VersionNumber,
    resources: Vec<Resource>,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
struct VersionNumber {
    epoch: u64,
    number: u64,
}

#[derive(Debug, Deserialize)]
struct Resource {
    r#type: String,
    name: String,
    verdict: String,
}

#[derive(Debug, Deserialize)]
struct Page {
    subscribers: Vec<Subscriber>,
    rejections: Vec<Rejection>,
}

#[derive(Debug, Deserialize)]
struct Rejection {
    r#type: String,
    name: String,
    rejecting: Vec<Rejecting>,
}

#[derive(Debug, Deserialize)]
struct Rejecting {
    pod: String,
    reason: String,
    path: String,
    message: String,
}

/// What is told of one proxy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Proxy {
    pub(crate) pod: String,
    identity: String,
    address: String,
    pub(crate) version: String,
    level: u32,
    /// The control plane's replica that serves it.
    replica: String,
    snapshot: VersionNumber,
    resources: usize,
    /// Given and not yet in force.
    pub(crate) pending: usize,
    /// `type name: reason: path: message`.
    pub(crate) rejected: Vec<String>,
}

pub(crate) async fn run(access: &Access, options: &Options) -> anyhow::Result<Printed> {
    let cluster = access.connect().await?;
    let mut proxies = proxies(&cluster).await?;
    proxies.retain(|proxy| {
        cluster.covers(proxy.pod.split_once('/').map_or("", |(namespace, _)| namespace))
    });
    let text = options.output.print(&proxies, || draw(&proxies))?;
    Ok(Printed::well(text))
}

/// The proxies of every replica, by pod.
pub(crate) async fn proxies(cluster: &Cluster) -> anyhow::Result<Vec<Proxy>> {
    let mut all = Vec::new();
    for (replica, page) in cluster.pages("/debug/subscribers").await? {
        let page: Page = serde_json::from_value(page)?;
        all.extend(parse(&replica, page));
    }
    all.sort_by(|a, b| a.pod.cmp(&b.pod));
    Ok(all)
}

fn parse(replica: &str, page: Page) -> Vec<Proxy> {
    let Page { subscribers, rejections } = page;
    let proxy = |one: Subscriber| {
        let with = |verdict| one.resources.iter().filter(move |one| one.verdict == verdict);
        let rejected = with("rejected").map(|resource| explain(resource, &one.pod, &rejections));
        Proxy {
            rejected: rejected.collect(),
            pending: with("pending").count(),
            resources: one.resources.len(),
            pod: one.pod,
            identity: one.identity,
            address: one.address,
            version: one.proxy_version,
            level: one.level,
            replica: replica.to_owned(),
            snapshot: one.version,
        }
    };
    subscribers.into_iter().map(proxy).collect()
}

/// Only some of the rejecting proxies are remembered with their words.
fn explain(resource: &Resource, pod: &str, rejections: &[Rejection]) -> String {
    let Resource { r#type, name, .. } = resource;
    let words = rejections
        .iter()
        .filter(|one| one.r#type == *r#type && one.name == *name)
        .flat_map(|one| &one.rejecting)
        .find(|one| one.pod == pod);
    match words {
        Some(Rejecting { reason, path, message, .. }) => {
            format!("{type} {name}: {reason}: {path}: {message}")
        }
        None => format!("{type} {name}"),
    }
}

fn draw(proxies: &[Proxy]) -> String {
    let rows = proxies.iter().map(|proxy| {
        let state = match (proxy.rejected.first(), proxy.pending) {
            (Some(first), _) => format!("rejects {first}"),
            (None, 0) => "up to date".to_owned(),
            (None, pending) => format!("{pending} pending"),
        };
        vec![
            proxy.pod.clone(),
            proxy.identity.clone(),
            proxy.version.clone(),
            proxy.replica.clone(),
            format!("{}/{}", proxy.snapshot.epoch, proxy.snapshot.number),
            state,
        ]
    });
    let head = ["POD", "IDENTITY", "VERSION", "REPLICA", "SNAPSHOT", "STATE"];
    let empty = "No proxy is connected here. Is the namespace labelled? \
                 kubectl label namespace NAME heddle.io/inject=enabled, then restart its workloads";
    table(&head, rows.collect(), empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_told_in_the_proxys_words() {
        let page = serde_json::json!({
            "subscribers": [{
                "pod": "shop/web-1", "identity": "spiffe://td/ns/shop/sa/web",
                "address": "10.0.0.1", "proxy_version": "0.1.0", "level": 2,
                "version": { "epoch": 1, "number": 42 },
                "resources": [
                    { "type": "split", "name": "shop/web", "verdict": "rejected" },
                    { "type": "service", "name": "shop/web", "verdict": "active" },
                ],
            }],
            "rejections": [{
                "type": "split", "name": "shop/web",
                "rejecting": [{
                    "pod": "shop/web-1", "reason": "invalid_value",
                    "path": "backends", "message": "too many",
                }],
            }],
        });
        let proxies = parse("cp-0", serde_json::from_value(page).unwrap());
        assert_eq!(proxies[0].rejected, ["split shop/web: invalid_value: backends: too many"]);
        let drawn = draw(&proxies);
        assert!(drawn.contains("rejects split shop/web"), "{drawn}");
        assert!(drawn.contains("1/42"), "{drawn}");
    }
}
