//! What is wrong with a route as it stands, whatever else there is in the cluster.
//!
//! Values that a proxy would refuse (paths, header names, hosts) are judged by the proxy's own code,
//! elsewhere.

use super::{AnyRoute, AnyRule, Filter, GrpcMatch, HttpMatch, Matches, MethodMatch, PathRewrite};
use crate::kinds::Kind;
use crate::path::{Path, Segment};

const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
const MAX_ALL_MATCHES: usize = 128;
const MAX_FILTERS: usize = 16;
const MAX_BACKENDS: usize = 16;
const MAX_PARENTS: usize = 32;
const MAX_CONDITIONS: usize = 16;
const MAX_WEIGHT: u32 = 1_000_000;
/// Filters of which one list may have one of each.
const MODIFIERS: [&str; 4] =
    ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite"];
const GATEWAYS: &str = "useDefaultGateways";

/// Something wrong with a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The rule that is not in force for it; `None` when the whole route is not.
    pub rule: Option<usize>,
    pub path: Path,
    /// What to write instead.
    pub message: String,
    pub degree: Degree,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Degree {
    /// The Gateway API itself refuses it.
    Invalid,
    /// The Gateway API allows it, and we do not do it.
    Unsupported,
    /// It has no effect, and takes none away.
    Remark,
}

/// Fields of Gateway API v1.6, either channel, that we do not enforce, and what to write instead.
const UNSUPPORTED: [(&str, &str); 8] = [
    (
        "retry",
        "is not supported; remove it, and write a TrafficPolicy with `retries` for the backend's \
         Service",
    ),
    (
        "sessionPersistence",
        "is not supported; remove it, and set `sessionAffinity: ClientIP` on the backend's Service \
         to keep a client at one endpoint",
    ),
    ("requestMirror", "mirroring is not supported; remove the filter"),
    ("cors", "is not supported; remove the filter, and answer CORS in the application"),
    ("extensionRef", "there are no filters beyond the Gateway API's own; remove the filter"),
    (
        "externalAuth",
        "is not supported; remove the filter, and write an AuthorizationPolicy for the called pods",
    ),
    ("timeouts", "is not a field of a GRPCRoute; write a TrafficPolicy for the backend's Service"),
    (
        "useDefaultGateways",
        "is for Gateways, which are another controller's; name a parent instead",
    ),
];

/// True for a field that is not enforced and yet not misspelt.
#[must_use]
pub fn is_known_to_gateway_api(path: &Path) -> bool {
    advice(path).is_some()
}

fn advice(path: &Path) -> Option<&'static str> {
    let Some(Segment::Field(name)) = path.segments().last() else { return None };
    UNSUPPORTED.iter().find(|(field, _)| field == name).map(|(_, advice)| *advice)
}

/// Everything wrong with the route by itself.
#[must_use]
pub fn problems(route: &AnyRoute<'_>) -> Vec<Problem> {
    let mut found = Found { problems: Vec::new(), rule: None };
    let spec = Path::root().field("spec");
    found.length(&spec.field("parentRefs"), route.parent_refs.len(), MAX_PARENTS);
    let rules = spec.field("rules");
    found.length(&rules, route.rules.len(), MAX_RULES);
    let matches: usize = route.rules.iter().map(|rule| rule.matches.len()).sum();
    found.length(&rules, matches, MAX_ALL_MATCHES);
    if !route.hostnames.is_empty() {
        let message = "have no effect in a mesh; match the header `host` in a rule instead";
        found.push(&spec.field("hostnames"), message, Degree::Remark);
    }
    for path in route.unknown {
        found.rule = rule_of(path);
        let message =
            advice(path).unwrap_or("is not a field we know; remove it, or look at its spelling");
        // It adds parents, which are not ours; the route is in force for those that are.
        let of_gateways = path.segments().last() == Some(&Segment::Field(GATEWAYS.to_owned()));
        let degree = if of_gateways { Degree::Remark } else { Degree::Unsupported };
        found.push(path, message, degree);
    }
    for (at, rule) in route.rules.iter().enumerate() {
        found.rule = Some(at);
        let path = rules.index(at);
        if rule.name.is_some() && route.rules[..at].iter().any(|other| other.name == rule.name) {
            let message = "is the name of an earlier rule, and telemetry cannot tell them apart";
            found.push(&path.field("name"), message, Degree::Remark);
        }
        found.rule(&path, route.kind, rule);
    }
    found.problems
}

