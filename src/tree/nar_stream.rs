//! A NAR, or any range of one, made out of a store piece by piece as it is wanted.
//!
//! Everything in a NAR but the contents of files follows from the Directories, and so do the places of
//! those contents. So a range of it costs the Directories before it, and none of the files.

use std::ops::Range;

use bytes::Bytes;

use super::walk::open;
use super::{TreeError, TreePath};
use crate::castore::{Digest, Directory, Node, NodeRef};
use crate::nar::framing;
use crate::store::{Blocking, Damage, Object};

/// What comes next in the walk of a NAR, in its order.
#[derive(Debug)]
pub enum NarStep<'a> {
    /// A directory begins; its entries follow, then [`NarStep::EndDirectory`].
    Directory {
        /// Its name; none for the root.
        name: Option<&'a [u8]>,
    },
    /// The directory that began last and has not ended yet ends.
    EndDirectory,
    /// A regular file.
    File {
        /// Its name; none for the root.
        name: Option<&'a [u8]>,
        /// Its contents.
        digest: Digest,
        /// Their bytes.
        size: u64,
        /// Whether it is a program.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Its name; none for the root.
        name: Option<&'a [u8]>,
        /// Where it leads.
        target: &'a [u8],
    },
}

/// A walk over a tree in the order of its NAR.
#[derive(Debug)]
pub struct NarWalk {
    store: Blocking,
    path: TreePath,
    root: Node,
    begun: bool,
    stack: Vec<NarStreamLevel>,
    /// The directory that began last and was not opened yet.
    pending: Option<Digest>,
}

#[derive(Debug)]
struct NarStreamLevel {
    directory: Directory,
    next: usize,
    /// Bytes of the path of this directory.
    path_length: usize,
}

impl NarWalk {
    /// A walk over `node`, which stands at `path` in `store`.
    pub fn new(store: Blocking, path: TreePath, node: Node) -> Self {
        Self {
            store,
            path,
            root: node,
            begun: false,
            stack: Vec::new(),
            pending: None,
        }
    }

    /// How many directories have begun and not ended.
    pub fn depth(&self) -> usize {
        self.stack.len() + usize::from(self.pending.is_some())
    }

    /// What comes next; nothing after the end.
    pub fn step(&mut self) -> Result<Option<NarStep<'_>>, TreeError> {
        if !self.begun {
            self.begun = true;
            let node = self.root.borrow();
            if let NodeRef::Directory { digest, .. } = node {
                self.pending = Some(digest);
            }
            return Ok(Some(NarStep::of(None, node)));
        }
        if let Some(digest) = self.pending.take() {
            let directory = open(&self.store, &self.path, &digest)?;
            self.announce(&directory);
            self.stack.push(NarStreamLevel {
                directory,
                next: 0,
                path_length: self.path.as_bytes().len(),
            });
        }
        let Some(level) = self.stack.last_mut() else {
            return Ok(None);
        };
        self.path.truncate(level.path_length);
        if level.next >= level.directory.len() {
            self.stack.pop();
            return Ok(Some(NarStep::EndDirectory));
        }
        let level = self.stack.last_mut().expect("it was there just now");
        let entry = level.directory.get(level.next).expect("it has so many");
        level.next += 1;
        self.path.push(entry.name);
        if let NodeRef::Directory { digest, .. } = entry.node {
            self.pending = Some(digest);
        }
        Ok(Some(NarStep::of(Some(entry.name), entry.node)))
    }

    /// Announces the next files to the store.
    fn announce(&self, directory: &Directory) {
        let files = directory.iter().filter_map(|entry| match entry.node {
            NodeRef::File { digest, size, .. } => Some((digest, size)),
            _ => None,
        });
        let files: Vec<(Digest, u64)> = files.take(MOST_ANNOUNCED).collect();
        if !files.is_empty() {
            self.store.store().will_need(&files);
        }
    }
}

/// Files of a directory that are announced to a store ahead.
const MOST_ANNOUNCED: usize = 256;

impl<'a> NarStep<'a> {
    fn of(name: Option<&'a [u8]>, node: NodeRef<'a>) -> Self {
        match node {
            NodeRef::Directory { .. } => NarStep::Directory { name },
            NodeRef::File {
                digest,
                size,
                executable,
            } => NarStep::File {
                name,
                digest,
                size,
                executable,
            },
            NodeRef::Symlink { target } => NarStep::Symlink { name, target },
        }
    }

    /// Appends to `out` what the NAR has from here to the next step; of a file, up to its contents.
    /// `depth` is that of the walk before this step.
    pub fn framing(&self, out: &mut Vec<u8>, depth: usize) {
        let mut frame = || match *self {
            NarStep::Directory { name } => {
                framing::start_node(out, name)?;
                framing::directory(out)
            }
            // The root's end is not inside of anything.
            NarStep::EndDirectory => framing::end_node(out, depth > 1),
            NarStep::File {
                name,
                size,
                executable,
                ..
            } => {
                framing::start_node(out, name)?;
                framing::file(out, executable, size)
            }
            NarStep::Symlink { name, target } => {
                framing::start_node(out, name)?;
                framing::symlink(out, target)?;
                framing::end_node(out, name.is_some())
            }
        };
        frame().expect("memory takes all that is written to it");
    }
}

