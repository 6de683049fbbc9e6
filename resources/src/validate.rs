//! What types cannot say: ranges, names, sums, duplicates. Pure; the same for every source, and for
//! admission.
//!
//! Looks at one object at a time. What only several objects together can get wrong (a backend that
//! does not exist, two splits of one Service) is reported by the compiler.

use std::fmt::Display;
use std::ops::RangeInclusive;

use heddle_api::identity::{is_label, is_subdomain};

use crate::crd::schema::{DurationRange, MAX_SELECTOR};
use crate::crd::{Duration, Selector};
use crate::gateway::{self, AnyRoute, Degree};
use crate::kinds::{Kind, Object};
use crate::path::Path;

mod kubernetes;
mod security;
mod traffic;

/// A value that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub path: Path,
    /// As YAML would write it; empty when nothing was written.
    pub value: String,
    /// What to write instead.
    pub message: String,
}

/// Every mistake in the object.
#[must_use]
pub fn validate(object: &Object) -> Vec<Finding> {
    let mut check = Check::default();
    check.metadata(object);
    let spec = Path::root().field("spec");
    match object {
        Object::Namespace(_) | Object::ServiceAccount(_) | Object::Deployment(_) => {}
        Object::Service(service) => kubernetes::service(&mut check, service),
        Object::Pod(pod) => kubernetes::pod(&mut check, pod),
        Object::EndpointSlice(slice) => kubernetes::endpoint_slice(&mut check, slice),
        Object::HTTPRoute(route) => check.route(&route.view()),
        Object::GRPCRoute(route) => check.route(&route.view()),
        Object::TrafficSplit(split) => traffic::split(&mut check, &spec, &split.spec),
        Object::TrafficPolicy(policy) => traffic::policy(&mut check, &spec, &policy.spec),
        Object::AuthorizationPolicy(policy) => {
            security::authorization(&mut check, &spec, &policy.spec);
        }
        Object::MeshTLSPolicy(policy) => security::tls(&mut check, &spec, &policy.spec),
        Object::Mesh(mesh) => security::mesh(&mut check, &spec, &mesh.spec),
    }
    check.findings
}

/// Collects findings.
#[derive(Default)]
struct Check {
    findings: Vec<Finding>,
}

impl Check {
    fn refuse(&mut self, path: &Path, value: impl Display, message: impl Into<String>) {
        self.findings.push(Finding {
            path: path.clone(),
            value: value.to_string(),
            message: message.into(),
        });
    }

    fn refuse_unless(&mut self, holds: bool, path: &Path, value: impl Display, message: &str) {
        if !holds {
            self.refuse(path, value, message);
        }
    }

    /// What the Gateway API refuses. What only we do not do is for the route's status to say.
    fn route(&mut self, route: &AnyRoute<'_>) {
        let problems = gateway::problems(route).into_iter();
        for problem in problems.filter(|problem| problem.degree == Degree::Invalid) {
            self.refuse(&problem.path, "", problem.message);
        }
    }

    fn metadata(&mut self, object: &Object) {
        let (kind, meta) = (object.kind(), object.metadata());
        let path = Path::root().field("metadata");
        match meta.name.as_deref() {
            None | Some("") => self.refuse(&path.field("name"), "", "is required; name the object"),
            Some(name) if matches!(kind, Kind::Service | Kind::Namespace) => {
                self.label(&path.field("name"), name);
            }
            Some(name) if kind == Kind::Mesh => {
                let message = "there is one Mesh; name it `default`";
                self.refuse_unless(name == "default", &path.field("name"), quote(name), message);
            }
            Some(name) => self.subdomain(&path.field("name"), name),
        }
        match meta.namespace.as_deref() {
            Some(namespace) if kind.is_namespaced() => {
                self.label(&path.field("namespace"), namespace);
            }
            Some(namespace) => {
                let message = format!("a {kind} belongs to no namespace; remove the field");
                self.refuse(&path.field("namespace"), quote(namespace), message);
            }
            None => {}
        }
    }

    /// RFC 1123 label: Services, namespaces.
    fn label(&mut self, path: &Path, name: &str) {
        let message = "write an RFC 1123 label: 1 to 63 of a-z, 0-9 and `-`, beginning and ending \
                       with a letter or digit";
        self.refuse_unless(is_label(name), path, quote(name), message);
    }

    /// RFC 1123 subdomain: most other names.
    fn subdomain(&mut self, path: &Path, name: &str) {
        let message = "write an RFC 1123 subdomain: 1 to 253 of a-z, 0-9, `-` and `.`, each part \
                       beginning and ending with a letter or digit";
        self.refuse_unless(is_subdomain(name), path, quote(name), message);
    }

    fn range<N: PartialOrd + Display>(&mut self, path: &Path, value: N, range: &RangeInclusive<N>) {
        if !range.contains(&value) {
            self.refuse(path, value, format!("write {} to {}", range.start(), range.end()));
        }
    }

    fn port(&mut self, path: &Path, port: impl Into<i64>) {
        self.range(path, port.into(), &(1..=65_535));
    }

    fn duration(&mut self, path: &Path, value: Duration, (low, high): DurationRange) {
        let bound = |text: &str| text.parse::<Duration>().expect("a bound is a duration");
        self.range(path, value, &(bound(low)..=bound(high)));
    }

    fn length(&mut self, path: &Path, length: usize, low: usize, high: usize) {
        if length < low || length > high {
            self.refuse(path, "", format!("has {length} entries; write {low} to {high}"));
        }
    }

    /// Refuses the second and later of equal entries.
    fn unique<T: PartialEq>(&mut self, path: &Path, items: &[T], describe: impl Fn(&T) -> String) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                self.refuse(&path.index(index), describe(item), "is listed twice; keep one");
            }
        }
    }

    fn selector(&mut self, path: &Path, selector: &Selector) {
        if selector.0.is_empty() {
            self.refuse(path, "{}", "is empty; name at least one label, e.g. `app: web`");
        }
        self.length(path, selector.0.len().max(1), 1, MAX_SELECTOR);
        for (key, value) in &selector.0 {
            let path = path.field(key);
            let message = "write a label's key: an optional DNS prefix and `/`, then 1 to 63 of \
                           letters, digits, `-`, `_` and `.`";
            self.refuse_unless(is_label_key(key), &path, quote(key), message);
            let message = "write a label's value: at most 63 of letters, digits, `-`, `_` and `.`";
            self.refuse_unless(is_label_value(value), &path, quote(value), message);
        }
    }
}

/// A string as YAML would need it quoted.
fn quote(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{more}")
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && !name.is_empty() && is_label_value(name),
        None => !key.is_empty() && is_label_value(key),
    }
}

fn is_label_value(value: &str) -> bool {
    let ends = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    value.len() <= 63
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && ends(value.bytes().next())
        && ends(value.bytes().next_back())
}
