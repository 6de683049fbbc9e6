//! Small hand-made catalogs for tests.

use std::net::SocketAddr;
use std::sync::Arc;

use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1::{
    self, Endpoint, Endpoints, InboundPolicy, Mesh, ResourceType, Service, ServicePort, Version,
};

use crate::catalog::{Catalog, Encoded, Key, Owner, PodIdentity, ServiceAddress, encode_address};

pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
/// The address of the one Service, "shop/web".
pub(crate) const WEB: &str = "10.96.0.1:80";

pub(crate) fn identity(service_account: &str) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, "shop", service_account).unwrap()
}

/// A pod `shop/<name>` with uid `<name>-uid`.
pub(crate) fn pod(name: &str, service_account: &str, addresses: &[&str]) -> PodIdentity {
    PodIdentity {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("{name}-uid").into(),
        service_account: service_account.into(),
        identity: identity(service_account),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        meshed: true,
    }
}

/// The Mesh, the pods with their policies, and the Service "shop/web" with these endpoints.
pub(crate) fn catalog(version: u64, pods: &[PodIdentity], endpoints: &[(&str, bool)]) -> Catalog {
    let version = Version { epoch: 1, number: version };
    let mut catalog = Catalog::empty(version);
    let mut add = |kind, name: &str, message: &dyn Fn(Key) -> Encoded| {
        let key = Key::new(kind, name);
        catalog.resources.insert(key.clone(), Arc::new(message(key)));
    };
    let mesh = Mesh { trust_domain: TRUST_DOMAIN.to_owned(), ..Mesh::default() };
    add(ResourceType::Mesh, "default", &|key| Encoded::new(key, version, &mesh));
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let policy = InboundPolicy { pod: pod.name.to_string(), ..InboundPolicy::default() };
        add(ResourceType::InboundPolicy, &name, &|key| Encoded::new(key, version, &policy));
    }
    let service = Service { name: "web".to_owned(), ..Service::default() };
    add(ResourceType::Service, "shop/web", &|key| Encoded::new(key, version, &service));
    let endpoint = |(address, ready): &(&str, bool)| Endpoint {
        address: (*address).to_owned(),
        port: 80,
        ready: *ready,
        ..Endpoint::default()
    };
    let endpoints = Endpoints { endpoints: endpoints.iter().map(endpoint).collect() };
    add(ResourceType::Endpoints, "shop/web:80", &|key| Encoded::new(key, version, &endpoints));

    let address: SocketAddr = WEB.parse().unwrap();
    let port = ServicePort { service: "shop/web".to_owned(), port: 80 };
    let encoded = encode_address(address, version, v1::address::Kind::Service(port));
    let owner = ServiceAddress {
        service: "shop/web".into(),
        ports: vec![(address.port(), Arc::new(encoded))],
    };
    catalog.addresses.insert(address.ip(), Owner::Service(Arc::new(owner)));
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        catalog.pods.insert(name.into(), Arc::new(pod.clone()));
    }
    catalog
}
