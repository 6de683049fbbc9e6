//! What the files say together: the objects people write, completed by what controllers fill in.
//!
//! Of `.state`, a Pod is the pod (one that is only written by people has no address and does not
//! run), a Service lends its cluster addresses to the one people wrote, and an EndpointSlice is
//! taken as it is. Nothing else may be there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use heddle_resources::reader::Located;
use heddle_resources::{Object, ObjectKey};
use k8s_openapi::api::core::v1::{Pod, Service};

use crate::catalog::{Issue, Reason};

use super::STATE;
use super::directory::Source;

#[derive(Default)]
pub(super) struct Merged {
    pub(super) objects: BTreeMap<ObjectKey, Located>,
    pub(super) issues: Vec<Issue>,
}

/// Files in the order of their names: the first that has an object keeps it.
pub(super) fn merge(files: &BTreeMap<String, Source>) -> Merged {
    let mut merged = Merged::default();
    let mut lent = BTreeMap::new();
    for (_, file) in files.iter().filter(|(name, _)| name.starts_with(STATE)) {
        for located in &file.objects {
            match &located.object {
                Object::Pod(_) | Object::EndpointSlice(_) => merged.insert(located.clone(), false),
                Object::Service(service) => {
                    lent.insert(located.object.key(), service.clone());
                }
                Object::Namespace(_)
                | Object::ServiceAccount(_)
                | Object::Deployment(_)
                | Object::HTTPRoute(_)
                | Object::GRPCRoute(_)
                | Object::TrafficSplit(_)
                | Object::TrafficPolicy(_)
                | Object::AuthorizationPolicy(_)
                | Object::MeshTLSPolicy(_)
                | Object::Mesh(_) => {
                    let message = format!(
                        "{STATE} takes Pod, Service and EndpointSlice; move the object to a file beside it"
                    );
                    merged.issues.push(issue(located, message));
                }
            }
        }
    }
    // A file that is about to lose objects may be giving them to another.
    let is_settled = files.values().all(|file| file.shrinking.is_none());
    for (_, file) in files.iter().filter(|(name, _)| !name.starts_with(STATE)) {
        for located in &file.objects {
            let key = located.object.key();
            let object = match &located.object {
                Object::Pod(_) if merged.is_filled_in(&key) => continue,
                Object::Pod(pod) => not_running(pod),
                Object::Service(service) => with_addresses(service, lent.get(&key)),
                Object::EndpointSlice(_)
                | Object::Namespace(_)
                | Object::ServiceAccount(_)
                | Object::Deployment(_)
                | Object::HTTPRoute(_)
                | Object::GRPCRoute(_)
                | Object::TrafficSplit(_)
                | Object::TrafficPolicy(_)
                | Object::AuthorizationPolicy(_)
                | Object::MeshTLSPolicy(_)
                | Object::Mesh(_) => located.object.clone(),
            };
            merged.insert(Located { object, location: located.location.clone() }, is_settled);
        }
    }
    merged
}

impl Merged {
    fn insert(&mut self, located: Located, report: bool) {
        match self.objects.entry(located.object.key()) {
            Entry::Vacant(entry) => {
                entry.insert(located);
            }
            Entry::Occupied(first) if report || first.get().location.starts_with(STATE) => {
                let message = format!(
                    "is also at {}, which is in force; delete one of the two",
                    first.get().location
                );
                self.issues.push(issue(&located, message));
            }
            Entry::Occupied(_) => {}
        }
    }

    fn is_filled_in(&self, key: &ObjectKey) -> bool {
        self.objects.get(key).is_some_and(|located| located.location.starts_with(STATE))
    }
}

fn not_running(pod: &Arc<Pod>) -> Object {
    if pod.status.is_none() {
        return Object::Pod(pod.clone());
    }
    Object::from(Pod { status: None, ..Pod::clone(pod) })
}

/// A Service that is headless by its author's will stays so.
fn with_addresses(service: &Arc<Service>, lent: Option<&Arc<Service>>) -> Object {
    let lent = lent.and_then(|lent| lent.spec.as_ref());
    let own = service.spec.as_ref();
    let is_headless = own.is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"));
    let (Some(lent), Some(own)) = (lent.filter(|_| !is_headless), own) else {
        return Object::Service(service.clone());
    };
    let mut spec = own.clone();
    spec.cluster_ip.clone_from(&lent.cluster_ip);
    spec.cluster_ips.clone_from(&lent.cluster_ips);
    Object::from(Service { spec: Some(spec), ..Service::clone(service) })
}

fn issue(located: &Located, message: String) -> Issue {
    let key = located.object.key();
    Issue {
        kind: key.kind.to_string(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        location: located.location.to_string(),
        path: String::new(),
        reason: Reason::Invalid,
        message,
        generation: None,
    }
}
