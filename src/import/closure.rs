//! Store paths of this machine, as a reference graph describes them.

use std::path::Path;

use super::{Error, Options, Progress, Source, Stage, add, nar_hash};
use crate::castore::Root;
use crate::nix::{NarMismatch, NarinfoFile};
use crate::store::Blocking;
use crate::tree::TreePath;

/// Imports the path that `known` describes from `directory`, where the store's paths are, with its
/// references, signatures and deriver; says whether it was not in the store as it is described. The NAR of
/// what the store has then is hashed, and nothing gets the path's name unless it is the one described.
pub fn import_path(
    store: &Blocking,
    directory: &Path,
    known: &NarinfoFile,
    progress: &Progress,
) -> Result<bool, Error> {
    let name = known.root_name();
    let same = |root: &Root| -> Result<bool, Error> {
        let there = store.path_info(&name)?;
        Ok(there.is_some_and(|there| {
            let described = known.path_info(root.node.clone());
            there.references == described.references && there.narinfo == described.narinfo
        }))
    };
    if let Some(root) = store.root(&name)?
        && same(&root)?
    {
        return Ok(false);
    }
    let ingest = store.ingest()?;
    ingest.check_root_name(&name)?;
    progress.enter(Stage::Reading);
    let path = directory.join(known.path.to_string());
    let node = add(&*ingest, Source::Path(&path), &Options::default(), progress)?;
    progress.check()?;
    progress.enter(Stage::Committing);
    ingest.commit()?;
    progress.enter(Stage::HashingNar);
    let actual = nar_hash(store, &TreePath::new(name.as_bytes()), &node, progress)?;
    if actual != known.nar {
        return Err(Error::NarMismatch(NarMismatch {
            path: known.path.to_string(),
            said: known.nar,
            actual,
        }));
    }
    progress.check()?;
    progress.enter(Stage::Committing);
    let info = known.path_info(node.clone());
    let ingest = store.ingest()?;
    ingest.put_root(&known.path.root(node), Some(&info))?;
    ingest.commit()?;
    Ok(true)
}
