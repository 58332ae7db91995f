//! From an offset in an image to a path, for log lines.

use super::DirectorySource;
use super::format::{BLOCK, SLOT};
use super::layout::{BlockRun, DirectoryPlace, ImageLayout};
use crate::castore::{Digest, Directory, DirectoryEntry, NodeRef, Printable};

/// What is at an offset of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLocation {
    /// A path, from the image's root on: of a file whose data is there, or of the directory whose
    /// entries or inodes are. Printable (see [`Printable`]).
    pub path: String,
    /// The digest of that file's contents or of that Directory.
    pub digest: Digest,
}

impl ImageLayout {
    /// What is at `offset`. Of several files with the content that is there, the first is named;
    /// for offsets outside of any file or directory, the root is.
    pub fn location<S: DirectorySource>(
        &self,
        offset: u64,
        source: &S,
    ) -> Result<ImageLocation, S::Error> {
        let block = u32::try_from(offset / BLOCK).unwrap_or(u32::MAX);
        match block.checked_sub(self.data_block) {
            Some(in_data) if in_data < self.data_blocks => self.file_location(in_data, source),
            _ => {
                let place = self.place_at(offset, block);
                Ok(ImageLocation {
                    path: self.path(place, source)?,
                    digest: self.distinct(place).digest,
                })
            }
        }
    }

    fn file_location<S: DirectorySource>(
        &self,
        block: u32,
        source: &S,
    ) -> Result<ImageLocation, S::Error> {
        // The first extent starts at block 0.
        let entry = self.extents[self.extent_after(block) - 1];
        let (distinct, index) = self.directory_of(entry);
        let is_there = |place: &DirectoryPlace| place.distinct == distinct;
        let place = self.places.iter().position(is_there).unwrap_or(0) as u32;
        let directory = self.directory(distinct, source)?;
        let mut location = ImageLocation {
            path: self.path(place, source)?,
            digest: directory.digest(),
        };
        if let Some(entry) = directory.get(index) {
            if !location.path.ends_with('/') {
                location.path.push('/');
            }
            location.path.push_str(&Printable(entry.name).to_string());
            location.digest = entry.node.digest().unwrap_or(location.digest);
        }
        Ok(location)
    }

    /// The place of the directory whose group or blocks are at `offset`, in block `block`.
    fn place_at(&self, offset: u64, block: u32) -> u32 {
        if block >= self.data_block {
            return 0;
        }
        if block >= self.first_run_block {
            let starts = |run: &BlockRun| self.first_run_block + run.first <= block;
            let after = self.runs.partition_point(starts);
            return after.checked_sub(1).map_or(0, |run| self.runs[run].place);
        }
        let starts = |place: &DirectoryPlace| u64::from(place.files) * SLOT <= offset;
        self.places.partition_point(starts).saturating_sub(1) as u32
    }

    /// The path of the directory at `place`.
    fn path<S: DirectorySource>(&self, mut place: u32, source: &S) -> Result<String, S::Error> {
        let mut names = Vec::new();
        while place != 0 {
            let parent = self.places[place as usize].parent;
            let child = self.child_places(parent).position(|child| child == place);
            let directory = self.directory(self.places[parent as usize].distinct, source)?;
            names.push(subdirectory_name(&directory, child.unwrap_or_default()));
            place = parent;
        }
        let names = names.iter().rev().map(|name| format!("/{name}"));
        let path: String = names.collect();
        Ok(if path.is_empty() {
            "/".to_owned()
        } else {
            path
        })
    }
}

/// The name of the `index`-th subdirectory.
fn subdirectory_name(directory: &Directory, index: usize) -> String {
    let is_directory = |entry: &DirectoryEntry<'_>| matches!(entry.node, NodeRef::Directory { .. });
    let mut all = directory.iter().filter(is_directory);
    let entry = all.nth(index);
    entry.map_or_else(|| "?".to_owned(), |entry| Printable(entry.name).to_string())
}
