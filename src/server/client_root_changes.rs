//! Roots that clients add: added, never replaced, unless the client has the right to replace.
//!
//! Adding the same node under its name again is accepted: the path infos are united. A name with
//! another node is refused. A NAR hash from a client is computed before the root is visible:
//! readers take it from here as true.

use std::collections::BTreeMap;

use prost::Message;
use tonic::Status;

use super::ServedState;
use super::respond::{ask, status};
use super::turns::ConnectionTurns;
use super::upload::DroppedOffThread;
use crate::castore::{Name, Root};
use crate::nix::{self, MOST_SIGNATURES, NarHash, NarInfo, PathInfo, StorePath, unite};
use crate::proto::store::v1::nar_info::ca;
use crate::store::{AddedTotals, Ingest, RootCondition};

/// What a client does to a root node.
pub(super) enum ClientRootChange {
    /// It is there unless another one is.
    Add(Root, Option<Box<PathInfo>>),
    /// It takes the place of what is there.
    Replace(Root, Option<Box<PathInfo>>),
    Remove(Name),
}

impl ClientRootChange {
    pub(super) fn new(root: Root, path_info: Option<Box<PathInfo>>, replaces: bool) -> Self {
        match replaces {
            true => Self::Replace(root, path_info),
            false => Self::Add(root, path_info),
        }
    }

    /// Bytes that it takes until it is committed, about.
    pub(super) fn memory(&self) -> usize {
        let info = self.stated().map_or(0, |(_, info)| info.encoded_len());
        1024 + info
    }

    /// What it has of a path.
    fn stated(&self) -> Option<(&Root, &PathInfo)> {
        match self {
            Self::Add(root, info) | Self::Replace(root, info) => Some((root, info.as_deref()?)),
            Self::Remove(_) => None,
        }
    }
}

impl ServedState {
    /// Commits `ingest` and, when that is there, what is `wanted` of root nodes, if the roots `required` are in
    /// the store.
    pub(super) async fn commit(
        &self,
        ingest: DroppedOffThread<Box<dyn Ingest>>,
        wanted: Vec<ClientRootChange>,
        required: Vec<Name>,
        turns: &ConnectionTurns,
    ) -> Result<AddedTotals, Status> {
        let failed = |error| status(&error);
        let stated = wanted.iter().filter_map(ClientRootChange::stated);
        let stated: Vec<_> = stated.filter(|(_, info)| info.narinfo.is_some()).collect();
        let (ingest, first) = match stated.is_empty() {
            true => (ingest, AddedTotals::default()),
            false => {
                // Only what is committed can be rendered. The next addition begins before, so that it
                // knows of every garbage collection from then on.
                let store = self.store.clone();
                let first = turns.work(move || {
                    let next = store.ingest().map_err(failed)?;
                    let added = ingest.into_inner()?.commit().map_err(failed)?;
                    next.release();
                    Ok((DroppedOffThread::new(next), added))
                });
                first.await?
            }
        };
        for (root, info) in stated {
            let nar = self.nars.of(&root.node, turns).await?;
            check_nar(root, info, &nar)?;
        }
        let replaces = wanted
            .iter()
            .any(|one| matches!(one, ClientRootChange::Replace(..)));
        // What is known of a path may be united with what came meanwhile.
        let _alone = match replaces {
            true => Some(self.replacing.lock().await),
            false => None,
        };
        let mut staged: BTreeMap<Name, PathInfo> = BTreeMap::new();
        let mut changes = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            changes.push(match wanted {
                ClientRootChange::Replace(root, Some(info)) => {
                    let before = match staged.remove(&root.name) {
                        Some(before) => Some(before),
                        None => self.known_of(&root).await?,
                    };
                    let info = match before {
                        Some(before) => unite(*info, before)
                            .map_err(|error| Status::invalid_argument(error.to_string()))?,
                        None => *info,
                    };
                    staged.insert(root.name.clone(), info.clone());
                    ClientRootChange::Replace(root, Some(Box::new(info)))
                }
                wanted => wanted,
            });
        }
        let second = turns.work(move || {
            let ingest = ingest.into_inner()?;
            for wanted in changes {
                let done = match wanted {
                    ClientRootChange::Add(root, info) => ingest.add_root(&root, info.as_deref()),
                    ClientRootChange::Replace(root, info) => {
                        ingest.put_root(&root, info.as_deref())
                    }
                    ClientRootChange::Remove(name) => ingest.remove_root(&name),
                };
                done.map_err(failed)?;
            }
            for name in required {
                ingest.only_if(RootCondition::Present(name));
            }
            ingest.commit().map_err(failed)
        });
        let second = second.await?;
        Ok(AddedTotals {
            blobs: first.blobs + second.blobs,
            blob_bytes: first.blob_bytes + second.blob_bytes,
            directories: first.directories + second.directories,
        })
    }

    /// What is known of the path `root`, if that is there.
    async fn known_of(&self, root: &Root) -> Result<Option<PathInfo>, Status> {
        let (store, root) = (self.store.clone(), root.clone());
        ask(async move {
            match store.root(&root.name).await? {
                Some(before) if before.node == root.node => store.path_info(&root.name).await,
                _ => Ok(None),
            }
        })
        .await
    }
}

/// Compares what `info` has of the NAR of `root` with the NAR.
pub(super) fn check_nar(root: &Root, info: &PathInfo, nar: &NarHash) -> Result<(), Status> {
    let Some(stated) = &info.narinfo else {
        return Ok(());
    };
    match stated.nar_size == nar.size && stated.nar_sha256[..] == nar.sha256 {
        true => Ok(()),
        false => Err(Status::invalid_argument(format!(
            "the NAR of \"{}\" has {} bytes and the SHA-256 {}; the path info has {} bytes and {}",
            root.name,
            nar.size,
            hex(&nar.sha256),
            stated.nar_size,
            hex(&stated.nar_sha256)
        ))),
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Checks the form of a client's path info: lengths of hashes, and names.
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
    use crate::proto::store::v1::nar_info::Signature;

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
        let with = |signatures: usize| {
            let mut info = info("a");
            let nar = info.narinfo.as_mut().unwrap();
            nar.signatures = vec![nar.signatures[0].clone(); signatures];
            check_form(&info)
        };
        assert!(with(64).is_ok() && with(65).is_err());
        let mut without = info("a");
        narinfo(&mut without);
        assert!(check_form(&without).is_ok());
    }
}