/// Appends to `out` what the NAR has after the contents of a file of `size` bytes.
pub(super) fn after_file(out: &mut Vec<u8>, size: u64, in_directory: bool) {
    framing::after_contents(out, size)
        .and_then(|()| framing::end_node(out, in_directory))
        .expect("memory takes all that is written to it");
}

/// A range of a NAR.
#[derive(Debug)]
pub struct NarStream {
    walk: NarWalk,
    /// Bytes of the NAR before what is given out next.
    skip: u64,
    /// Bytes still to be given out.
    remaining: u64,
    /// What is to be returned before the walk continues.
    frame: Vec<u8>,
    frame_offset: usize,
    file: Option<StreamedFile>,
}

/// A file whose contents are being given out.
#[derive(Debug)]
struct StreamedFile {
    digest: Digest,
    size: u64,
    offset: u64,
    in_directory: bool,
}

impl NarStream {
    /// The bytes in `range` of the NAR of `node`, which stands at `path` in `store`.
    pub fn new(store: Blocking, path: TreePath, node: Node, range: Range<u64>) -> Self {
        Self {
            walk: NarWalk::new(store, path, node),
            skip: range.start,
            remaining: range.end.saturating_sub(range.start),
            frame: Vec::new(),
            frame_offset: 0,
            file: None,
        }
    }

    /// Bytes that are still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next bytes, at most `most`; nothing at the end. Blocks.
    pub fn next(&mut self, most: usize) -> Result<Option<Bytes>, TreeError> {
        let most = self.remaining.min(most as u64) as usize;
        let mut out = Vec::with_capacity(most);
        while out.len() < most {
            if self.frame_offset < self.frame.len() {
                let frame = &self.frame[self.frame_offset..];
                let skipped = self.skip.min(frame.len() as u64) as usize;
                let frame = &frame[skipped..];
                let taken = frame.len().min(most - out.len());
                out.extend_from_slice(&frame[..taken]);
                self.skip -= skipped as u64;
                self.frame_offset += skipped + taken;
            } else if self.file.is_some() {
                self.read_file(&mut out, most)?;
            } else if !self.proceed()? {
                // The caller knows the NAR's size, and takes more than there is for a failure.
                break;
            }
        }
        self.remaining -= out.len() as u64;
        Ok((!out.is_empty()).then(|| Bytes::from(out)))
    }

    /// Takes one step of the walk; false at its end.
    fn proceed(&mut self) -> Result<bool, TreeError> {
        self.frame.clear();
        self.frame_offset = 0;
        let depth = self.walk.depth();
        let Some(step) = self.walk.step()? else {
            return Ok(false);
        };
        step.framing(&mut self.frame, depth);
        if let NarStep::File {
            name, digest, size, ..
        } = step
        {
            self.file = Some(StreamedFile {
                digest,
                size,
                offset: 0,
                in_directory: name.is_some(),
            });
        }
        Ok(true)
    }

    /// Appends contents of the file that is open to `out`, up to `most` bytes of `out`.
    fn read_file(&mut self, out: &mut Vec<u8>, most: usize) -> Result<(), TreeError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let skipped = self.skip.min(file.size - file.offset);
        file.offset += skipped;
        self.skip -= skipped;
        let wanted = (file.size - file.offset).min((most - out.len()) as u64) as usize;
        if wanted > 0 {
            let store = &self.walk.store;
            let failed = TreeError::at(&self.walk.path);
            let start = out.len();
            out.resize(start + wanted, 0);
            let read = store
                .read(&file.digest, file.size, file.offset, &mut out[start..])
                .map_err(failed)?;
            let read = read.ok_or_else(|| TreeError::Absent {
                path: self.walk.path.clone(),
                store: store.url().to_owned(),
                object: Object::Blob,
                digest: file.digest,
            })?;
            if read == 0 {
                return Err(TreeError::at(&self.walk.path)(
                    crate::store::Error::Damaged {
                        store: store.url().to_owned(),
                        object: Object::Blob,
                        digest: file.digest,
                        damage: Box::new(Damage::WrongSize {
                            expected: file.size,
                            actual: file.offset,
                        }),
                    },
                ));
            }
            out.truncate(start + read);
            file.offset += read as u64;
        }
        if file.offset == file.size {
            self.frame.clear();
            self.frame_offset = 0;
            after_file(&mut self.frame, file.size, file.in_directory);
            self.file = None;
        }
        Ok(())
    }
}
