//! `heddle version`: what runs where.

use std::collections::BTreeMap;

use heddle_api::names::LEVEL;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::cluster::Access;
use crate::output::{Output, Printed, table};
use crate::proxies::proxies;

/// This program's version, which is the mesh's.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only of this program
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    level: u32,
    /// Image of each replica, by pod.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    control_plane: BTreeMap<String, String>,
    /// Number of proxies by version.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    proxies: BTreeMap<String, usize>,
}

pub(crate) async fn run(access: &Access, options: &Options) -> anyhow::Result<Printed> {
    let mut versions = Versions {
        client: OWN,
        level: LEVEL,
        control_plane: BTreeMap::new(),
        proxies: BTreeMap::new(),
    };
    if !options.client {
        let cluster = access.connect().await?;
        for replica in cluster.replicas().await? {
            versions.control_plane.insert(replica.name_any(), image(&replica));
        }
        if !versions.control_plane.is_empty() {
            for proxy in proxies(&cluster).await? {
                *versions.proxies.entry(proxy.version).or_default() += 1;
            }
        }
    }
    let text = options.output.print(&versions, || draw(&versions))?;
    Ok(Printed::well(text))
}

/// The image of a replica's first container.
fn image(replica: &Pod) -> String {
    let containers = replica.spec.iter().flat_map(|spec| &spec.containers);
    let image = containers.filter_map(|container| container.image.clone()).next();
    image.unwrap_or_else(|| "unknown".to_owned())
}

fn draw(versions: &Versions) -> String {
    let mut rows = vec![vec!["client".to_owned(), versions.client.to_owned(), String::new()]];
    for (pod, image) in &versions.control_plane {
        rows.push(vec!["control plane".to_owned(), image.clone(), pod.clone()]);
    }
    for (version, count) in &versions.proxies {
        rows.push(vec!["proxies".to_owned(), version.clone(), count.to_string()]);
    }
    table(&["PART", "VERSION", "WHERE"], rows, "")
}
