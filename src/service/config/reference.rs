//! `docs/config.md`, generated from the doc comments.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};

use super::Config;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.md");
const EXAMPLE: &str = include_str!("../../../docs/example.toml");

fn reference() -> String {
    let schema = schemars::schema_for!(Config).to_value();
    let definitions = schema["$defs"].as_object().unwrap();
    let mut text = String::from(
        "<!-- Made of the doc comments in src/service/config.rs by the test \
         `the_reference_is_current`; write with CASTORE_FS_REGENERATE=1. -->\n\
         # The configuration file\n\n\
         TOML, read by `castore-fs daemon --config FILE`; `castore-fs check-config FILE` reports what \
         is wrong with one. Sizes are written with their unit (`512MiB`, `10GB`), and lengths of time (`30s`, `1h30m`, `1d`). \
         Unknown keys are errors.\n\n",
    );
    let mount_root = schema["properties"].as_object().unwrap();
    writeln!(text, "{}\n", paragraph(&schema)).unwrap();
    write_keys(&mut text, "", mount_root, &schema, definitions);
    for (section, property) in mount_root {
        let (heading, named) = match property.get("additionalProperties") {
            Some(each) => (format!("[{section}.NAME]"), each),
            None => (format!("[{section}]"), property),
        };
        let Some(definition) = refers_to(named, definitions) else {
            continue;
        };
        write_section(&mut text, &heading, property, definition, definitions);
    }
    write!(text, "## An example\n\n```toml\n{EXAMPLE}```\n").unwrap();
    text
}

/// A table with its keys, then the tables in it.
fn write_section(
    text: &mut String,
    heading: &str,
    property: &Value,
    definition: &Value,
    definitions: &Map<String, Value>,
) {
    let keys = definition["properties"].as_object().unwrap();
    writeln!(text, "## `{heading}`\n\n{}\n", paragraph(property)).unwrap();
    if property["description"] != definition["description"] {
        writeln!(text, "{}\n", paragraph(definition)).unwrap();
    }
    write_keys(text, heading, keys, definition, definitions);
    for (key, property) in keys {
        let below = refers_to(property, definitions);
        if let Some(below) = below.filter(|below| below.get("properties").is_some()) {
            let heading = format!("{}.{key}]", heading.trim_end_matches(']'));
            write_section(text, &heading, property, below, definitions);
        }
    }
}

fn write_keys(
    text: &mut String,
    section: &str,
    keys: &Map<String, Value>,
    of: &Value,
    definitions: &Map<String, Value>,
) {
    let required = of["required"].as_array().cloned().unwrap_or_default();
    for (key, property) in keys {
        let target = refers_to(property, definitions);
        let is_section = property.get("additionalProperties").is_some()
            || target.is_some_and(|target| target.get("properties").is_some());
        if section.is_empty() && is_section {
            continue;
        }
        write!(text, "- **`{key}`**").unwrap();
        if required.iter().any(|name| name == key) {
            text.push_str(" (required)");
        } else if let Some(default) = property.get("default").filter(|value| !value.is_null()) {
            write!(text, " = `{default}`").unwrap();
        }
        writeln!(text, ": {}", paragraph(property)).unwrap();
        for choice in target
            .and_then(|target| target["oneOf"].as_array())
            .into_iter()
            .flatten()
        {
            writeln!(text, "  - `{}`: {}", choice["const"], paragraph(choice)).unwrap();
        }
    }
    text.push('\n');
}

fn refers_to<'a>(value: &Value, definitions: &'a Map<String, Value>) -> Option<&'a Value> {
    // An optional key allows this or null.
    let choices = value["anyOf"].as_array().into_iter().flatten();
    let mut all = choices.chain([value]);
    let path = all.find_map(|value| value.get("$ref"))?.as_str()?;
    definitions.get(path.rsplit('/').next()?)
}

fn paragraph(value: &Value) -> String {
    let text = value["description"].as_str().unwrap_or_default();
    text.split("\n\n")
        .map(|part| part.replace('\n', " "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

#[test]
fn the_reference_is_current() {
    let reference = reference();
    if std::env::var_os("CASTORE_FS_REGENERATE").is_some() {
        std::fs::write(FILE, &reference).unwrap();
    }
    let written = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        written == reference,
        "docs/config.md differs from the doc comments; run this test with CASTORE_FS_REGENERATE=1"
    );
}

#[test]
fn the_example_is_a_configuration() {
    let config = Config::parse(Path::new("docs/example.toml"), EXAMPLE).unwrap();
    assert!(!config.mounts.is_empty() && !config.listen.is_empty());
}
