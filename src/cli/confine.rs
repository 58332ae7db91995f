//! Confines a process that serves a store to untrusted peers.

use std::fs::File;

use castore_fs::sandbox::Sandbox;
use castore_fs::stores::Needs;

use super::failure::{Failure, failure, say};

/// Whether the store accepts additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    Never,
    ByClients,
}

/// Confines the calling thread, and all that it will start, to the `needs` of a store.
pub(super) fn confine(needs: Needs, added: Added, open_files: Option<u64>) -> Result<(), Failure> {
    let Needs {
        folders,
        mut read,
        mut write,
        network,
    } = needs;
    match added {
        Added::Never => read.extend(folders),
        Added::ByClients => write.extend(folders),
    }
    for folder in &write {
        // A directory must exist to be allowed.
        std::fs::create_dir_all(folder).map_err(|error| {
            failure(format!(
                "cannot make the directory {}: {error}",
                folder.display()
            ))
        })?;
        // A store that is made in it cannot access the directory above to make that durable.
        if let Some(above) = folder.parent().and_then(|above| File::open(above).ok()) {
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
        say("no Landlock in this kernel: file access is not sandboxed");
    }
    if !sandboxed.system_calls {
        say("no seccomp in this kernel: system calls are not sandboxed");
    }
    Ok(())
}
