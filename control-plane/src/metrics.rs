//! Every metric family of the control plane, registered once. Label values come from closed sets.

use std::time::{SystemTime, UNIX_EPOCH};

use heddle_api::proto::v1::{RejectionReason, ResourceType};
use heddle_runtime::process::Process;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Handles to the families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub streams_open: IntGauge,
    pub streams_ended: IntCounterVec,
    pub updates_sent: IntCounter,
    pub update_bytes: IntCounter,
    pub push_latency: Histogram,
    pub queue_cuts: IntCounter,
    pub oversized: IntCounter,
    pub rejections: IntCounterVec,
    pub connections_refused: IntCounterVec,
    pub authentication_refused: IntCounterVec,
    pub certificates_issued: IntCounter,
    pub issuance_refused: IntCounterVec,
    pub certificate_expiry: IntGaugeVec,
    pub resources: IntGaugeVec,
    pub issues: IntGauge,
    pub admission: Admission,
    pub source_errors: IntCounterVec,
    pub leader: IntGauge,
    pub status_writes: IntCounter,
    pub status_write_failures: IntCounter,
    pub trust_bundle_writes: IntCounterVec,
    pub watches: Watches,
    pub version: IntGaugeVec,
    pub version_write_failures: IntCounter,
}

/// What the webhooks count.
#[derive(Debug, Clone)]
pub struct Admission {
    pub reviews: IntCounterVec,
    pub duration: Histogram,
    pub connections_failed: IntCounterVec,
}

impl Metrics {
    /// Makes every family and registers it.
    ///
    /// # Errors
    /// When a name is taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Process::register(registry)?;
        let families = Families { registry };
        let build = families.gauges("build_info", "Always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            streams_open: families.gauge("streams_open", "Discovery streams open.")?,
            streams_ended: families.counters(
                "streams_ended_total",
                "Discovery streams ended.",
                &["reason"],
            )?,
            updates_sent: families.counter("updates_sent_total", "Update messages sent.")?,
            update_bytes: families
                .counter("update_bytes_total", "Bytes of resource bodies sent.")?,
            push_latency: families.push_latency()?,
            queue_cuts: families
                .counter("queue_cuts_total", "Subscribers cut because they did not read.")?,
            oversized: families.counter(
                "oversized_resources_total",
                "Resources not sent because no message holds them.",
            )?,
            rejections: families.counters(
                "rejections_total",
                "Resources that a proxy rejected.",
                &["type", "reason"],
            )?,
            connections_refused: families.counters(
                "connections_refused_total",
                "Connections that did not get as far as a request.",
                &["reason"],
            )?,
            authentication_refused: register_authentication_refused(registry)?,
            certificates_issued: families
                .counter("certificates_issued_total", "Certificates issued to workloads.")?,
            issuance_refused: families.counters(
                "issuance_refused_total",
                "Certificates asked for and not issued.",
                &["reason"],
            )?,
            certificate_expiry: families.gauges(
                "certificate_expiry_timestamp_seconds",
                "End of life of the earliest certificate of its kind.",
                &["certificate"],
            )?,
            resources: families.gauges("resources", "Compiled resources.", &["type"])?,
            issues: families.gauge("issues", "Objects refused, or only partly in force.")?,
            admission: families.admission()?,
            source_errors: families.counters(
                "source_errors_total",
                "Readings of a source that failed; what it said before holds.",
                &["source"],
            )?,
            leader: families.gauge("leader", "1 while this replica holds the lease.")?,
            status_writes: families.counter("status_writes_total", "Statuses written.")?,
            status_write_failures: families
                .counter("status_write_failures_total", "Statuses that could not be written.")?,
            trust_bundle_writes: families.counters(
                "trust_bundle_writes_total",
                "ConfigMaps with the trust bundle that were written.",
                &["result"],
            )?,
            watches: Watches::register(&families)?,
            version: families.gauges("version", "Version that is served.", &["part"])?,
            version_write_failures: families.counter(
                "version_write_failures_total",
                "Times the version could not be kept on disk.",
            )?,
        })
    }
}

