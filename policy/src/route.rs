//! Routes: which rule of a Service's port a request follows, and which backend is drawn for it.
//!
//! Owns the precedence of Gateway API's `HTTPRouteRule.matches`: an exact path, then the longest
//! prefix, then a method, then the number of headers, then of query parameters, then the order of the
//! list. A path is matched byte for byte as it was received and is forwarded: an encoded slash or a
//! dot segment is neither decoded nor resolved, for that would judge another path than the called
//! application sees. A route is no authorization; the called side's policy refuses ambiguous paths
//! where it judges them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use heddle_api::proto::v1;

use crate::Invalid;
use crate::retry::TrafficPolicy;
use crate::split::{MAX_WEIGHT, Weights, port};

mod edit;
mod matching;
mod target;

pub use edit::{HeaderEdit, is_protected};
pub use matching::{Fields, Request};
pub use target::{Called, DotSegment, PathRewrite, Redirect};

use edit::Edits;
use matching::Matcher;

/// Most rules of one port.
pub const MAX_RULES: usize = 1024;
/// Most matches of one port, all rules together: a request may be held against every one.
pub const MAX_MATCHES: usize = 4096;
/// Most backends of one rule.
pub const MAX_BACKENDS: usize = 64;
/// Longest name of a rule, that of its object included, in bytes.
const MAX_NAME: usize = 1024;

/// The rules of one port of a Service, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTable {
    rules: Box<[Rule]>,
    /// Every match of every rule, the most specific first.
    order: Box<[Candidate]>,
}

/// One way to come to a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    /// Index in [`RouteTable::rules`].
    rule: usize,
    matcher: Matcher,
}

/// What is done with the requests that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `kind/namespace/name[rule]`, for telemetry, logs and answers.
    pub name: Arc<str>,
    /// Filters of the rule alone, for what is answered before a backend is drawn.
    pub changes: Arc<Changes>,
    backends: Box<[RouteBackend]>,
    weights: Weights,
    request_timeout: Timeout,
    backend_timeout: Timeout,
}

/// A weighted target of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteBackend {
    /// `namespace/name` of the Service.
    pub service: Arc<str>,
    /// The Service's own port; 0 for an invalid reference.
    pub port: u16,
    /// Share, relative to the other backends' weights.
    pub weight: u32,
    /// Only these pods (`namespace/name`) of the Service; `None` means all of them.
    pub subset: Option<HashSet<Arc<str>>>,
    /// The reference does not resolve: its share is answered 500.
    pub invalid: bool,
    /// Filters of the rule and of the backend, as one.
    pub changes: Arc<Changes>,
}

/// What filters make of a request and its response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the request's header.
    pub request: Box<[HeaderEdit]>,
    /// In the header of the final response.
    pub response: Box<[HeaderEdit]>,
    /// In place of the request's host.
    pub host: Option<Box<str>>,
    /// In place of the request's path.
    pub path: Option<PathRewrite>,
    /// The answer, in place of a backend's.
    pub redirect: Option<Redirect>,
}

impl Changes {
    /// True when a request goes on exactly as it came.
    #[must_use]
    pub fn keep_request(&self) -> bool {
        self.request.is_empty() && self.host.is_none() && self.path.is_none()
    }
}

/// A route's word about a timeout of the TrafficPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timeout {
    /// The policy's holds.
    Inherited,
    /// In its place; `None` is no limit.
    Set(Option<Duration>),
}

impl Timeout {
    fn new(ms: Option<u64>) -> Self {
        match ms {
            None => Self::Inherited,
            Some(0) => Self::Set(None),
            Some(ms) => Self::Set(Some(Duration::from_millis(ms))),
        }
    }
}

/// The rule that a request follows, and which of its matches made it so.
#[derive(Debug, Clone, Copy)]
pub struct Followed<'t> {
    /// Index of the rule.
    pub index: usize,
    /// The rule.
    pub rule: &'t Rule,
    matcher: &'t Matcher,
}

