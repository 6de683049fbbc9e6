//! Gives Services their addresses, as an API server does.
//!
//! One departure: a Service that says nothing about IP families gets IPv4 only (Kubernetes'
//! SingleStack, the cluster's first family); `PreferDualStack` and `RequireDualStack` get both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// The lower part of the ranges is for addresses that manifests name themselves.
const FIRST: u16 = 256;

/// Which Service has which addresses. An address is given once, as pods' are.
#[derive(Debug)]
pub(crate) struct ClusterIps {
    assigned: BTreeMap<(String, String), u16>,
    next: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn address(self, number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        match self {
            Self::V4 => Ipv4Addr::new(10, 96, high, low).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number).into(),
        }
    }
}

fn in_range(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets().starts_with(&[10, 96]),
        IpAddr::V6(v6) => v6.segments()[..7] == [0xfd00, 0x96, 0, 0, 0, 0, 0],
    }
}

impl ClusterIps {
    pub(crate) fn new() -> Self {
        Self { assigned: BTreeMap::new(), next: FIRST }
    }

    /// The Services with `clusterIP`, `clusterIPs` and `ipFamilies` filled in. Those the lab cannot
    /// serve are left out and reported; `location` is where each stands.
    pub(crate) fn assign(
        &mut self,
        services: &[(&Service, &str)],
        problems: &mut Vec<String>,
    ) -> Vec<Service> {
        let mut taken: BTreeSet<IpAddr> = services
            .iter()
            .filter_map(|(service, _)| self.assigned.get(&key(service)))
            .flat_map(|number| [Family::V4.address(*number), Family::V6.address(*number)])
            .collect();
        let mut filled = Vec::new();
        // Addresses that manifests name are theirs before any is given out.
        let (named, free): (Vec<_>, Vec<_>) =
            services.iter().partition(|(service, _)| !named_addresses(service).is_empty());
        for (service, location) in named.into_iter().chain(free) {
            match self.assign_one(service, &mut taken) {
                Ok(service) => filled.push(service),
                Err((field, message)) => {
                    let (namespace, name) = key(service);
                    problems.push(format!(
                        "{location}: Service {namespace}/{name}: spec.{field}: {message}"
                    ));
                }
            }
        }
        filled.sort_by_key(key);
        filled
    }

    fn assign_one(
        &mut self,
        service: &Service,
        taken: &mut BTreeSet<IpAddr>,
    ) -> Result<Service, (&'static str, String)> {
        let mut filled = service.clone();
        filled.metadata.namespace.get_or_insert_with(|| "default".into());
        let spec = filled.spec.get_or_insert_default();
        refuse_fields(spec)?;
        let named = named_addresses(service);
        let families = families(spec, &named)?;
        spec.ip_families = Some(families.iter().map(|family| family.name().into()).collect());
        spec.ip_family_policy.get_or_insert_with(|| "SingleStack".into());
        if spec.cluster_ip.as_deref() == Some("None") {
            spec.cluster_ips = Some(vec!["None".into()]);
            return Ok(filled);
        }
        let mut addresses = Vec::new();
        for family in families {
            let address = match named.iter().find(|address| Family::of(**address) == family) {
                Some(address) => *address,
                None => family.address(self.number(service)?),
            };
            // The same Service comes here again at each change; only its own number is not news.
            let own = self.assigned.get(&key(service)).map(|number| family.address(*number));
            if !taken.insert(address) && own != Some(address) {
                return Err((
                    "clusterIP",
                    format!("{address} is another Service's: choose another"),
                ));
            }
            addresses.push(address.to_string());
        }
        spec.cluster_ip = addresses.first().cloned();
        spec.cluster_ips = Some(addresses);
        Ok(filled)
    }

    fn number(&mut self, service: &Service) -> Result<u16, (&'static str, String)> {
        let key = key(service);
        if let Some(number) = self.assigned.get(&key) {
            return Ok(*number);
        }
        let number = self.next;
        self.next = number.checked_add(1).ok_or_else(|| {
            ("clusterIP", "all addresses have been used once; run `down` and `up` again".to_owned())
        })?;
        self.assigned.insert(key, number);
        Ok(number)
    }
}

fn refuse_fields(spec: &ServiceSpec) -> Result<(), (&'static str, String)> {
    let refuse = |field, message: &str| Err((field, message.to_owned()));
    match spec.type_.as_deref() {
        None | Some("ClusterIP") => {}
        Some(other) => {
            return Err(("type", format!("{other:?} needs a real cluster: write ClusterIP")));
        }
    }
    if spec.external_ips.is_some() {
        return refuse("externalIPs", "nothing outside the lab can reach it: remove it");
    }
    for port in spec.ports.iter().flatten() {
        if port.protocol.as_deref() == Some("SCTP") {
            return refuse("ports", "the lab forwards TCP and UDP, not SCTP: remove the port");
        }
    }
    Ok(())
}

