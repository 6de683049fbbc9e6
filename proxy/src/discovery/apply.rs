//! One complete set → store → snapshot → reports.

use heddle_api::proto::v1::{Rejection, RejectionReason, Resource, ResourceRef, TrustBundle};
use prost::Message;

use super::{
    Chain, Client, Destination, HashSet, LEVEL, ResourceReport, ResourceType, Snapshot, Update,
};

/// Longest message of a rejection, in bytes.
const MAX_MESSAGE: usize = 512;

impl Client {
    /// Applies a set, publishes what follows from it, and says what became of each resource. The
    /// reports may be sent as soon as this returns: the snapshot is in force.
    pub(super) async fn apply(&mut self, mut set: Update) -> Vec<ResourceReport> {
        let refused = self.offer_bundles(&mut set).await;
        let before = self.store.held().len();
        let was_complete = self.snapshots.borrow().complete;
        let (complete, resolved) = (set.complete, set.resolved.len());
        let (resources, removed) = (set.resources.len(), set.removed.len());
        let mut reports = self.store.apply(set);
        let is_news = complete && (!was_complete || before != self.store.held().len());
        if resources + removed > 0 || is_news {
            self.publish();
        }
        reports.extend(refused);
        self.note_rejections(&reports);
        if let Some(version) = self.store.high_water() {
            self.metrics.set_snapshot_version(version.epoch, version.number);
        }
        tracing::debug!(resources, removed, resolved, complete, "set applied");
        reports
    }

    fn publish(&mut self) {
        let snapshot = self.store.build();
        let services = services(&snapshot);
        self.metrics.evict(|service| services.contains(service));
        drop(services);
        self.snapshots.send_replace(snapshot);
    }

    /// The roots concern the certificate too, so who owns that decides first. What it refuses does
    /// not reach the store: the roots before stay in force, through a resync as well.
    async fn offer_bundles(&self, set: &mut Update) -> Vec<ResourceReport> {
        let (bundles, others): (Vec<_>, Vec<_>) =
            set.resources.drain(..).partition(|r| r.r#type() == ResourceType::TrustBundle);
        set.resources = others;
        let mut refused = Vec::new();
        for resource in bundles {
            match self.offer_bundle(&resource).await {
                Ok(()) => set.resources.push(resource),
                Err(rejection) => {
                    let (kind, name, hash) = (resource.r#type, resource.name, resource.hash);
                    set.confirmed.push(ResourceRef { r#type: kind, name: name.clone() });
                    let rejection = Some(rejection);
                    refused.push(ResourceReport { r#type: kind, name, hash, rejection });
                }
            }
        }
        refused
    }

    async fn offer_bundle(&self, resource: &Resource) -> Result<(), Rejection> {
        // What cannot be understood is the store's to refuse, as for every type.
        let Ok(bundle) = TrustBundle::decode(resource.body.clone()) else { return Ok(()) };
        if resource.min_level > LEVEL || bundle.roots.is_empty() {
            return Ok(());
        }
        self.identity.offer_bundle(&bundle.roots).await.map_err(|error| {
            let mut message = Chain(&error).to_string();
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            Rejection {
                reason: RejectionReason::InvalidValue.into(),
                path: "roots".into(),
                message,
            }
        })
    }

    fn note_rejections(&self, reports: &[ResourceReport]) {
        for report in reports {
            let Some(rejection) = &report.rejection else { continue };
            self.metrics.rejections.inc();
            let text = format!(
                "{} {:?}: {} at {:?}: {}",
                report.r#type().as_str_name(),
                report.name,
                rejection.reason().as_str_name(),
                rejection.path,
                rejection.message
            );
            tracing::warn!(rejection = %text, "resource rejected, the last good one is kept");
            self.status.send_modify(|status| status.last_rejection = Some(text.into()));
        }
    }
}

/// Every Service that the snapshot's destinations may count requests for.
fn services(snapshot: &Snapshot) -> HashSet<&str> {
    let ports = snapshot.destinations().filter_map(|(_, entry)| match &entry.destination {
        Destination::Service(port) | Destination::Pod(port) => Some(&*port.service),
        Destination::Unknown => None,
    });
    ports.collect()
}
