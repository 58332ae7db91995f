//! Tests that `docs/grafana/castore-fs.json` is a dashboard that Grafana loads, and that it shows
//! every metric.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::{Metric, MetricKind, all};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/grafana/castore-fs.json");
/// The labels that Prometheus adds to every series.
const OF_THE_SCRAPE: [&str; 2] = ["instance", "job"];
/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;
/// The oldest schema with these panels: that of Grafana 9.
const OLDEST_SCHEMA: u64 = 36;

fn dashboard() -> Value {
    let text = std::fs::read_to_string(FILE).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key]
        .as_array()
        .unwrap_or_else(|| panic!("{key} is no list"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} is no text in {value}"))
}

/// An expression, the names of its series, and its place.
struct PanelQuery<'a> {
    place: &'a str,
    expression: &'a str,
    legend: &'a str,
}

fn shown(dashboard: &Value) -> Vec<PanelQuery<'_>> {
    let mut all = Vec::new();
    for panel in list(dashboard, "panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            all.push(PanelQuery {
                place: text(panel, "title"),
                expression: text(target, "expr"),
                legend: text(target, "legendFormat"),
            });
        }
    }
    for annotation in list(&dashboard["annotations"], "list") {
        if let Some(expression) = annotation["expr"].as_str() {
            all.push(PanelQuery {
                place: text(annotation, "name"),
                expression,
                legend: text(annotation, "titleFormat"),
            });
        }
    }
    all
}

/// A selector of series in an expression.
struct MetricSelector<'a> {
    name: &'a str,
    labels: Vec<&'a str>,
    /// Whether it is over a span of time.
    range: bool,
}

/// The selectors of castore-fs metrics in `expression`.
fn selectors(expression: &str) -> Vec<MetricSelector<'_>> {
    let starts = expression.match_indices("castore_fs_").map(|(at, _)| at);
    let of_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    starts
        .map(|start| {
            let rest = &expression[start..];
            let (name, mut rest) = rest.split_at(rest.find(|c| !of_name(c)).unwrap_or(rest.len()));
            let mut labels = Vec::new();
            if let Some(inside) = rest.strip_prefix('{') {
                let (matchers, after) = inside.split_once('}').unwrap();
                let matchers = matchers.split(',');
                labels.extend(matchers.map(|one| one.split(['=', '!']).next().unwrap().trim()));
                rest = after;
            }
            let range = rest.starts_with('[');
            MetricSelector {
                name,
                labels,
                range,
            }
        })
        .collect()
}

/// The metric with series of this `name`.
fn metric(name: &str) -> Option<&'static Metric> {
    let parts = ["_bucket", "_sum", "_count"];
    all().find(|metric| match metric.kind {
        MetricKind::Histogram => parts
            .iter()
            .any(|part| name.strip_suffix(part) == Some(metric.name)),
        _ => metric.name == name,
    })
}

fn labels(metric: &Metric) -> BTreeSet<&'static str> {
    metric
        .labels
        .split(", ")
        .filter(|label| !label.is_empty())
        .collect()
}

/// The labels in `by (…)` of `expression`; nothing without an aggregation.
fn groups(expression: &str) -> Option<BTreeSet<&str>> {
    let aggregates = ["sum", "count", "min", "max"];
    let aggregated = aggregates
        .iter()
        .any(|name| expression.contains(&format!("{name}(")));
    let mut named = BTreeSet::new();
    for (_, rest) in expression.match_indices(" by (").map(|(at, found)| {
        let rest = &expression[at + found.len()..];
        (at, rest)
    }) {
        named.extend(rest.split_once(')').unwrap().0.split(", "));
    }
    (aggregated || !named.is_empty()).then_some(named)
}

#[test]
fn grafana_can_load_it() {
    let dashboard = dashboard();
    assert_eq!(text(&dashboard, "uid"), "castore-fs");
    assert_eq!(text(&dashboard, "title"), "castore-fs");
    assert!(dashboard["id"].is_null(), "an id is the database's");
    assert!(dashboard["schemaVersion"].as_u64() >= Some(OLDEST_SCHEMA));
    let variables = list(&dashboard["templating"], "list");
    let names: BTreeSet<&str> = variables.iter().map(|one| text(one, "name")).collect();
    assert_eq!(names.len(), variables.len(), "two of a name");
    let source = &variables[0];
    assert_eq!(
        (text(source, "type"), text(source, "query")),
        ("datasource", "prometheus"),
        "the data source is chosen when it is loaded"
    );

    let mut ids = BTreeSet::new();
    let mut taken = BTreeMap::new();
    for panel in list(&dashboard, "panels") {
        let (title, kind) = (text(panel, "title"), text(panel, "type"));
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id");
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        let (x, y, width, height) = (number("x"), number("y"), number("w"), number("h"));
        assert!(width > 0 && height > 0 && x + width <= COLUMNS, "{title}");
        for place in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            if let Some(other) = taken.insert(place, title) {
                panic!("{title} lies on {other}");
            }
        }
        if kind == "row" {
            continue;
        }
        let mut letters = BTreeSet::new();
        assert_eq!(text(&panel["datasource"], "uid"), "${datasource}");
        assert!(!list(panel, "targets").is_empty(), "{title} shows nothing");
        for target in list(panel, "targets") {
            assert!(letters.insert(text(target, "refId")), "{title}");
            assert_eq!(text(&target["datasource"], "uid"), "${datasource}");
        }
    }

    let built_in = ["__rate_interval"];
    for PanelQuery {
        place, expression, ..
    } in shown(&dashboard)
    {
        for (at, _) in expression.match_indices('$') {
            let name = expression[at + 1..]
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .next()
                .unwrap();
            let known = names.contains(name) || built_in.contains(&name);
            assert!(known, "{place}: there is no variable {name}");
        }
    }
}

