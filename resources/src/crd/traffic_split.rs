//! TrafficSplit: the callers of one Service are divided over backends by weight.

use std::ops::RangeInclusive;

use k8s_openapi::NamespaceResourceScope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition::Column;
use super::schema::{label, list_atomic, list_map, number, port, rule, rule_at};
use super::{Custom, CustomSpec, Selector};

pub type TrafficSplit = Custom<TrafficSplitSpec>;

pub(crate) const MAX_BACKENDS: usize = 32;
pub(crate) const WEIGHT: RangeInclusive<u32> = 0..=1_000_000;
pub(crate) const MAX_PORT_MAPPINGS: usize = 16;

impl CustomSpec for TrafficSplitSpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "TrafficSplit";
    const PLURAL: &'static str = "trafficsplits";
    const SHORT_NAMES: &'static [&'static str] = &["ts"];
    const ABOUT: &'static str = "Divides the callers of one Service over several backends, by weight. \
                                 Each request is drawn once, and keeps its backend when it is retried.";
    const COLUMNS: &'static [Column] = &[
        Column::text("Service", ".spec.service", "The Service whose callers are divided."),
        Column::text("Weights", ".status.weights", "Weights in the order of the backends."),
    ];
}

/// Which Service is divided, and over what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = rule_at(
    ".backends",
    "self.backends.all(b, b.service != self.service || has(b.selector))",
    "names the Service that is split, and splits do not nest; name another Service, or add a \
     `selector` to take a subset of its pods",
))]
pub struct TrafficSplitSpec {
    /// The Service whose callers are divided, in the split's own namespace.
    #[schemars(transform = label)]
    pub service: String,
    /// Who gets the calls.
    #[schemars(
        length(min = 1, max = MAX_BACKENDS),
        transform = list_atomic,
        transform = rule(
            "self.size() == 0 || self.exists(b, b.weight > 0)",
            "the weights add up to 0; give at least one backend a weight above 0",
        ),
        transform = rule(
            "self.all(a, self.exists_one(b, a.service == b.service && has(a.selector) == \
             has(b.selector) && (!has(a.selector) || a.selector == b.selector)))",
            "names a backend twice; keep one and add the weights",
        )
    )]
    pub backends: Vec<Backend>,
}

impl TrafficSplitSpec {
    /// The weights in the order of the backends, as people say them: `95/5`.
    #[must_use]
    pub fn weights(&self) -> String {
        let weights: Vec<_> = self.backends.iter().map(|b| b.weight.to_string()).collect();
        weights.join("/")
    }
}

/// A Service, or a subset of its pods, and its share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// A Service of the same namespace.
    #[schemars(transform = label)]
    pub service: String,
    /// Share, relative to the sum of all backends' weights. 0 means nobody, and keeps the line for
    /// later.
    #[schemars(transform = number(&WEIGHT))]
    pub weight: u32,
    /// Only the Service's pods that carry all of these labels, 1 to 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For a backend whose ports have other numbers than the Service's. A port that is not listed
    /// keeps its number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PORT_MAPPINGS), transform = list_map("from"))]
    pub ports: Vec<PortMapping>,
}

/// A port of the Service that was called, and the backend's instead of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Port of the Service that was called.
    #[schemars(transform = port)]
    pub from: u16,
    /// Port of the backend's Service.
    #[schemars(transform = port)]
    pub to: u16,
}
