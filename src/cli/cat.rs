//! `castore-fs cat`.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::castore::Node;
use crate::store::Blocking;
use crate::tree::{self, KindPreference, Target, copy_blob};
use clap::Args;

use super::failure::{CommandFailure, failure};
use super::output::Output;
use super::store::StoreArguments;

/// Write the contents of files to standard output
///
/// Every byte was verified before it is written. A failing target is reported, the others are
/// written all the same, and the exit status is 1.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs cat tree/etc/hosts
  castore-fs cat b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262")]
pub(super) struct Cat {
    #[command(flatten)]
    store: StoreArguments,
    /// The files: NAME/PATH or a blob's digest
    #[arg(required = true)]
    targets: Vec<PathBuf>,
}

impl Cat {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let mut output = Output::open()?;
        let mut all_written = true;
        for target in &self.targets {
            if let Err(failure) = write(store, target, &mut output) {
                failure.and_continue(&mut output)?;
                all_written = false;
            }
        }
        output.flush()?;
        match all_written {
            true => Ok(()),
            false => Err(CommandFailure::Reported),
        }
    }
}

/// Writes one file.
fn write(store: &Blocking, target: &Path, output: &mut Output) -> Result<(), CommandFailure> {
    let found = Target::try_from(target)?.resolve(store, KindPreference::Blob)?;
    let path = &found.path;
    match &found.node {
        Node::File { digest, size, .. } => {
            copy_blob(store, digest, *size, path, |_, bytes| {
                output.write_all(bytes).map_err(tree::TreeError::Output)
            })?;
            Ok(())
        }
        Node::Directory { .. } => Err(failure(format!(
            "{path} is a directory: ls lists it, export writes it out"
        ))),
        Node::Symlink { target } => Err(failure(format!(
            "{path} is a symbolic link to {target} and is not followed: \
             name the file that it points to"
        ))),
    }
}
