//! What the tests share: data made by other implementations, which is kept outside of the
//! repository, and random trees.

mod tree;

use std::path::PathBuf;

pub(crate) use tree::{Tree, any_tree};

/// The fixture `name`: in the folder that `CASTORE_FS_FIXTURES` names, or beside the repository.
pub(crate) fn path(name: &str) -> PathBuf {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/fixtures");
    let folder = std::env::var_os("CASTORE_FS_FIXTURES").unwrap_or_else(|| beside.into());
    PathBuf::from(folder).join(name)
}
