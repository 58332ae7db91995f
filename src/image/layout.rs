//! The places of paths, directory blocks and files in an image.
//!
//! **Problem.** An image is never stored, so each range of it must be computable alone, always with
//! the same bytes, from little memory.
//!
//! **Mechanism.** A pre-order walk assigns every inode, directory block and file extent a place:
//!
//! ```text
//! block 0   superblock; the root's inode
//!           one group per directory, in preorder: the inodes of its files, of its symlinks (each with
//!             its target), of its subdirectories (each with the last part of its entries)
//!           directory blocks: the whole blocks of large directories, and long symlink targets
//!           file data: each distinct content once, from a block's start, zeros after its end
//!           zeros up to a multiple of 2 MiB
//! ```
//!
//! **Invariants.** The layout is a function of the Directories and of the version. Related data is
//! adjacent: `ls -l` of a directory reads its own group, and a walk over a subtree reads one range
//! of the image.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

use super::DirectorySource;
use super::count::{CountedTree, DistinctDirectory};
use super::error::ImageError;
use super::format::{self, BLOCK, BLOCK_SLOTS, IMAGE_ALIGNMENT};
use super::names::{BlockPacking, DirectoryNames, NameMeaning};
use super::root::ImageRoot;
use crate::castore::{Digest, Directory, NodeRef};

/// The slot of the root's inode: right after the superblock, or at the second block's start if the
/// root's entries need more room. The superblock has 16 bits for it.
const ROOT_SLOTS: [u64; 2] = [36, BLOCK_SLOTS];

/// How an image is laid out. Every version that was released stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ImageVersion {
    /// The first.
    #[default]
    V1,
}

impl ImageVersion {
    /// The number that names this version in files and messages.
    pub fn number(self) -> u8 {
        match self {
            ImageVersion::V1 => 1,
        }
    }

    /// The version that `number` names.
    pub fn from_number(number: u8) -> Option<Self> {
        (number == 1).then_some(ImageVersion::V1)
    }
}

/// The places of a tree's paths, directory blocks and files in an image.
#[derive(Debug)]
pub struct ImageLayout {
    version: ImageVersion,
    pub(super) image_root: ImageRoot,
    pub(super) counted: CountedTree,
    /// The directories of the tree in preorder, the root first: a place is an index here.
    pub(super) places: Vec<DirectoryPlace>,
    /// The end of the inodes, in slots.
    pub(super) inodes_end: u64,
    /// The contents of the directory blocks, in order.
    pub(super) runs: Vec<BlockRun>,
    /// Where entries start in the blocks of large directories.
    pub(super) starts: Vec<EntryCursor>,
    /// The first directory block.
    pub(super) first_run_block: u32,
    /// The first block of file data.
    pub(super) data_block: u32,
    /// Blocks of file data.
    pub(super) data_blocks: u32,
    /// For each entry of each distinct Directory the first block of its data, counted from
    /// `data_block`; nothing if it has none.
    pub(super) blocks: Vec<u32>,
    /// The entries whose data each extent holds, in the order of their blocks.
    pub(super) extents: Vec<u32>,
}

/// A directory of the tree. Slots count from the start of the image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DirectoryPlace {
    /// The slot of its inode.
    pub(super) nid: u32,
    /// The slot of the first inode of its group.
    pub(super) files: u32,
    /// Where the inodes of its symlinks start.
    pub(super) links: u32,
    /// Its Directory.
    pub(super) distinct: u32,
    /// The place of the directory it is in; the root's is its own.
    pub(super) parent: u32,
}

/// Consecutive directory blocks that belong together.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRun {
    /// The first, counted from `first_run_block`.
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) place: u32,
    pub(super) content: RunContent,
}

/// The content of a [`BlockRun`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RunContent {
    /// The target of the symlink that is this entry of the directory at the place.
    Target(u32),
    /// The whole blocks of the directory at the place. Where each starts is at this index of
    /// `ImageLayout::starts`, and after them where the inline part starts.
    Directory(u32),
}

/// The position of a walk over a directory's entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryCursor {
    /// The next name, `.` and `..` counted.
    pub(super) at: u32,
    /// From where on the next file's inode is.
    pub(super) file: u32,
    /// From where on the next symlink's inode is.
    pub(super) link: u32,
    /// The place of the next subdirectory.
    pub(super) child: u32,
}

/// How the entries of a directory are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryShape {
    /// Bytes of the inode.
    pub(super) inode: usize,
    /// Blocks of its own.
    pub(super) blocks: u64,
    /// Bytes of the part after the inode.
    pub(super) inline: usize,
}