impl Followed<'_> {
    /// The path that goes on in place of `path`; as it is when it has no segments (`*`).
    ///
    /// # Errors
    /// What would be appended to another prefix walks out of it again.
    pub fn rewrite(&self, rewrite: &PathRewrite, path: &str) -> Result<String, DotSegment> {
        rewrite.apply(path, self.matcher.prefix())
    }

    /// The value of `location` that `redirect` answers with.
    ///
    /// # Errors
    /// As [`Followed::rewrite`].
    pub fn location(&self, redirect: &Redirect, called: &Called<'_>) -> Result<String, DotSegment> {
        redirect.location(called, self.matcher.prefix())
    }
}

/// Says which rule and why that one, for explanations.
impl fmt::Display for Followed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.rule.name, self.matcher)
    }
}

/// What a rule does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course<'r> {
    /// It is answered, with this and what the filters make of the answer's header.
    Redirect(&'r Redirect, &'r [HeaderEdit]),
    /// It goes to the backend with this index.
    Backend(usize),
    /// The backend with this index was drawn, and its reference does not resolve.
    Invalid(usize),
    /// There is no backend to draw.
    NoBackend,
}

impl Rule {
    /// The backends in the order the rule lists them.
    #[must_use]
    pub fn backends(&self) -> &[RouteBackend] {
        &self.backends
    }

    /// Draws what becomes of one request, with `random` uniform over all of `u64`. To be done once
    /// per request, and kept across its retries.
    #[must_use]
    pub fn draw(&self, random: u64) -> Course<'_> {
        if let Some(redirect) = &self.changes.redirect {
            return Course::Redirect(redirect, &self.changes.response);
        }
        let index = self.weights.draw(random);
        match self.backends.get(index) {
            None => Course::NoBackend,
            Some(backend) if backend.invalid => Course::Invalid(index),
            Some(backend) => match &backend.changes.redirect {
                Some(redirect) => Course::Redirect(redirect, &backend.changes.response),
                None => Course::Backend(index),
            },
        }
    }

    /// A backend's policy with the rule's timeouts in place of its own.
    #[must_use]
    pub fn overlay(&self, policy: &Arc<TrafficPolicy>) -> Arc<TrafficPolicy> {
        if (self.request_timeout, self.backend_timeout) == (Timeout::Inherited, Timeout::Inherited)
        {
            return policy.clone();
        }
        let mut policy = TrafficPolicy::clone(policy);
        if let Timeout::Set(limit) = self.request_timeout {
            policy.request_timeout = limit;
        }
        if let Timeout::Set(limit) = self.backend_timeout {
            // Gateway API counts to the response's last byte, a TrafficPolicy to its head.
            policy.per_try_timeout = None;
            policy.attempt_timeout = limit;
        }
        Arc::new(policy)
    }
}

impl RouteTable {
    /// The rules in the order the resource lists them.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule that `request` follows; `None` when it follows none. Allocates nothing.
    #[must_use]
    pub fn find<F: Fields>(&self, request: &Request<'_, F>) -> Option<Followed<'_>> {
        let found = self.order.iter().find(|candidate| candidate.matcher.matches(request))?;
        let rule = &self.rules[found.rule];
        Some(Followed { index: found.rule, rule, matcher: &found.matcher })
    }
}

impl TryFrom<v1::Route> for RouteTable {
    type Error = Invalid;

