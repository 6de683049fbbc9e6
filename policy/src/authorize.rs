//! Whether a caller may reach a port, and whether a request may pass.
//!
//! Absence means deny: a policy that is missing, a mode that is unspecified, a source list that is
//! empty. Deny rules are looked at before Allow rules. An Allow rule that selects a port makes that
//! port deny-by-default; Deny rules alone do not.

use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::identity::{SpiffeId, is_label, is_subdomain};
use heddle_api::proto::v1;

use crate::path::{PathMatch, is_ambiguous};
use crate::split::port;
use crate::{Invalid, path};

/// What one pod's proxy enforces on traffic to its application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPolicy {
    /// `namespace/name` of the pod.
    pub pod: Arc<str>,
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the owning workload, for telemetry.
    pub workload: Arc<str>,
    /// The pod's own addresses; nothing else is dialled for the application.
    pub addresses: Box<[IpAddr]>,
    ports: Box<[InboundPort]>,
    default_tls: TlsMode,
    default_authorization: DefaultAuthorization,
    rules: Box<[Rule]>,
}

/// What is declared about one port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct InboundPort {
    port: u16,
    protocol: v1::Protocol,
    tls: Option<TlsMode>,
}

/// Whether plaintext may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Mesh TLS only.
    Strict,
    /// Mesh TLS or anything else.
    Permissive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DefaultAuthorization {
    AllowAuthenticated,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    name: Arc<str>,
    allow: bool,
    from: Box<[Source]>,
    to: Box<[Target]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Anyone,
    Namespace(Box<str>),
    ServiceAccount { namespace: Box<str>, name: Box<str> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    ports: Box<[u16]>,
    methods: Box<[Box<str>]>,
    paths: Box<[PathMatch]>,
}

/// The parts of an HTTP request that rules speak of.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// As received.
    pub method: &'a str,
    /// As received and as forwarded, without the query.
    pub path: &'a str,
}

/// A caller at a port. `peer` is the identity its certificate proved, `None` for plaintext.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Proved identity.
    pub peer: Option<&'a SpiffeId>,
    /// The application's port.
    pub port: u16,
}

/// The outcome, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed by the named rule, or by the default when `None`.
    Allow(Option<Arc<str>>),
    /// Refused.
    Deny(Denial),
}

/// Why a caller is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The port is Strict and the caller came without mesh TLS.
    Plaintext,
    /// The named Deny rule matched.
    Rule(Arc<str>),
    /// Allow rules select the port and none matched.
    NoRuleMatched,
    /// No Allow rule selects the port and the default refuses.
    Default,
    /// The port has path rules and the path can be read in two ways.
    AmbiguousPath,
}

impl Decision {
    /// True when the caller may go on.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl InboundPolicy {
    /// Whether plaintext may come in on `port`.
    #[must_use]
    pub fn tls_mode(&self, port: u16) -> TlsMode {
        self.find_port(port).and_then(|p| p.tls).unwrap_or(self.default_tls)
    }

    /// The protocol declared for `port`; `Unspecified` when it is to be detected.
    #[must_use]
    pub fn protocol(&self, port: u16) -> v1::Protocol {
        self.find_port(port).map_or(v1::Protocol::Unspecified, |p| p.protocol)
    }

    fn find_port(&self, port: u16) -> Option<&InboundPort> {
        self.ports.iter().find(|p| p.port == port)
    }

    /// Decides before a connection's bytes are looked at, from identity and port alone: only what
    /// holds for every request and every protocol is refused here.
    #[must_use]
    pub fn authorize_connection(&self, caller: Caller<'_>) -> Decision {
        if caller.peer.is_none() && self.tls_mode(caller.port) == TlsMode::Strict {
            return Decision::Deny(Denial::Plaintext);
        }
        Decision::Allow(None)
    }