impl DirectoryShape {
    pub(super) fn new(one: &DistinctDirectory) -> Self {
        let inode = format::inode_len(one.size, one.links());
        let inline = (one.size % BLOCK) as usize;
        let fits = (inode + inline) as u64 <= BLOCK;
        Self {
            inode,
            blocks: one.size / BLOCK + u64::from(!fits),
            inline: if fits { inline } else { 0 },
        }
    }

    /// Bytes of the inode and what follows it.
    pub(super) fn len(self) -> usize {
        self.inode + self.inline
    }
}

impl DistinctDirectory {
    /// Hard links: its name, its own `.`, and each subdirectory's `..`.
    pub(super) fn links(&self) -> u32 {
        self.subdirectories.saturating_add(2)
    }
}

/// Bytes of the inode of a symlink with a target of `length` bytes, and of the target if that follows.
pub(super) fn symlink_len(length: usize) -> usize {
    let inline = format::COMPACT + length;
    match inline as u64 <= BLOCK {
        true => inline,
        false => format::COMPACT,
    }
}

impl ImageLayout {
    /// Lays out the tree at `image_root` in `version`. Reads every Directory from `source` twice; those
    /// that occur more than once, once more each time.
    pub fn new<S: DirectorySource>(
        image_root: ImageRoot,
        version: ImageVersion,
        source: &S,
    ) -> Result<Self, ImageError<S::Error>> {
        let counted = CountedTree::new(&image_root, source)?;
        let mut layout = Self {
            places: vec![DirectoryPlace::default(); counted.distinct[0].directories as usize],
            blocks: vec![0; counted.entries as usize],
            version,
            image_root,
            counted,
            inodes_end: 0,
            runs: Vec::new(),
            starts: Vec::new(),
            first_run_block: 0,
            data_block: 0,
            data_blocks: 0,
            extents: Vec::new(),
        };
        let mut assignment = PlaceAssignment::new(&layout.counted);
        layout.assign_root(&mut assignment);
        for place in 0..layout.places.len() as u32 {
            let directory = layout
                .directory(layout.places[place as usize].distinct, source)
                .map_err(ImageError::Source)?;
            layout.assign_group(place, &directory, &mut assignment)?;
        }
        layout.inodes_end = assignment.slot;
        let first_run = assignment.slot.div_ceil(BLOCK_SLOTS);
        let data = first_run + assignment.run_blocks;
        let end = data + assignment.data_blocks;
        // Every number below `end` fits when it does.
        u32::try_from(end).map_err(|_| ImageError::TooManyBlocks)?;
        layout.first_run_block = first_run as u32;
        layout.data_block = data as u32;
        layout.data_blocks = assignment.data_blocks as u32;
        layout.runs.shrink_to_fit();
        layout.starts.shrink_to_fit();
        layout.extents.shrink_to_fit();
        Ok(layout)
    }

    /// The layout's version.
    pub fn version(&self) -> ImageVersion {
        self.version
    }

    /// The digest of the Directory at the root.
    pub fn digest(&self) -> Digest {
        self.image_root.digest()
    }

    /// Bytes of the image: a multiple of [`IMAGE_ALIGNMENT`].
    pub fn size(&self) -> u64 {
        (u64::from(self.end_block()) * BLOCK).next_multiple_of(IMAGE_ALIGNMENT)
    }

    /// Bytes of the metadata, which comes first.
    pub fn metadata_size(&self) -> u64 {
        u64::from(self.data_block) * BLOCK
    }

    /// Paths in the image, including the root.
    pub fn paths(&self) -> u64 {
        self.counted.paths
    }

    /// Bytes of memory that the layout holds.
    pub fn resident_bytes(&self) -> usize {
        self.places.capacity() * size_of::<DirectoryPlace>()
            + self.counted.distinct.capacity() * size_of::<DistinctDirectory>()
            + (self.counted.children.capacity() + self.blocks.capacity() + self.extents.capacity())
                * 4
            + self.runs.capacity() * size_of::<BlockRun>()
            + self.starts.capacity() * size_of::<EntryCursor>()
    }

    /// The first block after the last used one.
    pub(super) fn end_block(&self) -> u32 {
        self.data_block + self.data_blocks
    }

    /// The Directory with this number.
    pub(super) fn directory<S: DirectorySource>(
        &self,
        distinct: u32,
        source: &S,
    ) -> Result<Directory, S::Error> {
        match &self.image_root {
            ImageRoot::Roots(directory) if distinct == 0 => Ok(directory.clone()),
            _ => source.directory(&self.counted.distinct[distinct as usize].digest),
        }
    }