    fn try_from(route: v1::Route) -> Result<Self, Invalid> {
        if route.rules.len() > MAX_RULES {
            return Err(Invalid::value("rules", format!("at most {MAX_RULES} rules")));
        }
        let mut rules = Vec::with_capacity(route.rules.len());
        let mut order = Vec::new();
        for (index, rule) in route.rules.into_iter().enumerate() {
            let (rule, matchers) =
                parse_rule(rule).map_err(|invalid| invalid.within(&format!("rules[{index}]")))?;
            order.extend(matchers.into_iter().map(|matcher| Candidate { rule: index, matcher }));
            if order.len() > MAX_MATCHES {
                let message = format!("at most {MAX_MATCHES} matches, all rules together");
                return Err(Invalid::value(format!("rules[{index}].matches"), message));
            }
            rules.push(rule);
        }
        // Stable: among equals the order of the list decides.
        order.sort_by_key(|candidate| std::cmp::Reverse(candidate.matcher.specificity()));
        Ok(Self { rules: rules.into(), order: order.into() })
    }
}

/// Whether a proxy would take the rule, for whoever makes one: a rule that is not acceptable makes
/// the whole Route of its port unacceptable.
///
/// # Errors
/// It would not; the path is that of the field within the rule.
pub fn check(rule: v1::RouteRule) -> Result<(), Invalid> {
    parse_rule(rule).map(drop)
}

fn parse_rule(rule: v1::RouteRule) -> Result<(Rule, Vec<Matcher>), Invalid> {
    let name = format!("{}[{}]", rule.source, rule.name);
    if rule.source.is_empty() || name.len() > MAX_NAME {
        let message = format!("name the object, in at most {MAX_NAME} bytes");
        return Err(Invalid::value("source", message));
    }
    let matchers = if rule.matches.is_empty() {
        vec![Matcher::everything()]
    } else {
        let matches = rule.matches.into_iter().enumerate();
        matches
            .map(|(index, matched)| {
                Matcher::try_from(matched)
                    .map_err(|invalid| invalid.within(&format!("matches[{index}]")))
            })
            .collect::<Result<_, _>>()?
    };
    let edits = Edits::parse(rule.filters, "filters")?;
    if edits.redirect.is_some() && !rule.backends.is_empty() {
        return Err(Invalid::value("backends", "a rule that redirects has no backends"));
    }
    let backends = parse_backends(rule.backends, &edits)?;
    let changes = Arc::new(edits.into_changes());
    for changes in backends.iter().map(|backend| &backend.changes).chain([&changes]) {
        check_changes(changes, &matchers)?;
    }
    let weights = Weights::new(backends.iter().map(|backend| backend.weight));
    let rule = Rule {
        name: name.into(),
        changes,
        backends,
        weights,
        request_timeout: Timeout::new(rule.request_timeout_ms),
        backend_timeout: Timeout::new(rule.backend_timeout_ms),
    };
    Ok((rule, matchers))
}

/// What can only be seen with all filters and matches of a rule in hand.
fn check_changes(changes: &Changes, matchers: &[Matcher]) -> Result<(), Invalid> {
    let location = changes.redirect.as_ref().and_then(Redirect::path);
    let needs_prefix = [changes.path.as_ref(), location].into_iter().flatten();
    if needs_prefix.into_iter().any(PathRewrite::needs_prefix)
        && matchers.iter().any(|matcher| matcher.prefix().is_none())
    {
        let message = "the rule replaces the matched prefix: match prefixes alone";
        return Err(Invalid::value("matches", message));
    }
    if changes.redirect.is_some() && changes.response.iter().any(|edit| &*edit.name == "location") {
        let message = "`location` is what the redirect says: leave it out of the response's header";
        return Err(Invalid::value("filters", message));
    }
    Ok(())
}

fn parse_backends(
    backends: Vec<v1::RouteBackend>,
    rule: &Edits,
) -> Result<Box<[RouteBackend]>, Invalid> {
    if backends.len() > MAX_BACKENDS {
        return Err(Invalid::value("backends", format!("at most {MAX_BACKENDS} backends")));
    }
    let parse = |(index, backend): (usize, v1::RouteBackend)| {
        let at = |field: &str| format!("backends[{index}].{field}");
        if backend.weight > MAX_WEIGHT {
            return Err(Invalid::value(at("weight"), format!("0 to {MAX_WEIGHT}")));
        }
        if backend.service.is_empty() && !backend.invalid {
            return Err(Invalid::value(at("service"), "name a Service"));
        }
        let number = port(backend.port);
        if number.is_none() && !backend.invalid {
            return Err(Invalid::value(at("port"), "ports are 1 to 65535"));
        }
        let own = Edits::parse(backend.filters, &at("filters"))?;
        Ok(RouteBackend {
            service: backend.service.into(),
            port: number.unwrap_or(0),
            weight: backend.weight,
            subset: backend.has_subset.then(|| backend.subset.into_iter().map(Arc::from).collect()),
            invalid: backend.invalid,
            changes: Arc::new(rule.then(own)),
        })
    };
    backends.into_iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests;
