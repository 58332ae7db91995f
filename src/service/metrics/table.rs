//! The metrics of the process, of mounts and of devices, and how each is read.

use super::{DEVICE, MOUNT, Metric, MetricKind};
use crate::service::status::ServiceStatus;
use crate::service::traffic::TrafficStatus;
use crate::transport::fuse::MountView;

/// Every metric except those of stores and of warm-up.
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