    /// The distinct Directory of `place`.
    pub(super) fn distinct(&self, place: u32) -> &DistinctDirectory {
        &self.counted.distinct[self.places[place as usize].distinct as usize]
    }

    /// The places of the subdirectories of `place`.
    pub(super) fn child_places(&self, place: u32) -> impl Iterator<Item = u32> + '_ {
        let mut next = place + 1;
        let children = self.counted.children(self.places[place as usize].distinct);
        children.iter().map(move |child| {
            let child = &self.counted.distinct[*child as usize];
            let current = next;
            next += child.directories;
            current
        })
    }

    /// The start of a walk over the entries of `place`.
    pub(super) fn first_entry(&self, place: u32) -> EntryCursor {
        let current = &self.places[place as usize];
        EntryCursor {
            at: 0,
            file: current.files,
            link: current.links,
            child: place + 1,
        }
    }

    fn assign_root(&mut self, assignment: &mut PlaceAssignment) {
        let shape = DirectoryShape::new(&self.counted.distinct[0]);
        let fits = |slot: &u64| format::fit(*slot, shape.len()) == *slot;
        // The second is a block's start, where everything fits.
        let slot = ROOT_SLOTS.into_iter().find(fits).unwrap_or(ROOT_SLOTS[1]);
        assignment.slot = slot + format::slots(shape.len());
        self.places[0] = DirectoryPlace {
            nid: slot as u32,
            ..DirectoryPlace::default()
        };
    }

    /// Assigns places to all entries of `directory`, at `place`, and to its own blocks.
    fn assign_group<E>(
        &mut self,
        place: u32,
        directory: &Directory,
        assignment: &mut PlaceAssignment,
    ) -> Result<(), ImageError<E>> {
        let distinct = self.places[place as usize].distinct;
        let first_entry = self.counted.distinct[distinct as usize].entries;
        let is_first = assignment.see(distinct);
        self.places[place as usize].files = slot_number(assignment.slot)?;
        let mut links = Vec::new();
        for (index, entry) in directory.iter().enumerate() {
            match entry.node {
                NodeRef::File { digest, size, .. } => {
                    let length = format::inode_len(size, 1);
                    assignment.take(length);
                    if is_first && size > 0 {
                        let entry = first_entry + index as u32;
                        self.assign_data(entry, &digest, size, assignment)?;
                    }
                }
                NodeRef::Symlink { target } => links.push((index as u32, target.len())),
                NodeRef::Directory { .. } => {}
            }
        }
        self.places[place as usize].links = slot_number(assignment.slot)?;
        for (index, target) in links {
            let length = symlink_len(target);
            assignment.take(length);
            if length == format::COMPACT {
                self.assign_run(place, 1, RunContent::Target(index), assignment)?;
            }
        }
        let mut next = place + 1;
        let range = {
            let one = &self.counted.distinct[distinct as usize];
            one.children as usize..(one.children + one.subdirectories) as usize
        };
        for child in range {
            let child = self.counted.children[child];
            let one = &self.counted.distinct[child as usize];
            let slot = assignment.take(DirectoryShape::new(one).len());
            self.places[next as usize] = DirectoryPlace {
                nid: slot_number(slot)?,
                distinct: child,
                parent: place,
                ..DirectoryPlace::default()
            };
            next += one.directories;
        }
        slot_number::<E>(assignment.slot)?;
        self.assign_directory_blocks(place, directory, assignment)
    }

    fn assign_data<E>(
        &mut self,
        entry: u32,
        digest: &Digest,
        size: u64,
        assignment: &mut PlaceAssignment,
    ) -> Result<(), ImageError<E>> {
        let (extent, is_new) = assignment.extent(digest, size);
        if !is_new {
            self.blocks[entry as usize] = self.blocks[self.extents[extent as usize] as usize];
            return Ok(());
        }
        let first = assignment.data_blocks;
        assignment.data_blocks += size.div_ceil(BLOCK);
        if assignment.data_blocks > u64::from(u32::MAX) {
            return Err(ImageError::TooManyBlocks);
        }
        self.blocks[entry as usize] = first as u32;
        self.extents.push(entry);
        Ok(())
    }

    /// Assigns the whole blocks of a large directory.
    fn assign_directory_blocks<E>(
        &mut self,
        place: u32,
        directory: &Directory,
        assignment: &mut PlaceAssignment,
    ) -> Result<(), ImageError<E>> {
        let shape = DirectoryShape::new(self.distinct(place));
        if shape.blocks == 0 {
            return Ok(());
        }
        let starts = self.starts.len() as u32;
        let count = shape.blocks as u32;
        self.assign_run(place, count, RunContent::Directory(starts), assignment)?;
        let names = DirectoryNames::new(directory);
        let mut packing = BlockPacking::default();
        let mut cursor = self.first_entry(place);
        self.starts.push(cursor);
        while let Some(named) = names.get(cursor.at as usize) {
            if packing.add(named.name().len()) {
                self.starts.push(cursor);
            }
            self.step(&mut cursor, &named);
        }
        Ok(())
    }

    fn assign_run<E>(
        &mut self,
        place: u32,
        count: u32,
        content: RunContent,
        assignment: &mut PlaceAssignment,
    ) -> Result<(), ImageError<E>> {
        let first = u32::try_from(assignment.run_blocks).map_err(|_| ImageError::TooManyBlocks)?;
        assignment.run_blocks += u64::from(count);
        self.runs.push(BlockRun {
            first,
            count,
            place,
            content,
        });
        Ok(())
    }

    /// Moves `cursor` over `named`; returns the slot of its inode if that is in this group.
    pub(super) fn step(&self, cursor: &mut EntryCursor, named: &NameMeaning<'_>) -> Option<u32> {
        cursor.at += 1;
        let NameMeaning::Entry(_, entry) = named else {
            return None;
        };
        let (next, length) = match entry.node {
            NodeRef::File { size, .. } => (&mut cursor.file, format::inode_len(size, 1)),
            NodeRef::Symlink { target } => (&mut cursor.link, symlink_len(target.len())),
            NodeRef::Directory { .. } => {
                // The last subdirectory has none after it.
                let child = self.places.get(cursor.child as usize)?;
                cursor.child += self.counted.distinct[child.distinct as usize].directories;
                return Some(child.nid);
            }
        };
        // Numbers of slots fit: they were assigned.
        let slot = format::fit(u64::from(*next), length);
        *next = (slot + format::slots(length)) as u32;
        Some(slot as u32)
    }
}

