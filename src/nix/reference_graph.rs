//! Reference graphs: which store paths a closure has, and what Nix knows of each.
//!
//! In JSON, in the forms that Nix writes: `exportReferencesGraph` of a derivation with structured
//! attributes (an object, the graph under a key of the user's choice, by custom `closure`), that graph
//! alone (an array, or an object a line), and `nix path-info --json` (an array, since Nix 2.19 an object by
//! path). Unknown fields are ignored.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::{ContentAddress, NarHash, NarinfoFile, NixHash, Signature, StorePath};

/// The longest reference graph that is read, in bytes: 100,000 paths.
pub const MAX_GRAPH_BYTES: u64 = 128 << 20;

/// The key of the graph, where there are several.
const CLOSURE: &str = "closure";

/// Text that is no reference graph.
#[derive(Debug, Error)]
pub enum ReferenceGraphError {
    /// Not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of another kind.
    #[error("it holds no reference graph: {0}")]
    Form(String),
    /// A path of which something is missing or wrong.
    #[error("{path}: {why}")]
    Path {
        /// The path, as it stands there.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// Contents that are not those that a Nix daemon or a reference graph describes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{path}: its NAR has {} bytes and the hash {}; the Nix daemon, or the reference graph, states {} bytes and {}: \
     the path was changed (`nix store verify` finds that), or the graph is old",
    actual.size, NixHash::Sha256(actual.sha256), stated.size, NixHash::Sha256(stated.sha256)
)]
pub struct NarMismatch {
    /// The base name.
    pub path: String,
    /// The stated value.
    pub stated: NarHash,
    /// What is there.
    pub actual: NarHash,
}

/// The metadata of a path. A null of Nix is no value.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DescribedPath {
    nar_hash: String,
    nar_size: u64,
    references: Vec<String>,
    #[serde(default)]
    signatures: Option<Vec<String>>,
    #[serde(default)]
    deriver: Option<String>,
    /// Text; newer versions of Nix have other forms too, which are as good as none.
    #[serde(default)]
    ca: Option<Value>,
}

/// Reads a reference graph: every path once, in the order of their names. Nothing is returned of where NARs
/// are.
pub fn parse_reference_graph(text: &[u8]) -> Result<Vec<NarinfoFile>, ReferenceGraphError> {
    let mut paths = Vec::new();
    for value in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        take(value?, &mut paths)?;
    }
    if paths.is_empty() {
        return Err(ReferenceGraphError::Form(
            "there is no path in it".to_owned(),
        ));
    }
    paths.sort_by_cached_key(|path: &NarinfoFile| path.path.to_string());
    paths.dedup_by(|a, b| a.path == b.path);
    Ok(paths)
}

/// Takes the paths of one JSON value.
fn take(value: Value, paths: &mut Vec<NarinfoFile>) -> Result<(), ReferenceGraphError> {
    let form = |why: &str| ReferenceGraphError::Form(why.to_owned());
    let mut object = match value {
        Value::Array(values) => return all(values, paths),
        Value::Object(object) => object,
        _ => return Err(form("expected an object, or an array of objects")),
    };
    if object.contains_key("path") {
        paths.push(described(None, Value::Object(object))?);
        return Ok(());
    }
    if object.keys().all(|key| key.starts_with('/')) {
        for (path, value) in object {
            paths.push(described(Some(path), value)?);
        }
        return Ok(());
    }
    if let Some(Value::Array(values)) = object.remove(CLOSURE) {
        return all(values, paths);
    }
    // Structured attributes have much else.
    let is_graph = |value: &Value| {
        let values = value.as_array();
        values.is_some_and(|values| {
            values
                .first()
                .is_some_and(|first| first.get("narHash").is_some())
        })
    };
    let mut graphs: Vec<_> = object
        .into_iter()
        .filter(|(_, value)| is_graph(value))
        .collect();
    match (graphs.pop(), graphs.is_empty()) {
        (Some((_, Value::Array(values))), true) => all(values, paths),
        (None, _) => Err(form("no key of the object holds one")),
        _ => Err(form(
            "several keys of the object hold one, and none is \"closure\"",
        )),
    }
}

fn all(values: Vec<Value>, paths: &mut Vec<NarinfoFile>) -> Result<(), ReferenceGraphError> {
    for value in values {
        paths.push(described(None, value)?);
    }
    Ok(())
}

