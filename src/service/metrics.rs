//! Numbers for Prometheus.
//!
//! [`METRICS`] is the one list of them: what is not there does not exist, and `docs/metrics.md` is
//! made of it. They are read from the same [`Status`] that `castore-fs status` shows.

use std::fmt::Write as _;

use super::status::Status;

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
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
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
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
        name: "castore_fs_virtiofs_requests",
        kind: Kind::Gauge,
        labels: "device, kind",
        help: "Requests of the guests that are connected, since this process serves them.",
        read: |status, to| {
            for (name, device) in &status.virtiofs {
                for (kind, count) in &device.requests {
                    to.put(&[("device", name), ("kind", kind)], *count);
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
        help: "Blobs in the store.",
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
];

/// `status` in Prometheus' text format (version 0.0.4).
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
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
}