fn slot_number<E>(slot: u64) -> Result<u32, ImageError<E>> {
    // 2^32 slots are fewer bytes than 2^32 blocks.
    u32::try_from(slot).map_err(|_| ImageError::TooManyBlocks)
}

/// The state while places are assigned.
struct PlaceAssignment {
    /// The next free slot.
    slot: u64,
    run_blocks: u64,
    data_blocks: u64,
    /// Which distinct Directories have a place.
    met: Vec<bool>,
    /// For each extent, a hash of its digest and size with keys that only this process knows: a
    /// third of the memory of both, and no tree can be crafted whose files collide.
    fingerprints: Vec<[u64; 2]>,
    by_fingerprint: HashTable<u32>,
    keys: [RandomState; 2],
}

impl PlaceAssignment {
    fn new(counted: &CountedTree) -> Self {
        let files = counted.files as usize;
        Self {
            slot: 0,
            run_blocks: 0,
            data_blocks: 0,
            met: vec![false; counted.distinct.len()],
            fingerprints: Vec::with_capacity(files),
            by_fingerprint: HashTable::with_capacity(files),
            keys: [RandomState::new(), RandomState::new()],
        }
    }

    /// Notes a Directory; returns whether this is its first place.
    fn see(&mut self, distinct: u32) -> bool {
        !std::mem::replace(&mut self.met[distinct as usize], true)
    }

    /// Takes slots for `length` bytes that must lie within a block; returns the first.
    fn take(&mut self, length: usize) -> u64 {
        let slot = format::fit(self.slot, length);
        self.slot = slot + format::slots(length);
        slot
    }

    /// The extent of the blob `digest` of `size` bytes, and whether it is new.
    fn extent(&mut self, digest: &Digest, size: u64) -> (u32, bool) {
        let hash = |key: &RandomState| key.hash_one(ExtentContent(digest, size));
        let fingerprint = [hash(&self.keys[0]), hash(&self.keys[1])];
        let fingerprints = &self.fingerprints;
        let is_it = |extent: &u32| fingerprints[*extent as usize] == fingerprint;
        if let Some(extent) = self.by_fingerprint.find(fingerprint[0], is_it) {
            return (*extent, false);
        }
        let extent = self.fingerprints.len() as u32;
        self.fingerprints.push(fingerprint);
        let fingerprints = &self.fingerprints;
        self.by_fingerprint
            .insert_unique(fingerprint[0], extent, |extent| {
                fingerprints[*extent as usize][0]
            });
        (extent, true)
    }
}

/// The key by which files share an extent.
#[derive(Hash)]
struct ExtentContent<'a>(&'a Digest, u64);
