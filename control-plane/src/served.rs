//! Joins what is served into one value: the catalog, the trust bundle, and the version of both
//! together. Whoever reads one of these sees a consistent whole; there is none before the sources
//! have been read and there is a trust root.

use std::collections::HashMap;
use std::sync::Arc;

use heddle_api::proto::v1::{self, ResourceType, Version};
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ca::bundle::Bundle;
use crate::catalog::{Catalog, Encoded, Subscriber};
use crate::metrics::{Metrics, kind_label};
use crate::version::order;

/// What is served at a moment. Cloning shares everything.
#[derive(Debug, Clone)]
pub struct Served {
    pub catalog: Catalog,
    pub bundle: Arc<Bundle>,
    /// The highest of the catalog's, the bundle's and the floor.
    pub version: Version,
    /// Since when.
    pub at: Instant,
}

impl Served {
    /// What a proxy needs whatever it calls.
    #[must_use]
    pub fn always(&self, subscriber: &Subscriber<'_>) -> Vec<Arc<Encoded>> {
        let mut all = self.catalog.always(subscriber);
        all.push(self.bundle.encoded.clone());
        all
    }

    /// The trust domain that the Mesh names.
    #[must_use]
    pub fn trust_domain(&self) -> Option<String> {
        let mesh = self.catalog.find(ResourceType::Mesh, "default")?;
        Some(v1::Mesh::decode(mesh.body.clone()).ok()?.trust_domain)
    }
}

/// Joins again whenever a part changes, until `stop` resolves.
pub async fn run(
    mut catalog: watch::Receiver<Option<Catalog>>,
    mut bundle: watch::Receiver<Option<Arc<Bundle>>>,
    mut floor: watch::Receiver<Version>,
    out: watch::Sender<Option<Served>>,
    metrics: Metrics,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    loop {
        let current = catalog.borrow_and_update().clone();
        let roots = bundle.borrow_and_update().clone();
        if let Some((catalog, bundle)) = current.zip(roots) {
            let floor = *floor.borrow_and_update();
            let version = [catalog.version(), bundle.encoded.version, floor]
                .into_iter()
                .max_by_key(|version| order(*version))
                .unwrap_or_default();
            record(&metrics, &catalog, version);
            out.send_replace(Some(Served { catalog, bundle, version, at: Instant::now() }));
        }
        let changed = tokio::select! {
            changed = catalog.changed() => changed,
            changed = bundle.changed() => changed,
            changed = floor.changed() => changed,
            () = &mut stop => return,
        };
        if changed.is_err() {
            // A part's task has ended, as it does at the end of the process: what is served stays.
            return;
        }
    }
}

fn record(metrics: &Metrics, catalog: &Catalog, version: Version) {
    let mut counts: HashMap<ResourceType, i64> = HashMap::new();
    for resource in catalog.iter() {
        *counts.entry(resource.key.kind).or_default() += 1;
    }
    metrics.resources.reset();
    for (kind, count) in counts {
        metrics.resources.with_label_values(&[kind_label(kind)]).set(count);
    }
    metrics.issues.set(i64::try_from(catalog.issues().len()).unwrap_or(i64::MAX));
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    metrics.version.with_label_values(&["epoch"]).set(signed(version.epoch));
    metrics.version.with_label_values(&["number"]).set(signed(version.number));
}
