//! The stand-in for kube-proxy: rules in the node's namespace that send a cluster IP's connections
//! to one of its ready endpoints, for pods without a proxy.
//!
//! The endpoint is drawn at random per connection. `sessionAffinity` is not honoured here (a meshed
//! pod's proxy honours it), and one node is all there is, so `internalTrafficPolicy` is only looked
//! at by proxies.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoints::{is_ready, service_of};

const TABLE: &str = "inet heddle-lab";

/// The whole rule set as one transaction that replaces the one before. `pods` are all pod
/// addresses.
pub(crate) fn render(services: &[Service], slices: &[EndpointSlice], pods: &[IpAddr]) -> String {
    let (mut refused, mut translated) = (String::new(), String::new());
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let addresses = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
        for address in addresses {
            for port in spec.ports.iter().flatten() {
                let endpoints = ready_endpoints(service, port, slices, address);
                render_port(&mut refused, &mut translated, address, port, &endpoints);
            }
        }
    }
    // The first line makes the second one true on the first run.
    format!(
        "table {TABLE} {{}}\n\
         delete table {TABLE}\n\
         table {TABLE} {{\n\
         \tchain refused {{\n\
         \t\ttype filter hook prerouting priority -110; policy accept;\n\
         {refused}\
         \t}}\n\
         \tchain translated {{\n\
         \t\ttype nat hook prerouting priority -100; policy accept;\n\
         {translated}\
         \t}}\n\
         \tchain hairpin {{\n\
         \t\ttype nat hook postrouting priority 100; policy accept;\n\
         {}\
         \t}}\n\
         }}\n",
        render_hairpin(pods)
    )
}

fn render_port(
    refused: &mut String,
    translated: &mut String,
    address: IpAddr,
    port: &ServicePort,
    endpoints: &[(IpAddr, u16)],
) {
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    let udp = port.protocol.as_deref() == Some("UDP");
    let protocol = if udp { "udp" } else { "tcp" };
    let to = format!("{family} daddr {address} {protocol} dport {}", port.port);
    if endpoints.is_empty() {
        let reject = if udp { "reject" } else { "reject with tcp reset" };
        // Established connections are the endpoint's business, also when it is not ready any more.
        let _ = writeln!(refused, "\t\t{to} ct state new {reject}");
        return;
    }
    let choices: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(index, (address, port))| format!("{index} : {address} . {port}"))
        .collect();
    let _ = writeln!(
        translated,
        "\t\t{to} dnat {family} to numgen random mod {} map {{ {} }}",
        endpoints.len(),
        choices.join(", ")
    );
}

/// A pod that is sent to itself would see its own address as the peer's and drop the packet.
fn render_hairpin(pods: &[IpAddr]) -> String {
    let mut rules = String::new();
    for family in ["ip", "ip6"] {
        let pairs: Vec<_> = pods
            .iter()
            .filter(|address| address.is_ipv4() == (family == "ip"))
            .map(|address| format!("{address} . {address}"))
            .collect();
        if !pairs.is_empty() {
            let pairs = pairs.join(", ");
            let _ = writeln!(rules, "\t\t{family} saddr . {family} daddr {{ {pairs} }} masquerade");
        }
    }
    rules
}

fn ready_endpoints(
    service: &Service,
    port: &ServicePort,
    slices: &[EndpointSlice],
    address: IpAddr,
) -> Vec<(IpAddr, u16)> {
    let meta = &service.metadata;
    let key = (meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or(""));
    let name = port.name.as_deref().unwrap_or("");
    let mut endpoints = Vec::new();
    for slice in slices.iter().filter(|slice| service_of(slice) == Some(key)) {
        let found = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or("") == name);
        let Some(number) = found.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        let ready = slice.endpoints.iter().filter(|endpoint| is_ready(endpoint));
        let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
        let parsed = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
        endpoints
            .extend(parsed.filter(|ip| ip.is_ipv4() == address.is_ipv4()).map(|ip| (ip, number)));
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::tests::pod;
    use super::super::endpoints::{PodView, compile_slices};
    use super::*;

    #[test]
    fn connections_go_to_ready_endpoints_and_are_refused_without() {
        let service: Service = serde_saphyr::from_str(
            "{ metadata: { name: web, namespace: default }, spec: { clusterIPs: [10.96.1.0, \
             'fd00:96::100'], ipFamilies: [IPv4, IPv6], selector: { app: web }, \
             ports: [{ port: 80, targetPort: 8080 }] } }",
        )
        .unwrap();
        let manifest = "{ metadata: { labels: { app: web } }, \
                        spec: { containers: [{ name: a, command: [x] }] } }";
        let (a, b, mut c) = (pod("a", 5, manifest), pod("b", 6, manifest), pod("c", 7, manifest));
        c.1.ready = false;
        let pods = [&a, &b, &c].map(|(spec, status)| PodView { spec, status });
        let slices = compile_slices(&service, &pods);
        let text = render(std::slice::from_ref(&service), &slices, &a.1.addresses);
        for line in [
            "ip daddr 10.96.1.0 tcp dport 80 dnat ip to numgen random mod 2 map \
             { 0 : 10.244.0.5 . 8080, 1 : 10.244.0.6 . 8080 }",
            "ip6 daddr fd00:96::100 tcp dport 80 dnat ip6 to numgen random mod 2 map \
             { 0 : fd00:244::5 . 8080, 1 : fd00:244::6 . 8080 }",
            "ip saddr . ip daddr { 10.244.0.5 . 10.244.0.5 } masquerade",
        ] {
            assert!(text.contains(&format!("\t\t{line}\n")), "{line}\n{text}");
        }
        assert!(!text.contains("reject"));
        let text = render(&[service], &[], &[]);
        let line = "ip daddr 10.96.1.0 tcp dport 80 ct state new reject with tcp reset";
        assert!(text.contains(&format!("\t\t{line}\n")), "{text}");
        assert!(!text.contains("dnat") && !text.contains("masquerade"));
    }
}
