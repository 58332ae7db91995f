//! The sizes of a tree, counted over distinct Directories before a place is assigned to any path.

use std::collections::HashMap;

use super::DirectorySource;
use super::error::{ImageError, MOST_NAMES};
use super::names::DirectoryNames;
use super::root::ImageRoot;
use crate::castore::{Digest, Directory, NodeRef};

/// Directories that are fetched at once, and in memory while counting.
const AT_ONCE: usize = 256;

/// The distinct Directories of a tree, the root first.
#[derive(Debug)]
pub(super) struct CountedTree {
    pub(super) distinct: Vec<DistinctDirectory>,
    /// The subdirectories of each, in the order of their names: indexes in `distinct`.
    pub(super) children: Vec<u32>,
    /// Entries of all distinct Directories.
    pub(super) entries: u32,
    /// Those of them that are files with content.
    pub(super) files: u32,
    /// Paths, including the root.
    pub(super) paths: u64,
}

/// A Directory, wherever and however often it is in the tree.
#[derive(Debug)]
pub(super) struct DistinctDirectory {
    pub(super) digest: Digest,
    /// The index of its first entry, all Directories' entries counted.
    pub(super) entries: u32,
    /// The index of its first subdirectory in [`CountedTree::children`].
    pub(super) children: u32,
    pub(super) subdirectories: u32,
    /// Directories at and below each of its places.
    pub(super) directories: u32,
    /// Bytes of the directory in the image.
    pub(super) size: u64,
}

impl CountedTree {
    /// Counts what is below `image_root`.
    pub(super) fn new<S: DirectorySource>(
        image_root: &ImageRoot,
        source: &S,
    ) -> Result<Self, ImageError<S::Error>> {
        let mut counted = Self {
            distinct: Vec::new(),
            children: Vec::new(),
            entries: 0,
            files: 0,
            paths: 0,
        };
        let mut found = FoundDirectories {
            indexes: HashMap::new(),
            next: Vec::new(),
        };
        match image_root {
            ImageRoot::Directory(digest) => {
                found.index(digest);
            }
            ImageRoot::Roots(directory) => {
                found.indexes.insert(directory.digest(), 0);
                counted.add(directory, &mut found)?;
            }
        }
        // A level at a time: Directories are numbered in the order in which they are added.
        while !found.next.is_empty() {
            for digests in std::mem::take(&mut found.next).chunks(AT_ONCE) {
                for directory in source.directories(digests).map_err(ImageError::Source)? {
                    counted.add(&directory, &mut found)?;
                }
            }
        }
        counted.add_up()?;
        Ok(counted)
    }

    /// The subdirectories of the Directory `index`.
    pub(super) fn children(&self, index: u32) -> &[u32] {
        let one = &self.distinct[index as usize];
        let first = one.children as usize;
        &self.children[first..first + one.subdirectories as usize]
    }

    fn add<E>(
        &mut self,
        directory: &Directory,
        found: &mut FoundDirectories,
    ) -> Result<(), ImageError<E>> {
        let entries = u64::from(self.entries) + directory.len() as u64;
        if entries > MOST_NAMES {
            return Err(ImageError::TooManyNames(entries));
        }
        self.distinct.push(DistinctDirectory {
            digest: directory.digest(),
            entries: self.entries,
            children: self.children.len() as u32,
            subdirectories: directory.subdirectories(),
            directories: 0,
            size: DirectoryNames::new(directory).size(),
        });
        self.entries = entries as u32;
        for entry in directory.iter() {
            match entry.node {
                NodeRef::Directory { digest, .. } => self.children.push(found.index(&digest)),
                NodeRef::File { size: 1.., .. } => self.files += 1,
                NodeRef::File { .. } | NodeRef::Symlink { .. } => {}
            }
        }
        Ok(())
    }

    /// Counts the paths below each Directory, leaves first.
    fn add_up<E>(&mut self) -> Result<(), ImageError<E>> {
        const UNKNOWN: u64 = u64::MAX;
        // Names and directories at and below.
        let mut sums = vec![(UNKNOWN, 0u64); self.distinct.len()];
        let mut stack = vec![(0u32, 0usize)];
        while let Some((index, next)) = stack.pop() {
            let children = self.children(index);
            let mut unknown = children[next..].iter();
            let unknown = unknown.position(|child| sums[*child as usize].0 == UNKNOWN);
            if let Some(skipped) = unknown {
                let child = children[next + skipped];
                stack.push((index, next + skipped));
                stack.push((child, 0));
                continue;
            }
            let after = self.distinct.get(index as usize + 1);
            let end = after.map_or(self.entries, |after| after.entries);
            let mut names = u64::from(end - self.distinct[index as usize].entries);
            let mut directories = 1u64;
            for child in children {
                let (more_names, more_directories) = sums[*child as usize];
                names = names.saturating_add(more_names);
                directories = directories.saturating_add(more_directories);
            }
            // Saturated sums stay so; UNKNOWN is none.
            names = names.min(UNKNOWN - 1);
            sums[index as usize] = (names, directories);
            if names > MOST_NAMES {
                return Err(ImageError::TooManyNames(names));
            }
        }
        for (one, (_, directories)) in self.distinct.iter_mut().zip(&sums) {
            // Below MOST_NAMES, or it were refused.
            one.directories = *directories as u32;
        }
        self.paths = sums.first().map_or(0, |(names, _)| names + 1);
        Ok(())
    }
}

/// The Directories that were found so far.
struct FoundDirectories {
    indexes: HashMap<Digest, u32>,
    /// Directories that were not fetched yet.
    next: Vec<Digest>,
}

impl FoundDirectories {
    fn index(&mut self, digest: &Digest) -> u32 {
        let fresh = self.indexes.len() as u32;
        let index = *self.indexes.entry(*digest).or_insert(fresh);
        if index == fresh {
            self.next.push(*digest);
        }
        index
    }
}
