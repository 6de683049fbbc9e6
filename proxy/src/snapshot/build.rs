//! Store → snapshot: every lookup a request would need is done here, once per change.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, OnceLock};

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{self, ResourceType};
use heddle_policy::retry::TrafficPolicy;
use heddle_policy::route::RouteTable;

use super::store::{Body, Store};
use super::{
    Backend, BackendState, Destination, Endpoint, Entry, Inbound, Routes, RuleBackends,
    ServicePort, Snapshot,
};
use crate::balance::EndpointState;

static BUILT_IN_POLICY: LazyLock<Arc<TrafficPolicy>> =
    LazyLock::new(|| Arc::new(TrafficPolicy::built_in()));

/// A Service's port.
type Key = (Arc<str>, u16);
/// Pods that a backend is limited to.
type Subset = HashSet<Arc<str>>;

/// What one build reads, and what it has made already: a Service with two addresses, or a backend of
/// a hundred rules, is made once.
struct Pass<'s> {
    store: &'s Store,
    routes: HashMap<&'s str, &'s Arc<RouteTable>>,
    ports: HashMap<Key, Arc<ServicePort>>,
    ready: HashMap<Key, Arc<[Arc<Endpoint>]>>,
}

impl<'s> Pass<'s> {
    fn new(store: &'s Store) -> Self {
        let mut routes = HashMap::new();
        for ((_, name), stored) in &store.resources {
            let Body::Route(table) = &stored.body else { continue };
            // The caller's own namespace has the last word, should both be held.
            match name.split_once('@') {
                Some((port, _)) => routes.insert(port, table),
                None => Some(&**routes.entry(&**name).or_insert(table)),
            };
        }
        Self { store, routes, ports: HashMap::new(), ready: HashMap::new() }
    }
}

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
        let mut pass = Pass::new(store);
        for ((_, name), stored) in &store.resources {
            match &stored.body {
                Body::Mesh(mesh) => snapshot.mesh = Some(mesh.clone()),
                Body::Inbound(policy) => snapshot.inbound = Inbound::Active(policy.clone()),
                Body::Address(address) => {
                    let Ok(key) = name.parse::<SocketAddr>() else { continue };
                    let Some(destination) = self.destination(&mut pass, address) else {
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
                | Body::Policy(_)
                | Body::Route(_) => {}
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
        pass: &mut Pass<'_>,
        address: &v1::address::Kind,
    ) -> Option<Destination> {
        match address {
            v1::address::Kind::Unknown(_) => Some(Destination::Unknown),
            v1::address::Kind::Service(reference) => {
                let key =
                    (Arc::from(reference.service.as_str()), u16::try_from(reference.port).ok()?);
                if let Some(done) = pass.ports.get(&key) {
                    return Some(Destination::Service(done.clone()));
                }
                let port = Arc::new(self.service_port(pass, &key.0, key.1)?);
                pass.ports.insert(key, port.clone());
                Some(Destination::Service(port))
            }
            v1::address::Kind::Pod(pod) => self.pod_port(pass.store, pod).map(Destination::Pod),
        }
    }

    fn service_port(
        &mut self,
        pass: &mut Pass<'_>,
        name: &Arc<str>,
        port: u16,
    ) -> Option<ServicePort> {
        let protocol = find_protocol(find_service(pass.store, name)?, port);
        let table = pass.routes.get(&*format!("{name}:{port}")).map(|table| (*table).clone());
        let routes = table.map(|table| self.routes(pass, table, port));
        let split = match pass.store.find(ResourceType::Split, name) {
            // Routes are the more exact word about where requests go.
            Some(Body::Split(split)) if routes.is_none() => Some(split.clone()),
            _ => None,
        };
        let backends: Box<[_]> = match &split {
            None => Box::new([Arc::new(self.backend(pass, name, port, None))]),
            Some(split) => {
                let drawn = |drawn: &heddle_policy::split::Backend| {
                    let (service, port) = (&drawn.service, drawn.port_for(port));
                    let backend = self.backend(pass, service, port, drawn.subset.as_ref());
                    Arc::new(Backend { route: split.source().clone(), ..backend })
                };
                split.backends().iter().map(drawn).collect()
            }
        };
        Some(ServicePort { service: name.clone(), port, protocol, split, backends, routes })
    }

    fn routes(&mut self, pass: &mut Pass<'_>, table: Arc<RouteTable>, port: u16) -> Routes {
        let rules = table
            .rules()
            .iter()
            .map(|rule| {
                let drawn = rule.backends().iter().map(|drawn| {
                    if drawn.invalid {
                        let service = drawn.service.clone();
                        return Arc::new(Backend { service, ..nobody(port, &rule.name) });
                    }
                    let subset = drawn.subset.as_ref();
                    let backend = self.backend(pass, &drawn.service, drawn.port, subset);
                    let changes = &drawn.changes;
                    let idle = changes.keep_request() && changes.response.is_empty();
                    Arc::new(Backend {
                        policy: rule.overlay(&backend.policy),
                        route: rule.name.clone(),
                        changes: (!idle).then(|| changes.clone()),
                        ..backend
                    })
                });
                let drawn = drawn.collect();
                RuleBackends { drawn, answers: Arc::new(nobody(port, &rule.name)) }
            })
            .collect();
        Routes { table, rules, unmatched: Arc::new(nobody(port, &"".into())) }
    }

    /// A backend whose Service is missing has no endpoints: its share answers 503.
    fn backend(
        &mut self,
        pass: &mut Pass<'_>,
        name: &Arc<str>,
        port: u16,
        subset: Option<&Subset>,
    ) -> Backend {
        let key = (name.clone(), port);
        let made = pass.ready.get(&key).filter(|_| subset.is_none());
        let ready = match made {
            Some(ready) => ready.clone(),
            None => self.ready(pass.store, name, port, subset),
        };
        if subset.is_none() {
            pass.ready.insert(key.clone(), ready.clone());
        }
        Backend {
            service: name.clone(),
            port,
            ready,
            policy: find_policy(pass.store, name),
            route: "".into(),
            changes: None,
            affinity: find_service(pass.store, name).is_some_and(|s| s.affinity_seconds > 0),
            state: self.backends.entry(key).or_default().clone(),
            series: OnceLock::new(),
            tcp_series: OnceLock::new(),
        }
    }

    fn ready(
        &mut self,
        store: &Store,
        name: &str,
        port: u16,
        subset: Option<&Subset>,
    ) -> Arc<[Arc<Endpoint>]> {
        let local_only = find_service(store, name).is_some_and(|s| s.local_only);
        let list = match store.find(ResourceType::Endpoints, &format!("{name}:{port}")) {
            Some(Body::Endpoints(list)) => list.as_slice(),
            _ => &[],
        };
        let node = self.node.clone();
        list.iter()
            .filter(|e| e.ready)
            .filter(|e| !local_only || node.as_deref() == Some(e.node.as_str()))
            .filter(|e| subset.is_none_or(|pods| pods.contains(e.pod.as_str())))
            .filter_map(|endpoint| self.endpoint(endpoint))
            .collect()
    }

    fn pod_port(&mut self, store: &Store, pod: &v1::PodPort) -> Option<Arc<ServicePort>> {
        let endpoint = self.endpoint(pod.endpoint.as_ref()?)?;
        let service: Arc<str> =
            if pod.service.is_empty() { endpoint.pod.clone() } else { pod.service.as_str().into() };
        let port = endpoint.address.port();
        let backend = Backend {
            service: service.clone(),
            port,
            ready: Arc::new([endpoint]),
            policy: find_policy(store, &service),
            route: "".into(),
            changes: None,
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
            routes: None,
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

/// What stands for requests that are answered without a backend.
fn nobody(port: u16, route: &Arc<str>) -> Backend {
    Backend {
        service: "".into(),
        port,
        ready: Arc::new([]),
        policy: BUILT_IN_POLICY.clone(),
        route: route.clone(),
        changes: None,
        affinity: false,
        state: Arc::default(),
        series: OnceLock::new(),
        tcp_series: OnceLock::new(),
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
