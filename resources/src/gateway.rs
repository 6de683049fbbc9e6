//! HTTPRoute and GRPCRoute of the Gateway API (`gateway.networking.k8s.io/v1`), as far as we enforce
//! them.
//!
//! A type here holds only what proxies do. Every other field that was written is remembered by its
//! path in [`Route::unknown`], whether it is experimental, newer than this code, or misspelt: the API
//! server keeps whatever its CRD knows, and a field that is passed over in silence is a rule that
//! does not do what it says. [`problems`] says what is to be written instead.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use serde::{Deserialize, Deserializer};

use crate::crd::Duration;
use crate::kinds::{Kind, Object};
use crate::path::Path;
use crate::reader::ignored;

mod problems;

pub use problems::{Degree, Problem, is_known_to_gateway_api, problems};

/// Group and version of the routes.
pub const API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// Group of a reference that names none.
pub const GROUP: &str = "gateway.networking.k8s.io";

pub type HTTPRoute = Route<HttpSpec>;
pub type GRPCRoute = Route<GrpcSpec>;

/// A route as it was written. Its status is its writers' own business and not read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Route<S> {
    pub metadata: ObjectMeta,
    pub spec: S,
    /// Fields of the spec that are written and not enforced.
    pub unknown: Vec<Path>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSpec {
    pub hostnames: Vec<String>,
    pub parent_refs: Vec<ParentRef>,
    pub rules: Vec<HttpRule>,
}

impl Default for HttpSpec {
    /// A route without rules is one rule that matches everything (and has no backend), as the API
    /// server has it.
    fn default() -> Self {
        Self { hostnames: Vec::new(), parent_refs: Vec::new(), rules: vec![HttpRule::default()] }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcSpec {
    pub hostnames: Vec<String>,
    pub parent_refs: Vec<ParentRef>,
    pub rules: Vec<GrpcRule>,
}

/// What the route is attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    pub section_name: Option<String>,
}

impl ParentRef {
    /// True for a Service. Every other parent is another controller's.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.group.as_deref() == Some("") && self.kind.as_deref() == Some("Service")
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    pub name: Option<String>,
    pub matches: Vec<HttpMatch>,
    pub filters: Vec<Filter>,
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Option<Timeouts>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    pub name: Option<String>,
    pub matches: Vec<GrpcMatch>,
    pub filters: Vec<Filter>,
    pub backend_refs: Vec<BackendRef>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    pub method: Option<String>,
    pub headers: Vec<ValueMatch>,
    pub query_params: Vec<ValueMatch>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PathMatch {
    /// `PathPrefix` when absent.
    pub r#type: Option<String>,
    /// `/` when absent.
    pub value: Option<String>,
}

/// A header's or a query parameter's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct ValueMatch {
    /// `Exact` when absent.
    pub r#type: Option<String>,
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMatch {
    pub method: Option<MethodMatch>,
    pub headers: Vec<ValueMatch>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct MethodMatch {
    /// `Exact` when absent.
    pub r#type: Option<String>,
    pub service: Option<String>,
    pub method: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    pub r#type: String,
    pub request_header_modifier: Option<HeaderModifier>,
    pub response_header_modifier: Option<HeaderModifier>,
    pub request_redirect: Option<Redirect>,
    pub url_rewrite: Option<Rewrite>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderModifier {
    pub set: Vec<Header>,
    pub add: Vec<Header>,
    pub remove: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub hostname: Option<String>,
    pub path: Option<PathRewrite>,
    pub port: Option<u16>,
    /// 302 when absent.
    pub status_code: Option<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rewrite {
    pub hostname: Option<String>,
    pub path: Option<PathRewrite>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathRewrite {
    pub r#type: String,
    pub replace_full_path: Option<String>,
    pub replace_prefix_match: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct BackendRef {
    /// The core group when absent.
    pub group: Option<String>,
    /// `Service` when absent.
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    /// 1 when absent.
    pub weight: Option<u32>,
    #[serde(default)]
    pub filters: Vec<Filter>,
}

impl BackendRef {
    #[must_use]
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or_default()
    }

    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("Service")
    }

    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// 0 is no limit.
    pub request: Option<Duration>,
    /// 0 is no limit.
    pub backend_request: Option<Duration>,
}

/// A route of either kind.
#[derive(Debug, Clone)]
pub struct AnyRoute<'a> {
    pub kind: Kind,
    pub metadata: &'a ObjectMeta,
    pub hostnames: &'a [String],
    pub parent_refs: &'a [ParentRef],
    pub rules: Vec<AnyRule<'a>>,
    pub unknown: &'a [Path],
}

/// A rule of either kind.
#[derive(Debug, Clone, Copy)]
pub struct AnyRule<'a> {
    pub name: Option<&'a str>,
    pub matches: Matches<'a>,
    pub filters: &'a [Filter],
    pub backend_refs: &'a [BackendRef],
    pub timeouts: Option<Timeouts>,
}

impl<'a> From<&'a HttpRule> for AnyRule<'a> {
    fn from(rule: &'a HttpRule) -> Self {
        Self {
            name: rule.name.as_deref(),
            matches: Matches::Http(&rule.matches),
            filters: &rule.filters,
            backend_refs: &rule.backend_refs,
            timeouts: rule.timeouts,
        }
    }
}

impl<'a> From<&'a GrpcRule> for AnyRule<'a> {
    fn from(rule: &'a GrpcRule) -> Self {
        Self {
            name: rule.name.as_deref(),
            matches: Matches::Grpc(&rule.matches),
            filters: &rule.filters,
            backend_refs: &rule.backend_refs,
            timeouts: None,
        }
    }
}

/// What only one kind of route has.
#[derive(Debug, Clone, Copy)]
pub enum Matches<'a> {
    Http(&'a [HttpMatch]),
    Grpc(&'a [GrpcMatch]),
}

impl Matches<'_> {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Http(matches) => matches.len(),
            Self::Grpc(matches) => matches.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Object {
    /// The object as a route, if it is one.
    #[must_use]
    pub fn as_route(&self) -> Option<AnyRoute<'_>> {
        if let Self::HTTPRoute(route) = self {
            return Some(route.view());
        }
        if let Self::GRPCRoute(route) = self { Some(route.view()) } else { None }
    }
}

impl HTTPRoute {
    #[must_use]
    pub fn view(&self) -> AnyRoute<'_> {
        AnyRoute {
            kind: Kind::HTTPRoute,
            metadata: &self.metadata,
            hostnames: &self.spec.hostnames,
            parent_refs: &self.spec.parent_refs,
            rules: self.spec.rules.iter().map(AnyRule::from).collect(),
            unknown: &self.unknown,
        }
    }
}