impl Metrics {
    /// When a certificate ends: `issuer`, `root` or `server`.
    pub(crate) fn set_expiry(&self, certificate: &'static str, end: SystemTime) {
        let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        self.certificate_expiry.with_label_values(&[certificate]).set(seconds);
    }
}

/// How the API server is read.
#[derive(Debug, Clone)]
pub struct Watches {
    pub errors: IntCounterVec,
    pub lists: IntCounterVec,
    pub rewinds: IntCounter,
}

impl Watches {
    fn register(families: &Families<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            errors: families.counters(
                "watch_errors_total",
                "Lists and watches of the API server that failed; what was read before holds.",
                &["kind"],
            )?,
            lists: families.counters(
                "watch_lists_total",
                "Times a kind was listed as a whole.",
                &["kind"],
            )?,
            rewinds: families.counter(
                "rewinds_total",
                "Times the API server was found behind what it had said.",
            )?,
        })
    }
}

/// What a type of resource is called in labels, dumps and logs.
#[must_use]
pub fn kind_label(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Unspecified => "unspecified",
        ResourceType::Mesh => "mesh",
        ResourceType::TrustBundle => "trust_bundle",
        ResourceType::InboundPolicy => "inbound_policy",
        ResourceType::Address => "address",
        ResourceType::Service => "service",
        ResourceType::Endpoints => "endpoints",
        ResourceType::Split => "split",
        ResourceType::Policy => "policy",
        ResourceType::Route => "route",
    }
}

/// What a reason for a rejection is called there.
#[must_use]
pub fn rejection_label(reason: RejectionReason) -> &'static str {
    match reason {
        RejectionReason::Unspecified => "unspecified",
        RejectionReason::Malformed => "malformed",
        RejectionReason::UnsupportedLevel => "unsupported_level",
        RejectionReason::InvalidValue => "invalid_value",
        RejectionReason::UnknownType => "unknown_type",
    }
}

/// Shared by every part that authenticates, whatever the daemon, hence without the daemon's name.
fn register_authentication_refused(
    registry: &Registry,
) -> Result<IntCounterVec, prometheus::Error> {
    let family = IntCounterVec::new(
        Opts::new("heddle_authentication_refused_total", "Callers refused, by reason."),
        &["reason"],
    )?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

struct Families<'a> {
    registry: &'a Registry,
}

impl Families<'_> {
    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("heddle_control_plane_{name}"), help)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let family = IntCounter::with_opts(Self::opts(name, help))?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let family = IntCounterVec::new(Self::opts(name, help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let family = IntGauge::with_opts(Self::opts(name, help))?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let family = IntGaugeVec::new(Self::opts(name, help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn admission(&self) -> Result<Admission, prometheus::Error> {
        let families = self;
        Ok(Admission {
            reviews: families.counters(
                "admission_reviews_total",
                "Questions of the API server.",
                &["webhook", "outcome"],
            )?,
            duration: families.admission_duration()?,
            connections_failed: families.counters(
                "admission_connections_failed_total",
                "Connections to the webhook port that did not get as far as a question.",
                &["reason"],
            )?,
        })
    }

    fn admission_duration(&self) -> Result<Histogram, prometheus::Error> {
        const BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
        let opts = HistogramOpts::new(
            "heddle_control_plane_admission_review_duration_seconds",
            "From a question's head to its answer.",
        );
        let family = Histogram::with_opts(opts.buckets(BUCKETS.to_vec()))?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn push_latency(&self) -> Result<Histogram, prometheus::Error> {
        const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
        let opts = HistogramOpts::new(
            "heddle_control_plane_push_latency_seconds",
            "From the publication of a change to its being queued for a subscriber.",
        );
        let family = Histogram::with_opts(opts.buckets(BUCKETS.to_vec()))?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}
