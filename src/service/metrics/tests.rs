use super::*;
use crate::fs::WarmUpCount;
use crate::service::status::{MountStatus, OpenStatus, StoreStatus, VirtiofsStatus};
use crate::service::traffic::TrafficStatus;
use crate::store::{CacheStatus, EndpointHealth, EndpointState, Health, MemberHealth, MemberState};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

#[test]
fn the_table_of_metrics_is_current() {
    let mut text = String::from(
        "<!-- Made of the lists in src/service/metrics/ by the test \
         `the_table_of_metrics_is_current`; write with CASTORE_FS_REGENERATE=1. -->\n\
         # Metrics\n\nServed at `/metrics` of the `address` under `[metrics]`, \
         or by `castore-fs virtiofs --metrics ADDRESS`.\n\n\
         `transport` is `fuse` for a mount and `virtiofs` for a device for guests, `name` its name in the \
         configuration (`castore-fs virtiofs` numbers its devices). The share of READs that waited for no \
         upstream is `1 - rate(castore_fs_request_waits_total{kind=\"READ\"}[5m]) / \
         rate(castore_fs_requests_total{kind=\"READ\"}[5m])`; [status.md](status.md) has what each number \
         means.\n\n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in all() {
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

fn corrupt_member() -> MemberHealth {
    MemberHealth {
        name: "far".to_owned(),
        state: MemberState::Corrupt,
        requests: 3,
        failures: 1,
        hedges: 0,
        corrupt_responses: 1,
        median_micros: None,
        p95_micros: None,
        last_failure: None,
    }
}

/// A service with one of everything.
fn everything() -> ServiceStatus {
    let latency = LatencyStatus {
        buckets: vec![1; 24],
        ..LatencyStatus::default()
    };
    let traffic = TrafficStatus {
        requests: [("READ".to_owned(), 1)].into(),
        latencies: [("READ".to_owned(), latency.clone())].into(),
        waits: [("READ".to_owned(), 1)].into(),
        errors: [("EIO".to_owned(), 1)].into(),
        ..TrafficStatus::default()
    };
    let mount = MountStatus {
        traffic: traffic.clone(),
        open: Some(OpenStatus::default()),
        warmup: Some(WarmUpCount::default()),
        ..MountStatus::default()
    };
    let device = VirtiofsStatus {
        traffic,
        warmup: Some(WarmUpCount::default()),
        ..VirtiofsStatus::default()
    };
    let store = StoreStatus {
        health: Health {
            endpoint: Some(EndpointHealth {
                state: EndpointState::Up,
                median_micros: Some(1),
                p95_micros: Some(2),
                times: latency,
                ..EndpointHealth::default()
            }),
            members: vec![corrupt_member()],
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
    ServiceStatus {
        mounts: [("tree".to_owned(), mount)].into(),
        virtiofs: [("vm".to_owned(), device)].into(),
        stores: [("main".to_owned(), store)].into(),
        ..ServiceStatus::default()
    }
}

#[test]
fn every_metric_has_the_labels_that_its_entry_says() {
    let text = render(&everything());
    for metric in all() {
        let suffix = match metric.kind {
            MetricKind::Histogram => "_count",
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
fn labels_are_escaped_and_counters_are_typed() {
    let status = ServiceStatus {
        version: "1 \"2\"\\".to_owned(),
        ..ServiceStatus::default()
    };
    let text = render(&status);
    assert!(
        text.contains("castore_fs_info{version=\"1 \\\"2\\\"\\\\\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("# TYPE castore_fs_requests_total counter\n"));
}

#[test]
fn stores_report_what_they_know_and_nothing_else() {
    let mut status = ServiceStatus::default();
    let upstream = StoreStatus {
        health: Health {
            endpoint: Some(EndpointHealth {
                state: EndpointState::Failing,
                requests: 7,
                times: LatencyStatus {
                    total_micros: 1500,
                    buckets: [vec![0; 7], vec![2], vec![0; 16]].concat(),
                    ..LatencyStatus::default()
                },
                ..EndpointHealth::default()
            }),
            members: Vec::new(),
        },
        ..StoreStatus::default()
    };
    status.stores.insert("far".to_owned(), upstream);
    let main = StoreStatus {
        health: Health {
            endpoint: None,
            members: vec![corrupt_member()],
        },
        cache: Some(CacheStatus {
            size: 10,
            backoff: Some("the disk is full".to_owned()),
            ..CacheStatus::default()
        }),
        ..StoreStatus::default()
    };
    status.stores.insert("main".to_owned(), main);
    let text = render(&status);
    for line in [
        "castore_fs_endpoint_up{store=\"far\"} 0",
        "castore_fs_endpoint_requests_total{store=\"far\"} 7",
        "castore_fs_endpoint_call_seconds_bucket{store=\"far\",le=\"0.000524288\"} 0",
        "castore_fs_endpoint_call_seconds_bucket{store=\"far\",le=\"0.001048576\"} 2",
        "castore_fs_endpoint_call_seconds_sum{store=\"far\"} 0.0015",
        "castore_fs_endpoint_call_seconds_count{store=\"far\"} 2",
        "castore_fs_mirror_state{store=\"main\",member=\"far\",state=\"corrupt\"} 1",
        "castore_fs_mirror_state{store=\"main\",member=\"far\",state=\"up\"} 0",
        "castore_fs_mirror_corrupt_responses_total{store=\"main\",member=\"far\"} 1",
        "castore_fs_cache_size_bytes{store=\"main\"} 10",
        "castore_fs_cache_backoff{store=\"main\"} 1",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    for absent in [
        "castore_fs_store_blobs{",
        "castore_fs_cache_limit_bytes{",
        "castore_fs_endpoint_up{store=\"main\"}",
    ] {
        assert!(!text.contains(absent), "{absent}\n{text}");
    }
}

#[test]
fn a_histogram_adds_up() {
    let mut status = ServiceStatus::default();
    let latency = LatencyStatus {
        total_micros: 1_500_000,
        buckets: [vec![2, 3], vec![0; 21], vec![1]].concat(),
        ..LatencyStatus::default()
    };
    let mount = MountStatus {
        traffic: TrafficStatus {
            latencies: [("READ".to_owned(), latency)].into(),
            ..TrafficStatus::default()
        },
        ..MountStatus::default()
    };
    status.mounts.insert("tree".to_owned(), mount);
    let text = render(&status);
    let of = "transport=\"fuse\",name=\"tree\",kind=\"READ\"";
    for line in [
        format!("castore_fs_request_seconds_bucket{{{of},le=\"0.000008192\"}} 2"),
        format!("castore_fs_request_seconds_bucket{{{of},le=\"0.000016384\"}} 5"),
        format!("castore_fs_request_seconds_bucket{{{of},le=\"34.359738368\"}} 5"),
        format!("castore_fs_request_seconds_bucket{{{of},le=\"+Inf\"}} 6"),
        format!("castore_fs_request_seconds_sum{{{of}}} 1.5"),
        format!("castore_fs_request_seconds_count{{{of}}} 6"),
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    assert!(text.contains("# TYPE castore_fs_request_seconds histogram\n"));
}

#[test]
fn mounts_and_guests_are_one_family() {
    let text = render(&everything());
    for line in [
        "castore_fs_requests_total{transport=\"fuse\",name=\"tree\",kind=\"READ\"} 1",
        "castore_fs_requests_total{transport=\"virtiofs\",name=\"vm\",kind=\"READ\"} 1",
        "castore_fs_errors_total{transport=\"fuse\",name=\"tree\",errno=\"EIO\"} 1",
        "castore_fs_errors_total{transport=\"virtiofs\",name=\"vm\",errno=\"EIO\"} 1",
        "castore_fs_warmup_saves_total{transport=\"virtiofs\",name=\"vm\"} 0",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    let mut types: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let families = types.len();
    types.dedup();
    assert_eq!(types.len(), families, "each has one header");
}

/// Prometheus' conventions for names: https://prometheus.io/docs/practices/naming/
#[test]
fn names_have_base_units_and_counters_a_total() {
    for metric in all() {
        let (name, kind) = (metric.name, metric.kind);
        assert_eq!(
            kind == MetricKind::Counter,
            name.ends_with("_total"),
            "{name}"
        );
        assert_eq!(
            kind == MetricKind::Histogram,
            name.ends_with("_seconds") && kind != MetricKind::Gauge,
            "{name}"
        );
        for unit in ["micros", "millis", "_ms", "kib", "mib", "_mb"] {
            assert!(!name.contains(unit), "{name}");
        }
    }
}
