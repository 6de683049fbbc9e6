//! One family at a scrape, in the shape the encoder takes.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::labels::Label;

/// A family under construction.
pub(super) struct Family(MetricFamily);

/// A histogram's value at a scrape. Buckets are cumulative, the last stands for infinity.
pub(super) struct HistogramValue<'a> {
    pub(super) bounds: &'a [f64],
    pub(super) counts: Vec<u64>,
    pub(super) sum: f64,
}

impl Family {
    pub(super) fn new(name: &str, help: &str, kind: MetricType) -> Self {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        Self(family)
    }

    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(value));
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_counter(counter);
        self.0.mut_metric().push(metric);
    }

    pub(super) fn add_if_not_zero(&mut self, labels: &[(&str, &str)], value: u64) {
        if value > 0 {
            self.add(labels, value);
        }
    }

    pub(super) fn add_all<L: Label>(&mut self, name: &str, values: impl Iterator<Item = (L, u64)>) {
        for (label, value) in values {
            self.add(&[(name, label.name())], value);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other number")]
    pub(super) fn set(&mut self, labels: &[(&str, &str)], value: i64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value as f64);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_gauge(gauge);
        self.0.mut_metric().push(metric);
    }

    pub(super) fn observe(&mut self, labels: &[(&str, &str)], value: &HistogramValue<'_>) {
        let mut histogram = Histogram::default();
        let buckets = value.bounds.iter().zip(&value.counts).map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(value.counts.last().copied().unwrap_or(0));
        histogram.set_sample_sum(value.sum);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(histogram);
        self.0.mut_metric().push(metric);
    }

    pub(super) fn finish(self) -> MetricFamily {
        self.0
    }
}

/// An empty value means the same as no label, so it is left out.
fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let set = labels.iter().filter(|(_, value)| !value.is_empty());
    set.map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    })
    .collect()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other number")]
fn float(value: u64) -> f64 {
    value as f64
}
