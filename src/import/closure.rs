//! Store paths of this machine, as its Nix or a reference graph describes them.

use std::path::Path;

use super::{
    ImportError, ImportOptions, ImportProgress, ImportResult, ImportSource, ImportStage, add,
    nar_hash,
};
use crate::castore::{Name, Root};
use crate::nix::{NarMismatch, NarinfoFile};
use crate::store::{AddedTotals, Blocking, RootCondition};
use crate::tree::TreePath;

/// A store path that is in a store now.
#[derive(Clone, Debug)]
pub struct ImportedPath {
    /// The root, and what was added for it.
    pub imported: ImportResult,
    /// Whether the store had the path before, as it is described.
    pub was_there: bool,
}

/// Imports the path that `known` describes from `directory`, where the store's paths are, with its
/// references, signatures and deriver. The NAR of what the store has then is hashed, and nothing gets the
/// path's name unless it is the one described, and the roots `required` are in the store.
pub fn import_path(
    store: &Blocking,
    directory: &Path,
    known: &NarinfoFile,
    required: &[Name],
    progress: &ImportProgress,
) -> Result<ImportedPath, ImportError> {
    let imported = |root: Root, added: Option<AddedTotals>| ImportedPath {
        imported: ImportResult {
            root,
            added: added.unwrap_or_default(),
            totals: progress.totals(),
            nix: Some((known.path.clone(), known.nar)),
        },
        was_there: added.is_none(),
    };
    let name = known.root_name();
    let same = |root: &Root| -> Result<bool, ImportError> {
        let there = store.path_info(&name)?;
        Ok(there.is_some_and(|there| {
            let described = known.path_info(root.node.clone());
            there.references == described.references && there.narinfo == described.narinfo
        }))
    };
    if let Some(root) = store.root(&name)?
        && same(&root)?
    {
        return Ok(imported(root, None));
    }
    let ingest = store.ingest()?;
    ingest.check_root_name(&name)?;
    progress.enter(ImportStage::Reading);
    let path = directory.join(known.path.to_string());
    let node = add(
        &*ingest,
        ImportSource::Path(&path),
        &ImportOptions::default(),
        progress,
    )?;
    progress.check()?;
    progress.enter(ImportStage::Committing);
    // It begins before, so that no garbage collection runs until the contents have a root.
    let named = store.ingest()?;
    let added = ingest.commit()?;
    progress.enter(ImportStage::HashingNar);
    let actual = nar_hash(store, &TreePath::new(name.as_bytes()), &node, progress)?;
    if actual != known.nar {
        return Err(ImportError::NarMismatch(NarMismatch {
            path: known.path.to_string(),
            stated: known.nar,
            actual,
        }));
    }
    progress.check()?;
    progress.enter(ImportStage::Committing);
    let info = known.path_info(node.clone());
    let root = known.path.root(node);
    named.put_root(&root, Some(&info))?;
    for name in required {
        named.only_if(RootCondition::Present(name.clone()));
    }
    named.commit()?;
    Ok(imported(root, Some(added)))
}
