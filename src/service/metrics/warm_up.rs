//! The metrics of warm-up, of mounts and devices.

use super::{DEVICE, MOUNT, Metric, MetricKind};
use crate::fs::WarmUpCount;
use crate::service::status::ServiceStatus;

/// Every metric of warm-up.
pub(super) const WARM_UP: &[Metric] = &[
    Metric {
        name: "castore_fs_warmup_roots_total",
        kind: MetricKind::Counter,
        labels: "transport, name, profile",
        help: "Roots with warm-up, by the profile that was found for \
               them: own, similar (another version's), none (or none that can be read).",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                for (profile, count) in [
                    ("own", warmup.own),
                    ("similar", warmup.similar),
                    ("none", warmup.none),
                ] {
                    to.put(&[labels[0], labels[1], ("profile", profile)], count);
                }
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_recording",
        kind: MetricKind::Gauge,
        labels: "transport, name",
        help: "Roots whose first reads are being recorded.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.recording);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_recorded_extents_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "Extents of files, of up to 1 MiB, that were recorded.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.recorded);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_saves_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "How often a profile was written.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.saves);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_fetching",
        kind: MetricKind::Gauge,
        labels: "transport, name",
        help: "Profiles that are being prefetched.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.fetching);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_fetches_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "Prefetches of profiles that ended, complete or given up.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.fetches);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_fetch_seconds_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "The total time of these prefetches.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put_micros(&labels, warmup.fetch_micros);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_fetched_extents_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "Extents of files that were prefetched, without those that were cached already.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.extents);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_fetched_bytes_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "Bytes of the prefetched extents.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.bytes);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_hits_total",
        kind: MetricKind::Counter,
        labels: "transport, name",
        help: "Prefetched extents that were read after their arrival; of very many a few are \
               not noticed.",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                to.put(&labels, warmup.hits);
            }
        },
    },
    Metric {
        name: "castore_fs_warmup_failures_total",
        kind: MetricKind::Counter,
        labels: "transport, name, step",
        help: "Failures: find (a profile cannot be read), fetch (given up, as the store did \
               not answer for ten minutes), save (a profile cannot be written).",
        read: |status, to| {
            for (labels, warmup) in warm_ups(status) {
                for (step, count) in [
                    ("find", warmup.failed_finds),
                    ("fetch", warmup.failed_fetches),
                    ("save", warmup.failed_saves),
                ] {
                    to.put(&[labels[0], labels[1], ("step", step)], count);
                }
            }
        },
    },
];

/// The warm-up of mounts, then of devices, with the labels of each.
fn warm_ups(status: &ServiceStatus) -> impl Iterator<Item = ([(&str, &str); 2], &WarmUpCount)> {
    let mounts = status.mounts.iter();
    let mounts = mounts.map(|(name, mount)| (MOUNT, name, &mount.warmup));
    let devices = status.virtiofs.iter();
    let devices = devices.map(|(name, device)| (DEVICE, name, &device.warmup));
    mounts
        .chain(devices)
        .filter_map(|(transport, name, warmup)| {
            let labels = [("transport", transport), ("name", name.as_str())];
            Some((labels, warmup.as_ref()?))
        })
}
