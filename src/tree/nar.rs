//! Writing a tree out as a NAR.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use super::export::ExportProgress;
use super::{TreeError, TreePath, TreeWalk, copy_blob};
use crate::castore::{Node, NodeRef};
use crate::nar::NarWriter;
use crate::nix::NarHash;
use crate::store::Blocking;

/// Writes `node`, which stands at `path` in `store`, as a NAR. `out` needs no buffer.
pub fn write_nar(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    out: impl Write,
    progress: &ExportProgress,
) -> Result<(), TreeError> {
    let mut writer = NarWriter::new(out);
    let mut open = 0;
    let mut walk = TreeWalk::new(store, path.clone(), node.clone());
    while let Some(step) = walk.step()? {
        while open > step.depth {
            writer.end_directory().map_err(TreeError::Output)?;
            open -= 1;
        }
        let name = (step.depth > 0).then_some(step.name);
        match step.node {
            NodeRef::Directory { .. } => {
                writer.directory(name).map_err(TreeError::Output)?;
                open += 1;
            }
            NodeRef::Symlink { target } => {
                writer.symlink(name, target).map_err(TreeError::Output)?
            }
            NodeRef::File {
                digest,
                size,
                executable,
            } => {
                writer
                    .file(name, executable, size)
                    .map_err(TreeError::Output)?;
                copy_blob(store, &digest, size, step.path, |_, bytes| {
                    progress.take(bytes.len())?;
                    writer.contents(bytes).map_err(TreeError::Output)
                })?;
            }
        }
        progress.nodes.fetch_add(1, Ordering::Relaxed);
    }
    for _ in 0..open {
        writer.end_directory().map_err(TreeError::Output)?;
    }
    writer.finish().map_err(TreeError::Output)?;
    Ok(())
}

/// Size and hash of the NAR of `node`, which stands at `path` in `store`; until `stop` is set.
pub(super) fn hash_nar(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    stop: &AtomicBool,
) -> Result<NarHash, TreeError> {
    let mut sink = NarHashingSink {
        size: 0,
        hasher: Sha256::new(),
        stop,
    };
    let written = write_nar(store, path, node, &mut sink, &ExportProgress::default());
    if stop.load(Ordering::Relaxed) {
        return Err(TreeError::Interrupted);
    }
    written?;
    Ok(NarHash {
        size: sink.size,
        sha256: sink.hasher.finalize().into(),
    })
}

struct NarHashingSink<'s> {
    size: u64,
    hasher: Sha256,
    stop: &'s AtomicBool,
}

impl Write for NarHashingSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Other.into());
        }
        self.size += bytes.len() as u64;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
