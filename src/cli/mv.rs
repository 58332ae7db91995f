//! `castore-fs mv`.

use std::path::PathBuf;

use castore_fs::castore::Root;
use clap::Args;

use super::failure::{Failure, failure};
use super::names::{must_be_free, root_name};
use super::store::StoreArguments;

/// Rename a root
///
/// The new name is there and the old one gone in one step. Nothing is copied. A new name that stands for
/// another tree is refused without --replace. What the store knows of a root as a Nix store path belongs
/// to its name and does not follow.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs mv tree tree-2026
  castore-fs mv --replace next current")]
pub(super) struct Mv {
    #[command(flatten)]
    store: StoreArguments,
    /// Replace the root NEW, if there is one
    #[arg(long)]
    replace: bool,
    /// The root's name
    old: PathBuf,
    /// Its new name
    new: PathBuf,
}

impl Mv {
    pub(super) fn run(self) -> Result<(), Failure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let (old, name) = (root_name(&self.old)?, root_name(&self.new)?);
        let Some(root) = store.root(&old)? else {
            return Err(failure(format!(
                "{} has no root named {old}; `castore-fs ls` lists the names it has",
                store.url()
            )));
        };
        if old == name {
            return Ok(());
        }
        let node = root.node;
        must_be_free(store, &name, &node, self.replace)?;
        let ingest = store.ingest()?;
        ingest.put_root(&Root { name, node }, None)?;
        ingest.remove_root(&old)?;
        ingest.commit()?;
        Ok(())
    }
}