fn described(path: Option<String>, value: Value) -> Result<NarinfoFile, ReferenceGraphError> {
    let named = value.get("path").and_then(Value::as_str).map(str::to_owned);
    let text = path
        .or(named)
        .ok_or_else(|| ReferenceGraphError::Form("there is an entry without a path".to_owned()))?;
    let wrong = |why: String| ReferenceGraphError::Path {
        path: text.chars().take(300).collect(),
        why,
    };
    if value.is_null() {
        return Err(wrong("Nix does not have it".to_owned()));
    }
    let found = DescribedPath::deserialize(value).map_err(|error| wrong(error.to_string()))?;
    let path = |text: &str| -> Result<StorePath, String> {
        text.parse()
            .map_err(|error: super::StorePathError| error.to_string())
    };
    let hash = NixHash::parse(&found.nar_hash).map_err(|error| wrong(error.to_string()))?;
    let sha256 = hash
        .sha256()
        .ok_or_else(|| wrong("narHash is no SHA-256".to_owned()))?;
    let references = found.references.iter().map(|text| path(text));
    let references = references.collect::<Result<_, _>>().map_err(&wrong)?;
    let nar = NarHash {
        size: found.nar_size,
        sha256,
    };
    let mut info = NarinfoFile::without_file(path(&text).map_err(&wrong)?, nar, references);
    let deriver = found.deriver.map(|text| path(&text)).transpose();
    info.deriver = deriver.map_err(&wrong)?;
    // As in narinfos: what cannot be read verifies nothing.
    let signatures = found.signatures.unwrap_or_default();
    let signatures = signatures.iter();
    info.signatures = signatures
        .filter_map(|text| Signature::parse(text).ok())
        .collect();
    let address = found.ca.as_ref().and_then(Value::as_str);
    info.content_address = address.and_then(|text| ContentAddress::parse(text).ok());
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = r#"{"closureSize":32696176,
        "narHash":"sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73","narSize":226560,
        "path":"/nix/store/dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1",
        "references":["/nix/store/ddwyrxif62r8n6xclvskjyy6szdhvj60-glibc-2.39-5",
                      "/nix/store/dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1"]}"#;
    const GLIBC: &str = r#"{"deriver":"/nix/store/vs9976cyyxpykvdnlv7x85fpp3shn6ij-glibc.drv",
        "narHash":"sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","narSize":112,"valid":true,
        "path":"/nix/store/ddwyrxif62r8n6xclvskjyy6szdhvj60-glibc-2.39-5","references":[],
        "signatures":["cache.nixos.org-1:cTdhK6hnpPwtMXFX43CYb7v+CbpAusVI/MORZ3v5aHvpBYNg1MfBHVVeoexMBpNtHA8uFAn0aEsJaLXYIDhJDg=="]}"#;

    #[test]
    fn every_form_that_nix_writes_is_read() {
        let array = format!("[{HELLO},{GLIBC}]");
        let paths = parse_reference_graph(array.as_bytes()).unwrap();
        let names: Vec<_> = paths.iter().map(|path| path.path.name()).collect();
        assert_eq!(names, ["hello-2.12.1", "glibc-2.39-5"]);
        assert_eq!(paths[0].references.len(), 2);
        assert_eq!(paths[1].nar.size, 112);
        assert_eq!(paths[1].deriver.as_ref().unwrap().name(), "glibc.drv");
        assert_eq!(paths[1].signatures.len(), 1);
        let by_path = |path: &str, text: &str| format!("\"/nix/store/{path}\":{text}");
        let by_path = [
            by_path("dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1", HELLO),
            by_path("ddwyrxif62r8n6xclvskjyy6szdhvj60-glibc-2.39-5", GLIBC),
        ];
        for other in [
            format!("{{\"closure\":{array},\"name\":\"x\",\"more\":[{HELLO}]}}"),
            format!("{{\"graph\":{array},\"name\":\"x\",\"outputs\":[]}}"),
            format!("{GLIBC}\n{HELLO}\n{HELLO}\n"),
            format!("[{GLIBC}]\n[{HELLO}]"),
            format!("{{{}}}", by_path.join(",")),
        ] {
            assert_eq!(
                parse_reference_graph(other.as_bytes()).unwrap(),
                paths,
                "{other}"
            );
        }
    }

    #[test]
    fn mistakes_are_reported_with_their_path() {
        let wrong = |text: &str| {
            parse_reference_graph(text.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert!(wrong("").contains("no path"));
        assert!(wrong("[]").contains("no path"));
        assert!(wrong("{").contains("not JSON"));
        assert!(wrong("[1]").contains("without a path"));
        assert!(wrong(r#"{"a":[1],"b":{}}"#).contains("no key"));
        let two = format!("{{\"a\":[{HELLO}],\"b\":[{GLIBC}]}}");
        assert!(wrong(&two).contains("several keys"));
        let hello = "/nix/store/dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1";
        assert!(wrong(&format!("{{\"{hello}\":null}}")).starts_with(&format!("{hello}: Nix")));
        let no_hash = wrong(&HELLO.replace("narHash", "hash"));
        assert!(
            no_hash.starts_with(hello) && no_hash.contains("narHash"),
            "{no_hash}"
        );
        let no_references = wrong(&HELLO.replace("\"references\"", "\"refers\""));
        assert!(no_references.contains("references"), "{no_references}");
        let reference = wrong(&HELLO.replace("glibc-2.39-5", "a/b"));
        assert!(reference.starts_with(hello), "{reference}");
    }
}