impl GRPCRoute {
    #[must_use]
    pub fn view(&self) -> AnyRoute<'_> {
        AnyRoute {
            kind: Kind::GRPCRoute,
            metadata: &self.metadata,
            hostnames: &self.spec.hostnames,
            parent_refs: &self.spec.parent_refs,
            rules: self.spec.rules.iter().map(AnyRule::from).collect(),
            unknown: &self.unknown,
        }
    }
}

/// What the API server has to know of the kind.
pub trait RouteSpec {
    const KIND: &'static str;
    /// As in the API's paths and in `kubectl get`.
    const PLURAL: &'static str;
}

impl RouteSpec for HttpSpec {
    const KIND: &'static str = "HTTPRoute";
    const PLURAL: &'static str = "httproutes";
}

impl RouteSpec for GrpcSpec {
    const KIND: &'static str = "GRPCRoute";
    const PLURAL: &'static str = "grpcroutes";
}

impl<S: RouteSpec> Resource for Route<S> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        S::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de, S: Deserialize<'de> + Default> Deserialize<'de> for Route<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// `apiVersion` and `kind` are checked by whoever chose this type.
        #[derive(Deserialize)]
        #[serde(
            rename_all = "camelCase",
            rename = "route",
            bound = "S: Deserialize<'de> + Default"
        )]
        struct Raw<S> {
            #[serde(rename = "apiVersion")]
            _api_version: Option<String>,
            #[serde(rename = "kind")]
            _kind: Option<String>,
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Noted<S>,
        }
        let Raw { metadata, spec, .. } = Raw::<S>::deserialize(deserializer)?;
        Ok(Self { metadata, spec: spec.value, unknown: spec.unknown })
    }
}

/// A value, and the fields of it that its type does not have.
#[derive(Default)]
struct Noted<S> {
    value: S,
    unknown: Vec<Path>,
}

impl<'de, S: Deserialize<'de>> Deserialize<'de> for Noted<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spec = Path::root().field("spec");
        let mut unknown = Vec::new();
        let mut note = |path: serde_ignored::Path<'_>| {
            let below = ignored(&path);
            unknown.push(spec.segments().iter().chain(below.segments()).cloned().collect());
        };
        let value = S::deserialize(serde_ignored::Deserializer::new(deserializer, &mut note))?;
        Ok(Self { value, unknown })
    }
}

#[cfg(test)]
mod tests;
