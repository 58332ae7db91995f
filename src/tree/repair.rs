//! Fetching from another store what a verification found damaged or missing.

use std::collections::HashSet;

use super::copy::{self, TreeCopy};
use super::node_path::NodePath;
use super::verify::{FaultCause, TreeFault};
use super::{TreeError, TreePath};
use crate::castore::Node;
use crate::store::{Blocking, Object};

/// The result of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairResult {
    /// Damaged or missing objects that were fetched from the other store, with what is below them.
    pub objects: u64,
    /// Objects that the other store does not have or could not return, and why.
    pub failed: Vec<String>,
}

/// Fetches the objects of `faults` from `from` into `to`, and everything that `to` lacks below
/// them. `to` must know that they are damaged: an embedded store does once they were read.
///
/// A node with a wrong size is no damage, and stays.
pub fn repair(
    from: &Blocking,
    to: &Blocking,
    faults: &[TreeFault],
    progress: &copy::CopyProgress,
) -> Result<RepairResult, TreeError> {
    let mut fetched = RepairResult::default();
    let mut copy = TreeCopy::new(from, to, progress);
    let mut seen = HashSet::new();
    for fault in faults {
        if matches!(fault.why, FaultCause::NodeSize { .. })
            || !seen.insert((fault.object, fault.digest))
        {
            continue;
        }
        let path = fault.paths.first().cloned().unwrap_or_default();
        match fetch(from, &mut copy, fault, &path) {
            Ok(true) => fetched.objects += 1,
            Ok(false) => fetched.failed.push(format!(
                "{path}: {} {}: {} does not have it",
                fault.object,
                fault.digest,
                from.url()
            )),
            Err(TreeError::Interrupted) => return Err(TreeError::Interrupted),
            // A failure does not prevent the others.
            Err(error) => fetched.failed.push(error.to_string()),
        }
    }
    copy.end()?;
    Ok(fetched)
}

fn fetch(
    from: &Blocking,
    copy: &mut TreeCopy<'_>,
    fault: &TreeFault,
    path: &TreePath,
) -> Result<bool, TreeError> {
    let (digest, node) = match fault.object {
        Object::Directory => {
            let found = from.directory(&fault.digest).map_err(TreeError::at(path))?;
            (fault.digest, found.map(|directory| directory.node()))
        }
        Object::Blob => {
            let size = from.blob_size(&fault.digest).map_err(TreeError::at(path))?;
            let node = size.map(|size| Node::File {
                digest: fault.digest,
                size,
                executable: false,
            });
            (fault.digest, node)
        }
    };
    let Some(node) = node.filter(|node| node.digest() == Some(digest)) else {
        return Ok(false);
    };
    copy.tree(&NodePath::root(path.as_bytes()), &node)?;
    copy.flush()?;
    Ok(true)
}
