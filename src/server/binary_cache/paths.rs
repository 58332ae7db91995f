//! Store paths as narinfos.

use std::sync::Arc;

use tonic::Status;

use super::resource::nar_url;
use crate::castore::Root;
use crate::nix::{NarinfoFile, PathInfo, SecretKey, StorePathHash};
use crate::server::ServedState;
use crate::server::path_infos::path_info;
use crate::server::respond::ask;

/// A path of the cache.
pub(super) struct FoundPath {
    pub(super) root: Root,
    pub(super) narinfo: NarinfoFile,
}

/// The path `hash`, signed by `key`. The status is NOT_FOUND if there is none that can be served.
pub(super) async fn find(
    served: &ServedState,
    hash: StorePathHash,
    key: Option<Arc<SecretKey>>,
) -> Result<FoundPath, Status> {
    let (store, paths) = (served.store.clone(), served.paths.clone());
    let found = ask(async move {
        let Some(name) = paths.all().await?.get(hash.as_bytes()).cloned() else {
            return Ok(None);
        };
        let Some(root) = store.root(&name).await? else {
            return Ok(None);
        };
        let info = path_info(store.as_ref(), &root).await?;
        Ok(Some((root, info)))
    });
    let absent = || Status::not_found(format!("this store has no path with the hash {hash}"));
    let (root, info) = found.await?.ok_or_else(absent)?;
    let narinfo = describe(&info, hash).ok_or_else(|| {
        Status::not_found(format!(
            "what \"{}\" refers to is not known to this store: copy it with `nix copy --to`",
            root.name
        ))
    })?;
    let mut found = FoundPath { root, narinfo };
    if let Some(key) = key {
        sign(&mut found.narinfo, &key);
    }
    Ok(found)
}

/// The narinfo of what is known of a path, if that is enough.
fn describe(info: &PathInfo, hash: StorePathHash) -> Option<NarinfoFile> {
    let sha256 = info.narinfo.as_ref()?.nar_sha256[..].try_into().ok()?;
    let narinfo = NarinfoFile::of_path_info(info, nar_url(&sha256, &hash))?;
    narinfo.knows_references().then_some(narinfo)
}

/// Has `key` sign, in the place of any signature of its name.
pub(super) fn sign(narinfo: &mut NarinfoFile, key: &SecretKey) {
    let signature = key.sign(&narinfo.fingerprint());
    let signatures = &mut narinfo.signatures;
    signatures.retain(|other| other.key != signature.key);
    signatures.push(signature);
}
