//! The entries of a directory in EROFS' order: bytewise, with `.` and `..` among the names.

use super::format::{BLOCK, DIRENT};
use crate::castore::{Directory, DirectoryEntry};

/// A Directory's entries, with `.` and `..` in their places.
pub(super) struct DirectoryNames<'a> {
    directory: &'a Directory,
    /// The places of `.` and `..`.
    dot: usize,
    dot_dot: usize,
}

/// The meaning of a name.
pub(super) enum NameMeaning<'a> {
    /// `.`
    Itself,
    /// `..`
    Parent,
    /// The entry at this place in its Directory.
    Entry(usize, DirectoryEntry<'a>),
}

impl NameMeaning<'_> {
    pub(super) fn name(&self) -> &[u8] {
        match self {
            NameMeaning::Itself => b".",
            NameMeaning::Parent => b"..",
            NameMeaning::Entry(_, entry) => entry.name,
        }
    }
}

impl<'a> DirectoryNames<'a> {
    pub(super) fn new(directory: &'a Directory) -> Self {
        Self {
            dot: names_before(directory, b"."),
            dot_dot: names_before(directory, b"..") + 1,
            directory,
        }
    }

    /// The name at `place`; there are two more than entries.
    pub(super) fn get(&self, place: usize) -> Option<NameMeaning<'a>> {
        if place == self.dot {
            return Some(NameMeaning::Itself);
        }
        if place == self.dot_dot {
            return Some(NameMeaning::Parent);
        }
        let dots = usize::from(place > self.dot) + usize::from(place > self.dot_dot);
        let index = place - dots;
        Some(NameMeaning::Entry(index, self.directory.get(index)?))
    }

    /// Bytes of the directory in the image: whole blocks, but for the last.
    pub(super) fn size(&self) -> u64 {
        let mut packing = BlockPacking::default();
        for place in 0.. {
            let Some(named) = self.get(place) else {
                break;
            };
            packing.add(named.name().len());
        }
        packing.blocks * BLOCK + packing.used
    }
}

/// How entries fill the blocks of a directory.
#[derive(Default)]
pub(super) struct BlockPacking {
    /// Blocks that are full.
    pub(super) blocks: u64,
    /// Bytes used of the next.
    used: u64,
}

impl BlockPacking {
    /// Adds an entry; returns whether it is the first of another block.
    pub(super) fn add(&mut self, name_len: usize) -> bool {
        let length = (DIRENT + name_len) as u64;
        let starts = self.used + length > BLOCK;
        if starts {
            self.blocks += 1;
            self.used = 0;
        }
        self.used += length;
        starts
    }
}

/// How many names of `directory` sort before `name`.
fn names_before(directory: &Directory, name: &[u8]) -> usize {
    let (mut low, mut high) = (0, directory.len());
    while low < high {
        let middle = low + (high - low) / 2;
        match directory.get(middle) {
            Some(entry) if entry.name < name => low = middle + 1,
            _ => high = middle,
        }
    }
    low
}
