//! The Policy of a Service, from the oldest TrafficPolicy that names it.

use std::collections::BTreeSet;

use heddle_api::proto::v1::{self, ResourceType};
use heddle_resources::Kind;
use heddle_resources::crd::Duration;
use heddle_resources::crd::traffic_policy::{
    Algorithm, CircuitBreaker, Retries, RetryOn, Timeouts, TrafficPolicySpec,
};

use crate::catalog::Reason;
use crate::index::Id;

use super::{Draft, Unit, issue, losers, object_key};

impl Draft<'_> {
    /// Compiles the policy of the Service `service`.
    pub(super) fn compile_policy(&mut self, service: &Id) {
        let index = self.index;
        let of = format!("Service {service}");
        let (winner, mut issues) =
            losers(index, Kind::TrafficPolicy, &index.policies_of(service), &of);
        let policy = winner.and_then(|id| Some((id, index.policy(id)?)));
        if let Some((id, _)) = policy
            && index.service(service).is_none()
        {
            let path = "spec.targetRef.name";
            let message = format!("there is no {of}: the policy has no effect; create it");
            issues.push(issue(
                index,
                Kind::TrafficPolicy,
                id,
                Reason::TargetNotFound,
                path,
                message,
            ));
        }
        self.report(Unit::Policy(service.clone()), issues);
        match policy {
            Some((id, policy)) => {
                let sources = [object_key(Kind::TrafficPolicy, id)].into();
                let message = message(id, &policy.spec);
                self.put_for(ResourceType::Policy, service.clone(), &message, sources);
            }
            None => self.remove(ResourceType::Policy, service.clone()),
        }
    }
}

fn message(source: &Id, spec: &TrafficPolicySpec) -> v1::Policy {
    let balance = spec.load_balancer.as_ref().map_or(v1::Balance::Unspecified, |balancer| {
        match balancer.algorithm {
            Algorithm::PeakEwma => v1::Balance::PeakEwma,
            Algorithm::RoundRobin => v1::Balance::RoundRobin,
            Algorithm::LeastRequest => v1::Balance::LeastRequest,
            Algorithm::Random => v1::Balance::Random,
        }
    });
    v1::Policy {
        source: source.to_string(),
        timeouts: spec.timeouts.as_ref().map(timeouts),
        retries: spec.retries.as_ref().map(retries),
        circuit_breaker: spec.circuit_breaker.as_ref().map(circuit_breaker),
        balance: balance.into(),
    }
}

fn timeouts(timeouts: &Timeouts) -> v1::Timeouts {
    let millis = |duration: Option<Duration>| duration.map_or(0, Duration::as_millis);
    v1::Timeouts {
        request_ms: millis(timeouts.request),
        per_try_ms: millis(timeouts.per_try),
        connect_ms: millis(timeouts.connect),
        idle_ms: millis(timeouts.idle),
    }
}

fn retries(retries: &Retries) -> v1::Retries {
    let on: Vec<_> = retries.when.iter().filter_map(|on| RetryOn::parse(on)).collect();
    let mut on_status = BTreeSet::<u32>::new();
    for one in &on {
        match one {
            RetryOn::Connect | RetryOn::Reset => {}
            RetryOn::GatewayError => on_status.extend([502, 503, 504]),
            RetryOn::ServerError => on_status.extend(500..=599),
            RetryOn::Status(status) => on_status.extend([u32::from(*status)]),
        }
    }
    let (budget, backoff) = (&retries.budget, &retries.backoff);
    v1::Retries {
        attempts: retries.attempts,
        on_status: on_status.into_iter().collect(),
        on_connection_failure: on.contains(&RetryOn::Reset),
        budget_percent: budget.percent,
        budget_min_per_second: budget.min_per_second,
        backoff_base_ms: backoff.base.as_millis(),
        backoff_max_ms: backoff.max.as_millis(),
    }
}

fn circuit_breaker(breaker: &CircuitBreaker) -> v1::CircuitBreaker {
    v1::CircuitBreaker {
        consecutive_failures: breaker.consecutive_failures,
        open_for_ms: breaker.open_for.as_millis(),
        max_ejected_percent: breaker.max_ejected_percent,
    }
}
