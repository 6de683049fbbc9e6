//! What Prometheus sees at a scrape: the name, help and labels of every family, and the registry's
//! way to them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::family::Family;
use super::labels::Label;
use super::{Direction, Metrics, PoolProtocol, RequestSeries, Table, TcpSeries, lock};

/// What the registry sees of [`Metrics`].
pub(super) struct Families(pub(super) Arc<Metrics>);

impl Collector for Families {
    fn desc(&self) -> Vec<&Desc> {
        // The names are this collector's own; the registry has nothing to check them against.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = &self.0;
        let mut families = request_families(&metrics.requests);
        families.extend(tcp_families(&metrics.tcp));
        families.extend(metrics.event_families());
        families.extend(metrics.state_families());
        families.into_iter().map(Family::finish).collect()
    }
}

fn request_families(table: &Table<RequestSeries>) -> Vec<Family> {
    let mut total = Family::new(
        "heddle_requests_total",
        "HTTP requests, counted once each at their end.",
        MetricType::COUNTER,
    );
    let mut duration = Family::new(
        "heddle_request_duration_seconds",
        "From the request's head to the response's last byte.",
        MetricType::HISTOGRAM,
    );
    for (key, series) in lock(table).iter() {
        series.collect(&key.labels(), &mut total, &mut duration);
    }
    vec![total, duration]
}

fn tcp_families(table: &Table<TcpSeries>) -> Vec<Family> {
    let counter = MetricType::COUNTER;
    let mut open = Family::new(
        "heddle_tcp_connections_open",
        "Opaque connections that are open.",
        MetricType::GAUGE,
    );
    let mut total = Family::new("heddle_tcp_connections_total", "Opaque connections.", counter);
    let mut bytes = Family::new(
        "heddle_tcp_bytes_total",
        "Bytes of opaque connections; sent is from source to destination.",
        counter,
    );
    for (key, series) in lock(table).iter() {
        series.collect(&key.labels(), &mut open, &mut total, &mut bytes);
    }
    vec![open, total, bytes]
}

impl Metrics {
    /// Families that count what happened.
    fn event_families(&self) -> Vec<Family> {
        let counter = |name, help| Family::new(name, help, MetricType::COUNTER);
        let mut errors = counter(
            "heddle_proxy_errors_total",
            "Answers, refusals and resets that the proxy made itself; docs/errors.md explains them.",
        );
        let mut mesh = counter("heddle_mesh_connections_total", "Mesh TLS handshakes.");
        for direction in Direction::ALL {
            let name = ("direction", direction.name());
            for (reason, value) in self.errors[direction.index()].iter() {
                errors.add_if_not_zero(&[name, ("reason", reason.name())], value);
            }
            let done = self.mesh_connections[direction.index()].load(Relaxed);
            mesh.add(&[name, ("result", "ok")], done);
            for (reason, value) in self.mesh_failures[direction.index()].iter() {
                mesh.add_if_not_zero(&[name, ("result", reason.name())], value);
            }
        }
        let mut retries =
            counter("heddle_retries_total", "Failed attempts, by what became of them.");
        retries.add_all("outcome", self.retries.iter());
        let mut ejections =
            counter("heddle_endpoint_ejections_total", "Endpoints taken out for a while.");
        ejections.add_all("cause", self.ejections.iter());
        let mut detections = counter(
            "heddle_detection_total",
            "Connections of undeclared protocol, by what they turned out to be.",
        );
        detections.add_all("verdict", self.detections.iter());
        let mut probes = counter(
            "heddle_probe_checks_total",
            "Checks of the application that the kubelet asked for.",
        );
        probes.add_all("result", self.probes.iter());
        let mut renewals = counter(
            "heddle_certificate_renewals_total",
            "Attempts to obtain a certificate, the first included.",
        );
        renewals.add_all("result", self.renewals.iter());
        let mut rejections = counter(
            "heddle_resource_rejections_total",
            "Resources of the control plane that were not acceptable.",
        );
        rejections.add(&[], self.rejections.value());
        vec![errors, mesh, retries, ejections, detections, probes, renewals, rejections]
    }

    /// Families that say how things stand.
    fn state_families(&self) -> Vec<Family> {
        let gauge = |name, help| Family::new(name, help, MetricType::GAUGE);
        let mut connections = gauge("heddle_connections_open", "Accepted connections.");
        for (direction, value) in self.connections.iter() {
            connections.set(&[("direction", direction.name())], value);
        }
        let mut pool = gauge("heddle_pool_connections", "Connections to peers, kept for reuse.");
        for protocol in PoolProtocol::ALL {
            for (state, value) in self.pool[protocol.index()].iter() {
                let labels = [("protocol", protocol.name()), ("state", state.name())];
                pool.set(&labels, value);
            }
        }
        let mut ready = gauge(
            "heddle_proxy_ready",
            "1 for each condition of readiness that holds; the proxy is ready when all do.",
        );
        for (reason, value) in self.ready.iter() {
            ready.set(&[("reason", reason.name())], value);
        }
        let single = |name, help, value| {
            let mut family = gauge(name, help);
            family.set(&[], value);
            family
        };
        let mut build = gauge("heddle_build_info", "1, with the version of the proxy.");
        build.set(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        vec![
            connections,
            pool,
            ready,
            build,
            single(
                "heddle_certificate_expiry_timestamp_seconds",
                "End of life of the proxy's certificate; 0 before the first.",
                self.certificate_expiry.value(),
            ),
            single(
                "heddle_snapshot_epoch",
                "Epoch of the configuration in use.",
                self.snapshot_epoch.value(),
            ),
            single(
                "heddle_snapshot_version",
                "Version of the configuration in use, within its epoch.",
                self.snapshot_number.value(),
            ),
            single(
                "heddle_config_age_seconds",
                "How long the control plane has been away; 0 while it is there.",
                i64::try_from(self.config_age()).unwrap_or(i64::MAX),
            ),
            single(
                "heddle_subscriptions",
                "Destinations the proxy is subscribed to.",
                self.subscriptions.value(),
            ),
        ]
    }
}
