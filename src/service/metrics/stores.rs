//! The metrics of stores: upstreams, mirrors and caches.

use super::{Metric, MetricKind};
use crate::service::status::{PrefetchStatus, ServiceStatus, StoreStatus};
use crate::store::{CacheStatus, EndpointHealth, EndpointState, MemberHealth, MemberState};

/// Every metric of stores.
pub(super) const STORES: &[Metric] = &[
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
