//! TrafficPolicy: how calls to one Service are timed, retried, protected and balanced.

use k8s_openapi::NamespaceResourceScope;
use serde::{Deserialize, Serialize};

use super::{Custom, CustomSpec, Duration};

pub type TrafficPolicy = Custom<TrafficPolicySpec>;

impl CustomSpec for TrafficPolicySpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "TrafficPolicy";
    const PLURAL: &'static str = "trafficpolicies";
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    pub target_ref: ServiceRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
}

/// The Service a policy speaks of, in the policy's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceRef {
    pub kind: ServiceKind,
    pub name: String,
}

/// The only kind a [`ServiceRef`] may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    #[default]
    Service,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The whole request, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// One attempt, up to the response head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
    /// A connection on which nothing moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Extra attempts.
    pub attempts: u32,
    /// `connect`, `reset`, `gateway-error` (502, 503, 504), `5xx`, or status codes. See
    /// [`RetryOn::parse`].
    pub on: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// Retries in percent of requests.
    pub percent: u32,
    /// Retries allowed beside the percentage, for Services with little traffic.
    pub min_per_second: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Failures in a row after which an endpoint is ejected.
    pub consecutive_failures: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_for: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancer {
    pub algorithm: Algorithm,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    #[default]
    PeakEwma,
    RoundRobin,
    LeastRequest,
    Random,
}

/// One entry of [`Retries::on`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// The connection was not made. Always retried; saying so changes nothing.
    Connect,
    /// The connection was lost before the response head, or the attempt timed out.
    Reset,
    /// 502, 503 and 504.
    GatewayError,
    /// 500 to 599.
    ServerError,
    /// One status, 400 to 599.
    Status(u16),
}

impl RetryOn {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "connect" => Some(Self::Connect),
            "reset" => Some(Self::Reset),
            "gateway-error" => Some(Self::GatewayError),
            "5xx" => Some(Self::ServerError),
            // Exactly three digits: `u16` alone would take "+503" and "0503".
            code if code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) => {
                code.parse().ok().filter(|code| (400..=599).contains(code)).map(Self::Status)
            }
            _ => None,
        }
    }
}