#[test]
fn it_shows_every_metric_that_there_is_and_no_other() {
    let dashboard = dashboard();
    let mut seen = BTreeSet::new();
    for PanelQuery {
        place,
        expression,
        legend,
    } in shown(&dashboard)
    {
        let mut common: Option<BTreeSet<&str>> = None;
        for selector in selectors(expression) {
            let name = selector.name;
            let metric =
                metric(name).unwrap_or_else(|| panic!("{place}: there is no metric {name}"));
            seen.insert(metric.name);
            let mut has = labels(metric);
            has.extend(OF_THE_SCRAPE);
            if name.ends_with("_bucket") {
                has.insert("le");
            }
            for label in selector.labels {
                assert!(has.contains(label), "{place}: {name} has no {label}");
            }
            // Only the growth of a counter is meaningful; a gauge has none.
            let grows = metric.kind != MetricKind::Gauge;
            let restarts = expression.contains("resets(");
            assert_eq!(selector.range, grows || restarts, "{place}: {expression}");
            let before = common.get_or_insert_with(|| has.clone());
            before.retain(|label| has.contains(label) || *label == "le");
        }
        let common = common.unwrap_or_else(|| panic!("{place} shows none of our metrics"));
        let groups = groups(expression);
        for label in groups.iter().flatten() {
            assert!(common.contains(label), "{place}: not all have {label}");
        }
        let shown = groups.unwrap_or(common);
        for (_, rest) in legend
            .match_indices("{{")
            .map(|found| (found.0, &legend[found.0 + 2..]))
        {
            let label = rest.split_once("}}").unwrap().0;
            assert!(shown.contains(label), "{place}: {legend} without {label}");
        }
    }
    let all: BTreeSet<&str> = all().map(|metric| metric.name).collect();
    let missing: Vec<_> = all.difference(&seen).collect();
    assert!(
        missing.is_empty(),
        "no panel of docs/grafana/castore-fs.json shows {missing:?}"
    );
}

#[test]
fn its_variables_are_labels_that_there_are() {
    let dashboard = dashboard();
    for variable in list(&dashboard["templating"], "list") {
        if text(variable, "type") != "query" {
            continue;
        }
        let query = text(&variable["query"], "query");
        let inside = query.strip_prefix("label_values(").unwrap();
        let (series, label) = inside.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
        assert_eq!(label, text(variable, "name"));
        if let Some(name) = series.split('{').next().filter(|name| !name.is_empty()) {
            let mut has = labels(metric(name).unwrap_or_else(|| panic!("no metric {name}")));
            has.extend(OF_THE_SCRAPE);
            assert!(has.contains(label), "{name} has no {label}");
        }
    }
}

/// Prometheus' own check of the expressions. `tests/run` brings its `promtool`.
#[test]
fn prometheus_understands_every_expression() {
    let promtool = std::env::var_os("CASTORE_FS_PROMTOOL").map_or_else(
        || {
            let home = std::env::var_os("HOME").unwrap_or_default();
            PathBuf::from(home).join(".cache/castore-fs-tests/prometheus/usr/bin/promtool")
        },
        PathBuf::from,
    );
    if !promtool.exists() {
        kit::skip::skip(&format!(
            "there is no {}: tests/run fetches it, or name one by CASTORE_FS_PROMTOOL",
            promtool.display()
        ));
        return;
    }
    let dashboard = dashboard();
    let rules: Vec<Value> = shown(&dashboard)
        .iter()
        .enumerate()
        .map(|(number, shown)| {
            let expression = shown.expression.replace("$__rate_interval", "5m");
            serde_json::json!({ "record": format!("shown:{number}"), "expr": expression })
        })
        .collect();
    assert!(rules.len() > 50, "{}", rules.len());
    // YAML takes JSON.
    let groups = serde_json::json!({ "groups": [{ "name": "shown", "rules": rules }] });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yml");
    std::fs::write(&file, groups.to_string()).unwrap();
    let reported = Command::new(promtool)
        .args(["check", "rules"])
        .arg(&file)
        .output()
        .unwrap();
    let both = [reported.stdout, reported.stderr].concat();
    assert!(
        reported.status.success(),
        "{}",
        String::from_utf8_lossy(&both)
    );
}
