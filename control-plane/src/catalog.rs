//! The compiled cluster: immutable, shared by every subscriber, cheap to clone.
//!
//! Answers what discovery and authentication ask: which resources an address needs, which pod owns
//! an identity, what is refused. Encodes nothing but the addresses of single pods; never changes
//! what it holds: a new state is a new catalog.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{self, ResourceType, Version};
use heddle_resources::ObjectKey;
use prost::Message;

use self::shards::Shards;
pub use self::state::{Issue, Reason};
use self::state::{Known, RouteStatus};

pub(crate) mod shards;
pub mod state;

/// What a proxy must understand to use the resources of a kind.
fn min_level(kind: ResourceType) -> u32 {
    match kind {
        ResourceType::Route => 2,
        ResourceType::Unspecified
        | ResourceType::Mesh
        | ResourceType::TrustBundle
        | ResourceType::InboundPolicy
        | ResourceType::Address
        | ResourceType::Service
        | ResourceType::Endpoints
        | ResourceType::Split
        | ResourceType::Policy => 1,
    }
}

/// Names one resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub kind: ResourceType,
    pub name: Arc<str>,
}

impl Key {
    #[must_use]
    pub fn new(kind: ResourceType, name: impl Into<Arc<str>>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.kind as i32).cmp(&(other.kind as i32)).then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One resource, encoded once; every subscriber is sent the same bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub key: Key,
    /// When the body last changed.
    pub version: Version,
    /// Of the body: equal hash, equal body.
    pub hash: u64,
    pub min_level: u32,
    pub body: Bytes,
    /// The objects whose say it is, of kinds that have a status. Ascending. No subscriber sees them.
    pub(crate) sources: Box<[ObjectKey]>,
}

impl Encoded {
    pub(crate) fn new(key: Key, version: Version, message: &impl Message) -> Self {
        let body = Bytes::from(message.encode_to_vec());
        let sources = Box::default();
        let (hash, min_level) = (hash(&body), min_level(key.kind));
        Self { key, version, hash, min_level, body, sources }
    }
}

/// FNV-1a over the body, then a final mix: the same in every build and on every machine, because
/// proxies present hashes that another replica computed.
#[must_use]
pub fn hash(body: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in body {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (hash >> 29)
}

/// Who asks: the pod a stream was authenticated as.
#[derive(Debug, Clone, Copy)]
pub struct Subscriber<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
}

/// What authentication needs to know of a live pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
    pub service_account: Arc<str>,
    /// What the pod's certificate says.
    pub identity: SpiffeId,
    /// Addresses that are this pod's alone: a host-network pod has none.
    pub addresses: Vec<IpAddr>,
    /// The pod's spec has a proxy.
    pub meshed: bool,
}

/// The compiled cluster. Cloning shares everything.
#[derive(Clone)]
pub struct Catalog {
    pub(crate) version: Version,
    pub(crate) resources: Shards<Key, Arc<Encoded>>,
    /// Who answers at an address.
    pub(crate) addresses: Shards<IpAddr, Owner>,
    /// By "<namespace>/<pod>".
    pub(crate) pods: Shards<Arc<str>, Arc<PodIdentity>>,
    /// By "<namespace>/<service>": where its callers are sent instead.
    pub(crate) splits: Shards<Arc<str>, Arc<[BackendRef]>>,
    /// By "<namespace>/<service>": its Routes by name, and what each sends requests to.
    pub(crate) routed: Shards<Arc<str>, Arc<Routed>>,
    pub(crate) issues: Arc<[Issue]>,
    /// Every object of a kind that has a status, but routes.
    pub(crate) objects: Shards<ObjectKey, Known>,
    pub(crate) routes: Shards<ObjectKey, Arc<RouteStatus>>,
}

/// Who an address belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Owner {
    Service(Arc<ServiceAddress>),
    Pod(Arc<PodAddress>),
}

/// A Service's cluster address.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServiceAddress {
    pub(crate) service: Arc<str>,
    /// TCP ports, ascending, each with the encoded Address resource.
    pub(crate) ports: Vec<(u16, Arc<Encoded>)>,
}