    /// Decides one opaque connection. HTTP fields of Allow rules never match it; Deny rules match it
    /// regardless of theirs, because nobody can show that it does not carry that request.
    #[must_use]
    pub fn authorize_opaque(&self, caller: Caller<'_>) -> Decision {
        self.decide(caller, None)
    }

    /// Decides one HTTP request.
    #[must_use]
    pub fn authorize_request(&self, caller: Caller<'_>, request: Request<'_>) -> Decision {
        self.decide(caller, Some(request))
    }

    fn decide(&self, caller: Caller<'_>, request: Option<Request<'_>>) -> Decision {
        if let Decision::Deny(denial) = self.authorize_connection(caller) {
            return Decision::Deny(denial);
        }
        if self.rules.is_empty() {
            return self.decide_by_default(caller);
        }
        if let Some(request) = request
            && self.has_path_rules(caller.port)
            && is_ambiguous(request.path)
        {
            return Decision::Deny(Denial::AmbiguousPath);
        }
        let mut port_has_allow = false;
        let mut allowed_by = None;
        for rule in &self.rules {
            if rule.allow {
                port_has_allow |= rule.selects_port(caller.port);
            }
            if rule.matches(caller, request) {
                if !rule.allow {
                    return Decision::Deny(Denial::Rule(rule.name.clone()));
                }
                allowed_by.get_or_insert_with(|| rule.name.clone());
            }
        }
        match allowed_by {
            Some(rule) => Decision::Allow(Some(rule)),
            None if port_has_allow => Decision::Deny(Denial::NoRuleMatched),
            None => self.decide_by_default(caller),
        }
    }

    fn decide_by_default(&self, caller: Caller<'_>) -> Decision {
        match (self.default_authorization, caller.peer) {
            (DefaultAuthorization::AllowAuthenticated, Some(_)) => Decision::Allow(None),
            // authorize_connection refused plaintext on Strict ports already: this one is Permissive,
            // and no Allow rule selects it.
            (DefaultAuthorization::AllowAuthenticated, None) => Decision::Allow(None),
            (DefaultAuthorization::Deny, _) => Decision::Deny(Denial::Default),
        }
    }

    fn has_path_rules(&self, port: u16) -> bool {
        self.rules
            .iter()
            .flat_map(|rule| &rule.to)
            .any(|target| target.selects_port(port) && !target.paths.is_empty())
    }
}

impl Rule {
    fn selects_port(&self, port: u16) -> bool {
        self.to.is_empty() || self.to.iter().any(|target| target.selects_port(port))
    }

    fn matches(&self, caller: Caller<'_>, request: Option<Request<'_>>) -> bool {
        self.from.iter().any(|source| source.matches(caller.peer))
            && (self.to.is_empty()
                || self.to.iter().any(|target| {
                    target.selects_port(caller.port)
                        && match request {
                            Some(request) => target.matches(request),
                            None => !self.allow || !target.speaks_of_http(),
                        }
                }))
    }
}

impl Source {
    fn matches(&self, peer: Option<&SpiffeId>) -> bool {
        match (self, peer) {
            (Self::Anyone, _) => true,
            (_, None) => false,
            (Self::Namespace(namespace), Some(peer)) => peer.namespace() == &**namespace,
            (Self::ServiceAccount { namespace, name }, Some(peer)) => {
                peer.namespace() == &**namespace && peer.service_account() == &**name
            }
        }
    }
}

impl Target {
    fn selects_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }

    fn speaks_of_http(&self) -> bool {
        !self.methods.is_empty() || !self.paths.is_empty()
    }

    fn matches(&self, request: Request<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| &**m == request.method))
            && (self.paths.is_empty() || self.paths.iter().any(|p| p.matches(request.path)))
    }
}

impl TryFrom<v1::InboundPolicy> for InboundPolicy {
    type Error = Invalid;

