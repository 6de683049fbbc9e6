//! TrafficSplit and TrafficPolicy.

use crate::crd::Duration;
use crate::crd::schema::DurationRange;
use crate::crd::traffic_policy::{
    self as policy, Backoff, CircuitBreaker, Retries, RetryOn, Timeouts, TrafficPolicySpec,
};
use crate::crd::traffic_split::{
    Backend, MAX_BACKENDS, MAX_PORT_MAPPINGS, TrafficSplitSpec, WEIGHT,
};
use crate::path::Path;

use super::{Check, quote};

pub(super) fn split(check: &mut Check, path: &Path, spec: &TrafficSplitSpec) {
    check.label(&path.field("service"), &spec.service);
    let list = path.field("backends");
    check.length(&list, spec.backends.len(), 1, MAX_BACKENDS);
    for (index, backend) in spec.backends.iter().enumerate() {
        let path = list.index(index);
        check.label(&path.field("service"), &backend.service);
        check.range(&path.field("weight"), backend.weight, &WEIGHT);
        if let Some(selector) = &backend.selector {
            check.selector(&path.field("selector"), selector);
        } else if backend.service == spec.service {
            let message = "is the Service that is split, and splits do not nest; name another \
                           Service, or add a `selector` to take a subset of its pods";
            check.refuse(&path.field("service"), quote(&backend.service), message);
        }
        ports(check, &path.field("ports"), backend);
        let same = |other: &Backend| {
            other.service == backend.service && other.selector == backend.selector
        };
        if spec.backends[..index].iter().any(same) {
            let message = "is a backend already; keep one and add the weights";
            check.refuse(&path, quote(&backend.service), message);
        }
    }
    let total: u64 = spec.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total == 0 && !spec.backends.is_empty() {
        let message = "the weights add up to 0; give at least one backend a weight above 0";
        check.refuse(&list, "", message);
    }
}

fn ports(check: &mut Check, list: &Path, backend: &Backend) {
    check.length(list, backend.ports.len(), 0, MAX_PORT_MAPPINGS);
    for (index, mapping) in backend.ports.iter().enumerate() {
        let path = list.index(index);
        check.port(&path.field("from"), mapping.from);
        check.port(&path.field("to"), mapping.to);
        if backend.ports[..index].iter().any(|other| other.from == mapping.from) {
            check.refuse(&path.field("from"), mapping.from, "is mapped already; keep one mapping");
        }
    }
}

pub(super) fn policy(check: &mut Check, path: &Path, spec: &TrafficPolicySpec) {
    check.label(&path.field("targetRef").field("name"), &spec.target_ref.name);
    if let Some(value) = &spec.timeouts {
        timeouts(check, &path.field("timeouts"), value);
    }
    if let Some(value) = &spec.retries {
        retries(check, &path.field("retries"), value);
        backoff(check, &path.field("retries").field("backoff"), &value.backoff);
    }
    if let Some(value) = &spec.circuit_breaker {
        circuit_breaker(check, &path.field("circuitBreaker"), value);
    }
    let says_something = spec.timeouts.is_some()
        || spec.retries.is_some()
        || spec.circuit_breaker.is_some()
        || spec.load_balancer.is_some();
    let message = "says nothing; write timeouts, retries, circuitBreaker or loadBalancer";
    check.refuse_unless(says_something, path, "", message);
}

fn timeouts(check: &mut Check, path: &Path, timeouts: &Timeouts) {
    let mut within = |name: &str, value: Option<Duration>, range: DurationRange| {
        if let Some(value) = value {
            check.duration(&path.field(name), value, range);
        }
    };
    within("request", timeouts.request, policy::REQUEST_TIMEOUT);
    within("perTry", timeouts.per_try, policy::PER_TRY_TIMEOUT);
    within("connect", timeouts.connect, policy::CONNECT_TIMEOUT);
    within("idle", timeouts.idle, policy::IDLE_TIMEOUT);
    if let (Some(request), Some(per_try)) = (timeouts.request, timeouts.per_try)
        && per_try > request
    {
        let message = format!("is longer than `request`, which is {request}; write less");
        check.refuse(&path.field("perTry"), per_try, message);
    }
}

fn retries(check: &mut Check, path: &Path, retries: &Retries) {
    check.range(&path.field("attempts"), retries.attempts, &policy::ATTEMPTS);
    let list = path.field("when");
    check.length(&list, retries.when.len(), 1, policy::MAX_RETRY_ON);
    for (index, on) in retries.when.iter().enumerate() {
        let message = "write connect, reset, gateway-error, \"5xx\" or a status code from \"400\" \
                       to \"599\"";
        check.refuse_unless(RetryOn::parse(on).is_some(), &list.index(index), quote(on), message);
    }
    check.unique(&list, &retries.when, |on| quote(on));
    let (path, budget) = (path.field("budget"), &retries.budget);
    check.range(&path.field("percent"), budget.percent, &policy::BUDGET_PERCENT);
    let least = path.field("minPerSecond");
    check.range(&least, budget.min_per_second, &policy::BUDGET_MIN_PER_SECOND);
    if budget.percent == 0 && budget.min_per_second == 0 {
        let message = "allows no retry at all; raise percent or minPerSecond, or remove `retries`";
        check.refuse(&path, "", message);
    }
}

fn backoff(check: &mut Check, path: &Path, backoff: &Backoff) {
    check.duration(&path.field("base"), backoff.base, policy::BACKOFF_BASE);
    check.duration(&path.field("max"), backoff.max, policy::BACKOFF_MAX);
    if backoff.base > backoff.max {
        let message = format!("is longer than `max`, which is {}; write less", backoff.max);
        check.refuse(&path.field("base"), backoff.base, message);
    }
}

fn circuit_breaker(check: &mut Check, path: &Path, breaker: &CircuitBreaker) {
    let failures = path.field("consecutiveFailures");
    check.range(&failures, breaker.consecutive_failures, &policy::CONSECUTIVE_FAILURES);
    check.duration(&path.field("openFor"), breaker.open_for, policy::OPEN_FOR);
    let percent = breaker.max_ejected_percent;
    check.range(&path.field("maxEjectedPercent"), percent, &policy::MAX_EJECTED_PERCENT);
}
