//! A tree in a store, written as a NAR.

use std::io::{self, Write};

use thiserror::Error;

use crate::castore::{Digest, Directory, Name, NodeRef};
use crate::nar::{MAX_DEPTH, Writer};
use crate::store::{self, Blocking, Object};

/// Bytes asked of the store at once.
const READ: usize = 1 << 20;

/// Why a tree could not be written as a NAR.
#[derive(Debug, Error)]
pub enum Error {
    /// The store could not answer, or what it has is damaged.
    #[error("\"{path}\": {source}")]
    Store {
        /// The path in the tree, empty for its root.
        path: String,
        /// What the store said.
        source: store::Error,
    },
    /// The store lacks a part of the tree.
    #[error("\"{path}\": {store} does not have the {object} {digest}")]
    Missing {
        /// The path in the tree, empty for its root.
        path: String,
        /// The store's URL.
        store: String,
        /// What kind of object.
        object: Object,
        /// Its digest.
        digest: Digest,
    },
    /// More than [`MAX_DEPTH`] directories inside one another.
    #[error("\"{path}\": more than {MAX_DEPTH} directories inside one another")]
    TooDeep {
        /// The path in the tree.
        path: String,
    },
    /// The archive could not be written.
    #[error("cannot write the NAR: {0}")]
    Write(#[from] io::Error),
}

/// A directory that is being written.
struct Open {
    directory: Directory,
    /// The entry that comes next.
    next: usize,
}

/// Writes the tree `node` of `store` to `out`, as a NAR.
pub fn write_nar(store: &Blocking, node: NodeRef<'_>, out: impl Write) -> Result<(), Error> {
    let mut rendering = Rendering {
        store,
        writer: Writer::new(out),
        open: Vec::new(),
        buffer: Vec::new(),
    };
    rendering.node(None, node)?;
    while let Some(open) = rendering.open.last_mut() {
        // Clones are counted references to the same bytes.
        let directory = open.directory.clone();
        match directory.get(open.next) {
            Some(entry) => {
                open.next += 1;
                rendering.node(Some(entry.name), entry.node)?;
            }
            None => {
                rendering.open.pop();
                rendering.writer.end_directory()?;
            }
        }
    }
    rendering.writer.finish()?;
    Ok(())
}

struct Rendering<'a, W: Write> {
    store: &'a Blocking,
    writer: Writer<W>,
    open: Vec<Open>,
    buffer: Vec<u8>,
}

impl<W: Write> Rendering<'_, W> {
    /// A node, and of a directory its start.
    fn node(&mut self, name: Option<&[u8]>, node: NodeRef<'_>) -> Result<(), Error> {
        match node {
            NodeRef::Directory { digest, .. } => {
                if self.open.len() == MAX_DEPTH {
                    return Err(Error::TooDeep { path: self.path() });
                }
                let directory = self
                    .store
                    .directory(&digest)
                    .map_err(|source| self.failed(source))?
                    .ok_or_else(|| self.missing(Object::Directory, digest))?;
                self.writer.directory(name)?;
                self.open.push(Open { directory, next: 0 });
            }
            NodeRef::File {
                digest,
                size,
                executable,
            } => {
                self.writer.file(name, executable, size)?;
                self.contents(digest, size)?;
            }
            NodeRef::Symlink { target } => self.writer.symlink(name, target)?,
        }
        Ok(())
    }

    fn contents(&mut self, digest: Digest, size: u64) -> Result<(), Error> {
        let length = size.min(READ as u64) as usize;
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        let mut offset = 0;
        while offset < size {
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = self.store.read(&digest, size, offset, &mut buffer);
            let length = read
                .map_err(|source| self.failed(source))?
                .ok_or_else(|| self.missing(Object::Blob, digest))?;
            if length == 0 {
                // A store that keeps its contract has said so itself.
                let source = store::Error::Damaged {
                    store: self.store.url().to_owned(),
                    object: Object::Blob,
                    digest,
                    damage: Box::new(store::Damage::WrongSize {
                        expected: size,
                        actual: offset,
                    }),
                };
                return Err(self.failed(source));
            }
            self.writer.contents(&buffer[..length])?;
            self.buffer = buffer;
            offset += length as u64;
        }
        Ok(())
    }

    fn failed(&self, source: store::Error) -> Error {
        Error::Store {
            path: self.path(),
            source,
        }
    }

    fn missing(&self, object: Object, digest: Digest) -> Error {
        Error::Missing {
            path: self.path(),
            store: self.store.url().to_owned(),
            object,
            digest,
        }
    }

    /// The path of the entry that is being written.
    fn path(&self) -> String {
        let names = self.open.iter().filter_map(|open| {
            let index = open.next.checked_sub(1)?;
            let name = Name::new(open.directory.get(index)?.name).ok()?;
            Some(name.to_string())
        });
        names.collect::<Vec<_>>().join("/")
    }
}
