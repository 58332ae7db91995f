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
use super::dir::StoreDirectory;
use super::format::FormatFile;
use super::index;
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
    pub(crate) fn open_cache_store(path: &Path) -> Result<Self, Error> {
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
        let dir = StoreDirectory::new(path);
        let is_cache = matches!(
            FormatFile::read(&dir),
            Ok(FormatFile::Known {
                cache_only: true,
                ..
            })
        );
        let is_damage = matches!(error, Error::Index { .. } | Error::Format { .. });
        if !is_cache || !is_damage || index::newer_version(&dir).is_some() {
            return Err(error);
        }
        set_aside(&dir)?;
        let store = Self::open_as(path, true)?;
        tracing::warn!(
            "the cache starts empty: {error}; what it held is in {}, which can be deleted",
            path.join(ASIDE).display()
        );
        Ok(store)
    }

    /// Fails if the index is damaged so that it can be read, but not written to.
    fn check_changes(&self) -> Result<(), Error> {
        match self.0.dir.check_writable() {
            Ok(()) => self.0.index.change().map(drop),
            // The first write reports that.
            Err(_) => Ok(()),
        }
    }

    /// Marks a store without roots of its own as one that can be fetched again.
    fn mark_as_cache(&self) -> Result<(), Error> {
        let dir = &self.0.dir;
        let unmarked = matches!(
            FormatFile::read(dir)?,
            FormatFile::Known {
                cache_only: false,
                ..
            }
        );
        if !unmarked || dir.check_writable().is_err() {
            return Ok(());
        }
        // A running addition may bring roots.
        let Some(_alone) = dir.be_alone(Duration::ZERO)? else {
            return Ok(());
        };
        match self.root_records()?.is_empty() {
            true => dir.write_format(true),
            false => Ok(()),
        }
    }
}

/// Moves the store's files to a directory in it, replacing what is there.
fn set_aside(dir: &StoreDirectory) -> Result<(), Error> {
    let _lock = dir.lock()?;
    let aside = dir.path().join(ASIDE);
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(dir.io("remove", &aside)(error));
        }
        _ => {}
    }
    dir.make_dir(&aside)
        .map_err(dir.io("create the directory", &aside))?;
    for name in FILES {
        let path = dir.path().join(name);
        match fs::rename(&path, aside.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => renamed.map_err(dir.io("rename", &path))?,
        }
    }
    dir.sync(dir.path())
}
