//! The JSON form of nodes, names and paths.
//!
//! A byte string that is not UTF-8 cannot be a JSON string. Its field then holds the text with
//! U+FFFD for unreadable bytes, and a second field, `…_base64`, holds the bytes.

use crate::castore::{NodeRef, Root};
use data_encoding::BASE64;
use serde::Serialize;

/// A node. Fields that it does not have are left out.
#[derive(Debug, Serialize)]
pub(super) struct JsonNode {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// Of a file, its bytes; of a directory, twice the number of names below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_base64: Option<String>,
}

impl From<NodeRef<'_>> for JsonNode {
    fn from(node: NodeRef<'_>) -> Self {
        let mut json = JsonNode {
            kind: kind(node),
            digest: node.digest().map(|digest| digest.to_string()),
            size: None,
            executable: None,
            target: None,
            target_base64: None,
        };
        match node {
            NodeRef::Directory { size, .. } => json.size = Some(size),
            NodeRef::File {
                size, executable, ..
            } => {
                json.size = Some(size);
                json.executable = Some(executable);
            }
            NodeRef::Symlink { target } => {
                json.target = Some(text(target));
                json.target_base64 = base64(target);
            }
        }
        json
    }
}

/// A path below a root.
#[derive(Debug, Serialize)]
pub(super) struct JsonPath {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
}

impl From<&[u8]> for JsonPath {
    fn from(path: &[u8]) -> Self {
        Self {
            path: text(path),
            path_base64: base64(path),
        }
    }
}

/// The name of a root.
#[derive(Debug, Serialize)]
pub(super) struct JsonName {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_base64: Option<String>,
}

impl From<&[u8]> for JsonName {
    fn from(name: &[u8]) -> Self {
        Self {
            name: text(name),
            name_base64: base64(name),
        }
    }
}

/// A root: its name and node.
#[derive(Debug, Serialize)]
pub(super) struct JsonRoot {
    #[serde(flatten)]
    name: JsonName,
    #[serde(flatten)]
    node: JsonNode,
}

impl From<&Root> for JsonRoot {
    fn from(root: &Root) -> Self {
        Self {
            name: root.name.as_bytes().into(),
            node: root.node.borrow().into(),
        }
    }
}

/// The kind of the node, in a word.
pub(super) fn kind(node: NodeRef<'_>) -> &'static str {
    match node {
        NodeRef::Directory { .. } => "directory",
        NodeRef::File { .. } => "file",
        NodeRef::Symlink { .. } => "symlink",
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn base64(bytes: &[u8]) -> Option<String> {
    match std::str::from_utf8(bytes) {
        Ok(_) => None,
        Err(_) => Some(BASE64.encode(bytes)),
    }
}
