//! Making and registering metrics: the prefix, and label values that are there from the start.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

pub(super) fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("bigbrother_{name}"), help)
}

pub(super) fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(format!("bigbrother_{name}"), help).buckets(buckets.to_vec())
}

pub(super) fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("names and labels in this file are legal");
    registry.register(Box::new(metric.clone())).expect("names in this file are unique");
    metric
}

pub(super) fn counter(r: &Registry, name: &str, help: &str) -> IntCounter {
    registered(r, IntCounter::with_opts(opts(name, help)))
}

pub(super) fn gauge(r: &Registry, name: &str, help: &str) -> Gauge {
    registered(r, Gauge::with_opts(opts(name, help)))
}

pub(super) fn int_gauge(r: &Registry, name: &str, help: &str) -> IntGauge {
    registered(r, IntGauge::with_opts(opts(name, help)))
}

pub(super) fn int_gauge_vec(r: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(r, IntGaugeVec::new(opts(name, help), labels))
}

pub(super) fn histogram(r: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    registered(r, Histogram::with_opts(histogram_opts(name, help, buckets)))
}

/// A counter with one label whose values are all there from the start, at 0, so that rates are right.
pub(super) fn closed(r: &Registry, name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
    let counters = registered(r, IntCounterVec::new(opts(name, help), &[label]));
    for value in values {
        counters.with_label_values(&[*value]);
    }
    counters
}
