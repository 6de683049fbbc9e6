//! Store → snapshot: every lookup a request would need is done here, once per change.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, OnceLock};

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{self, ResourceType};
use heddle_policy::retry::TrafficPolicy;
use heddle_policy::split;

use super::store::{Body, Store};
use super::{Backend, BackendState, Destination, Endpoint, Entry, Inbound, ServicePort, Snapshot};
use crate::balance::EndpointState;

static BUILT_IN_POLICY: LazyLock<Arc<TrafficPolicy>> =
    LazyLock::new(|| Arc::new(TrafficPolicy::built_in()));

type Ports = HashMap<(Arc<str>, u16), Arc<ServicePort>>;

/// State that outlives snapshots: how endpoints fare, when destinations were used.
#[derive(Default)]
pub(super) struct Registry {
    node: Option<Box<str>>,
    last_id: u64,
    endpoints: HashMap<(SocketAddr, Option<SpiffeId>), Arc<EndpointState>>,
    backends: HashMap<(Arc<str>, u16), Arc<BackendState>>,
    used: HashMap<SocketAddr, Arc<AtomicU64>>,
}

impl Registry {
    pub(super) fn new(node: Option<&str>) -> Self {
        Self { node: node.map(Box::from), ..Self::default() }
    }

    pub(super) fn build(
        &mut self,
        store: &Store,
        version: Option<v1::Version>,
        complete: bool,
    ) -> Snapshot {
        let mut snapshot = Snapshot { version, complete, ..Snapshot::empty() };
        let mut ports = Ports::new();
        for ((_, name), stored) in &store.resources {
            match &stored.body {
                Body::Mesh(mesh) => snapshot.mesh = Some(mesh.clone()),
                Body::Inbound(policy) => snapshot.inbound = Inbound::Active(policy.clone()),
                Body::Address(address) => {
                    let Ok(key) = name.parse::<SocketAddr>() else { continue };
                    let Some(destination) = self.destination(store, address, &mut ports) else {
                        continue;
                    };
                    let last_used = self.used.entry(key).or_default().clone();
                    let entry = Arc::new(Entry { last_used, destination });
                    snapshot.destinations.insert(key, entry);
                }
                Body::TrustBundle(_)
                | Body::Service(_)
                | Body::Endpoints(_)
                | Body::Split(_)
                | Body::Policy(_) => {}
            }
        }
        if store.inbound_unusable {
            snapshot.inbound = Inbound::Unusable;
        }
        self.forget(&snapshot);
        snapshot
    }

    /// Drops state that neither the snapshot nor a request under way refers to.
    fn forget(&mut self, snapshot: &Snapshot) {
        self.endpoints.retain(|_, state| Arc::strong_count(state) > 1);
        self.backends.retain(|_, state| Arc::strong_count(state) > 1);
        self.used.retain(|address, _| snapshot.destinations.contains_key(address));
    }

    /// `None` when what the address refers to was rejected and never was good: as if unanswered.
    fn destination(
        &mut self,
        store: &Store,
        address: &v1::address::Kind,
        ports: &mut Ports,
    ) -> Option<Destination> {
        match address {
            v1::address::Kind::Unknown(_) => Some(Destination::Unknown),
            v1::address::Kind::Service(reference) => {
                let key =
                    (Arc::from(reference.service.as_str()), u16::try_from(reference.port).ok()?);
                if let Some(done) = ports.get(&key) {
                    return Some(Destination::Service(done.clone()));
                }
                let port = Arc::new(self.service_port(store, &key.0, key.1)?);
                ports.insert(key, port.clone());
                Some(Destination::Service(port))
            }
            v1::address::Kind::Pod(pod) => self.pod_port(store, pod).map(Destination::Pod),
        }
    }

    fn service_port(&mut self, store: &Store, name: &Arc<str>, port: u16) -> Option<ServicePort> {
        let service = find_service(store, name)?;
        let protocol = find_protocol(service, port);
        let split = match store.find(ResourceType::Split, name) {
            Some(Body::Split(split)) => Some(split.clone()),
            _ => None,
        };
        let backends: Box<[_]> = match &split {
            None => Box::new([Arc::new(self.backend(store, name, port, None))]),
            Some(split) => split
                .backends()
                .iter()
                .map(|b| Arc::new(self.backend(store, &b.service, b.port_for(port), Some(b))))
                .collect(),
        };
        Some(ServicePort { service: name.clone(), port, protocol, split, backends })
    }