/// A pod's own address, any port of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodAddress {
    /// When any of the facts below last changed.
    pub(crate) version: Version,
    /// The endpoint less its port. `identity` is the pod's, before skipped ports are considered.
    pub(crate) endpoint: v1::Endpoint,
    /// Ports the proxy does not intercept: called in plaintext.
    pub(crate) skipped: Arc<[RangeInclusive<u16>]>,
    /// Ports that belong to a headless Service: port, protocol, "<namespace>/<service>".
    pub(crate) headless: Vec<(u16, v1::Protocol, Arc<str>)>,
}

/// The Routes of one Service: for each, by name, the Services and ports it sends requests to.
pub(crate) type Routed = BTreeMap<Arc<str>, Vec<ServicePortRef>>;

/// "<namespace>/<service>", and one of its ports.
pub(crate) type ServicePortRef = (Arc<str>, u16);

/// One backend of a split, as far as its closure is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendRef {
    pub(crate) service: Arc<str>,
    pub(crate) ports: Vec<(u16, u16)>,
}

impl BackendRef {
    /// The backend's port for the one the caller dialled.
    fn port(&self, dialled: u16) -> u16 {
        self.ports.iter().find(|(from, _)| *from == dialled).map_or(dialled, |(_, to)| *to)
    }
}

impl Catalog {
    pub(crate) fn empty(version: Version) -> Self {
        Self {
            version,
            resources: Shards::default(),
            addresses: Shards::default(),
            pods: Shards::default(),
            splits: Shards::default(),
            routed: Shards::default(),
            issues: Arc::new([]),
            objects: Shards::default(),
            routes: Shards::default(),
        }
    }

    /// Never below that of the catalog before.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// What a proxy needs whatever it calls: the Mesh and its own InboundPolicy. The trust bundle is
    /// the certificate authority's to add.
    #[must_use]
    pub fn always(&self, subscriber: &Subscriber<'_>) -> Vec<Arc<Encoded>> {
        let pod = format!("{}/{}", subscriber.namespace, subscriber.pod);
        let mut all = Vec::with_capacity(2);
        self.push(&mut all, ResourceType::Mesh, "default");
        self.push(&mut all, ResourceType::InboundPolicy, pod);
        all
    }

    /// The Address resource and everything it refers to, in the order a reader wants it: what is
    /// referred to before what refers. Each resource once. Of a Service's Routes it is the one that
    /// callers of `namespace` follow.
    #[must_use]
    pub fn closure(&self, address: SocketAddr, namespace: &str) -> Vec<Arc<Encoded>> {
        // IPv4 written as IPv6 is still the IPv4 address.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let mut all = Vec::with_capacity(4);
        match self.addresses.get(&address.ip()) {
            Some(Owner::Service(owner)) => {
                let port = owner.ports.iter().find(|(port, _)| *port == address.port());
                let Some((_, encoded)) = port else {
                    return vec![self.unknown(address)];
                };
                self.push_service(&mut all, &owner.service, address.port(), namespace);
                all.push(encoded.clone());
            }
            Some(Owner::Pod(owner)) => {
                let service = owner.service_of(address.port()).map(|(_, service)| service);
                if let Some(service) = service {
                    self.push(&mut all, ResourceType::Service, service.clone());
                    self.push(&mut all, ResourceType::Policy, service.clone());
                }
                all.push(Arc::new(owner.encode(address)));
            }
            None => all.push(self.unknown(address)),
        }
        all
    }

