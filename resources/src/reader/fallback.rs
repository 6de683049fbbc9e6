//! What stands in for a policy that cannot be understood: it denies what it selects, because
//! nothing may widen only because something is missing.

use crate::crd::authorization_policy::{Action, AuthorizationPolicySpec, Rule, Source};
use crate::crd::mesh::{DefaultAuthorization, MeshSpec, Passthrough};
use crate::crd::mesh_tls_policy::MeshTLSPolicySpec;
use crate::crd::{Custom, PodsRef, Selector, TlsMode};

use super::{AuthorizationPolicy, Kind, Mesh, MeshTLSPolicy, Node, Object};

/// The stand-in for a refused object, if its kind restricts anything. `object` is there when it
/// parsed and only a value was refused.
pub(super) fn stand_in(kind: Kind, node: &Node, object: Option<&Object>) -> Option<Object> {
    let metadata = node.field("metadata");
    let text = |name: &str| Some(metadata?.field(name)?.as_str()?.to_owned());
    let metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        name: Some(text("name").unwrap_or_else(|| format!("line-{}", node.line))),
        namespace: text("namespace"),
        uid: text("uid"),
        // As old as what it stands for, which decides between two that contradict.
        creation_timestamp: text("creationTimestamp")
            .and_then(|time| serde_json::from_value(time.into()).ok()),
        ..Default::default()
    };
    let target_ref = PodsRef { selector: selector(node), ..PodsRef::default() };
    let stand_in = match kind {
        Kind::AuthorizationPolicy => {
            let anyone = Source { anyone: Some(true), ..Source::default() };
            let deny = Rule { action: Action::Deny, from: vec![anyone], to: Vec::new() };
            let spec = AuthorizationPolicySpec { target_ref, rules: vec![deny] };
            AuthorizationPolicy { metadata, spec, ..Custom::default() }.into()
        }
        Kind::MeshTLSPolicy => {
            let spec = MeshTLSPolicySpec {
                target_ref: Some(target_ref),
                mode: Some(TlsMode::Strict),
                ports: Vec::new(),
            };
            MeshTLSPolicy { metadata, spec, ..Custom::default() }.into()
        }
        Kind::Mesh => {
            let trust_domain = match object {
                Some(Object::Mesh(mesh)) => mesh.spec.trust_domain.clone(),
                _ => MeshSpec::default().trust_domain,
            };
            let spec = MeshSpec {
                trust_domain,
                authorization: DefaultAuthorization::Deny,
                outbound_passthrough: Passthrough::Deny,
                ..MeshSpec::default()
            };
            Mesh { metadata, spec, ..Custom::default() }.into()
        }
        Kind::Namespace
        | Kind::ServiceAccount
        | Kind::Service
        | Kind::Pod
        | Kind::Deployment
        | Kind::EndpointSlice
        | Kind::HTTPRoute
        | Kind::GRPCRoute
        | Kind::TrafficSplit
        | Kind::TrafficPolicy => return None,
    };
    Some(stand_in)
}

/// The policy's selector as far as it can be read; when it cannot, every pod of the namespace.
fn selector(node: &Node) -> Selector {
    let labels = || {
        let selector = node.field("spec")?.field("targetRef")?.field("selector")?;
        let label = |key| Some((str::to_owned(key), selector.field(key)?.as_str()?.to_owned()));
        selector.keys().map(label).collect::<Option<_>>()
    };
    Selector(labels().unwrap_or_default())
}
