//! Confines a process that serves a store to untrusted peers.

use std::fs::File;

use crate::sandbox::Sandbox;
use crate::stores::StoreNeeds;

use super::failure::{CommandFailure, failure, print_error};

/// Whether the store accepts additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdditionAccess {
    Never,
    ByClients,
}

/// Confines the calling thread, and all that it will start, to the `needs` of a store.
pub(super) fn confine(
    needs: StoreNeeds,
    added: AdditionAccess,
    open_files: Option<u64>,
) -> Result<(), CommandFailure> {
    let StoreNeeds {
        dirs,
        mut read,
        mut write,
        network,
    } = needs;
    match added {
        AdditionAccess::Never => read.extend(dirs),
        AdditionAccess::ByClients => write.extend(dirs),
    }
    for dir in &write {
        // A directory must exist to be allowed.
        std::fs::create_dir_all(dir).map_err(|error| {
            failure(format!(
                "cannot make the directory {}: {error}",
                dir.display()
            ))
        })?;
        // A store that is made in it cannot access the directory above to make that durable.
        if let Some(above) = dir.parent().and_then(|above| File::open(above).ok()) {
            let _ = above.sync_all();
        }
    }
    let sandbox = Sandbox {
        read,
        write,
        network,
        open_files,
    };
    let sandboxed = sandbox.enter()?;
    if !sandboxed.files {
        print_error("no Landlock in this kernel: file access is not sandboxed");
    }
    if !sandboxed.system_calls {
        print_error("no seccomp in this kernel: system calls are not sandboxed");
    }
    Ok(())
}
