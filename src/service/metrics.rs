//! Numbers for Prometheus.
//!
//! [`METRICS`] is the one list of them: what is not there does not exist, and `docs/metrics.md` is
//! made of it. They are read from the same [`Status`] that `castore-fs status` shows.

#[cfg(test)]
mod dashboard;

use std::fmt::Write as _;
use std::time::Duration;

use super::status::{LatencyStatus, PrefetchStatus, Status, StoreStatus};
use crate::store::{CacheStatus, EndpointHealth, EndpointState, MemberHealth, MemberState};
use crate::transport::fuse::RequestTimes;

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric: its name, kind, labels, meaning, and how it is read.
struct Metric {
    name: &'static str,
    kind: Kind,
    #[cfg_attr(not(test), expect(dead_code, reason = "for docs/metrics.md"))]
    labels: &'static str,
    help: &'static str,
    read: fn(&Status, &mut Samples<'_>),
}

/// Where a metric puts its values.
struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
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

/// Every metric that there is.
const METRICS: &[Metric] = &[
    Metric {
        name: "castore_fs_info",
        kind: Kind::Gauge,
        labels: "version",
        help: "Always 1; the label tells the version.",
        read: |status, to| to.put(&[("version", &status.version)], 1),
    },
    Metric {
        name: "castore_fs_uptime_seconds",
        kind: Kind::Gauge,
        labels: "",
        help: "Seconds since this process started.",
        read: |status, to| to.put(&[], status.uptime_seconds),
    },
    Metric {
        name: "castore_fs_mount_up",
        kind: Kind::Gauge,
        labels: "mount",
        help: "1 while the mount is where it was mounted.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("mount", name)], u64::from(mount.mounted));
            }
        },
    },
    Metric {
        name: "castore_fs_mount_adopted",
        kind: Kind::Gauge,
        labels: "mount",
        help: "1 if the mount was made by an earlier process.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("mount", name)], u64::from(mount.adopted));
            }
        },
    },
    Metric {
        name: "castore_fs_requests_total",
        kind: Kind::Counter,
        labels: "mount, kind",
        help: "Requests of the kernel since this process serves the mount.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                for (kind, count) in &mount.requests {
                    to.put(&[("mount", name), ("kind", kind)], *count);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_request_seconds",
        kind: Kind::Histogram,
        labels: "mount, kind",
        help: "How long requests took, from being read to being answered.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                for (kind, latency) in &mount.latencies {
                    to.put_histogram(&[("mount", name), ("kind", kind)], latency);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_live_directories",
        kind: Kind::Gauge,
        labels: "mount",
        help: "Directories that the kernel knows.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("mount", name)], mount.live_directories);
            }
        },
    },
    Metric {
        name: "castore_fs_shared_files",
        kind: Kind::Gauge,
        labels: "mount",
        help: "Files in the index of shared content.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("mount", name)], mount.shared_files);
            }
        },
    },
    Metric {
        name: "castore_fs_directory_bytes",
        kind: Kind::Gauge,
        labels: "mount",
        help: "Bytes of Directories in memory.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("mount", name)], mount.directory_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_node_table_bytes",
        kind: Kind::Gauge,
        labels: "mount",
        help: "Bytes of the node table.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("mount", name)], mount.table_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_open_files",
        kind: Kind::Gauge,
        labels: "mount",
        help: "Files that are open on a mount with passthrough; other mounts are not asked for it.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                if let Some(open) = &mount.open {
                    to.put(&[("mount", name)], open.files);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_backed_files",
        kind: Kind::Gauge,
        labels: "mount",
        help: "Those of them that the kernel reads by itself.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                if let Some(open) = &mount.open {
                    to.put(&[("mount", name)], open.backed);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_leaving_mounts",
        kind: Kind::Gauge,
        labels: "",
        help: "Mounts that are out of the tree and still used.",
        read: |status, to| to.put(&[], status.leaving),
    },
    Metric {
        name: "castore_fs_virtiofs_connections_total",
        kind: Kind::Counter,
        labels: "device",
        help: "Front ends of virtual machines that connected since this process serves the device.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("device", name)], device.connections);
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_guests",
        kind: Kind::Gauge,
        labels: "device",
        help: "Front ends that are connected.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("device", name)], device.guests);
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_requests_total",
        kind: Kind::Counter,
        labels: "device, kind",
        help: "Requests of guests since this process serves the device.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                for (kind, count) in &device.requests {
                    to.put(&[("device", name), ("kind", kind)], *count);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_request_seconds",
        kind: Kind::Histogram,
        labels: "device, kind",
        help: "How long requests of guests took, from being taken from the queue to being answered.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                for (kind, latency) in &device.latencies {
                    to.put_histogram(&[("device", name), ("kind", kind)], latency);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_live_directories",
        kind: Kind::Gauge,
        labels: "device",
        help: "Directories that the guests know.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("device", name)], device.live_directories);
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_directory_bytes",
        kind: Kind::Gauge,
        labels: "device",
        help: "Bytes of Directories in memory for the guests.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("device", name)], device.directory_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_node_table_bytes",
        kind: Kind::Gauge,
        labels: "device",
        help: "Bytes of the guests' node tables.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("device", name)], device.table_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_store_blobs",
        kind: Kind::Gauge,
        labels: "store",
        help: "Blobs in the store; absent where that is not known.",
        read: |status, to| {
            for (name, store) in &status.stores {
                if let Some(blobs) = store.blobs {
                    to.put(&[("store", name)], blobs);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_store_blob_bytes",
        kind: Kind::Gauge,
        labels: "store",
        help: "Bytes of the blobs in the store.",
        read: |status, to| {
            for (name, store) in &status.stores {
                if let Some(bytes) = store.blob_bytes {
                    to.put(&[("store", name)], bytes);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_store_directories",
        kind: Kind::Gauge,
        labels: "store",
        help: "Directories in the store.",
        read: |status, to| {
            for (name, store) in &status.stores {
                if let Some(directories) = store.directories {
                    to.put(&[("store", name)], directories);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_up",
        kind: Kind::Gauge,
        labels: "store",
        help: "1 if the last question to a store far away was answered, 0 if it failed; absent before the first.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                if endpoint.state != EndpointState::Unknown {
                    let up = endpoint.state == EndpointState::Up;
                    to.put(&[("store", name)], u64::from(up));
                }
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_requests_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Questions to a store far away: those that memory could not answer.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.requests);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_failures_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Those of them that got an error.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.failures);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_in_flight",
        kind: Kind::Gauge,
        labels: "store",
        help: "Those of them that wait for their answer.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.in_flight);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_received_bytes_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Bytes of blobs and Directories in the answers.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.bytes_in);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_median_seconds",
        kind: Kind::Gauge,
        labels: "store",
        help: "The time within which half of the latest 64 answers came.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                if let Some(micros) = endpoint.median_micros {
                    to.put_micros(&[("store", name)], micros);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_p95_seconds",
        kind: Kind::Gauge,
        labels: "store",
        help: "The time within which 19 of 20 of the latest 64 answers came.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                if let Some(micros) = endpoint.p95_micros {
                    to.put_micros(&[("store", name)], micros);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_state",
        kind: Kind::Gauge,
        labels: "store, member, state",
        help: "1 for the state that a mirror is in: up, open (it failed and is left alone), slow, liar (it sent wrong bytes).",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                for (state, label) in MEMBER_STATES {
                    let labels = [("store", name), ("member", &member.name), ("state", label)];
                    to.put(&labels, u64::from(member.state == state));
                }
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_requests_total",
        kind: Kind::Counter,
        labels: "store, member",
        help: "Questions that a mirror was asked.",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                to.put(
                    &[("store", name), ("member", &member.name)],
                    member.requests,
                );
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_failures_total",
        kind: Kind::Counter,
        labels: "store, member",
        help: "Those of them that got an error.",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                to.put(
                    &[("store", name), ("member", &member.name)],
                    member.failures,
                );
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_hedges_total",
        kind: Kind::Counter,
        labels: "store, member",
        help: "Questions that another was asked as well because the mirror took long.",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                to.put(&[("store", name), ("member", &member.name)], member.hedges);
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_lies_total",
        kind: Kind::Counter,
        labels: "store, member",
        help: "Answers of a mirror that were not what their digest promises.",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                to.put(&[("store", name), ("member", &member.name)], member.lies);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_size_bytes",
        kind: Kind::Gauge,
        labels: "store",
        help: "What a cache takes on its disk.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.size);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_limit_bytes",
        kind: Kind::Gauge,
        labels: "store",
        help: "What a cache may take on its disk; absent where that is not bounded.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                if let Some(limit) = cache.limit {
                    to.put(&[("store", name)], limit);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_cache_hits_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Directories and parts of blobs that a cache had.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.hits);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_misses_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Those that the far store was asked for.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.misses);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_evictions_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Objects that had to make room for others.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.evictions);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_not_kept_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Objects that were not kept, because the disk was too slow, full or failing.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.not_kept);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_repairs_total",
        kind: Kind::Counter,
        labels: "store",
        help: "Objects of a cache that were damaged, and fetched anew.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.repairs);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_prefetches",
        kind: Kind::Gauge,
        labels: "store",
        help: "Prefetches into a cache that are under way.",
        read: |status, to| {
            for (name, _) in caches(status) {
                to.put(&[("store", name)], prefetches(status, name).count() as u64);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_prefetched_bytes",
        kind: Kind::Gauge,
        labels: "store",
        help: "Bytes that those have so far.",
        read: |status, to| {
            for (name, _) in caches(status) {
                let bytes = prefetches(status, name).map(|prefetch| prefetch.bytes);
                to.put(&[("store", name)], bytes.sum());
            }
        },
    },
    Metric {
        name: "castore_fs_cache_prefetch_bytes",
        kind: Kind::Gauge,
        labels: "store",
        help: "Bytes that they will have; 0 as long as not all Directories are known.",
        read: |status, to| {
            for (name, _) in caches(status) {
                let bytes = prefetches(status, name).map(|prefetch| prefetch.total_bytes);
                to.put(&[("store", name)], bytes.sum());
            }
        },
    },
    Metric {
        name: "castore_fs_cache_degraded",
        kind: Kind::Gauge,
        labels: "store",
        help: "1 while a cache keeps nothing of what comes.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], u64::from(cache.degraded.is_some()));
            }
        },
    },
    Metric {
        name: "castore_fs_cache_far_down",
        kind: Kind::Gauge,
        labels: "store",
        help: "1 while the far store was last found out of reach.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], u64::from(cache.far_down.is_some()));
            }
        },
    },
];

