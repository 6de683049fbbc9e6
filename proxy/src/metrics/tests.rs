//! Every family at a scrape, as Prometheus would read it.

use std::time::Duration;

use prometheus::TextEncoder;

use super::*;

fn outcome(status: u16) -> Outcome {
    Outcome {
        status: Some(status),
        grpc_status: None,
        tls: Tls::Mutual,
        flag: None,
        duration: Duration::from_millis(3),
    }
}

fn scrape(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

fn assert_line(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line {line}\n{text}");
}

#[test]
fn every_request_is_counted_once_under_its_labels() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let series = metrics.outbound("shop/web", "shop/web", "shop/web-v1");
    series.record(&outcome(200));
    series.record(&outcome(204));
    series.record(&Outcome { grpc_status: Some(0), ..outcome(200) });
    series.record(&Outcome { grpc_status: Some(99), tls: Tls::None, ..outcome(200) });
    series.record(&Outcome { flag: Some(Reason::NoEndpoints), ..outcome(503) });
    series.record(&Outcome { status: None, duration: Duration::from_secs(11), ..outcome(0) });
    let text = scrape(&registry);
    let labels =
        r#"direction="outbound",service="shop/web",route="shop/web",backend="shop/web-v1""#;
    for (rest, value) in [
        (r#"status_class="2xx",tls="mutual""#, 2),
        (r#"status_class="2xx",grpc_status="0",tls="mutual""#, 1),
        (r#"status_class="2xx",grpc_status="other",tls="none""#, 1),
        (r#"status_class="5xx",tls="mutual",flag="no-endpoints""#, 1),
        (r#"status_class="none",tls="mutual""#, 1),
    ] {
        assert_line(&text, &format!("heddle_requests_total{{{labels},{rest}}} {value}"));
    }
    let told = metrics.traffic().series;
    let [series] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((series.requests, series.failures, series.plaintext_requests), (6, 2, 1));
    assert_eq!(series.durations.iter().sum::<u64>(), 6);
    assert_eq!(series.durations.last(), Some(&1), "longer than every bound");
    let duration = "heddle_request_duration_seconds";
    assert_line(&text, &format!("{duration}_bucket{{{labels},le=\"0.0025\"}} 0"));
    assert_line(&text, &format!("{duration}_bucket{{{labels},le=\"0.005\"}} 5"));
    assert_line(&text, &format!("{duration}_bucket{{{labels},le=\"10\"}} 5"));
    assert_line(&text, &format!("{duration}_bucket{{{labels},le=\"+Inf\"}} 6"));
    assert_line(&text, &format!("{duration}_count{{{labels}}} 6"));
    assert_line(&text, &format!("{duration}_sum{{{labels}}} 11.015"));
}

#[test]
fn a_bound_belongs_to_its_bucket() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let series = metrics.inbound(None);
    series.record(&Outcome { duration: Duration::from_micros(500), ..outcome(200) });
    let text = scrape(&registry);
    let labels = r#"direction="inbound",source="unauthenticated""#;
    assert_line(
        &text,
        &format!("heddle_request_duration_seconds_bucket{{{labels},le=\"0.0005\"}} 1"),
    );
}

#[test]
fn callers_past_the_limit_share_one_series() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let id = |i: usize| SpiffeId::new("td", "ns", &format!("sa{i}")).unwrap();
    for i in 0..MAX_SOURCES + 50 {
        metrics.inbound(Some(&id(i))).record(&outcome(200));
    }
    metrics.inbound(Some(&id(0))).record(&outcome(200));
    assert_eq!(lock(&metrics.requests).len(), MAX_SOURCES + 1);
    let text = scrape(&registry);
    let rest = r#"status_class="2xx",tls="mutual""#;
    assert_line(
        &text,
        &format!(r#"heddle_requests_total{{direction="inbound",source="other",{rest}}} 50"#),
    );
    let first = r#"direction="inbound",source="spiffe://td/ns/ns/sa/sa0""#;
    assert_line(&text, &format!("heddle_requests_total{{{first},{rest}}} 2"));
}

#[test]
fn series_of_services_that_are_gone_are_dropped_once_nobody_holds_them() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let held = metrics.outbound("a/held", "", "a/held");
    drop(metrics.outbound("a/known", "", "a/known"));
    drop(metrics.outbound("a/gone", "", "a/gone"));
    drop(metrics.outbound_tcp("a/gone", "", "a/gone"));
    drop(metrics.inbound(None));
    metrics.evict(|service| service == "a/known");
    assert_eq!(lock(&metrics.requests).len(), 3);
    assert!(lock(&metrics.tcp).is_empty());
    drop(held);
    metrics.evict(|_| false);
    assert_eq!(lock(&metrics.requests).len(), 1);
}

#[test]
fn routes_that_come_and_go_do_not_add_up() {
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let route = |n: usize| format!("HTTPRoute/shop/web[{n}]");
    let held: Vec<_> =
        (0..100).map(|n| metrics.outbound("shop/web", &route(n), "shop/web")).collect();
    for n in 100..2 * MAX_OUTBOUND {
        drop(metrics.outbound("shop/web", &route(n), "shop/web"));
    }
    assert!(lock(&metrics.requests).len() <= MAX_OUTBOUND);
    // What is in use is never given up, and is found again.
    assert!(Arc::ptr_eq(&held[7], &metrics.outbound("shop/web", &route(7), "shop/web")));
    let more: Vec<_> =
        (0..MAX_OUTBOUND).map(|n| metrics.outbound("shop/b", &route(n), "shop/b")).collect();
    assert_eq!(lock(&metrics.requests).len(), MAX_OUTBOUND + 1);
    assert!(Arc::ptr_eq(more.last().unwrap(), &metrics.outbound("shop/b", OTHER, OTHER)));
}

#[test]
fn opaque_connections_are_open_until_dropped() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let series = metrics.outbound_tcp("a/db", "", "a/db");
    let connection = series.open(Tls::Mutual);
    connection.sent(10);
    connection.received(20);
    let labels = r#"direction="outbound",service="a/db",backend="a/db""#;
    assert_line(&scrape(&registry), &format!("heddle_tcp_connections_open{{{labels}}} 1"));
    drop(connection);
    let text = scrape(&registry);
    assert_line(&text, &format!("heddle_tcp_connections_open{{{labels}}} 0"));
    assert_line(&text, &format!("heddle_tcp_connections_total{{{labels},tls=\"mutual\"}} 1"));
    assert_line(&text, &format!("heddle_tcp_bytes_total{{{labels},way=\"sent\"}} 10"));
    assert_line(&text, &format!("heddle_tcp_bytes_total{{{labels},way=\"received\"}} 20"));
}

#[test]
fn events_and_states_have_their_families() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    metrics.error(Direction::Inbound, Reason::PlaintextRefused);
    metrics.mesh_connection(Direction::Outbound, Ok(()));
    metrics.mesh_connection(Direction::Outbound, Err(Reason::PeerIdentityMismatch));
    metrics.pool(PoolProtocol::Http1, PoolState::Idle).add(2);
    metrics.retries.inc(Retry::Made);
    metrics.ready.of(Condition::Certificate).set(1);
    metrics.set_snapshot_version(3, 42);
    metrics.set_control_plane_connected(true);
    let text = scrape(&registry);
    for line in [
        r#"heddle_proxy_errors_total{direction="inbound",reason="plaintext-refused"} 1"#,
        r#"heddle_mesh_connections_total{direction="outbound",result="ok"} 1"#,
        r#"heddle_mesh_connections_total{direction="outbound",result="peer-identity-mismatch"} 1"#,
        r#"heddle_pool_connections{protocol="http1",state="idle"} 2"#,
        r#"heddle_retries_total{outcome="made"} 1"#,
        r#"heddle_proxy_ready{reason="certificate"} 1"#,
        r#"heddle_proxy_ready{reason="snapshot"} 0"#,
        "heddle_snapshot_epoch 3",
        "heddle_snapshot_version 42",
        "heddle_config_age_seconds 0",
        "heddle_certificate_expiry_timestamp_seconds 0",
    ] {
        assert_line(&text, line);
    }
    assert!(text.contains("\nheddle_build_info{version="), "{text}");
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
}