    /// A backend whose Service is missing has no endpoints: its share answers 503.
    fn backend(
        &mut self,
        store: &Store,
        name: &Arc<str>,
        port: u16,
        subset: Option<&split::Backend>,
    ) -> Backend {
        let service = find_service(store, name);
        let local_only = service.is_some_and(|s| s.local_only);
        let list = match store.find(ResourceType::Endpoints, &format!("{name}:{port}")) {
            Some(Body::Endpoints(list)) => list.as_slice(),
            _ => &[],
        };
        let node = self.node.clone();
        let pods = subset.and_then(|backend| backend.subset.as_ref());
        let ready = list
            .iter()
            .filter(|e| e.ready)
            .filter(|e| !local_only || node.as_deref() == Some(e.node.as_str()))
            .filter(|e| pods.is_none_or(|pods| pods.contains(e.pod.as_str())))
            .filter_map(|endpoint| self.endpoint(endpoint))
            .collect();
        Backend {
            service: name.clone(),
            port,
            ready,
            policy: find_policy(store, name),
            affinity: service.is_some_and(|s| s.affinity_seconds > 0),
            state: self.backends.entry((name.clone(), port)).or_default().clone(),
            series: OnceLock::new(),
            tcp_series: OnceLock::new(),
        }
    }

    fn pod_port(&mut self, store: &Store, pod: &v1::PodPort) -> Option<Arc<ServicePort>> {
        let endpoint = self.endpoint(pod.endpoint.as_ref()?)?;
        let service: Arc<str> =
            if pod.service.is_empty() { endpoint.pod.clone() } else { pod.service.as_str().into() };
        let port = endpoint.address.port();
        let backend = Backend {
            service: service.clone(),
            port,
            ready: Box::new([endpoint]),
            policy: find_policy(store, &service),
            affinity: false,
            state: self.backends.entry((service.clone(), port)).or_default().clone(),
            series: OnceLock::new(),
            tcp_series: OnceLock::new(),
        };
        Some(Arc::new(ServicePort {
            service,
            port,
            protocol: pod.protocol(),
            split: None,
            backends: Box::new([Arc::new(backend)]),
        }))
    }

    fn endpoint(&mut self, endpoint: &v1::Endpoint) -> Option<Arc<Endpoint>> {
        let ip: IpAddr = endpoint.address.parse().ok()?;
        let address = SocketAddr::new(ip, u16::try_from(endpoint.port).ok()?);
        let identity = match endpoint.identity.as_str() {
            "" => None,
            // Checked when the resource was taken in; an unreadable one must not become plaintext.
            text => Some(text.parse::<SpiffeId>().ok()?),
        };
        let last_id = &mut self.last_id;
        let state = self
            .endpoints
            .entry((address, identity.clone()))
            .or_insert_with(|| {
                *last_id += 1;
                Arc::new(EndpointState::new(*last_id))
            })
            .clone();
        Some(Arc::new(Endpoint {
            address,
            identity,
            pod: endpoint.pod.as_str().into(),
            workload: endpoint.workload.as_str().into(),
            state,
        }))
    }
}

fn find_service<'a>(store: &'a Store, name: &str) -> Option<&'a v1::Service> {
    match store.find(ResourceType::Service, name) {
        Some(Body::Service(service)) => Some(service),
        _ => None,
    }
}

fn find_policy(store: &Store, name: &str) -> Arc<TrafficPolicy> {
    match store.find(ResourceType::Policy, name) {
        Some(Body::Policy(policy)) => policy.clone(),
        _ => BUILT_IN_POLICY.clone(),
    }
}

fn find_protocol(service: &v1::Service, port: u16) -> v1::Protocol {
    service
        .ports
        .iter()
        .find(|p| p.port == u32::from(port))
        .map_or(v1::Protocol::Unspecified, v1::Port::protocol)
}