/// The rule that a field belongs to.
fn rule_of(path: &Path) -> Option<usize> {
    match path.segments() {
        [_, Segment::Field(rules), Segment::Index(rule), ..] if rules == "rules" => Some(*rule),
        _ => None,
    }
}

struct Found {
    problems: Vec<Problem>,
    /// The rule that is looked at.
    rule: Option<usize>,
}

impl Found {
    fn push(&mut self, path: &Path, message: impl Into<String>, degree: Degree) {
        let (path, message) = (path.clone(), message.into());
        self.problems.push(Problem { rule: self.rule, path, message, degree });
    }

    fn invalid(&mut self, path: &Path, message: impl Into<String>) {
        self.push(path, message, Degree::Invalid);
    }

    fn unsupported(&mut self, path: &Path, message: impl Into<String>) {
        self.push(path, message, Degree::Unsupported);
    }

    fn length(&mut self, path: &Path, length: usize, most: usize) {
        if length > most {
            self.invalid(path, format!("has {length} entries; write at most {most}"));
        }
    }

    fn rule(&mut self, path: &Path, kind: Kind, rule: &AnyRule<'_>) {
        self.length(&path.field("matches"), rule.matches.len(), MAX_MATCHES);
        match rule.matches {
            Matches::Http(matches) => {
                for (at, one) in matches.iter().enumerate() {
                    self.http_match(&path.field("matches").index(at), one);
                }
            }
            Matches::Grpc(matches) => {
                for (at, one) in matches.iter().enumerate() {
                    self.grpc_match(&path.field("matches").index(at), one);
                }
            }
        }
        self.filters(&path.field("filters"), kind, rule.filters);
        let list = path.field("backendRefs");
        self.length(&list, rule.backend_refs.len(), MAX_BACKENDS);
        for (at, backend) in rule.backend_refs.iter().enumerate() {
            let path = list.index(at);
            if backend.weight() > MAX_WEIGHT {
                self.invalid(&path.field("weight"), format!("write 0 to {MAX_WEIGHT}"));
            }
            if backend.port.is_none() && (backend.group(), backend.kind()) == ("", "Service") {
                self.invalid(&path.field("port"), "is required; write the port of the Service");
            }
            self.filters(&path.field("filters"), kind, &backend.filters);
        }
        if let Some(timeouts) = rule.timeouts
            && let (Some(all), Some(one)) = (timeouts.request, timeouts.backend_request)
            && all.as_millis() > 0
            && one > all
        {
            let path = path.field("timeouts").field("backendRequest");
            self.invalid(&path, format!("is longer than `request`, which is {all}"));
        }
    }

    fn http_match(&mut self, path: &Path, one: &HttpMatch) {
        if let Some(of) = &one.path {
            let path = path.field("path").field("type");
            match of.r#type.as_deref() {
                None | Some("Exact" | "PathPrefix") => {}
                Some("RegularExpression") => {
                    let message =
                        "regular expressions are not supported; write Exact or PathPrefix";
                    self.unsupported(&path, message);
                }
                Some(_) => self.unsupported(&path, "write Exact or PathPrefix"),
            }
        }
        for (field, list) in [("headers", &one.headers), ("queryParams", &one.query_params)] {
            let types = list.iter().map(|condition| condition.r#type.as_deref());
            self.exact_only(&path.field(field), types);
        }
    }

