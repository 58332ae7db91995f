//! Giving up what a store's server does not need; for the verbs that serve a store to strangers.

use std::fs::File;

use castore_fs::sandbox::Sandbox;
use castore_fs::stores::Needs;

use super::failure::{Failure, failure, say};

/// Whether the store is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    Never,
    ByClients,
}

/// Confines the calling thread, and all that it will start, to what a store that has `needs` takes.
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
        // What is not there cannot be allowed.
        std::fs::create_dir_all(folder).map_err(|error| {
            failure(format!(
                "cannot make the folder {}: {error}",
                folder.display()
            ))
        })?;
        // The store that is made in it cannot reach what is above it to make that durable.
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
        say("this kernel has no Landlock: whoever takes this process over can read files");
    }
    if !sandboxed.system_calls {
        say("this kernel has no seccomp: whoever takes this process over can call all of it");
    }
    Ok(())
}
