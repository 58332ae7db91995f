//! Root nodes that clients add: added, never replaced, unless replacing is their right.
//!
//! A name that is taken by the same node is taken well: what is known of the path is united. A name
//! that is taken by another node stays with it. What a client says of a NAR's hash is computed before
//! the root node is there: a reader may take it from here as true.

use std::collections::BTreeMap;

use prost::Message;
use tokio::runtime::Handle;
use tonic::Status;

use super::Served;
use super::respond::status;
use crate::castore::{Name, Node, Root};
use crate::nix::{self, NarHash, NarInfo, PathInfo, StorePath};
use crate::proto::store::v1::nar_info::ca;
use crate::store::{Added, Ingest};

/// Signatures of a path, at most: they are united as they come.
const MOST_SIGNATURES: usize = 64;

/// What a client does to a root node.
pub(super) enum Wanted {
    Put(Root, Option<Box<PathInfo>>),
    Remove(Name),
}

impl Wanted {
    /// Bytes that it takes until it is committed, about.
    pub(super) fn memory(&self) -> usize {
        let info = match self {
            Self::Put(_, Some(info)) => info.encoded_len(),
            _ => 0,
        };
        1024 + info
    }
}

impl Served {
    /// Commits `ingest` and, when that is there, what is `wanted` of root nodes. Blocks: call it on a
    /// thread that may, outside of any task.
    pub(super) fn commit(
        &self,
        mut ingest: Box<dyn Ingest>,
        wanted: Vec<Wanted>,
        may_replace: bool,
    ) -> Result<Added, Status> {
        let failed = |error| status(&error);
        if wanted.is_empty() {
            return ingest.commit().map_err(failed);
        }
        let runtime = Handle::current();
        let mut first = Added::default();
        let has_nar = |wanted: &Wanted| matches!(wanted, Wanted::Put(_, Some(info)) if info.narinfo.is_some());
        if wanted.iter().any(has_nar) {
            // Only what is committed can be rendered. The next addition begins before, so that no
            // garbage collection comes between.
            let next = self.store.ingest().map_err(failed)?;
            first = std::mem::replace(&mut ingest, next)
                .commit()
                .map_err(failed)?;
            for wanted in &wanted {
                if let Wanted::Put(root, Some(info)) = wanted {
                    check_nar(root, info, |node| runtime.block_on(self.nars.of(node)))?;
                }
            }
        }
        let _alone = self.roots_change.lock();
        let mut staged: BTreeMap<Name, Option<(Node, Option<PathInfo>)>> = BTreeMap::new();
        for wanted in wanted {
            let name = match &wanted {
                Wanted::Put(root, _) => root.name.clone(),
                Wanted::Remove(name) => name.clone(),
            };
            let before = match staged.remove(&name) {
                Some(before) => before,
                None => {
                    let root = runtime.block_on(self.store.root(&name)).map_err(failed)?;
                    match root {
                        Some(root) => {
                            let info = runtime.block_on(self.store.path_info(&name));
                            Some((root.node, info.map_err(failed)?))
                        }
                        None => None,
                    }
                }
            };
            let after = match wanted {
                Wanted::Remove(_) => {
                    ingest.remove_root(&name).map_err(failed)?;
                    None
                }
                Wanted::Put(root, info) => {
                    let info = admit(before, &root, info.map(|info| *info), may_replace)?;
                    ingest.put_root(&root, info.as_ref()).map_err(failed)?;
                    Some((root.node, info))
                }
            };
            staged.insert(name, after);
        }
        let second = ingest.commit().map_err(failed)?;
        Ok(Added {
            blobs: first.blobs + second.blobs,
            blob_bytes: first.blob_bytes + second.blob_bytes,
            directories: first.directories + second.directories,
        })
    }
}

