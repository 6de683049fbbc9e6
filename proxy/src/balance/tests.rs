//! The balancer against endpoints with a known past.

use std::sync::{Arc, OnceLock};

use heddle_policy::retry::TrafficPolicy;

use super::*;
use crate::snapshot::BackendState;

fn backend(n: u64, balance: Balance) -> Backend {
    let ready = (0..n)
        .map(|i| {
            Arc::new(Endpoint {
                address: format!("10.0.0.{i}:80").parse().unwrap(),
                identity: None,
                pod: format!("shop/web-{i}").into(),
                workload: "web".into(),
                state: Arc::new(EndpointState::new(i)),
            })
        })
        .collect();
    Backend {
        service: "shop/web".into(),
        port: 80,
        ready,
        policy: Arc::new(TrafficPolicy { balance, ..TrafficPolicy::built_in() }),
        route: "".into(),
        changes: None,
        affinity: false,
        state: Arc::new(BackendState::default()),
        series: OnceLock::new(),
        tcp_series: OnceLock::new(),
    }
}

/// A full-period generator: enough for tests and reproducible.
fn random() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state ^ (state >> 29)
    }
}

fn at<'a, R>(now: u64, random: R, tried: &'a [u64]) -> Pick<'a, R> {
    Pick { now: Duration::from_secs(now), random, tried, client: IpAddr::from([10, 1, 1, 1]) }
}

fn counts(backend: &Backend, now: u64, n: usize) -> Vec<usize> {
    let mut random = random();
    let mut counts = vec![0; backend.ready.len()];
    for _ in 0..n {
        let endpoint = pick(backend, at(now, &mut random, &[])).unwrap();
        counts[usize::try_from(endpoint.state.id).unwrap()] += 1;
    }
    counts
}

#[test]
fn no_endpoint_is_ready() {
    assert!(pick(&backend(0, Balance::PeakEwma), at(0, random(), &[])).is_none());
}

#[test]
fn round_robin_takes_turns_and_random_is_even() {
    assert_eq!(counts(&backend(4, Balance::RoundRobin), 0, 400), [100; 4]);
    for count in counts(&backend(4, Balance::Random), 0, 4000) {
        assert!((850..1150).contains(&count), "{count}");
    }
}

#[test]
fn least_request_and_latency_prefer_the_idle_and_the_fast() {
    let backend = backend(2, Balance::LeastRequest);
    backend.ready[0].state.start();
    assert!(counts(&backend, 0, 100)[0] < 20);

    let backend = self::backend(2, Balance::PeakEwma);
    for (index, latency) in [(0, 50), (1, 1)] {
        let state = &backend.ready[index].state;
        state.start();
        state.finish(
            Outcome::Success(Duration::from_millis(latency)),
            Duration::from_secs(1),
            None,
            &backend.ready,
        );
    }
    assert!(counts(&backend, 1, 100)[0] < 20);
}

#[test]
fn a_peak_fades_also_when_nobody_asks() {
    let backend = backend(2, Balance::PeakEwma);
    for (index, latency) in [(0, 5000), (1, 1)] {
        let state = &backend.ready[index].state;
        state.start();
        let outcome = Outcome::Success(Duration::from_millis(latency));
        state.finish(outcome, Duration::from_secs(1), None, &backend.ready);
    }
    assert_eq!(counts(&backend, 2, 100)[0], 0);
    let fast = &backend.ready[1].state;
    fast.start();
    fast.finish(
        Outcome::Success(Duration::from_millis(1)),
        Duration::from_secs(120),
        None,
        &backend.ready,
    );
    assert!(counts(&backend, 120, 100)[0] > 0, "it never gets to show that its peak is over");
}

#[test]
fn an_opaque_connection_ends_a_row_of_refusals() {
    let backend = backend(2, Balance::RoundRobin);
    let state = &backend.ready[0].state;
    for _ in 0..8 {
        state.start();
        state.finish(Outcome::Refused, Duration::from_secs(10), None, &backend.ready);
    }
    state.connected();
    assert_eq!(counts(&backend, 10, 10), [5, 5]);
    state.start();
    state.finish(Outcome::Refused, Duration::from_secs(20), None, &backend.ready);
    assert_eq!(counts(&backend, 21, 10), [5, 5], "the first refusal of a new row");
}

#[test]
fn a_refusing_endpoint_is_avoided_for_a_while_and_never_when_it_is_the_last() {
    let backend = backend(2, Balance::RoundRobin);
    let state = &backend.ready[0].state;
    state.start();
    state.finish(Outcome::Refused, Duration::from_secs(10), None, &backend.ready);
    assert_eq!(counts(&backend, 10, 10), [0, 10]);
    assert_eq!(counts(&backend, 12, 10), [5, 5]);
    let tried = [1];
    assert_eq!(pick(&backend, at(10, random(), &tried)).unwrap().state.id, 0);
}

#[test]
fn ejection_is_capped_at_its_share() {
    let backend = backend(4, Balance::RoundRobin);
    let breaker = CircuitBreaker {
        consecutive_failures: 3,
        open_for: Duration::from_secs(30),
        max_ejected_percent: 50,
    };
    let now = Duration::from_secs(1);
    let mut ejected = 0;
    for endpoint in backend.ready.iter() {
        for _ in 0..5 {
            endpoint.state.start();
            let out = endpoint.state.finish(Outcome::Failure, now, Some(&breaker), &backend.ready);
            ejected += usize::from(out);
        }
    }
    assert_eq!(ejected, 2);
    assert_eq!(counts(&backend, 1, 100), [0, 0, 50, 50]);
    assert_eq!(counts(&backend, 32, 100), [25; 4]);
}

#[test]
fn a_success_between_failures_resets_the_count() {
    let backend = backend(2, Balance::RoundRobin);
    let breaker = CircuitBreaker {
        consecutive_failures: 2,
        open_for: Duration::from_secs(30),
        max_ejected_percent: 50,
    };
    let state = &backend.ready[0].state;
    for outcome in [Outcome::Failure, Outcome::Success(Duration::ZERO), Outcome::Failure] {
        state.start();
        assert!(!state.finish(outcome, Duration::ZERO, Some(&breaker), &backend.ready));
    }
}

#[test]
fn affinity_keeps_a_client_and_moves_only_the_clients_of_what_is_lost() {
    let mut backend = backend(5, Balance::PeakEwma);
    backend.affinity = true;
    let home = pick(&backend, at(0, random(), &[])).unwrap().state.id;
    for _ in 0..20 {
        assert_eq!(pick(&backend, at(0, random(), &[])).unwrap().state.id, home);
    }
    let mut rest: Vec<_> = backend.ready.to_vec();
    rest.retain(|e| e.state.id != (home + 1) % 5);
    backend.ready = rest.into();
    assert_eq!(pick(&backend, at(0, random(), &[])).unwrap().state.id, home);
}
