//! The list of metrics, and how each is read; except those of warm-up, which are in `warm_up`.

use super::{DEVICE, MOUNT, Metric, MetricKind};
use crate::service::status::{PrefetchStatus, ServiceStatus, StoreStatus};
use crate::service::traffic::TrafficStatus;
use crate::store::{CacheStatus, EndpointHealth, EndpointState, MemberHealth, MemberState};
use crate::transport::fuse::MountView;

/// Every metric except those of warm-up.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "castore_fs_info",
        kind: MetricKind::Gauge,
        labels: "version",
        help: "Always 1; the label has the version.",
        read: |status, to| to.put(&[("version", &status.version)], 1),
    },
    Metric {
        name: "castore_fs_uptime_seconds",
        kind: MetricKind::Gauge,
        labels: "",
        help: "Seconds since this process started.",
        read: |status, to| to.put(&[], status.uptime_seconds),
    },
    Metric {
        name: "castore_fs_reloads_total",
        kind: MetricKind::Counter,
        labels: "outcome",
        help: "Reloads of the configuration: ok, or failed (refused, or something of it is missing).",
        read: |status, to| {
            to.put(&[("outcome", "ok")], status.reloads.succeeded);
            to.put(&[("outcome", "failed")], status.reloads.failed);
        },
    },
    Metric {
        name: "castore_fs_last_reload_ok",
        kind: MetricKind::Gauge,
        labels: "",
        help: "1 if the last reload succeeded or there was none, 0 if it failed.",
        read: |status, to| to.put(&[], u64::from(status.reloads.failure.is_none())),
    },
    Metric {
        name: "castore_fs_requests_total",
        kind: MetricKind::Counter,
        labels: "transport, name, kind",
        help: "Requests of the kernel or of guests since this process began to serve the mount or device.",
        read: |status, to| {
            for served in served(status) {
                for (kind, count) in &served.traffic.requests {
                    to.put(&served.with("kind", kind), *count);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_request_seconds",
        kind: MetricKind::Histogram,
        labels: "transport, name, kind",
        help: "How long requests took, from their reading to the reply.",
        read: |status, to| {
            for served in served(status) {
                for (kind, latency) in &served.traffic.latencies {
                    to.put_histogram(&served.with("kind", kind), latency);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_request_waits_total",
        kind: MetricKind::Counter,
        labels: "transport, name, kind",
        help: "Requests that waited for an upstream.",
        read: |status, to| {
            for served in served(status) {
                for (kind, count) in &served.traffic.waits {
                    to.put(&served.with("kind", kind), *count);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_errors_total",
        kind: MetricKind::Counter,
        labels: "transport, name, errno",
        help: "Error replies to programs, by errno; without ENOENT, ENODATA, ERANGE and ENOSYS, which are ordinary answers.",
        read: |status, to| {
            for served in served(status) {
                for (errno, count) in &served.traffic.errors {
                    to.put(&served.with("errno", errno), *count);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_read_bytes_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "Bytes of files in replies to READ; without what the kernel had cached or read through passthrough.",
        read: |status, to| {
            for served in served(status) {
                to.put(&served.labels(), served.traffic.read_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_cached_directories",
        kind: MetricKind::Gauge,
        labels: "transport, name",
        help: "Directories that the kernel knows, or the guests.",
        read: |status, to| {
            for served in served(status) {
                to.put(&served.labels(), served.cached_directories);
            }
        },
    },
    Metric {
        name: "castore_fs_directory_bytes",
        kind: MetricKind::Gauge,
        labels: "transport, name",
        help: "Bytes of Directories in memory.",
        read: |status, to| {
            for served in served(status) {
                to.put(&served.labels(), served.directory_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_node_table_bytes",
        kind: MetricKind::Gauge,
        labels: "transport, name",
        help: "Bytes of the node table, or of those of the guests.",
        read: |status, to| {
            for served in served(status) {
                to.put(&served.labels(), served.table_bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_mount_up",
        kind: MetricKind::Gauge,
        labels: "name",
        help: "1 while the mount is at its mount point.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("name", name)], u64::from(mount.mounted));
            }
        },
    },
    Metric {
        name: "castore_fs_mount_taken_over",
        kind: MetricKind::Gauge,
        labels: "name",
        help: "1 if the mount was made by an earlier process.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("name", name)], u64::from(mount.taken_over));
            }
        },
    },
    Metric {
        name: "castore_fs_mount_image",
        kind: MetricKind::Gauge,
        labels: "name",
        help: "1 if the mount is an image, 0 if it is FUSE.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                to.put(&[("name", name)], u64::from(mount.view == MountView::Image));
            }
        },
    },
    Metric {
        name: "castore_fs_image_read_bytes_total",
        kind: MetricKind::Counter,
        labels: "name",
        help: "Bytes that the kernel read of the mount's images since this process serves it.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                let images = mount.opened_images.iter();
                let read: u64 = images.map(|image| image.read_bytes).sum();
                to.put(&[("name", name)], read);
            }
        },
    },
    Metric {
        name: "castore_fs_open_files",
        kind: MetricKind::Gauge,
        labels: "name",
        help: "Open files of a mount with passthrough; other mounts get no open requests.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                if let Some(open) = &mount.open {
                    to.put(&[("name", name)], open.files);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_backed_files",
        kind: MetricKind::Gauge,
        labels: "name",
        help: "Open files read through kernel passthrough.",
        read: |status, to| {
            for (name, mount) in &status.mounts {
                if let Some(open) = &mount.open {
                    to.put(&[("name", name)], open.backed);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_leaving_mounts",
        kind: MetricKind::Gauge,
        labels: "",
        help: "Mounts that are detached from the tree and still in use.",
        read: |status, to| to.put(&[], status.leaving),
    },
    Metric {
        name: "castore_fs_virtiofs_connections_total",
        kind: MetricKind::Counter,
        labels: "name",
        help: "Front ends of virtual machines that connected since this process began to serve the device.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("name", name)], device.connections);
            }
        },
    },
    Metric {
        name: "castore_fs_virtiofs_guests",
        kind: MetricKind::Gauge,
        labels: "name",
        help: "Front ends that are connected.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                to.put(&[("name", name)], device.guests);
            }
        },
    },
    Metric {
        name: "castore_fs_store_blobs",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Blobs in the store; absent if that is not known.",
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
        kind: MetricKind::Gauge,
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
        kind: MetricKind::Gauge,
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
        kind: MetricKind::Gauge,
        labels: "store",
        help: "1 if the last request to an upstream was answered, 0 if it failed; absent before the first.",
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
        kind: MetricKind::Counter,
        labels: "store",
        help: "Calls to an upstream. What memory answered is none.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.requests);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_failures_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Calls to an upstream that failed.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.failures);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_in_flight",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Calls to an upstream in flight.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.in_flight);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_received_bytes_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Bytes of content in an upstream's answers.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put(&[("store", name)], endpoint.bytes_in);
            }
        },
    },
    Metric {
        name: "castore_fs_endpoint_call_seconds",
        kind: MetricKind::Histogram,
        labels: "store",
        help: "How long calls to an upstream took, until the answer or its first part; without what memory answered.",
        read: |status, to| {
            for (name, endpoint) in endpoints(status) {
                to.put_histogram(&[("store", name)], &endpoint.times);
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_state",
        kind: MetricKind::Gauge,
        labels: "store, member, state",
        help: "1 for the state of a mirror: up, open (it failed, its circuit breaker is open), slow, corrupt (it sent wrong bytes).",
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
        kind: MetricKind::Counter,
        labels: "store, member",
        help: "Requests to a mirror.",
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
        kind: MetricKind::Counter,
        labels: "store, member",
        help: "Requests to a mirror that failed.",
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
        kind: MetricKind::Counter,
        labels: "store, member",
        help: "Requests that were also sent to another mirror because this one took long.",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                to.put(&[("store", name), ("member", &member.name)], member.hedges);
            }
        },
    },
    Metric {
        name: "castore_fs_mirror_corrupt_responses_total",
        kind: MetricKind::Counter,
        labels: "store, member",
        help: "Answers of a mirror that did not match their digest.",
        read: |status, to| {
            for (name, member) in mirrors(status) {
                to.put(
                    &[("store", name), ("member", &member.name)],
                    member.corrupt_responses,
                );
            }
        },
    },
    Metric {
        name: "castore_fs_cache_size_bytes",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Bytes that a cache takes on its disk.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.size);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_limit_bytes",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Bytes that a cache may take on its disk; absent if that is not limited.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                if let Some(limit) = cache.limit {
                    to.put(&[("store", name)], limit);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_cache_pins",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Roots that are pinned in a cache.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.pins.len() as u64);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_hits_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Directories and parts of blobs that were read from a cache.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.hits);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_misses_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Directories and parts of blobs that a cache requested from its upstream.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.misses);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_evictions_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Objects that a cache evicted.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.evictions);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_not_stored_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Objects that a cache did not keep, because its disk was too slow, full or failing.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.not_stored);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_repairs_total",
        kind: MetricKind::Counter,
        labels: "store",
        help: "Damaged objects of a cache that were fetched again.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], cache.repairs);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_prefetches",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Running prefetches into a cache.",
        read: |status, to| {
            for (name, _) in caches(status) {
                to.put(&[("store", name)], prefetches(status, name).count() as u64);
            }
        },
    },
    Metric {
        name: "castore_fs_cache_prefetched_bytes",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Bytes that running prefetches have fetched.",
        read: |status, to| {
            for (name, _) in caches(status) {
                let bytes = prefetches(status, name).map(|prefetch| prefetch.bytes);
                to.put(&[("store", name)], bytes.sum());
            }
        },
    },
    Metric {
        name: "castore_fs_cache_prefetch_bytes",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "Bytes that running prefetches will have fetched; 0 until all Directories are known.",
        read: |status, to| {
            for (name, _) in caches(status) {
                let bytes = prefetches(status, name).map(|prefetch| prefetch.total_bytes);
                to.put(&[("store", name)], bytes.sum());
            }
        },
    },
    Metric {
        name: "castore_fs_cache_backoff",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "1 while a cache keeps no fetched objects.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], u64::from(cache.backoff.is_some()));
            }
        },
    },
    Metric {
        name: "castore_fs_cache_upstream_down",
        kind: MetricKind::Gauge,
        labels: "store",
        help: "1 while the upstream of a cache is considered unreachable.",
        read: |status, to| {
            for (name, cache) in caches(status) {
                to.put(&[("store", name)], u64::from(cache.upstream_down.is_some()));
            }
        },
    },
];

/// The states of a mirror, by their labels.
const MEMBER_STATES: [(MemberState, &str); 4] = [
    (MemberState::Up, "up"),
    (MemberState::Open, "open"),
    (MemberState::Slow, "slow"),
    (MemberState::Corrupt, "corrupt"),
];

/// A mount or a device: what both have.
struct ServedView<'a> {
    transport: &'static str,
    name: &'a str,
    traffic: &'a TrafficStatus,
    cached_directories: u64,
    directory_bytes: u64,
    table_bytes: u64,
}

impl<'a> ServedView<'a> {
    fn labels(&self) -> [(&'static str, &'a str); 2] {
        [("transport", self.transport), ("name", self.name)]
    }

    /// Its labels and another one.
    fn with<'b>(&'b self, label: &'static str, value: &'b str) -> [(&'static str, &'b str); 3] {
        let [transport, name] = self.labels();
        [transport, name, (label, value)]
    }
}

/// The mounts, then the devices.
fn served(status: &ServiceStatus) -> impl Iterator<Item = ServedView<'_>> {
    let mounts = status.mounts.iter().map(|(name, mount)| ServedView {
        transport: MOUNT,
        name,
        traffic: &mount.traffic,
        cached_directories: mount.cached_directories,
        directory_bytes: mount.directory_bytes,
        table_bytes: mount.table_bytes,
    });
    let devices = status.virtiofs.iter().map(|(name, device)| ServedView {
        transport: DEVICE,
        name,
        traffic: &device.traffic,
        cached_directories: device.cached_directories,
        directory_bytes: device.directory_bytes,
        table_bytes: device.table_bytes,
    });
    mounts.chain(devices)
}

/// The stores of `status` that have `of`.
fn stores<'a, T: 'a>(
    status: &'a ServiceStatus,
    of: impl Fn(&'a StoreStatus) -> T,
) -> impl Iterator<Item = (&'a str, T)> {
    let stores = status.stores.iter();
    stores.map(move |(name, store)| (name.as_str(), of(store)))
}

fn endpoints(status: &ServiceStatus) -> impl Iterator<Item = (&str, &EndpointHealth)> {
    let endpoints = stores(status, |store| store.health.endpoint.as_ref());
    endpoints.filter_map(|(name, endpoint)| Some((name, endpoint?)))
}

fn mirrors(status: &ServiceStatus) -> impl Iterator<Item = (&str, &MemberHealth)> {
    let members = stores(status, |store| &store.health.members);
    members.flat_map(|(name, members)| members.iter().map(move |member| (name, member)))
}

fn caches(status: &ServiceStatus) -> impl Iterator<Item = (&str, &CacheStatus)> {
    let caches = stores(status, |store| store.cache.as_ref());
    caches.filter_map(|(name, cache)| Some((name, cache?)))
}

/// The running prefetches into the cache `store`.
fn prefetches<'a>(
    status: &'a ServiceStatus,
    store: &'a str,
) -> impl Iterator<Item = &'a PrefetchStatus> {
    let all = status.prefetches.iter();
    all.filter(move |prefetch| prefetch.store == store)
}
