//! The metadata of a store path, and the path of an imported tree.

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{NarInfo, PathInfo, STORE_DIR, StorePath, StorePathError, StorePathHash};
use crate::castore::{Name, Node, Root};
use crate::proto::castore::v1::Entry;
use crate::proto::store::v1::nar_info::{Ca, ca};

/// The size and hash of a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarHash {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
}

/// The content-addressed store path of a tree whose NAR is `nar`, without references: the result of
/// `nix-store --add`.
pub fn content_addressed(name: &str, nar: &NarHash) -> Result<StorePath, StorePathError> {
    StorePath::check_name(name.as_bytes())?;
    let hex = data_encoding::HEXLOWER.encode(&nar.sha256);
    let fingerprint = format!("source:sha256:{hex}:{STORE_DIR}:{name}");
    StorePath::new(StorePathHash::fold(&Sha256::digest(fingerprint)), name)
}

/// Signatures of a path, at most: they are united as they come.
pub const MOST_SIGNATURES: usize = 64;

/// More than [`MOST_SIGNATURES`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a path has at most {MOST_SIGNATURES} signatures here")]
pub struct TooManySignatures;

/// What is known of a path from both: the signatures of both, and of everything else what is in
/// `first`, unless `second` alone has a narinfo, or knows the references.
pub fn unite(first: PathInfo, second: PathInfo) -> Result<PathInfo, TooManySignatures> {
    let known = |info: &PathInfo| (info.narinfo.is_some(), knows_references(info));
    let (mut into, from) = match known(&first) >= known(&second) {
        true => (first, second),
        false => (second, first),
    };
    if let (Some(into), Some(from)) = (&mut into.narinfo, from.narinfo) {
        for signature in from.signatures {
            if !into.signatures.contains(&signature) {
                into.signatures.push(signature);
            }
        }
        into.references_known |= from.references_known;
        if into.signatures.len() > MOST_SIGNATURES {
            return Err(TooManySignatures);
        }
    }
    Ok(into)
}

/// What is known of a path whose root is replaced by the same node: `new` counts, and what it lacks stays as it is
/// `known`, if both name the same references.
pub fn renew(known: Option<PathInfo>, new: Option<PathInfo>) -> Option<PathInfo> {
    let (Some(known), Some(new)) = (&known, &new) else {
        return new.or(known);
    };
    if !knows_references(new) {
        return Some(known.clone());
    }
    if known.references != new.references {
        return Some(new.clone());
    }
    let mut renewed = unite(new.clone(), known.clone()).unwrap_or_else(|_| new.clone());
    if let (Some(into), Some(from)) = (&mut renewed.narinfo, &known.narinfo) {
        into.deriver = into.deriver.take().or_else(|| from.deriver.clone());
        into.ca = into.ca.take().or_else(|| from.ca.clone());
    }
    Some(renewed)
}

/// See [`NarinfoFile::knows_references`](super::NarinfoFile::knows_references).
fn knows_references(info: &PathInfo) -> bool {
    let known = |narinfo: &NarInfo| {
        narinfo.references_known
            || !narinfo.signatures.is_empty()
            || narinfo.deriver.is_some()
            || narinfo.ca.is_some()
    };
    !info.references.is_empty() || info.narinfo.as_ref().is_some_and(known)
}

impl StorePath {
    /// The root of this path in a store.
    pub fn root(&self, node: Node) -> Root {
        let name = self.to_string();
        let name = Name::new(name.as_bytes()).expect("a store path's base name is a legal name");
        Root { name, node }
    }
}

impl PathInfo {
    /// The path info of the tree `root` whose NAR is `nar`, under its
    /// [content-addressed](content_addressed) path.
    pub fn content_addressed(root: &Root, nar: &NarHash) -> Self {
        let sha256 = bytes::Bytes::copy_from_slice(&nar.sha256);
        Self {
            entry: Some(Entry::from(root)),
            references: Vec::new(),
            narinfo: Some(NarInfo {
                nar_size: nar.size,
                nar_sha256: sha256.clone(),
                signatures: Vec::new(),
                reference_names: Vec::new(),
                deriver: None,
                ca: Some(Ca {
                    r#type: ca::Hash::NarSha256.into(),
                    digest: sha256,
                }),
                references_known: false,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::castore::Digest;

    /// The root, NAR and store path of the fixture tree, from `expected.json`.
    #[test]
    fn the_path_info_equals_the_peers_byte_for_byte() {
        let nar = NarHash {
            size: 3_338_520,
            sha256: data_encoding::HEXLOWER
                .decode(b"7864d072fd3b87c1f966ceb11e98c932967017782d1fc6eb36c1eb3228e6616c")
                .unwrap()
                .try_into()
                .unwrap(),
        };
        let path = content_addressed("tree", &nar).unwrap();
        assert_eq!(
            path.absolute(),
            "/nix/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree"
        );
        let digest: Digest = "60fb70bc9273f606459a6dcfa8b10eb2064ca3cd15e4286db7a9f06843417ba8"
            .parse()
            .unwrap();
        let root = path.root(Node::Directory { digest, size: 588 });
        let info = PathInfo::content_addressed(&root, &nar);
        let Some(expected) = kit::fixtures::fixture("snix/pathinfo.binpb") else {
            return;
        };
        let expected = std::fs::read(expected).unwrap();
        assert_eq!(PathInfo::decode(&expected[..]).unwrap(), info);
        assert_eq!(info.encode_to_vec(), expected);
    }
}
