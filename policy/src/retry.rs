//! Whether a failed attempt may be made again, and the limits a TrafficPolicy sets on time and tries.
//!
//! Without a policy only what is provably unprocessed is tried again. With one, also what is
//! idempotent or carries an Idempotency-Key. Never after a byte of the response went to the client.

use std::sync::Arc;
use std::time::Duration;

use heddle_api::proto::v1;

use crate::Invalid;

/// Extra attempts for provably unprocessed requests when no policy says otherwise.
pub const DEFAULT_ATTEMPTS: u32 = 3;

/// A TrafficPolicy, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// `namespace/name` of the TrafficPolicy; `None` for the built-in default.
    pub source: Option<Arc<str>>,
    /// From the request's head to the response's last byte.
    pub request_timeout: Option<Duration>,
    /// One attempt, to the response's head.
    pub per_try_timeout: Option<Duration>,
    /// One attempt, to the response's last byte: what a route says in place of the one above.
    pub attempt_timeout: Option<Duration>,
    /// TCP connect.
    pub connect_timeout: Duration,
    /// A stream or connection on which nothing moves; `None` means for ever.
    pub idle_timeout: Option<Duration>,
    /// What may be tried again.
    pub retries: Retries,
    /// When an endpoint is ejected; `None` means never.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How an endpoint is picked.
    pub balance: Balance,
}

/// What may be tried again, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Extra attempts for requests that may have been processed; 0 without a policy.
    pub attempts: u32,
    /// Response codes that count as failed.
    pub on_status: Box<[u16]>,
    /// A connection lost before the response head, or a per-try timeout, counts as failed.
    pub on_connection_failure: bool,
    /// Share of requests that may be retried.
    pub budget: Budget,
    /// First delay before a retry of what may have been processed.
    pub backoff_base: Duration,
    /// Longest delay.
    pub backoff_max: Duration,
}

/// Limits retries to a share of the requests, so that they cannot become the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Percent of requests, 0 to 100.
    pub percent: u32,
    /// Allowed beside the share, per second.
    pub min_per_second: u32,
}

/// Ejection of endpoints that fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// How long an ejected endpoint rests.
    pub open_for: Duration,
    /// Share of the endpoints that may be ejected at once, 1 to 50.
    pub max_ejected_percent: u32,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The lower of two by moving-average latency times requests in flight.
    PeakEwma,
    /// In turn.
    RoundRobin,
    /// The lower of two by requests in flight.
    LeastRequest,
    /// Any.
    Random,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection was made: nothing was sent.
    NotConnected,
    /// The other side proved that the application never saw the request: `GOAWAY` below its stream,
    /// `REFUSED_STREAM`, a retired connection, or the inbound proxy's own word over mesh TLS.
    NotProcessed,
    /// The connection was lost, or the per-try timeout passed, after sending and before the response
    /// head. The application may have acted.
    Unknown,
    /// The application answered with this status.
    Status(u16),
}

/// What matters about the request.
#[derive(Debug, Clone, Copy)]
pub struct Attempted {
    /// Extra attempts made already.
    pub retries: u32,
    /// The method is idempotent (RFC 9110, 9.2.2), or the request carries an Idempotency-Key.
    pub idempotent: bool,
    /// The body is still in hand from its first byte.
    pub replayable: bool,
}

/// May it be tried again?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At once, on another endpoint. Costs nothing from the budget: nobody did any work for it.
    Again,
    /// After the backoff, if the budget has room.
    AgainWithinBudget,
    /// No, because.
    No(Refusal),
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Enough attempts were made.
    Exhausted,
    /// The body was sent and not kept.
    BodyGone,
    /// The application may have acted and the request is not idempotent.
    NotIdempotent,
    /// The policy does not name this failure.
    NotRetryable,
}

