//! Writing a tree out as a NAR.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::export::Progress;
use super::{Error, TreePath, Walk, copy_blob};
use crate::castore::{Node, NodeRef};
use crate::nar::Writer;
use crate::store::Blocking;

/// Writes `node`, which stands at `path` in `store`, as a NAR. `out` needs no buffer.
pub fn write_nar(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    out: impl Write,
    progress: &Progress,
) -> Result<(), Error> {
    let mut writer = Writer::new(out);
    let mut open = 0;
    let mut walk = Walk::new(store, path.clone(), node.clone());
    while let Some(step) = walk.step()? {
        while open > step.depth {
            writer.end_directory().map_err(Error::Output)?;
            open -= 1;
        }
        let name = (step.depth > 0).then_some(step.name);
        match step.node {
            NodeRef::Directory { .. } => {
                writer.directory(name).map_err(Error::Output)?;
                open += 1;
            }
            NodeRef::Symlink { target } => writer.symlink(name, target).map_err(Error::Output)?,
            NodeRef::File {
                digest,
                size,
                executable,
            } => {
                writer.file(name, executable, size).map_err(Error::Output)?;
                copy_blob(store, &digest, size, step.path, |_, bytes| {
                    progress.take(bytes.len())?;
                    writer.contents(bytes).map_err(Error::Output)
                })?;
            }
        }
        progress.nodes.fetch_add(1, Ordering::Relaxed);
    }
    for _ in 0..open {
        writer.end_directory().map_err(Error::Output)?;
    }
    writer.finish().map_err(Error::Output)?;
    Ok(())
}
