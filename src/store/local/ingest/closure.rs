//! Whether everything below a Directory is present.
//!
//! A root promises its whole tree, so a commit checks every blob and Directory below it.
//! Directories that were found complete are marked so in the index ([`StorageKind::Whole`]) and not
//! checked again; a Directory that came without everything below it (a cache fills like that) is
//! [`StorageKind::Partial`], and is checked whenever a root leads to it.

use std::collections::{HashMap, HashSet};

use super::LocalStaged;
use crate::castore::{Digest, Directory, Node, NodeRef, Printable, Root};
use crate::store::local::LocalInner;
use crate::store::local::index::Snapshot;
use crate::store::local::location::{ObjectLocation, StorageKind};
use crate::store::{Error, Object};

/// The missing object, as a text; nothing if all are present.
type MissingObject = Option<String>;

/// A search below the Directories of one addition.
pub(in crate::store::local) struct ClosureCheck<'a> {
    store: &'a LocalInner,
    snapshot: &'a Snapshot,
    staged: &'a LocalStaged,
    known: HashMap<Digest, MissingObject>,
    completed: Vec<(Digest, ObjectLocation)>,
}

/// The result of a search.
pub(in crate::store::local) struct Partial {
    /// New Directories below which something is missing.
    pub(in crate::store::local) missing: HashSet<Digest>,
    /// Directories of the store below which nothing is missing any more.
    pub(in crate::store::local) completed: Vec<(Digest, ObjectLocation)>,
}

/// A Directory whose entries are being checked.
struct DirectoryVisit {
    directory: Directory,
    next: usize,
    /// Where it lies, if it is in the store.
    at: Option<ObjectLocation>,
}

/// The known state of a Directory.
enum DirectoryState {
    Known(MissingObject),
    Visit(DirectoryVisit),
}

impl<'a> ClosureCheck<'a> {
    pub(in crate::store::local) fn new(
        store: &'a LocalInner,
        snapshot: &'a Snapshot,
        staged: &'a LocalStaged,
    ) -> Self {
        Self {
            store,
            snapshot,
            staged,
            known: HashMap::with_capacity(staged.directories.len()),
            completed: Vec::new(),
        }
    }

    /// Checks everything that `root` refers to; the inner error names what is missing.
    pub(in crate::store::local) fn check(
        &mut self,
        root: &Root,
    ) -> Result<Result<(), String>, Error> {
        let missing = match &root.node {
            Node::Directory { digest, .. } => self.below(digest)?,
            Node::File { digest, size, .. } => self.blob(digest, *size)?,
            Node::Symlink { .. } => None,
        };
        Ok(missing.map_or(Ok(()), Err))
    }

    /// Whether the Directory `digest` and everything below it is there.
    pub(in crate::store::local) fn has(&mut self, digest: &Digest) -> Result<bool, Error> {
        Ok(self.below(digest)?.is_none())
    }

    /// Also checks the Directories that no root reaches.
    pub(in crate::store::local) fn finish(mut self) -> Result<Partial, Error> {
        let staged = self.staged;
        for digest in staged.directories.keys() {
            self.below(digest)?;
        }
        let missing = self
            .known
            .into_iter()
            .filter_map(|(digest, missing)| missing.map(|_| digest))
            .collect();
        Ok(Partial {
            missing,
            completed: self.completed,
        })
    }

    fn below(&mut self, digest: &Digest) -> Result<MissingObject, Error> {
        let mut path = match self.state(digest)? {
            DirectoryState::Known(found) => return Ok(found),
            DirectoryState::Visit(visit) => vec![visit],
        };
        let mut last = None;
        while let Some(visit) = path.last_mut() {
            let mut missing = None;
            let mut deeper = None;
            while let Some(entry) = visit.directory.get(visit.next) {
                missing = match entry.node {
                    NodeRef::File { digest, size, .. } => self.blob(&digest, size)?,
                    NodeRef::Symlink { .. } => None,
                    NodeRef::Directory { digest, .. } => match self.state(&digest)? {
                        DirectoryState::Known(found) => found,
                        DirectoryState::Visit(visit) => {
                            deeper = Some(visit);
                            break;
                        }
                    },
                };
                if missing.is_some() {
                    missing = missing.map(|what| {
                        let name = Printable(entry.name);
                        format!("{what}, for \"{name}\" in {}", visit.directory.digest())
                    });
                    break;
                }
                visit.next += 1;
            }
            if let Some(deeper) = deeper {
                path.push(deeper);
                continue;
            }
            let digest = visit.directory.digest();
            let at = visit.at.filter(|at| at.kind != StorageKind::Whole);
            if let (None, Some(at)) = (&missing, at) {
                let kind = StorageKind::Whole;
                self.completed.push((digest, ObjectLocation { kind, ..at }));
            }
            last = missing.clone();
            self.known.insert(digest, missing);
            path.pop();
        }
        Ok(last)
    }

    fn state(&self, digest: &Digest) -> Result<DirectoryState, Error> {
        if let Some(found) = self.known.get(digest) {
            // The first missing place is enough.
            return Ok(DirectoryState::Known(found.clone()));
        }
        if let Some(directory) = self.staged.directories.get(digest) {
            return Ok(DirectoryState::Visit(DirectoryVisit {
                directory: directory.clone(),
                next: 0,
                at: None,
            }));
        }
        let Some(at) = self.snapshot.directory(digest)? else {
            let lacks = format!("it lacks directory {digest}");
            return Ok(DirectoryState::Known(Some(lacks)));
        };
        let damaged = || DirectoryState::Known(Some(format!("its directory {digest} is damaged")));
        if self.snapshot.is_quarantined(Object::Directory, digest)? {
            return Ok(damaged());
        }
        // A tree that was found complete may have lost an object that is known to be damaged now.
        if at.kind == StorageKind::Whole && !self.snapshot.has_quarantine() {
            return Ok(DirectoryState::Known(None));
        }
        match self.store.files.directory(digest, at) {
            Ok(directory) => Ok(DirectoryState::Visit(DirectoryVisit {
                directory,
                next: 0,
                at: Some(at),
            })),
            Err(Error::Damaged { .. }) => Ok(damaged()),
            Err(error) => Err(error),
        }
    }

    fn blob(&self, digest: &Digest, size: u64) -> Result<MissingObject, Error> {
        let at = match self.staged.blobs.get(digest) {
            Some(at) => Some(*at),
            None if self.snapshot.is_quarantined(Object::Blob, digest)? => {
                return Ok(Some(format!("its blob {digest} is damaged")));
            }
            None => self.snapshot.blob(digest)?,
        };
        let len = match at {
            Some(at) => at.len,
            None if *digest == Digest::empty_blob() => 0,
            None => return Ok(Some(format!("it lacks blob {digest}"))),
        };
        Ok((len != size).then(|| format!("blob {digest} has {len} bytes, not {size}")))
    }
}