/// The states of a mirror, by their labels.
const MEMBER_STATES: [(MemberState, &str); 4] = [
    (MemberState::Up, "up"),
    (MemberState::Open, "open"),
    (MemberState::Slow, "slow"),
    (MemberState::Liar, "liar"),
];

/// The stores of `status` that have what `of` looks for.
fn stores<'a, T: 'a>(
    status: &'a Status,
    of: impl Fn(&'a StoreStatus) -> T,
) -> impl Iterator<Item = (&'a str, T)> {
    let stores = status.stores.iter();
    stores.map(move |(name, store)| (name.as_str(), of(store)))
}

fn endpoints(status: &Status) -> impl Iterator<Item = (&str, &EndpointHealth)> {
    let endpoints = stores(status, |store| store.health.endpoint.as_ref());
    endpoints.filter_map(|(name, endpoint)| Some((name, endpoint?)))
}

fn mirrors(status: &Status) -> impl Iterator<Item = (&str, &MemberHealth)> {
    let members = stores(status, |store| &store.health.members);
    members.flat_map(|(name, members)| members.iter().map(move |member| (name, member)))
}

fn caches(status: &Status) -> impl Iterator<Item = (&str, &CacheStatus)> {
    let caches = stores(status, |store| store.cache.as_ref());
    caches.filter_map(|(name, cache)| Some((name, cache?)))
}

/// The prefetches that are under way into the cache `store`.
fn prefetches<'a>(status: &'a Status, store: &'a str) -> impl Iterator<Item = &'a PrefetchStatus> {
    let all = status.prefetches.iter();
    all.filter(move |prefetch| prefetch.store == store)
}

/// `status` in Prometheus' text format (version 0.0.4).
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let name = metric.name;
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "# HELP {name} {}\n# TYPE {name} {kind}\n",
            metric.help
        );
        let mut samples = Samples {
            text: &mut text,
            name,
        };
        (metric.read)(status, &mut samples);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::status::{MountStatus, OpenStatus, VirtiofsStatus};
    use crate::store::Health;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

    #[test]
    fn the_table_of_metrics_is_current() {
        let mut text = String::from(
            "<!-- Made of the list in src/service/metrics.rs by the test \
             `the_table_of_metrics_is_current`; write with CASTORE_FS_REGENERATE=1. -->\n\
             # Metrics\n\nServed at `/metrics` of the `address` under `[metrics]`, \
             or by `castore-fs virtiofs --metrics ADDRESS`.\n\n\
             | metric | kind | labels | meaning |\n|---|---|---|---|\n",
        );
        for metric in METRICS {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let (name, labels, help) = (metric.name, metric.labels, metric.help);
            writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
        if std::env::var_os("CASTORE_FS_REGENERATE").is_some() {
            std::fs::write(FILE, &text).unwrap();
        }
        let written = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            written == text,
            "docs/metrics.md is not current; run this test with CASTORE_FS_REGENERATE=1"
        );
    }

    fn liar() -> MemberHealth {
        MemberHealth {
            name: "far".to_owned(),
            state: MemberState::Liar,
            requests: 3,
            failures: 1,
            hedges: 0,
            lies: 1,
            median_micros: None,
            p95_micros: None,
            last_failure: None,
        }
    }

    /// A service with one of everything.
    fn everything() -> Status {
        let latency = LatencyStatus {
            buckets: vec![1; 21],
            ..LatencyStatus::default()
        };
        let mount = MountStatus {
            requests: [("READ".to_owned(), 1)].into(),
            latencies: [("READ".to_owned(), latency.clone())].into(),
            open: Some(OpenStatus::default()),
            ..MountStatus::default()
        };
        let device = VirtiofsStatus {
            requests: [("READ".to_owned(), 1)].into(),
            latencies: [("READ".to_owned(), latency)].into(),
            ..VirtiofsStatus::default()
        };
        let store = StoreStatus {
            health: Health {
                endpoint: Some(EndpointHealth {
                    state: EndpointState::Up,
                    median_micros: Some(1),
                    p95_micros: Some(2),
                    ..EndpointHealth::default()
                }),
                members: vec![liar()],
            },
            cache: Some(CacheStatus {
                limit: Some(1),
                ..CacheStatus::default()
            }),
            blobs: Some(1),
            blob_bytes: Some(1),
            directories: Some(1),
            ..StoreStatus::default()
        };
        Status {
            mounts: [("tree".to_owned(), mount)].into(),
            virtiofs: [("vm".to_owned(), device)].into(),
            stores: [("main".to_owned(), store)].into(),
            ..Status::default()
        }
    }

    #[test]
    fn every_metric_has_the_labels_that_its_entry_says() {
        let text = render(&everything());
        for metric in METRICS {
            let suffix = match metric.kind {
                Kind::Histogram => "_count",
                _ => "",
            };
            let series = format!("{}{suffix}", metric.name);
            let of_it = text.lines().find_map(|line| {
                let rest = line.strip_prefix(&series)?;
                rest.starts_with(['{', ' ']).then_some(rest)
            });
            let line = of_it.unwrap_or_else(|| panic!("no sample of {series}"));
            let inside = line
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'))
                .map_or("", |(inside, _)| inside);
            let labels: Vec<_> = inside
                .split(',')
                .map(|label| label.split('=').next().unwrap_or_default())
                .collect();
            assert_eq!(labels.join(", "), metric.labels, "{series}");
        }
    }

    #[test]
    fn labels_are_escaped_and_counters_say_so() {
        let status = Status {
            version: "1 \"2\"\\".to_owned(),
            ..Status::default()
        };
        let text = render(&status);
        assert!(
            text.contains("castore_fs_info{version=\"1 \\\"2\\\"\\\\\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE castore_fs_requests_total counter\n"));
    }

    #[test]
    fn stores_tell_what_they_know_and_nothing_else() {
        let mut status = Status::default();
        let far = StoreStatus {
            health: Health {
                endpoint: Some(EndpointHealth {
                    state: EndpointState::Failing,
                    requests: 7,
                    p95_micros: Some(1500),
                    ..EndpointHealth::default()
                }),
                members: Vec::new(),
            },
            ..StoreStatus::default()
        };
        status.stores.insert("far".to_owned(), far);
        let main = StoreStatus {
            health: Health {
                endpoint: None,
                members: vec![liar()],
            },
            cache: Some(CacheStatus {
                size: 10,
                degraded: Some("the disk is full".to_owned()),
                ..CacheStatus::default()
            }),
            ..StoreStatus::default()
        };
        status.stores.insert("main".to_owned(), main);
        let text = render(&status);
        for line in [
            "castore_fs_endpoint_up{store=\"far\"} 0",
            "castore_fs_endpoint_requests_total{store=\"far\"} 7",
            "castore_fs_endpoint_p95_seconds{store=\"far\"} 0.0015",
            "castore_fs_mirror_state{store=\"main\",member=\"far\",state=\"liar\"} 1",
            "castore_fs_mirror_state{store=\"main\",member=\"far\",state=\"up\"} 0",
            "castore_fs_mirror_lies_total{store=\"main\",member=\"far\"} 1",
            "castore_fs_cache_size_bytes{store=\"main\"} 10",
            "castore_fs_cache_degraded{store=\"main\"} 1",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        for absent in [
            "castore_fs_store_blobs{",
            "castore_fs_endpoint_median_seconds{",
            "castore_fs_cache_limit_bytes{",
            "castore_fs_endpoint_up{store=\"main\"}",
        ] {
            assert!(!text.contains(absent), "{absent}\n{text}");
        }
    }

    #[test]
    fn a_histogram_adds_up() {
        let mut status = Status::default();
        let latency = LatencyStatus {
            total_micros: 1_500_000,
            buckets: [vec![2, 3], vec![0; 18], vec![1]].concat(),
            ..LatencyStatus::default()
        };
        let mount = MountStatus {
            latencies: [("READ".to_owned(), latency)].into(),
            ..MountStatus::default()
        };
        status.mounts.insert("tree".to_owned(), mount);
        let text = render(&status);
        let of = "mount=\"tree\",kind=\"READ\"";
        for line in [
            format!("castore_fs_request_seconds_bucket{{{of},le=\"0.000008192\"}} 2"),
            format!("castore_fs_request_seconds_bucket{{{of},le=\"0.000016384\"}} 5"),
            format!("castore_fs_request_seconds_bucket{{{of},le=\"4.294967296\"}} 5"),
            format!("castore_fs_request_seconds_bucket{{{of},le=\"+Inf\"}} 6"),
            format!("castore_fs_request_seconds_sum{{{of}}} 1.5"),
            format!("castore_fs_request_seconds_count{{{of}}} 6"),
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        assert!(text.contains("# TYPE castore_fs_request_seconds histogram\n"));
    }
}
