//! `castore-fs tag`.

use std::io::Write;
use std::path::PathBuf;

use crate::castore::Root;
use crate::tree::{KindPreference, Target};
use clap::Args;

use super::failure::CommandFailure;
use super::json::JsonRoot;
use super::names::{must_be_free, root_name};
use super::output::Output;
use super::store::StoreArguments;

/// Give a tree a root name: a digest, or a path below another root
///
/// Nothing is copied. The tree is kept for as long as the name is there. A name that stands for another
/// tree is refused without --replace.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs tag release tree
  castore-fs tag --replace share tree/usr/share")]
pub(super) struct TagCommand {
    #[command(flatten)]
    store: StoreArguments,
    /// Replace the root of this name, if there is one
    #[arg(long)]
    replace: bool,
    /// One JSON object: the root
    #[arg(long)]
    json: bool,
    /// The root's new name
    name: PathBuf,
    /// What it is to stand for: NAME[/PATH] or a digest
    target: PathBuf,
}

impl TagCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let name = root_name(&self.name)?;
        let target = Target::try_from(self.target.as_path())?;
        let node = target.resolve(store, KindPreference::Directory)?.node;
        must_be_free(store, &name, &node, self.replace)?;
        let ingest = store.ingest()?;
        let root = Root { name, node };
        ingest.put_root(&root, None)?;
        ingest.commit()?;
        if self.json {
            let mut output = Output::open()?;
            output.json(&JsonRoot::from(&root))?;
            output.flush()?;
        }
        Ok(())
    }
}