    fn grpc_match(&mut self, path: &Path, one: &GrpcMatch) {
        self.exact_only(&path.field("headers"), one.headers.iter().map(|h| h.r#type.as_deref()));
        let Some(method) = &one.method else { return };
        let path = path.field("method");
        match method {
            MethodMatch { service: None, method: None, .. } => {
                self.invalid(&path, "names nothing; write `service`, or `service` and `method`");
            }
            MethodMatch { service: None, .. } => {
                let message = "is required: a method of any service is not supported";
                self.unsupported(&path.field("service"), message);
            }
            MethodMatch { .. } => {}
        }
        for (name, text) in [("service", &method.service), ("method", &method.method)] {
            let is_name = |text: &String| {
                let dots = if name == "service" { "." } else { "" };
                let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                !text.is_empty() && text.bytes().all(|b| plain(b) || dots.as_bytes().contains(&b))
            };
            if text.as_ref().is_some_and(|text| !is_name(text)) {
                self.invalid(
                    &path.field(name),
                    "write letters, digits and `_` (a service: and `.`)",
                );
            }
        }
        if method.r#type.as_deref().is_some_and(|r#type| r#type != "Exact") {
            let message = "only Exact is supported; write it, or leave the field out";
            self.unsupported(&path.field("type"), message);
        }
    }

    fn exact_only<'a>(
        &mut self,
        list: &Path,
        types: impl ExactSizeIterator<Item = Option<&'a str>>,
    ) {
        self.length(list, types.len(), MAX_CONDITIONS);
        for (at, r#type) in types.enumerate() {
            if !matches!(r#type, None | Some("Exact")) {
                let message = "only Exact is supported; write it, or leave the field out";
                self.unsupported(&list.index(at).field("type"), message);
            }
        }
    }

    fn filters(&mut self, list: &Path, kind: Kind, filters: &[Filter]) {
        self.length(list, filters.len(), MAX_FILTERS);
        for (at, filter) in filters.iter().enumerate() {
            self.filter(&list.index(at), kind, filter);
            let is_ours = MODIFIERS.contains(&filter.r#type.as_str());
            if is_ours && filters[..at].iter().any(|other| other.r#type == filter.r#type) {
                let message = format!("a {} stands before; write one of each type", filter.r#type);
                self.invalid(&list.index(at).field("type"), message);
            }
        }
    }

    fn filter(&mut self, path: &Path, kind: Kind, filter: &Filter) {
        let given = [
            (
                "RequestHeaderModifier",
                "requestHeaderModifier",
                filter.request_header_modifier.is_some(),
            ),
            (
                "ResponseHeaderModifier",
                "responseHeaderModifier",
                filter.response_header_modifier.is_some(),
            ),
            ("RequestRedirect", "requestRedirect", filter.request_redirect.is_some()),
            ("URLRewrite", "urlRewrite", filter.url_rewrite.is_some()),
        ];
        let headers_only = kind == Kind::GRPCRoute;
        let known = given.iter().find(|(r#type, ..)| *r#type == filter.r#type);
        match known {
            None => {
                let names: Vec<_> = given.iter().map(|(name, ..)| *name).collect();
                let names = if headers_only { &names[..2] } else { &names[..] };
                let message = format!("is not supported; write one of {}", names.join(", "));
                self.unsupported(&path.field("type"), message);
            }
            Some((name, ..)) if headers_only && !name.ends_with("HeaderModifier") => {
                self.invalid(&path.field("type"), "is not for a GRPCRoute; write an HTTPRoute");
            }
            Some((name, field, false)) => {
                self.invalid(&path.field(field), format!("is required in a filter of type {name}"));
            }
            Some((_, _, true)) => {}
        }
        for (name, field, is_given) in given {
            if is_given && name != filter.r#type {
                let message =
                    format!("belongs to a filter of type {name}; write a filter of its own");
                self.invalid(&path.field(field), message);
            }
        }
        for (field, rewrite) in [
            ("requestRedirect", filter.request_redirect.as_ref().and_then(|one| one.path.as_ref())),
            ("urlRewrite", filter.url_rewrite.as_ref().and_then(|one| one.path.as_ref())),
        ] {
            if let Some(rewrite) = rewrite {
                self.path_rewrite(&path.field(field).field("path"), rewrite);
            }
        }
    }

    fn path_rewrite(&mut self, path: &Path, rewrite: &PathRewrite) {
        let PathRewrite { r#type, replace_full_path, replace_prefix_match } = rewrite;
        let (full, prefix) = (replace_full_path.is_some(), replace_prefix_match.is_some());
        match (r#type.as_str(), full, prefix) {
            ("ReplaceFullPath", true, false) | ("ReplacePrefixMatch", false, true) => {}
            ("ReplaceFullPath", ..) => {
                self.invalid(path, "write `replaceFullPath`, and nothing else, beside this type");
            }
            ("ReplacePrefixMatch", ..) => {
                self.invalid(
                    path,
                    "write `replacePrefixMatch`, and nothing else, beside this type",
                );
            }
            _ => {
                self.unsupported(&path.field("type"), "write ReplaceFullPath or ReplacePrefixMatch")
            }
        }
    }
}
