//! `castore-fs mv`.

use std::io::Write;
use std::path::PathBuf;

use crate::castore::Root;
use crate::store::RootCondition;
use clap::Args;

use super::failure::{CommandFailure, failure};
use super::json::JsonRoot;
use super::names::{must_be_free, refuse_referred, root_name, taken_root_name};
use super::output::Output;
use super::store::StoreArguments;

/// Rename a root
///
/// The new name appears and the old one disappears in one step, and nothing is copied. Without --replace a
/// new name that stands for another tree is refused. The metadata of a Nix store path (NAR hash, references)
/// belongs to its name, and is not moved.
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
    /// One JSON object: the root with its new name
    #[arg(long)]
    json: bool,
    /// The root's name
    old: PathBuf,
    /// Its new name
    new: PathBuf,
}

impl Mv {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let (old, name) = (taken_root_name(&self.old, "mv")?, root_name(&self.new)?);
        let Some(root) = store.root(&old)? else {
            return Err(failure(format!(
                "{} has no root named {old}; `castore-fs ls` lists the names it has",
                store.url()
            )));
        };
        if old == name {
            return self.print(&root);
        }
        refuse_referred(&opened, std::slice::from_ref(&old))?;
        let node = root.node;
        must_be_free(store, &name, &node, self.replace)?;
        let ingest = store.ingest()?;
        let root = Root { name, node };
        ingest.put_root(&root, None)?;
        ingest.remove_root(&old)?;
        ingest.only_if(RootCondition::NotReferred(old));
        ingest.commit()?;
        self.print(&root)
    }

    fn print(&self, root: &Root) -> Result<(), CommandFailure> {
        if self.json {
            let mut output = Output::open()?;
            output.json(&JsonRoot::from(root))?;
            output.flush()?;
        }
        Ok(())
    }
}
