//! The last good resource per (type, name), and how an update changes them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use heddle_api::names::LEVEL;
use heddle_api::proto::v1::{self, RejectionReason, ResourceType};
use heddle_policy::Invalid;
use heddle_policy::authorize::InboundPolicy;
use heddle_policy::retry::TrafficPolicy;
use heddle_policy::route::RouteTable;
use heddle_policy::split::Split;
use prost::Message;

use super::build::Registry;
use super::{Mesh, Snapshot};

/// Longest message kept of a rejection, in bytes.
const MAX_MESSAGE: usize = 512;

pub(super) type Key = (ResourceType, Arc<str>);

/// Last good resources. One writer: the discovery client.
pub struct Store {
    pub(super) resources: HashMap<Key, Stored>,
    pub(super) inbound_unusable: bool,
    registry: Registry,
    high_water: Option<v1::Version>,
    complete: bool,
    /// While an answer to `Hello` is under way: what it has confirmed or sent so far.
    resync: Option<HashSet<Key>>,
}

pub(super) struct Stored {
    hash: u64,
    pub(super) body: Body,
}

/// A resource, checked and converted.
pub(super) enum Body {
    Mesh(Arc<Mesh>),
    TrustBundle(Arc<[Vec<u8>]>),
    Inbound(Arc<InboundPolicy>),
    Address(v1::address::Kind),
    Service(v1::Service),
    Endpoints(Vec<v1::Endpoint>),
    Split(Arc<Split>),
    Policy(Arc<TrafficPolicy>),
    Route(Arc<RouteTable>),
}