    fn try_from(policy: v1::InboundPolicy) -> Result<Self, Invalid> {
        let default_tls = tls_mode(policy.default_tls())
            .ok_or_else(|| Invalid::value("default_tls", "give Strict or Permissive"))?;
        let default_authorization = match policy.default_authorization() {
            v1::DefaultAuthorization::AllowAuthenticated => {
                DefaultAuthorization::AllowAuthenticated
            }
            v1::DefaultAuthorization::Deny | v1::DefaultAuthorization::Unspecified => {
                DefaultAuthorization::Deny
            }
        };
        let addresses = policy
            .addresses
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|_| Invalid::value("addresses", "IP addresses"))?;
        let ports = policy
            .ports
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                let number = port(entry.port).ok_or_else(|| {
                    Invalid::value(format!("ports[{index}].port"), "a port is 1 to 65535")
                })?;
                Ok(InboundPort {
                    port: number,
                    protocol: entry.protocol(),
                    tls: tls_mode(entry.tls()),
                })
            })
            .collect::<Result<_, Invalid>>()?;
        let rules = policy
            .authorizations
            .into_iter()
            .enumerate()
            .map(|(index, rule)| {
                Rule::try_from(rule).map_err(|error| Invalid {
                    path: format!("authorizations[{index}].{}", error.path),
                    ..error
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            pod: format!("{}/{}", policy.namespace, policy.pod).into(),
            namespace: policy.namespace.into(),
            workload: policy.workload.into(),
            addresses,
            ports,
            default_tls,
            default_authorization,
            rules,
        })
    }
}

fn tls_mode(mode: v1::TlsMode) -> Option<TlsMode> {
    match mode {
        v1::TlsMode::Unspecified => None,
        v1::TlsMode::Strict => Some(TlsMode::Strict),
        v1::TlsMode::Permissive => Some(TlsMode::Permissive),
    }
}

impl TryFrom<v1::Authorization> for Rule {
    type Error = Invalid;

    fn try_from(rule: v1::Authorization) -> Result<Self, Invalid> {
        let allow = match rule.action() {
            v1::Action::Allow => true,
            v1::Action::Deny => false,
            v1::Action::Unspecified => {
                return Err(Invalid::value("action", "give Allow or Deny"));
            }
        };
        let from = rule
            .from
            .into_iter()
            .enumerate()
            .map(|(index, source)| source_of(source, index))
            .collect::<Result<_, _>>()?;
        let to = rule
            .to
            .into_iter()
            .enumerate()
            .map(|(index, target)| target_of(target, index))
            .collect::<Result<_, _>>()?;
        Ok(Self { name: rule.name.into(), allow, from, to })
    }
}

fn source_of(source: v1::Source, index: usize) -> Result<Source, Invalid> {
    let v1::Source { anyone, namespace, service_account } = source;
    let invalid = |message| Err(Invalid::value(format!("from[{index}]"), message));
    match (anyone, namespace.as_str(), service_account.as_str()) {
        (true, "", "") => Ok(Source::Anyone),
        (false, ns, "") if is_label(ns) => Ok(Source::Namespace(ns.into())),
        (false, ns, sa) if is_label(ns) && is_subdomain(sa) => {
            Ok(Source::ServiceAccount { namespace: ns.into(), name: sa.into() })
        }
        (true, _, _) => invalid("`anyone` stands alone"),
        (false, _, _) => invalid("give a namespace, or a namespace and a service account"),
    }
}

fn target_of(target: v1::Target, index: usize) -> Result<Target, Invalid> {
    let at = |field: &str| format!("to[{index}].{field}");
    let ports = target
        .ports
        .iter()
        .map(|number| port(*number))
        .collect::<Option<_>>()
        .ok_or_else(|| Invalid::value(at("ports"), "ports are 1 to 65535"))?;
    let paths = target
        .paths
        .into_iter()
        .map(path::PathMatch::try_from)
        .collect::<Result<_, _>>()
        .map_err(|error| Invalid { path: at("paths"), ..error })?;
    let methods = target.methods.into_iter().map(String::into_boxed_str).collect();
    Ok(Target { ports, methods, paths })
}

#[cfg(test)]
mod tests;