/// What is known of `root` once it is there, if it may take the place of what is there `before`.
fn admit(
    before: Option<(Node, Option<PathInfo>)>,
    root: &Root,
    info: Option<PathInfo>,
    may_replace: bool,
) -> Result<Option<PathInfo>, Status> {
    match before {
        None => Ok(info),
        Some((node, known)) if node == root.node => unite(known, info, may_replace),
        Some(_) if may_replace => Ok(info),
        Some((node, _)) => Err(taken(&root.name, &node, &root.node)),
    }
}

/// That `name` is taken by another node.
pub(super) fn taken(name: &Name, is: &Node, wanted: &Node) -> Status {
    Status::already_exists(format!(
        "root node \"{name}\" is {} already, not {}: replacing takes `castore-fs serve \
         --allow-replace`, or the right `replace` in the server's token file",
        shown(is),
        shown(wanted)
    ))
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

/// What is known of a path by both; of what only one of them can be right about, `known` is kept
/// unless `new` may replace it.
fn unite(
    known: Option<PathInfo>,
    new: Option<PathInfo>,
    may_replace: bool,
) -> Result<Option<PathInfo>, Status> {
    let (mut known, mut new) = match (known, new) {
        (Some(known), Some(new)) => (known, new),
        (known, new) => return Ok(known.or(new)),
    };
    let (Some(old), Some(fresh)) = (&mut known.narinfo, &mut new.narinfo) else {
        return Ok(Some(match known.narinfo.is_some() {
            true => known,
            false => new,
        }));
    };
    let (into, from) = match may_replace {
        true => (fresh, old),
        false => (old, fresh),
    };
    for signature in from.signatures.drain(..) {
        if !into.signatures.contains(&signature) {
            into.signatures.push(signature);
        }
    }
    if into.signatures.len() > MOST_SIGNATURES {
        return Err(Status::resource_exhausted(format!(
            "a path has at most {MOST_SIGNATURES} signatures here"
        )));
    }
    Ok(Some(if may_replace { new } else { known }))
}

/// Checks what `info` says of the NAR of `root` against the NAR.
pub(super) fn check_nar(
    root: &Root,
    info: &PathInfo,
    compute: impl FnOnce(&Node) -> Result<NarHash, Status>,
) -> Result<(), Status> {
    let Some(said) = &info.narinfo else {
        return Ok(());
    };
    let nar = compute(&root.node)?;
    match said.nar_size == nar.size && said.nar_sha256[..] == nar.sha256 {
        true => Ok(()),
        false => Err(Status::invalid_argument(format!(
            "the NAR of \"{}\" has {} bytes and the SHA-256 {}; the path info says {} bytes and {}",
            root.name,
            nar.size,
            hex(&nar.sha256),
            said.nar_size,
            hex(&said.nar_sha256)
        ))),
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Checks the form of what a client says of a path: lengths of hashes, and names.
pub(super) fn check_form(info: &PathInfo) -> Result<(), Status> {
    let refused = |what: String| Err(Status::invalid_argument(what));
    if let Some(reference) = info.references.iter().find(|hash| hash.len() != 20) {
        let length = reference.len();
        return refused(format!("a reference has 20 bytes, not {length}"));
    }
    let Some(nar) = &info.narinfo else {
        return Ok(());
    };
    if nar.nar_sha256.len() != 32 {
        let length = nar.nar_sha256.len();
        return refused(format!("a SHA-256 of a NAR has 32 bytes, not {length}"));
    }
    if nar.signatures.len() > MOST_SIGNATURES {
        return refused(format!(
            "a path has at most {MOST_SIGNATURES} signatures here"
        ));
    }
    if let Some(signature) = nar.signatures.iter().find(|one| one.data.len() != 64) {
        let length = signature.data.len();
        return refused(format!("a signature has 64 bytes, not {length}"));
    }
    check_names(info, nar)?;
    let wanted = match nar
        .ca
        .as_ref()
        .map(|ca| (ca::Hash::try_from(ca.r#type), ca))
    {
        None => return Ok(()),
        Some((Err(_), _)) => return refused("a content address of an unknown kind".to_owned()),
        Some((Ok(kind), ca)) => (length_of(kind), ca.digest.len()),
    };
    match wanted.0 == wanted.1 {
        true => Ok(()),
        false => refused(format!(
            "this kind of content address has {} bytes, not {}",
            wanted.0, wanted.1
        )),
    }
}

fn check_names(info: &PathInfo, nar: &NarInfo) -> Result<(), Status> {
    let refused = |what: String| Err(Status::invalid_argument(what));
    if !nar.reference_names.is_empty() && nar.reference_names.len() != info.references.len() {
        return refused(format!(
            "there are {} references and {} names of them",
            info.references.len(),
            nar.reference_names.len()
        ));
    }
    for (name, hash) in nar.reference_names.iter().zip(&info.references) {
        if nix::output_hash(name.as_bytes()).is_none_or(|own| own[..] != hash[..]) {
            return refused(format!(
                "the reference {name:?} is not the name of its hash"
            ));
        }
    }
    if let Some(deriver) = &nar.deriver {
        if deriver.digest.len() != 20 {
            let length = deriver.digest.len();
            return refused(format!("the hash of a deriver has 20 bytes, not {length}"));
        }
        if let Err(error) = StorePath::check_name(deriver.name.as_bytes()) {
            return refused(format!("the deriver: {error}"));
        }
    }
    Ok(())
}

/// Bytes of a content address.
fn length_of(kind: ca::Hash) -> usize {
    match kind {
        ca::Hash::NarSha256 | ca::Hash::TextSha256 | ca::Hash::FlatSha256 => 32,
        ca::Hash::NarSha1 | ca::Hash::FlatSha1 => 20,
        ca::Hash::NarSha512 | ca::Hash::FlatSha512 => 64,
        ca::Hash::NarMd5 | ca::Hash::FlatMd5 => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::Digest;
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
        let other = Some((file(b"other"), None));
        let error = admit(other.clone(), &root, None, false).unwrap_err();
        assert_eq!(error.code(), tonic::Code::AlreadyExists);
        for node in [file(b"one"), file(b"other")] {
            let digest = node.digest().unwrap().to_string();
            assert!(error.message().contains(&digest), "{error}");
        }
        assert_eq!(
            admit(other, &root, Some(info("b")), true).unwrap(),
            Some(info("b"))
        );
        let same = Some((root.node.clone(), Some(info("a"))));
        let both = admit(same.clone(), &root, Some(info("b")), false)
            .unwrap()
            .unwrap();
        let signers: Vec<_> = both
            .narinfo
            .unwrap()
            .signatures
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(signers, ["a", "b"]);
        assert_eq!(
            admit(same.clone(), &root, Some(info("a")), false).unwrap(),
            Some(info("a"))
        );
        assert_eq!(admit(same, &root, None, true).unwrap(), Some(info("a")));
    }

    #[test]
    fn hashes_of_wrong_lengths_are_refused_at_once() {
        let broken = |break_it: fn(&mut PathInfo)| {
            let mut info = info("a");
            break_it(&mut info);
            check_form(&info)
        };
        assert!(broken(|_| {}).is_ok());
        let narinfo = |info: &mut PathInfo| info.narinfo.take().unwrap();
        for wrong in [
            broken(|info| info.references = vec![vec![0; 19].into()]),
            broken(|info| info.narinfo.as_mut().unwrap().nar_sha256 = vec![0; 5].into()),
            broken(|info| info.narinfo.as_mut().unwrap().signatures[0].data = vec![0; 63].into()),
            broken(|info| info.narinfo.as_mut().unwrap().reference_names = vec!["x".to_owned()]),
            broken(|info| {
                info.narinfo.as_mut().unwrap().ca = Some(crate::proto::store::v1::nar_info::Ca {
                    r#type: ca::Hash::NarSha256.into(),
                    digest: vec![0; 20].into(),
                });
            }),
        ] {
            assert_eq!(wrong.unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        let mut without = info("a");
        narinfo(&mut without);
        assert!(check_form(&without).is_ok());
    }
}