impl TrafficPolicy {
    /// What holds for a Service that no TrafficPolicy names.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            source: None,
            request_timeout: None,
            per_try_timeout: None,
            attempt_timeout: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: Some(Duration::from_secs(3600)),
            retries: Retries {
                attempts: 0,
                on_status: Box::new([]),
                on_connection_failure: false,
                budget: Budget { percent: 20, min_per_second: 10 },
                backoff_base: Duration::from_millis(25),
                backoff_max: Duration::from_secs(1),
            },
            circuit_breaker: None,
            balance: Balance::PeakEwma,
        }
    }

    /// How long one attempt may take to the response's head.
    #[must_use]
    pub fn head_timeout(&self) -> Option<Duration> {
        self.per_try_timeout.or(self.attempt_timeout)
    }

    /// Decides whether `attempted` may be sent again after `failure`.
    #[must_use]
    pub fn may_retry(&self, failure: Failure, attempted: Attempted) -> Verdict {
        let (limit, verdict) = match failure {
            Failure::NotConnected => (DEFAULT_ATTEMPTS.max(self.retries.attempts), Verdict::Again),
            Failure::NotProcessed => {
                (DEFAULT_ATTEMPTS.max(self.retries.attempts), Verdict::AgainWithinBudget)
            }
            Failure::Unknown if self.retries.on_connection_failure => {
                (self.retries.attempts, Verdict::AgainWithinBudget)
            }
            Failure::Status(status) if self.retries.on_status.contains(&status) => {
                (self.retries.attempts, Verdict::AgainWithinBudget)
            }
            Failure::Unknown | Failure::Status(_) => return Verdict::No(Refusal::NotRetryable),
        };
        let unprocessed = matches!(failure, Failure::NotConnected | Failure::NotProcessed);
        if !unprocessed && !attempted.idempotent {
            Verdict::No(Refusal::NotIdempotent)
        } else if !attempted.replayable {
            Verdict::No(Refusal::BodyGone)
        } else if attempted.retries >= limit {
            Verdict::No(Refusal::Exhausted)
        } else {
            verdict
        }
    }

    /// Delay before extra attempt number `retry` (from 0), with full jitter: `random` in 0..1.
    #[must_use]
    pub fn backoff(&self, retry: u32, random: f64) -> Duration {
        let ceiling = self
            .retries
            .backoff_base
            .saturating_mul(1 << retry.min(16))
            .min(self.retries.backoff_max);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// True for methods that may be repeated (RFC 9110, section 9.2.2).
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

impl TryFrom<v1::Policy> for TrafficPolicy {
    type Error = Invalid;

    fn try_from(policy: v1::Policy) -> Result<Self, Invalid> {
        let mut out = Self::built_in();
        let millis = |ms: u64| (ms != 0).then(|| Duration::from_millis(ms));
        out.balance = match policy.balance() {
            v1::Balance::Unspecified | v1::Balance::PeakEwma => Balance::PeakEwma,
            v1::Balance::RoundRobin => Balance::RoundRobin,
            v1::Balance::LeastRequest => Balance::LeastRequest,
            v1::Balance::Random => Balance::Random,
        };
        out.source = Some(policy.source.into());
        if let Some(timeouts) = policy.timeouts {
            out.request_timeout = millis(timeouts.request_ms);
            out.per_try_timeout = millis(timeouts.per_try_ms);
            out.connect_timeout = millis(timeouts.connect_ms).unwrap_or(out.connect_timeout);
            out.idle_timeout = millis(timeouts.idle_ms).or(out.idle_timeout);
        }
        if let Some(retries) = policy.retries {
            out.retries = retries_of(&retries, &out.retries)?;
        }
        if let Some(breaker) = policy.circuit_breaker {
            out.circuit_breaker = Some(breaker_of(breaker)?);
        }
        Ok(out)
    }
}

fn retries_of(retries: &v1::Retries, built_in: &Retries) -> Result<Retries, Invalid> {
    if retries.attempts > 10 {
        return Err(Invalid::value("retries.attempts", "0 to 10"));
    }
    if retries.budget_percent > 100 {
        return Err(Invalid::value("retries.budget_percent", "0 to 100"));
    }
    let on_status = retries
        .on_status
        .iter()
        .map(|status| u16::try_from(*status).ok().filter(|s| (400..600).contains(s)))
        .collect::<Option<_>>()
        .ok_or_else(|| Invalid::value("retries.on_status", "status codes 400 to 599"))?;
    let duration = |ms, default| if ms == 0 { default } else { Duration::from_millis(ms) };
    Ok(Retries {
        attempts: retries.attempts,
        on_status,
        on_connection_failure: retries.on_connection_failure,
        budget: Budget {
            percent: retries.budget_percent,
            min_per_second: retries.budget_min_per_second,
        },
        backoff_base: duration(retries.backoff_base_ms, built_in.backoff_base),
        backoff_max: duration(retries.backoff_max_ms, built_in.backoff_max),
    })
}

fn breaker_of(breaker: v1::CircuitBreaker) -> Result<CircuitBreaker, Invalid> {
    if !(1..=1000).contains(&breaker.consecutive_failures) {
        return Err(Invalid::value("circuit_breaker.consecutive_failures", "1 to 1000"));
    }
    if !(1..=50).contains(&breaker.max_ejected_percent) {
        return Err(Invalid::value("circuit_breaker.max_ejected_percent", "1 to 50"));
    }
    if breaker.open_for_ms == 0 {
        return Err(Invalid::value("circuit_breaker.open_for_ms", "above 0"));
    }
    Ok(CircuitBreaker {
        consecutive_failures: breaker.consecutive_failures,
        open_for: Duration::from_millis(breaker.open_for_ms),
        max_ejected_percent: breaker.max_ejected_percent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Attempted = Attempted { retries: 0, idempotent: false, replayable: true };

    fn with_policy() -> TrafficPolicy {
        v1::Policy {
            source: "shop/web".into(),
            retries: Some(v1::Retries {
                attempts: 2,
                on_status: vec![503],
                on_connection_failure: true,
                budget_percent: 20,
                budget_min_per_second: 10,
                ..v1::Retries::default()
            }),
            ..v1::Policy::default()
        }
        .try_into()
        .unwrap()
    }

    #[test]
    fn without_a_policy_only_the_provably_unprocessed_is_repeated() {
        let policy = TrafficPolicy::built_in();
        let get = Attempted { idempotent: true, ..FRESH };
        for (failure, attempted, want) in [
            (Failure::NotConnected, FRESH, Verdict::Again),
            (Failure::NotProcessed, FRESH, Verdict::AgainWithinBudget),
            (Failure::Unknown, get, Verdict::No(Refusal::NotRetryable)),
            (Failure::Status(503), get, Verdict::No(Refusal::NotRetryable)),
            (
                Failure::NotConnected,
                Attempted { retries: 3, ..FRESH },
                Verdict::No(Refusal::Exhausted),
            ),
            (
                Failure::NotProcessed,
                Attempted { replayable: false, ..FRESH },
                Verdict::No(Refusal::BodyGone),
            ),
        ] {
            assert_eq!(policy.may_retry(failure, attempted), want, "{failure:?} {attempted:?}");
        }
    }

    #[test]
    fn a_policy_repeats_what_is_idempotent_and_named() {
        let policy = with_policy();
        let get = Attempted { idempotent: true, ..FRESH };
        for (failure, attempted, want) in [
            (Failure::Unknown, get, Verdict::AgainWithinBudget),
            (Failure::Status(503), get, Verdict::AgainWithinBudget),
            (Failure::Status(502), get, Verdict::No(Refusal::NotRetryable)),
            (Failure::Status(503), FRESH, Verdict::No(Refusal::NotIdempotent)),
            (Failure::Unknown, FRESH, Verdict::No(Refusal::NotIdempotent)),
            (Failure::Unknown, Attempted { retries: 2, ..get }, Verdict::No(Refusal::Exhausted)),
            (
                Failure::Unknown,
                Attempted { replayable: false, ..get },
                Verdict::No(Refusal::BodyGone),
            ),
        ] {
            assert_eq!(policy.may_retry(failure, attempted), want, "{failure:?} {attempted:?}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_ceiling() {
        let policy = TrafficPolicy::built_in();
        assert_eq!(policy.backoff(0, 1.0), Duration::from_millis(25));
        assert_eq!(policy.backoff(1, 1.0), Duration::from_millis(50));
        assert_eq!(policy.backoff(60, 1.0), Duration::from_secs(1));
        assert_eq!(policy.backoff(3, 0.0), Duration::ZERO);
    }

    #[test]
    fn out_of_range_values_name_their_field() {
        let bad = v1::Policy {
            retries: Some(v1::Retries { attempts: 11, ..v1::Retries::default() }),
            ..v1::Policy::default()
        };
        assert_eq!(TrafficPolicy::try_from(bad).unwrap_err().path, "retries.attempts");
        let bad = v1::Policy {
            circuit_breaker: Some(v1::CircuitBreaker {
                consecutive_failures: 5,
                open_for_ms: 1,
                max_ejected_percent: 51,
            }),
            ..v1::Policy::default()
        };
        assert_eq!(
            TrafficPolicy::try_from(bad).unwrap_err().path,
            "circuit_breaker.max_ejected_percent"
        );
    }
}