/// The families in the order the Service wants them.
fn families(spec: &ServiceSpec, named: &[IpAddr]) -> Result<Vec<Family>, (&'static str, String)> {
    let mut families = Vec::new();
    for name in spec.ip_families.iter().flatten() {
        families.push(match name.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return Err(("ipFamilies", format!("{name:?}: write IPv4 or IPv6"))),
        });
    }
    if families.is_empty() {
        families = named.iter().copied().map(Family::of).collect();
    }
    if families.is_empty() {
        families.push(Family::V4);
    }
    match spec.ip_family_policy.as_deref() {
        // Two addresses or families said aloud mean what they say.
        None => {}
        Some("SingleStack") => families.truncate(1),
        Some("PreferDualStack" | "RequireDualStack") => {
            let second = if families[0] == Family::V4 { Family::V6 } else { Family::V4 };
            families.truncate(1);
            families.push(second);
        }
        Some(other) => {
            let message =
                format!("{other:?}: write SingleStack, PreferDualStack or RequireDualStack");
            return Err(("ipFamilyPolicy", message));
        }
    }
    if let Some(address) = named.iter().find(|address| !in_range(**address)) {
        let ranges = "write one of 10.96.0.0/16 or fd00:96::/112";
        return Err(("clusterIP", format!("{address} is not the lab's: {ranges}")));
    }
    Ok(families)
}

/// What the manifest says in `clusterIP` and `clusterIPs`, together.
fn named_addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut addresses = Vec::new();
    for text in spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()) {
        if let Ok(address) = text.parse()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

fn key(service: &Service) -> (String, String) {
    (
        service.metadata.namespace.clone().unwrap_or_else(|| "default".into()),
        service.metadata.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, spec: &str) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.into());
        service.spec = Some(serde_saphyr::from_str(spec).unwrap());
        service
    }

    fn assign(ips: &mut ClusterIps, services: &[Service]) -> (Vec<String>, Vec<String>) {
        let mut problems = Vec::new();
        let located: Vec<_> = services.iter().map(|service| (service, "f.yaml:1")).collect();
        let filled = ips.assign(&located, &mut problems);
        let addresses = filled.into_iter().map(|service| {
            let ips = service.spec.unwrap().cluster_ips.unwrap();
            format!("{} {}", service.metadata.name.unwrap(), ips.join(" "))
        });
        (addresses.collect(), problems)
    }

    #[test]
    fn families_and_named_addresses_are_honoured() {
        for (spec, want) in [
            ("{}", "s 10.96.1.0"),
            ("{ ipFamilyPolicy: RequireDualStack }", "s 10.96.1.0 fd00:96::100"),
            ("{ ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6] }", "s fd00:96::100 10.96.1.0"),
            ("{ ipFamilies: [IPv6] }", "s fd00:96::100"),
            ("{ clusterIP: 10.96.0.7 }", "s 10.96.0.7"),
            ("{ clusterIP: 'fd00:96::7' }", "s fd00:96::7"),
            ("{ clusterIPs: [10.96.0.7, 'fd00:96::7'] }", "s 10.96.0.7 fd00:96::7"),
            (
                "{ clusterIP: 10.96.0.7, ipFamilyPolicy: PreferDualStack }",
                "s 10.96.0.7 fd00:96::100",
            ),
            ("{ clusterIP: None, ipFamilyPolicy: PreferDualStack }", "s None"),
        ] {
            let got = assign(&mut ClusterIps::new(), &[service("s", spec)]);
            assert_eq!(got, (vec![want.to_owned()], vec![]), "{spec}");
        }
    }

    #[test]
    fn addresses_stay_and_are_not_reused() {
        let mut ips = ClusterIps::new();
        let [a, b, c] = ["a", "b", "c"].map(|name| service(name, "{}"));
        assert_eq!(assign(&mut ips, &[a, b.clone()]).0, ["a 10.96.1.0", "b 10.96.1.1"]);
        assert_eq!(assign(&mut ips, &[b.clone(), c]).0, ["b 10.96.1.1", "c 10.96.1.2"]);
        let thief = service("thief", "{ clusterIP: 10.96.1.1 }");
        let (addresses, problems) = assign(&mut ips, &[b, thief]);
        assert_eq!(addresses, ["b 10.96.1.1"]);
        assert!(problems[0].contains("Service default/thief: spec.clusterIP"), "{problems:?}");
    }

    #[test]
    fn what_needs_a_cluster_is_refused() {
        for (spec, field) in [
            ("{ type: LoadBalancer }", "spec.type"),
            ("{ clusterIP: 10.97.0.1 }", "spec.clusterIP"),
            ("{ ipFamilies: [IPv5] }", "spec.ipFamilies"),
            ("{ ipFamilyPolicy: Both }", "spec.ipFamilyPolicy"),
            ("{ ports: [{ port: 1, protocol: SCTP }] }", "spec.ports"),
        ] {
            let (addresses, problems) = assign(&mut ClusterIps::new(), &[service("s", spec)]);
            assert_eq!(addresses, [""; 0], "{spec}");
            assert!(problems[0].starts_with(&format!("f.yaml:1: Service default/s: {field}")));
        }
    }
}
