//! AuthorizationPolicy, MeshTLSPolicy and Mesh.

use std::net::IpAddr;

use heddle_api::identity::is_trust_domain;
use ipnet::IpNet;

use crate::crd::authorization_policy::{
    AuthorizationPolicySpec, MAX_METHODS, MAX_PATH_BYTES, MAX_PATHS, MAX_PORTS, MAX_RULES,
    MAX_SOURCES, MAX_TARGETS, Source, Target,
};
use crate::crd::mesh::{MAX_RANGES, MeshSpec};
use crate::crd::mesh_tls_policy::{self, MeshTLSPolicySpec};
use crate::path::Path;

use super::{Check, quote};

pub(super) fn authorization(check: &mut Check, path: &Path, spec: &AuthorizationPolicySpec) {
    check.selector(&path.field("targetRef").field("selector"), &spec.target_ref.selector);
    let list = path.field("rules");
    check.length(&list, spec.rules.len(), 1, MAX_RULES);
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = list.index(index);
        check.length(&path.field("from"), rule.from.len(), 0, MAX_SOURCES);
        for (index, from) in rule.from.iter().enumerate() {
            source(check, &path.field("from").index(index), from);
        }
        check.length(&path.field("to"), rule.to.len(), 0, MAX_TARGETS);
        for (index, to) in rule.to.iter().enumerate() {
            target(check, &path.field("to").index(index), to);
        }
    }
}

fn source(check: &mut Check, path: &Path, source: &Source) {
    if let Some(account) = &source.service_account {
        check.subdomain(&path.field("serviceAccount"), account);
    }
    if let Some(namespace) = &source.namespace {
        check.label(&path.field("namespace"), namespace);
    }
    let named = source.service_account.is_some() || source.namespace.is_some();
    match source.anyone {
        Some(true) if named => {
            let message = "excludes serviceAccount and namespace; remove it, or remove them";
            check.refuse(&path.field("anyone"), "true", message);
        }
        Some(false) => {
            let message = "means nothing; remove it, and name a serviceAccount or a namespace";
            check.refuse(&path.field("anyone"), "false", message);
        }
        Some(true) => {}
        None => {
            let message = "names nobody; write `serviceAccount: NAME`, `namespace: NAME`, or \
                           `anyone: true`";
            check.refuse_unless(named, path, "{}", message);
        }
    }
}

fn target(check: &mut Check, path: &Path, target: &Target) {
    let Target { ports, methods, paths } = target;
    if ports.is_empty() && methods.is_empty() && paths.is_empty() {
        let message = "names nothing; write ports, methods or paths, or remove `to` to mean \
                       everything";
        check.refuse(path, "{}", message);
    }
    let list = path.field("ports");
    check.length(&list, ports.len(), 0, MAX_PORTS);
    for (index, port) in ports.iter().enumerate() {
        check.port(&list.index(index), *port);
    }
    check.unique(&list, ports, ToString::to_string);

    let list = path.field("methods");
    check.length(&list, methods.len(), 0, MAX_METHODS);
    for (index, method) in methods.iter().enumerate() {
        let message = "write an HTTP method in upper case, e.g. GET";
        check.refuse_unless(is_method(method), &list.index(index), quote(method), message);
    }
    check.unique(&list, methods, |method| quote(method));

    let list = path.field("paths");
    check.length(&list, paths.len(), 0, MAX_PATHS);
    for (index, text) in paths.iter().enumerate() {
        if let Some(message) = path_mistake(text) {
            check.refuse(&list.index(index), quote(text), message);
        }
    }
    check.unique(&list, paths, |text| quote(text));
}

/// Upper case only: methods are compared byte by byte, and `get` would match no request.
fn is_method(method: &str) -> bool {
    (1..=32).contains(&method.len())
        && method.bytes().all(|b| {
            b.is_ascii_uppercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b)
        })
}