    /// The live pods of a service account.
    pub fn pods_of<'a>(
        &'a self,
        namespace: &'a str,
        service_account: &'a str,
    ) -> impl Iterator<Item = &'a PodIdentity> + 'a {
        self.pods.values().map(AsRef::as_ref).filter(move |pod: &&PodIdentity| {
            *pod.namespace == *namespace && *pod.service_account == *service_account
        })
    }

    /// The live pod of that name.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodIdentity> {
        self.pods.get(format!("{namespace}/{name}").as_str()).map(AsRef::as_ref)
    }

    /// Objects that are refused or only partly in force.
    #[must_use]
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// One resource by name.
    #[must_use]
    pub fn find(&self, kind: ResourceType, name: &str) -> Option<&Arc<Encoded>> {
        self.resources.get(&Key::new(kind, name))
    }

    /// Every resource that is compiled ahead of being asked for, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.resources.values()
    }

    fn push_service(
        &self,
        all: &mut Vec<Arc<Encoded>>,
        service: &Arc<str>,
        port: u16,
        namespace: &str,
    ) {
        self.push_destination(all, service, port);
        if let Some((name, backends)) = self.route(service, port, namespace) {
            for (service, port) in backends {
                self.push_destination(all, service, *port);
            }
            // In the place of the Split.
            return self.push(all, ResourceType::Route, name.clone());
        }
        let Some(backends) = self.splits.get(service) else { return };
        for backend in backends.iter() {
            self.push_destination(all, &backend.service, backend.port(port));
        }
        self.push(all, ResourceType::Split, service.clone());
    }

    /// The Route that callers of `namespace` follow: their own, else everybody's.
    fn route(
        &self,
        service: &Arc<str>,
        port: u16,
        namespace: &str,
    ) -> Option<(&Arc<str>, &Vec<ServicePortRef>)> {
        let routed = self.routed.get(service)?;
        let everybodys = route_name(service, port, None);
        let theirs = route_name(service, port, Some(namespace));
        routed.get_key_value(&*theirs).or_else(|| routed.get_key_value(&*everybodys))
    }

    fn push_destination(&self, all: &mut Vec<Arc<Encoded>>, service: &Arc<str>, port: u16) {
        self.push(all, ResourceType::Endpoints, format!("{service}:{port}"));
        self.push(all, ResourceType::Policy, service.clone());
        self.push(all, ResourceType::Service, service.clone());
    }

    fn push(&self, all: &mut Vec<Arc<Encoded>>, kind: ResourceType, name: impl Into<Arc<str>>) {
        let Some(found) = self.resources.get(&Key::new(kind, name)) else { return };
        if !all.iter().any(|one| one.key == found.key) {
            all.push(found.clone());
        }
    }

    fn unknown(&self, address: SocketAddr) -> Arc<Encoded> {
        let kind = v1::address::Kind::Unknown(v1::Unknown {});
        Arc::new(encode_address(address, self.version, kind))
    }
}

impl PodAddress {
    fn service_of(&self, port: u16) -> Option<(v1::Protocol, &Arc<str>)> {
        let found = self.headless.iter().find(|(of, ..)| *of == port)?;
        Some((found.1, &found.2))
    }

    fn encode(&self, address: SocketAddr) -> Encoded {
        let mut endpoint = self.endpoint.clone();
        endpoint.port = u32::from(address.port());
        if self.skipped.iter().any(|range| range.contains(&address.port())) {
            endpoint.identity.clear();
        }
        let (protocol, service) = self.service_of(address.port()).map_or_else(
            || (v1::Protocol::Unspecified, String::new()),
            |(protocol, service)| (protocol, service.to_string()),
        );
        let pod = v1::PodPort { endpoint: Some(endpoint), protocol: protocol.into(), service };
        encode_address(address, self.version, v1::address::Kind::Pod(pod))
    }
}

/// The name of a Route: of every caller, or in its place of those of one namespace.
pub(crate) fn route_name(service: &str, port: u16, callers: Option<&str>) -> String {
    match callers {
        None => format!("{service}:{port}"),
        Some(namespace) => format!("{service}:{port}@{namespace}"),
    }
}

/// The Address resource of one original destination.
pub(crate) fn encode_address(
    address: SocketAddr,
    version: Version,
    kind: v1::address::Kind,
) -> Encoded {
    let key = Key::new(ResourceType::Address, address.to_string());
    Encoded::new(key, version, &v1::Address { kind: Some(kind) })
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let resources = self.resources.len();
        f.debug_struct("Catalog")
            .field("version", &self.version)
            .field("resources", &resources)
            .finish_non_exhaustive()
    }
}
