//! Metrics for Prometheus.
//!
//! [`all`] is the complete list, from which `docs/metrics.md` is generated. Their values come from
//! the same [`ServiceStatus`] that `castore-fs status` shows.

#[cfg(test)]
mod dashboard;
mod stores;
mod table;
#[cfg(test)]
mod tests;
mod warm_up;

use std::fmt::Write as _;
use std::time::Duration;

use self::table::METRICS;
use super::status::ServiceStatus;
use crate::latencies::{LatencyStatus, RequestTimes};

/// The values of the label `transport`: of mounts, and of devices for guests. Both have the same families.
const MOUNT: &str = "fuse";
const DEVICE: &str = "virtiofs";

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric: its name, kind, labels, meaning, and how its value is read.
struct Metric {
    name: &'static str,
    kind: MetricKind,
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/metrics.md"))]
    labels: &'static str,
    help: &'static str,
    read: fn(&ServiceStatus, &mut MetricSamples<'_>),
}

/// Every metric.
fn all() -> impl Iterator<Item = &'static Metric> {
    [METRICS, stores::STORES, warm_up::WARM_UP]
        .into_iter()
        .flatten()
}

/// Collects the values of a metric.
struct MetricSamples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl MetricSamples<'_> {
    fn put(&mut self, labels: &[(&str, &str)], value: u64) {
        self.write("", labels, &value.to_string());
    }

    /// A time in seconds, given in microseconds.
    fn put_micros(&mut self, labels: &[(&str, &str)], micros: u64) {
        self.write("", labels, &seconds(Duration::from_micros(micros)));
    }

    fn put_histogram(&mut self, labels: &[(&str, &str)], latency: &LatencyStatus) {
        let mut count = 0;
        for (index, bucket) in latency.buckets.iter().enumerate() {
            count += bucket;
            let bound = RequestTimes::bound(index);
            let bound = bound.map_or_else(|| "+Inf".to_owned(), seconds);
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.write("_bucket", &labels, &count.to_string());
        }
        let total = Duration::from_micros(latency.total_micros);
        self.write("_sum", labels, &seconds(total));
        self.write("_count", labels, &count.to_string());
    }

    fn write(&mut self, suffix: &str, labels: &[(&str, &str)], value: &str) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{}{suffix}{labels} {value}", self.name);
    }
}

fn seconds(time: Duration) -> String {
    time.as_secs_f64().to_string()
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// `status` in Prometheus' text format (version 0.0.4).
pub(super) fn render(status: &ServiceStatus) -> String {
    let mut text = String::new();
    for metric in all() {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let name = metric.name;
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "# HELP {name} {}\n# TYPE {name} {kind}\n",
            metric.help
        );
        let mut samples = MetricSamples {
            text: &mut text,
            name,
        };
        (metric.read)(status, &mut samples);
    }
    text
}