/// What is wrong with a path pattern. Requests whose path is ambiguous are refused before rules are
/// asked, so a pattern that only such paths could match is a mistake.
fn path_mistake(text: &str) -> Option<&'static str> {
    if !text.starts_with('/') {
        return Some("write a path that begins with `/`");
    }
    if text.len() > MAX_PATH_BYTES {
        return Some("write at most 512 bytes");
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Some("write printable ASCII; percent-encode everything else");
    }
    if text.contains(['?', '#']) {
        return Some("write the path alone, without `?` query or `#` fragment");
    }
    if text.contains('\\') {
        return Some("write `/` between segments, not `\\`");
    }
    if let Some(message) = escape_mistake(text) {
        return Some(message);
    }
    let exact = text.strip_suffix("/*").unwrap_or(text);
    if exact.contains('*') {
        return Some("write `*` only as the last segment: `/api/*` is /api and all below it");
    }
    let mut segments = exact.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(';').next().unwrap_or_default();
        if matches!(name, "." | "..") {
            return Some("write the path without `.` and `..` segments");
        }
        if segment.is_empty() && segments.peek().is_some() || segment.is_empty() && exact != text {
            return Some("write one `/` between segments, not `//`");
        }
    }
    None
}

fn escape_mistake(text: &str) -> Option<&'static str> {
    for (at, _) in text.match_indices('%') {
        let digits = text.get(at + 1..at + 3).unwrap_or_default();
        if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some("write `%` only before two hexadecimal digits, e.g. %20");
        }
        if ["2f", "5c", "00"].contains(&digits.to_ascii_lowercase().as_str()) {
            return Some("write the path without %2F, %5C and %00: requests with them are refused");
        }
        let byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            return Some("write letters, digits, `-`, `.`, `_` and `~` plainly, without `%`");
        }
    }
    None
}

pub(super) fn tls(check: &mut Check, path: &Path, spec: &MeshTLSPolicySpec) {
    if let Some(target) = &spec.target_ref {
        check.selector(&path.field("targetRef").field("selector"), &target.selector);
    }
    if spec.mode.is_none() && spec.ports.is_empty() {
        check.refuse(path, "", "says nothing; write `mode: Strict` or `mode: Permissive`");
    }
    let list = path.field("ports");
    check.length(&list, spec.ports.len(), 0, mesh_tls_policy::MAX_PORTS);
    for (index, port) in spec.ports.iter().enumerate() {
        check.port(&list.index(index).field("port"), port.port);
        if spec.ports[..index].iter().any(|other| other.port == port.port) {
            let path = list.index(index).field("port");
            check.refuse(&path, port.port, "is listed twice; keep one");
        }
    }
}

pub(super) fn mesh(check: &mut Check, path: &Path, spec: &MeshSpec) {
    let message = "write a trust domain: 1 to 255 of a-z, 0-9, `.`, `-` and `_`";
    let domain = &spec.trust_domain;
    check.refuse_unless(
        is_trust_domain(domain),
        &path.field("trustDomain"),
        quote(domain),
        message,
    );
    let list = path.field("clusterRanges");
    check.length(&list, spec.cluster_ranges.len(), 0, MAX_RANGES);
    for (index, range) in spec.cluster_ranges.iter().enumerate() {
        let path = list.index(index);
        match parse_range(range) {
            None => check.refuse(&path, quote(range), "write a CIDR, e.g. \"10.96.0.0/12\""),
            Some(net) if net.trunc() != net => {
                let message = format!("has bits set after its prefix; write \"{}\"", net.trunc());
                check.refuse(&path, quote(range), message);
            }
            Some(_) => {}
        }
    }
    check.unique(&list, &spec.cluster_ranges, |range| quote(range));
}

/// As an API server's `isCIDR`: no zero in front of a number, which others read as octal, and no
/// IPv4 address dressed as IPv6.
fn parse_range(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let is_plain = prefix == "0" || !prefix.starts_with(['0', '+']);
    let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let prefix = prefix.parse().ok()?;
    if is_plain && !is_mapped { IpNet::new(address, prefix).ok() } else { None }
}