impl Store {
    /// An empty store. `node` is the node the pod runs on, for `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn new(node: Option<&str>) -> Self {
        Self {
            resources: HashMap::new(),
            inbound_unusable: false,
            registry: Registry::new(node),
            high_water: None,
            complete: false,
            resync: None,
        }
    }

    /// To be called when a new stream begins: what its answer neither confirms nor sends is dropped
    /// at `complete`, and not before.
    pub fn begin_resync(&mut self) {
        self.resync = Some(HashSet::new());
    }

    /// What is held, for `Hello`.
    #[must_use]
    pub fn held(&self) -> Vec<v1::Held> {
        self.resources
            .iter()
            .map(|((kind, name), stored)| v1::Held {
                r#type: (*kind).into(),
                name: name.to_string(),
                hash: stored.hash,
            })
            .collect()
    }

    /// The highest version seen, for `Hello`.
    #[must_use]
    pub fn high_water(&self) -> Option<v1::Version> {
        self.high_water
    }

    /// The roots of the latest acceptable TrustBundle, DER each.
    #[must_use]
    pub fn trust_bundle(&self) -> Option<&Arc<[Vec<u8>]>> {
        match self.find(ResourceType::TrustBundle, "default") {
            Some(Body::TrustBundle(roots)) => Some(roots),
            _ => None,
        }
    }

    pub(super) fn find(&self, kind: ResourceType, name: &str) -> Option<&Body> {
        self.resources.get(&(kind, Arc::from(name))).map(|stored| &stored.body)
    }

    /// Applies one atomic set (messages with `more` are put together by the caller) and says what
    /// became of each resource. Nothing is visible before [`Store::build`].
    pub fn apply(&mut self, update: v1::Update) -> Vec<v1::ResourceReport> {
        let mut reports = Vec::with_capacity(update.resources.len());
        for reference in update.confirmed {
            if reference.r#type() == ResourceType::InboundPolicy {
                // The last good one is the present one again.
                self.inbound_unusable = false;
            }
            if let Some(resync) = &mut self.resync {
                resync.insert((reference.r#type(), reference.name.into()));
            }
        }
        for resource in update.resources {
            let (kind, name, hash) = (resource.r#type, resource.name.clone(), resource.hash);
            let rejection = self.apply_resource(&resource).err().map(rejection);
            reports.push(v1::ResourceReport { r#type: kind, name, hash, rejection });
        }
        for reference in update.removed {
            let kind = reference.r#type();
            self.resources.remove(&(kind, reference.name.into()));
        }
        if update.complete {
            self.complete = true;
            if let Some(resync) = self.resync.take() {
                self.resources.retain(|key, _| resync.contains(key));
            }
        }
        if let Some(version) = update.version
            && self.high_water.is_none_or(|h| (h.epoch, h.number) < (version.epoch, version.number))
        {
            self.high_water = Some(version);
        }
        reports
    }

    fn apply_resource(&mut self, resource: &v1::Resource) -> Result<(), Invalid> {
        let kind = resource.r#type();
        let key = (kind, Arc::from(resource.name.as_str()));
        if let Some(resync) = &mut self.resync {
            // A rejected resource keeps its last good version through a resync, too.
            resync.insert(key.clone());
        }
        let decoded = decode(kind, resource);
        if kind == ResourceType::InboundPolicy {
            self.inbound_unusable = decoded.is_err();
        }
        self.resources.insert(key, Stored { hash: resource.hash, body: decoded? });
        Ok(())
    }

    /// The next snapshot.
    #[must_use]
    pub fn build(&mut self) -> Arc<Snapshot> {
        let mut registry = std::mem::take(&mut self.registry);
        let snapshot = registry.build(self, self.high_water, self.complete);
        self.registry = registry;
        Arc::new(snapshot)
    }
}

fn rejection(invalid: Invalid) -> v1::Rejection {
    let mut message = invalid.message;
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    v1::Rejection { reason: invalid.reason.into(), path: invalid.path, message }
}

fn decode(kind: ResourceType, resource: &v1::Resource) -> Result<Body, Invalid> {
    if resource.min_level > LEVEL {
        return Err(Invalid {
            reason: RejectionReason::UnsupportedLevel,
            path: "min_level".into(),
            message: format!(
                "needs level {}, this proxy understands {LEVEL}: upgrade the proxy",
                resource.min_level
            ),
        });
    }
    let body = resource.body.clone();
    Ok(match kind {
        ResourceType::Mesh => Body::Mesh(Arc::new(mesh(&parse(body)?)?)),
        ResourceType::TrustBundle => {
            let bundle: v1::TrustBundle = parse(body)?;
            if bundle.roots.is_empty() {
                return Err(Invalid::value("roots", "at least one root"));
            }
            Body::TrustBundle(bundle.roots.into())
        }
        ResourceType::InboundPolicy => {
            Body::Inbound(Arc::new(parse::<v1::InboundPolicy>(body)?.try_into()?))
        }
        ResourceType::Address => Body::Address(address(parse(body)?)?),
        ResourceType::Service => Body::Service(parse(body)?),
        ResourceType::Endpoints => Body::Endpoints(endpoints(parse(body)?)?),
        ResourceType::Split => Body::Split(Arc::new(parse::<v1::Split>(body)?.try_into()?)),
        ResourceType::Policy => Body::Policy(Arc::new(parse::<v1::Policy>(body)?.try_into()?)),
        ResourceType::Route => Body::Route(Arc::new(parse::<v1::Route>(body)?.try_into()?)),
        ResourceType::Unspecified => {
            return Err(Invalid {
                reason: RejectionReason::UnknownType,
                path: "type".into(),
                message: format!("type {} is unknown to this proxy", resource.r#type),
            });
        }
    })
}

fn parse<M: Message + Default>(body: bytes::Bytes) -> Result<M, Invalid> {
    M::decode(body).map_err(|error| Invalid {
        reason: RejectionReason::Malformed,
        path: String::new(),
        message: error.to_string(),
    })
}

fn mesh(mesh: &v1::Mesh) -> Result<Mesh, Invalid> {
    if !heddle_api::identity::is_trust_domain(&mesh.trust_domain) {
        return Err(Invalid::value("trust_domain", "1 to 255 of a-z, 0-9, '.', '-', '_'"));
    }
    let cluster_ranges = mesh
        .cluster_ranges
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| Invalid::value("cluster_ranges", "CIDRs such as 10.96.0.0/12"))?;
    Ok(Mesh {
        trust_domain: mesh.trust_domain.as_str().into(),
        passthrough: match mesh.outbound_passthrough() {
            v1::Passthrough::Allow => true,
            v1::Passthrough::Deny | v1::Passthrough::Unspecified => false,
        },
        cluster_ranges,
    })
}

fn address(address: v1::Address) -> Result<v1::address::Kind, Invalid> {
    let kind = address.kind.ok_or_else(|| Invalid::value("kind", "service, pod or unknown"))?;
    if let v1::address::Kind::Pod(pod) = &kind {
        let endpoint = pod.endpoint.as_ref();
        check_endpoint(endpoint.ok_or_else(|| Invalid::value("pod.endpoint", "missing"))?)
            .map_err(|message| Invalid::value("pod.endpoint", message))?;
    }
    Ok(kind)
}

fn endpoints(endpoints: v1::Endpoints) -> Result<Vec<v1::Endpoint>, Invalid> {
    for (index, endpoint) in endpoints.endpoints.iter().enumerate() {
        check_endpoint(endpoint)
            .map_err(|message| Invalid::value(format!("endpoints[{index}]"), message))?;
    }
    Ok(endpoints.endpoints)
}

/// One bad endpoint rejects its whole set: half a set would shift load without a word.
fn check_endpoint(endpoint: &v1::Endpoint) -> Result<(), String> {
    if endpoint.address.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("address {:?} is not an IP address", endpoint.address));
    }
    if !(1..=65535).contains(&endpoint.port) {
        return Err(format!("port {} is not 1 to 65535", endpoint.port));
    }
    if !endpoint.identity.is_empty() {
        endpoint
            .identity
            .parse::<heddle_api::identity::SpiffeId>()
            .map_err(|error| format!("identity {:?}: {error}", endpoint.identity))?;
    }
    Ok(())
}
