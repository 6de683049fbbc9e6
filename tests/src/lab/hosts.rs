//! Name resolution of a pod: one hosts file, and nothing else is asked.
//!
//! The file is bound over /etc/hosts of running processes, so it is rewritten in place. A reader may
//! look at that moment: what does not change keeps its place (addresses of Services come first, in
//! order of age), and the file never becomes shorter.

use std::fmt::Write as _;
use std::io::{Seek as _, Write as _};
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoints::{is_ready, service_of};
use super::layout::PodKey;

/// Only files, no name server.
pub(crate) const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files\nservices: files\n";
/// For programs with a resolver of their own: nobody listens there, the answer is immediate.
pub(crate) const RESOLV_CONF: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";

/// The hosts file of one pod.
pub(crate) fn render(
    pod: &PodKey,
    hostname: &str,
    addresses: &[IpAddr],
    services: &[Service],
    slices: &[EndpointSlice],
) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for address in addresses {
        let _ = writeln!(text, "{address} {hostname}");
    }
    let mut services: Vec<_> = services.iter().collect();
    // Numbers are given in order of age, so new Services are appended.
    services.sort_by_key(|service| cluster_ips(service).first().copied());
    for service in &services {
        let names = service_names(service, &pod.namespace);
        for address in cluster_ips(service) {
            let _ = writeln!(text, "{address} {names}");
        }
    }
    for service in services.iter().filter(|service| cluster_ips(service).is_empty()) {
        render_headless(&mut text, service, slices, &pod.namespace);
    }
    text
}

/// A headless Service's name is the addresses of its ready pods; a pod with a hostname and this
/// Service as its subdomain has a name of its own.
fn render_headless(
    text: &mut String,
    service: &Service,
    slices: &[EndpointSlice],
    from_namespace: &str,
) {
    let (namespace, name) = key(service);
    let own = slices.iter().filter(|slice| service_of(slice) == Some((namespace, name)));
    for endpoint in own.flat_map(|slice| &slice.endpoints).filter(|endpoint| is_ready(endpoint)) {
        let names = service_names(service, from_namespace);
        for address in &endpoint.addresses {
            let _ = writeln!(text, "{address} {names}");
            if let Some(hostname) = &endpoint.hostname {
                let dotted: Vec<_> =
                    names.split(' ').map(|name| format!("{hostname}.{name}")).collect();
                let _ = writeln!(text, "{address} {}", dotted.join(" "));
            }
        }
    }
}

/// As a pod's search list would complete them.
fn service_names(service: &Service, from_namespace: &str) -> String {
    let (namespace, name) = key(service);
    let full =
        format!("{name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local");
    if namespace == from_namespace { format!("{name} {full}") } else { full }
}

fn key(service: &Service) -> (&str, &str) {
    let meta = &service.metadata;
    (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let ips = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    ips.filter_map(|ip| ip.parse().ok()).collect()
}

/// Writes `text` over the file without ever making it shorter: an empty line says nothing.
pub(crate) fn write_in_place(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let mut content = text.as_bytes().to_vec();
    content.resize(content.len().max(length), b'\n');
    file.rewind()?;
    file.write_all(&content)
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::tests::pod;
    use super::super::endpoints::{PodView, compile_slices};
    use super::*;

    #[test]
    fn services_are_found_by_every_name_of_theirs() {
        let services: Vec<Service> = [
            "{ metadata: { name: web, namespace: shop }, spec: { clusterIPs: [10.96.1.0, 'fd00:96::100'] } }",
            "{ metadata: { name: db, namespace: data }, spec: { clusterIPs: [None], ipFamilies: [IPv4], \
             selector: { app: db }, ports: [{ port: 1 }] } }",
        ]
        .iter()
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect();
        let (spec, status) = pod(
            "db-0",
            5,
            "{ metadata: { namespace: data, labels: { app: db } }, \
             spec: { hostname: db-0, subdomain: db, containers: [{ name: a, command: [x] }] } }",
        );
        let slices = compile_slices(&services[1], &[PodView { spec: &spec, status: &status }]);
        let text = render(
            &PodKey::new("shop", "web-1"),
            "web-1",
            &["10.244.0.9".parse().unwrap()],
            &services,
            &slices,
        );
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost\n\
             10.244.0.9 web-1\n\
             10.96.1.0 web web.shop web.shop.svc web.shop.svc.cluster.local\n\
             fd00:96::100 web web.shop web.shop.svc web.shop.svc.cluster.local\n\
             10.244.0.5 db.data db.data.svc db.data.svc.cluster.local\n\
             10.244.0.5 db-0.db.data db-0.db.data.svc db-0.db.data.svc.cluster.local\n"
        );
    }

    #[test]
    fn the_file_keeps_its_inode_and_its_length() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        write_in_place(&path, "a long first line\n").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        write_in_place(&path, "short\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.len(), text.trim_end()), (18, "short"));
        write_in_place(&path, &"x".repeat(30)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x".repeat(30));
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }
}
