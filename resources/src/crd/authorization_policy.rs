//! AuthorizationPolicy: who may call the selected pods.

use k8s_openapi::NamespaceResourceScope;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::definition::Column;
use super::schema::{items, label, list_atomic, list_set, port, rule, rule_at, set, subdomain};
use super::{Custom, CustomSpec, PodsRef};

pub type AuthorizationPolicy = Custom<AuthorizationPolicySpec>;

/// The API server weighs the rules about paths by how many paths there may be: these bounds keep
/// them within its budget.
pub(crate) const MAX_RULES: usize = 32;
pub(crate) const MAX_SOURCES: usize = 32;
pub(crate) const MAX_TARGETS: usize = 8;
pub(crate) const MAX_PORTS: usize = 32;
pub(crate) const MAX_METHODS: usize = 16;
pub(crate) const MAX_PATHS: usize = 16;
pub(crate) const MAX_PATH_BYTES: usize = 512;
const METHOD: &str = "^[A-Z0-9!#$%&'*+.^_`|~-]{1,32}$";

impl CustomSpec for AuthorizationPolicySpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "AuthorizationPolicy";
    const PLURAL: &'static str = "authorizationpolicies";
    const SHORT_NAMES: &'static [&'static str] = &["authz"];
    const ABOUT: &'static str = "Says who may call the selected pods. Their own proxies decide, by \
                                 the identity that the caller's certificate proves. A matching Deny \
                                 rule refuses; one Allow rule makes its ports deny-by-default.";
    const COLUMNS: &'static [Column] =
        &[Column::text("Pods", ".spec.targetRef.selector", "Labels of the pods that it guards.")];
}

/// Whose callers are judged, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The pods whose callers are judged.
    pub target_ref: PodsRef,
    /// All rules of all policies that select a pod count together; their order means nothing.
    #[schemars(length(min = 1, max = MAX_RULES), transform = list_atomic)]
    pub rules: Vec<Rule>,
}

/// Who may, or may not, call what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What becomes of a request that the rule matches.
    pub action: Action,
    /// Callers. Empty: nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_SOURCES), transform = list_atomic)]
    pub from: Vec<Source>,
    /// Ports and requests. Empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_TARGETS), transform = list_atomic)]
    pub to: Vec<Target>,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Let it in, unless a Deny rule matches too. Whatever no Allow rule matches is then refused on
    /// the rule's ports.
    Allow,
    /// Refuse it.
    #[default]
    Deny,
}

/// Callers: every field that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(
    transform = rule_at(
        ".anyone",
        "!has(self.anyone) || self.anyone",
        "means nothing; remove it, and name a serviceAccount or a namespace",
    ),
    transform = rule_at(
        ".anyone",
        "!has(self.anyone) || !self.anyone || !has(self.serviceAccount) && !has(self.__namespace__)",
        "excludes serviceAccount and namespace; remove it, or remove them",
    ),
    transform = rule(
        "has(self.anyone) || has(self.serviceAccount) || has(self.__namespace__)",
        "names nobody; write `serviceAccount: NAME`, `namespace: NAME`, or `anyone: true`",
    )
)]
pub struct Source {
    /// Name of a service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = subdomain)]
    pub service_account: Option<String>,
    /// Namespace of the service account; without one, every service account of the namespace.
    /// Absent beside a service account: the policy's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = label)]
    pub namespace: Option<String>,
    /// `true`: any caller, authenticated or not. Excludes the other fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anyone: Option<bool>,
}

/// Requests: every list that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = rule(
    "has(self.ports) && self.ports.size() > 0 || has(self.methods) && self.methods.size() > 0 || \
     has(self.paths) && self.paths.size() > 0",
    "names nothing; write ports, methods or paths, or remove `to` to mean everything",
))]
pub struct Target {
    /// The application's ports (the pod's, not the Service's).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORTS), transform = list_set, transform = items(port))]
    pub ports: Vec<u16>,
    /// HTTP methods in upper case: they are compared byte by byte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_METHODS), transform = list_set, transform = items(method))]
    pub methods: Vec<String>,
    /// `/charge` is that path alone; `/api/*` is `/api` and everything below it. The query is not
    /// looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PATHS), transform = list_set, transform = items(path))]
    pub paths: Vec<String>,
}

fn method(schema: &mut Schema) {
    set(schema, json!({ "maxLength": 32, "pattern": METHOD }));
}

/// Requests whose path is ambiguous are refused before rules are asked, so a pattern that only such
/// paths could match is a mistake. The rules are those of `validate`, one for one.
fn path(schema: &mut Schema) {
    set(schema, json!({ "minLength": 1, "maxLength": MAX_PATH_BYTES }));
    for (holds, message) in [
        ("self.startsWith('/')", "write a path that begins with `/`"),
        ("self.matches('^[!-~]*$')", "write printable ASCII; percent-encode everything else"),
        ("!self.matches('[?#]')", "write the path alone, without `?` query or `#` fragment"),
        (r"!self.contains('\\')", r"write `/` between segments, not `\`"),
        (
            "!self.matches('%($|[^0-9A-Fa-f]|.$|.[^0-9A-Fa-f])')",
            "write `%` only before two hexadecimal digits, e.g. %20",
        ),
        (
            "!self.matches('(?i)%(2f|5c|00)')",
            "write the path without %2F, %5C and %00: requests with them are refused",
        ),
        (
            r"!self.matches(r'(?i)%(2[de]|3\d|[46][^0]|[57][\da]|5f|7e)')",
            "write letters, digits, `-`, `.`, `_` and `~` plainly, without `%`",
        ),
        (
            "!self.matches('[*].|[^/][*]')",
            "write `*` only as the last segment: `/api/*` is /api and all below it",
        ),
        ("!self.matches('/[.][.]?(;[^/]*)?(/|$)')", "write the path without `.` and `..` segments"),
        ("!self.contains('//')", "write one `/` between segments, not `//`"),
    ] {
        rule(holds, message)(schema);
    }
}
