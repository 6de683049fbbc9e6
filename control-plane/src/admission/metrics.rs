//! What admission counts.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// Handles to the families. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) reviews: IntCounterVec,
    pub(super) duration: Histogram,
    pub(super) connections_failed: IntCounterVec,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        const BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];
        let reviews = IntCounterVec::new(
            Opts::new(
                "heddle_control_plane_admission_reviews_total",
                "Questions of the API server.",
            ),
            &["webhook", "outcome"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "heddle_control_plane_admission_review_duration_seconds",
                "From a question's head to its answer.",
            )
            .buckets(BUCKETS.to_vec()),
        )?;
        let connections_failed = IntCounterVec::new(
            Opts::new(
                "heddle_control_plane_admission_connections_failed_total",
                "Connections to the webhook port that did not get as far as a question.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(reviews.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(connections_failed.clone()))?;
        Ok(Self { reviews, duration, connections_failed })
    }
}
