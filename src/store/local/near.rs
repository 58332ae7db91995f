//! The local store of a cache: marked as one whose every byte can be fetched again, as long as it
//! holds no roots of its own.
//!
//! If such a store is damaged so that it cannot be opened or written to, it is moved aside and a
//! new one started. A store without the mark may hold what exists nowhere else, and is not touched.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::LocalStore;
use super::folder::Folder;
use super::format::FormatFile;
use crate::store::Error;

/// The files that are moved aside.
const FILES: [&str; 9] = [
    "index.redb",
    "index.redb.new",
    "journal",
    "sequence",
    "additions",
    "packs",
    "blobs",
    "parts",
    "tmp",
];
/// The target, in the store's directory, which may be a mount of its own.
const ASIDE: &str = "damaged";

impl LocalStore {
    /// Opens the store in the directory `path` for a cache; makes it if it does not exist.
    pub(crate) fn open_near(path: &Path) -> Result<Self, Error> {
        let opened = Self::open_as(path, true).and_then(|store| {
            store.check_changes()?;
            Ok(store)
        });
        let error = match opened {
            Ok(store) => {
                store.mark_as_cache()?;
                return Ok(store);
            }
            Err(error) => error,
        };
        let folder = Folder::new(path);
        let is_cache = matches!(
            FormatFile::read(&folder),
            Ok(FormatFile::Known {
                cache_only: true,
                ..
            })
        );
        if !is_cache || !matches!(error, Error::Index { .. } | Error::Format { .. }) {
            return Err(error);
        }
        set_aside(&folder)?;
        let store = Self::open_as(path, true)?;
        tracing::warn!(
            "the cache starts empty: {error}; what it held is in {}, which can be deleted",
            path.join(ASIDE).display()
        );
        Ok(store)
    }

    /// Fails if the index is damaged so that it can be read, but not written to.
    fn check_changes(&self) -> Result<(), Error> {
        match self.0.folder.check_writable() {
            Ok(()) => self.0.index.change().map(drop),
            // The first write reports that.
            Err(_) => Ok(()),
        }
    }

    /// Marks a store without roots of its own as one that can be fetched again.
    fn mark_as_cache(&self) -> Result<(), Error> {
        let folder = &self.0.folder;
        let unmarked = matches!(
            FormatFile::read(folder)?,
            FormatFile::Known {
                cache_only: false,
                ..
            }
        );
        if !unmarked || folder.check_writable().is_err() {
            return Ok(());
        }
        // A running addition may bring roots.
        let Some(_alone) = folder.be_alone(Duration::ZERO)? else {
            return Ok(());
        };
        match self.root_records()?.is_empty() {
            true => folder.write_format(true),
            false => Ok(()),
        }
    }
}

/// Moves the store's files to a directory in it, replacing what is there.
fn set_aside(folder: &Folder) -> Result<(), Error> {
    let _lock = folder.lock()?;
    let aside = folder.path().join(ASIDE);
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(folder.io("remove", &aside)(error));
        }
        _ => {}
    }
    fs::create_dir(&aside).map_err(folder.io("create the directory", &aside))?;
    for name in FILES {
        let path = folder.path().join(name);
        match fs::rename(&path, aside.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => renamed.map_err(folder.io("rename", &path))?,
        }
    }
    folder.sync(folder.path())
}
