//! The changes of roots in an addition, applied at its commit.

use std::collections::HashMap;

use crate::castore::{Name, Node, Root};
use crate::nix::{PathInfo, StorePath, unite};
use crate::store::Error;

/// A change of a root.
#[derive(Clone, Debug)]
pub(super) enum RootChange {
    /// Its new value.
    Put(Root, Option<Box<PathInfo>>),
    /// Its value, unless it has another one at the commit.
    Add(Root, Option<Box<PathInfo>>),
    /// It is removed, if it exists.
    Remove(Name),
}

/// What must hold at the commit of an addition, after its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCondition {
    /// There is a root of this name.
    Present(Name),
    /// No other root refers to the Nix store path of this name, as far as the store knows their references.
    NotReferred(Name),
}

/// Names of store paths, by their hashes, which is how PathInfos refer to them. Other names are left out.
#[derive(Default)]
pub(super) struct StorePathNames<'a>(HashMap<Vec<u8>, &'a Name>);

impl<'a> StorePathNames<'a> {
    pub(super) fn insert(&mut self, name: &'a Name) {
        if let Ok(path) = StorePath::from_base_name(name) {
            self.0.insert(path.hash().as_bytes().to_vec(), name);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, hash: &[u8]) -> Option<&'a Name> {
        self.0.get(hash).copied()
    }
}

impl RootChange {
    /// As [`Ingest::put_root`](super::Ingest::put_root).
    pub(super) fn put(root: &Root, path_info: Option<&PathInfo>) -> Self {
        Self::Put(root.clone(), path_info.cloned().map(Box::new))
    }

    /// As [`Ingest::add_root`](super::Ingest::add_root).
    pub(super) fn add(root: &Root, path_info: Option<&PathInfo>) -> Self {
        Self::Add(root.clone(), path_info.cloned().map(Box::new))
    }

    /// The root that is there afterwards.
    pub(super) fn root(&self) -> Option<&Root> {
        match self {
            Self::Put(root, _) | Self::Add(root, _) => Some(root),
            Self::Remove(_) => None,
        }
    }

    /// As [`Ingest::remove_root`](super::Ingest::remove_root).
    pub(super) fn remove(name: &Name) -> Self {
        Self::Remove(name.clone())
    }

    /// Why the store `url` does not accept `root` before its content.
    pub(super) fn needs_content(url: &str, root: &Root) -> Error {
        Error::Refused {
            store: url.to_owned(),
            what: format!("root node \"{}\" before its content", root.name),
            why: "only embedded stores (local:) wait for the content of a root".to_owned(),
        }
    }
}

/// What is known of `root` once it is added to the store `url`, where there is `before` under its name.
pub(super) fn admit(
    url: &str,
    before: Option<(Node, Option<PathInfo>)>,
    root: &Root,
    path_info: Option<PathInfo>,
) -> Result<Option<PathInfo>, Error> {
    let Some((node, known)) = before else {
        return Ok(path_info);
    };
    if node != root.node {
        return Err(Error::NameTaken {
            store: url.to_owned(),
            why: format!(
                "root node \"{}\" is {} already, not {}",
                root.name,
                shown(&node),
                shown(&root.node)
            ),
        });
    }
    match (known, path_info) {
        (Some(known), Some(new)) => unite(known, new).map(Some).map_err(|why| Error::Refused {
            store: url.to_owned(),
            what: format!("root node \"{}\"", root.name),
            why: why.to_string(),
        }),
        (known, new) => Ok(known.or(new)),
    }
}

/// Fails if another node than `root`'s has its name in the store `url`: `before`.
pub(crate) fn check_free(url: &str, before: Option<Root>, root: &Root) -> Result<(), Error> {
    admit(url, before.map(|before| (before.node, None)), root, None).map(drop)
}

fn shown(node: &Node) -> String {
    match node {
        Node::Directory { digest, .. } => format!("directory {digest}"),
        Node::File {
            digest,
            executable: false,
            ..
        } => format!("file {digest}"),
        Node::File { digest, .. } => format!("executable file {digest}"),
        Node::Symlink { target } => format!("a symlink to \"{}\"", target.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::Digest;
    use crate::proto::store::v1::NarInfo;
    use crate::proto::store::v1::nar_info::Signature;

    fn file(bytes: &[u8]) -> Node {
        Node::File {
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            executable: false,
        }
    }

    fn info(signer: &str) -> PathInfo {
        PathInfo {
            narinfo: Some(NarInfo {
                nar_size: 1,
                nar_sha256: vec![0; 32].into(),
                signatures: vec![Signature {
                    name: signer.to_owned(),
                    data: vec![0; 64].into(),
                }],
                ..NarInfo::default()
            }),
            ..PathInfo::default()
        }
    }

    #[test]
    fn a_name_stays_with_its_node_and_what_is_known_is_united() {
        let root = Root {
            name: Name::new(b"name").unwrap(),
            node: file(b"one"),
        };
        let admit = |before, info| admit("memory:", before, &root, info);
        let error = admit(Some((file(b"other"), None)), None).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        for node in [file(b"one"), file(b"other")] {
            let digest = node.digest().unwrap().to_string();
            assert!(error.to_string().contains(&digest), "{error}");
        }
        assert_eq!(admit(None, Some(info("a"))).unwrap(), Some(info("a")));
        let same = Some((root.node.clone(), Some(info("a"))));
        let both = admit(same.clone(), Some(info("b"))).unwrap().unwrap();
        let signatures = both.narinfo.unwrap().signatures.into_iter();
        let signers: Vec<_> = signatures.map(|one| one.name).collect();
        assert_eq!(signers, ["a", "b"]);
        for new in [None, Some(info("a"))] {
            assert_eq!(admit(same.clone(), new).unwrap(), Some(info("a")));
        }
        let mut many = info("a");
        let signatures = &mut many.narinfo.as_mut().unwrap().signatures;
        signatures.extend((0..64).map(|number| Signature {
            name: number.to_string(),
            data: vec![0; 64].into(),
        }));
        assert!(matches!(
            admit(same, Some(many)),
            Err(Error::Refused { .. })
        ));
    }
}
