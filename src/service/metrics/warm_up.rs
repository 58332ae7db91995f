//! The metrics of warm-up: of mounts, and of devices for guests, which have the same under names of
//! their own.

use super::{Metric, MetricKind};
use crate::fs::WarmUpCount;
use crate::service::status::ServiceStatus;

/// Those that begin with `$prefix`, of what `$each` finds in a status: each is a `$of`.
macro_rules! metrics {
    ($prefix:literal, $of:literal, $each:ident) => {
        &[
            Metric {
                name: concat!($prefix, "warmup_roots_total"),
                kind: MetricKind::Counter,
                labels: concat!($of, ", profile"),
                help: "Roots with warm-up, by the profile that was found for \
                       them: own, similar (another version's), none (or none that can be read).",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        for (profile, count) in [
                            ("own", warmup.own),
                            ("similar", warmup.similar),
                            ("none", warmup.none),
                        ] {
                            to.put(&[($of, name), ("profile", profile)], count);
                        }
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_recording"),
                kind: MetricKind::Gauge,
                labels: $of,
                help: "Roots whose first reads are being recorded.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.recording);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_recorded_extents_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "Extents of files, of up to 1 MiB, that were recorded.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.recorded);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_saves_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "How often a profile was written.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.saves);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_fetching"),
                kind: MetricKind::Gauge,
                labels: $of,
                help: "Profiles that are being prefetched.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.fetching);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_fetches_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "Prefetches of profiles that ended, complete or given up.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.fetches);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_fetch_seconds_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "The total time of these prefetches.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put_micros(&[($of, name)], warmup.fetch_micros);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_fetched_extents_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "Extents of files that were prefetched, without those that were cached already.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.extents);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_fetched_bytes_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "Bytes of the prefetched extents.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.bytes);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_hits_total"),
                kind: MetricKind::Counter,
                labels: $of,
                help: "Prefetched extents that were read after their arrival; of very many a few are \
                       not noticed.",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        to.put(&[($of, name)], warmup.hits);
                    }
                },
            },
            Metric {
                name: concat!($prefix, "warmup_failures_total"),
                kind: MetricKind::Counter,
                labels: concat!($of, ", step"),
                help: "Failures: find (a profile cannot be read), fetch (given up, as the store did \
                       not answer for ten minutes), save (a profile cannot be written).",
                read: |status, to| {
                    for (name, warmup) in $each(status) {
                        for (step, count) in [
                            ("find", warmup.failed_finds),
                            ("fetch", warmup.failed_fetches),
                            ("save", warmup.failed_saves),
                        ] {
                            to.put(&[($of, name), ("step", step)], count);
                        }
                    }
                },
            },
        ]
    };
}

/// Of mounts.
pub(super) const MOUNTS: &[Metric] = metrics!("castore_fs_", "mount", of_mounts);

/// Of devices for guests.
pub(super) const GUESTS: &[Metric] = metrics!("castore_fs_virtiofs_", "device", of_devices);

fn of_mounts(status: &ServiceStatus) -> impl Iterator<Item = (&str, &WarmUpCount)> {
    let mounts = status.mounts.iter();
    mounts.filter_map(|(name, mount)| Some((name.as_str(), mount.warmup.as_ref()?)))
}

fn of_devices(status: &ServiceStatus) -> impl Iterator<Item = (&str, &WarmUpCount)> {
    let devices = status.virtiofs.iter();
    devices.filter_map(|(name, device)| Some((name.as_str(), device.warmup.as_ref()?)))
}
