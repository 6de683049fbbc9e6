//! TrafficPolicy: how calls to one Service are timed, retried, protected and balanced.

use std::ops::RangeInclusive;

use k8s_openapi::NamespaceResourceScope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::definition::Column;
use super::schema::{
    DurationRange, duration, items, label, list_set, not_longer, number, rule, set,
};
use super::{Custom, CustomSpec, Duration};

pub type TrafficPolicy = Custom<TrafficPolicySpec>;

pub(crate) const REQUEST_TIMEOUT: DurationRange = ("1ms", "24h");
pub(crate) const PER_TRY_TIMEOUT: DurationRange = ("1ms", "24h");
pub(crate) const CONNECT_TIMEOUT: DurationRange = ("1ms", "1m");
pub(crate) const IDLE_TIMEOUT: DurationRange = ("1s", "24h");
pub(crate) const ATTEMPTS: RangeInclusive<u32> = 0..=10;
pub(crate) const MAX_RETRY_ON: usize = 64;
pub(crate) const BUDGET_PERCENT: RangeInclusive<u32> = 0..=100;
pub(crate) const BUDGET_MIN_PER_SECOND: RangeInclusive<u32> = 0..=1_000;
pub(crate) const BACKOFF_BASE: DurationRange = ("1ms", "10s");
pub(crate) const BACKOFF_MAX: DurationRange = ("1ms", "1m");
pub(crate) const CONSECUTIVE_FAILURES: RangeInclusive<u32> = 1..=1_000;
pub(crate) const OPEN_FOR: DurationRange = ("100ms", "1h");
pub(crate) const MAX_EJECTED_PERCENT: RangeInclusive<u32> = 1..=50;

impl CustomSpec for TrafficPolicySpec {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "TrafficPolicy";
    const PLURAL: &'static str = "trafficpolicies";
    const SHORT_NAMES: &'static [&'static str] = &["tp"];
    const ABOUT: &'static str = "Says how calls to one Service are timed, retried, protected and \
                                 balanced. The calling side's proxies enforce it.";
    const COLUMNS: &'static [Column] =
        &[Column::text("Service", ".spec.targetRef.name", "The Service whose callers it binds.")];
}

/// Which calls, and how they are made. At least one part beside `targetRef` is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = rule(
    "has(self.timeouts) || has(self.retries) || has(self.circuitBreaker) || has(self.loadBalancer)",
    "says nothing; write timeouts, retries, circuitBreaker or loadBalancer",
))]
pub struct TrafficPolicySpec {
    /// The Service whose callers the policy binds.
    pub target_ref: ServiceRef,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is tried again. Absent: only what is provably unprocessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// When an endpoint is left alone for a while. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Which endpoint gets a call. Absent: `peakEwma`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
}

/// The Service a policy speaks of, in the policy's own namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceRef {
    /// What is spoken of.
    pub kind: ServiceKind,
    /// Name of the Service.
    #[schemars(transform = label)]
    pub name: String,
}

/// The only kind a [`ServiceRef`] may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceKind {
    /// A Service of the policy's own namespace.
    #[default]
    Service,
}

/// How long things may take. Durations are whole numbers with their units: `250ms`, `2s`, `1h30m`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = not_longer("perTry", "request"))]
pub struct Timeouts {
    /// The whole request, from its head to the answer's last byte, retries included. Absent: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = duration(REQUEST_TIMEOUT))]
    pub request: Option<Duration>,
    /// One attempt, up to the response's head. Not longer than `request`. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = duration(PER_TRY_TIMEOUT))]
    pub per_try: Option<Duration>,
    /// Until a TCP connection is made. Absent: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = duration(CONNECT_TIMEOUT))]
    pub connect: Option<Duration>,
    /// Nothing moves on an opaque connection, or on a response that is awaited or under way.
    /// Absent: 1h for opaque connections, no limit for requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = duration(IDLE_TIMEOUT))]
    pub idle: Option<Duration>,
}

/// What is tried again, beside what is provably unprocessed: requests that are idempotent or carry
/// an `Idempotency-Key`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Extra attempts.
    #[schemars(transform = number(&ATTEMPTS))]
    pub attempts: u32,
    // Not `on`: YAML 1.1, which kubectl reads, takes that for a boolean.
    /// What is retried: `connect`, `reset`, `gateway-error` (502, 503, 504), `5xx`, or status codes
    /// from `400` to `599`.
    #[schemars(
        length(min = 1, max = MAX_RETRY_ON),
        transform = list_set,
        transform = items(retry_on)
    )]
    pub when: Vec<String>,
    /// How many retries there may be, of all requests together.
    #[serde(default)]
    pub budget: Budget,
    /// How long to wait before a retry: a random time up to `base`, doubled each time.
    #[serde(default)]
    pub backoff: Backoff,
}

/// What [`RetryOn::parse`] takes.
fn retry_on(schema: &mut schemars::Schema) {
    let pattern = "^(connect|reset|gateway-error|5xx|[45][0-9][0-9])$";
    set(schema, serde_json::json!({ "maxLength": 13, "pattern": pattern }));
}

/// Retries stop where they would only add to an overload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = rule(
    "self.percent > 0 || self.minPerSecond > 0",
    "allows no retry at all; raise percent or minPerSecond, or remove `retries`",
))]
pub struct Budget {
    /// Retries in percent of the requests.
    #[schemars(transform = number(&BUDGET_PERCENT))]
    pub percent: u32,
    /// Retries allowed beside the percentage, for Services with little traffic.
    #[schemars(transform = number(&BUDGET_MIN_PER_SECOND))]
    pub min_per_second: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}

/// A growing, random delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = not_longer("base", "max"))]
pub struct Backoff {
    /// Before the first retry, at most. Not longer than `max`.
    #[schemars(transform = duration(BACKOFF_BASE))]
    pub base: Duration,
    /// Before any retry, at most.
    #[schemars(transform = duration(BACKOFF_MAX))]
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(1_000) }
    }
}

/// An endpoint that fails is ejected: left alone for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Failures in a row (5xx answers and lost connections) after which an endpoint is ejected.
    #[schemars(transform = number(&CONSECUTIVE_FAILURES))]
    pub consecutive_failures: u32,
    /// For how long.
    #[serde(default = "default_open_for")]
    #[schemars(transform = duration(OPEN_FOR))]
    pub open_for: Duration,
    /// Never more of the endpoints than this, in percent, at once.
    #[serde(default = "default_max_ejected_percent")]
    #[schemars(transform = number(&MAX_EJECTED_PERCENT))]
    pub max_ejected_percent: u32,
}

fn default_open_for() -> Duration {
    Duration::from_millis(30_000)
}

fn default_max_ejected_percent() -> u32 {
    50
}

/// Which endpoint gets a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancer {
    /// How the endpoint is chosen.
    pub algorithm: Algorithm,
}

/// How the endpoint is chosen among those of equal preference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// Of two random endpoints the one with less latency × requests in flight.
    #[default]
    PeakEwma,
    /// In turn.
    RoundRobin,
    /// Of two random endpoints the one with fewer requests in flight.
    LeastRequest,
    /// Any.
    Random,
}

/// One entry of [`Retries::when`].
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
