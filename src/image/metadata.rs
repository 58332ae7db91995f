//! The bytes of any range of an image's metadata.

use super::DirectorySource;
use super::format::{
    self, BLOCK, DIRENT, Inode, SLOT, SUPERBLOCK_AT, Superblock, TYPE_DIRECTORY, TYPE_FILE,
    TYPE_SYMLINK,
};
use super::layout::{BlockRun, DirectoryShape, EntryCursor, ImageLayout, RunContent, symlink_len};
use super::names::{BlockPacking, DirectoryNames, NameMeaning};
use crate::castore::{Directory, NodeRef};

/// The part of an image that is being generated.
struct MetadataWindow<'a> {
    start: u64,
    buffer: &'a mut [u8],
}

impl MetadataWindow<'_> {
    fn end(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Whether bytes from `from` to `to` are requested.
    fn overlaps(&self, from: u64, to: u64) -> bool {
        from < to && from < self.end() && self.start < to
    }

    /// Copies the requested part of `bytes`, which start at `at` in the image.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let from = at.max(self.start);
        let to = (at + bytes.len() as u64).min(self.end());
        if from < to {
            let wanted = &bytes[(from - at) as usize..(to - at) as usize];
            let place = (from - self.start) as usize;
            self.buffer[place..place + wanted.len()].copy_from_slice(wanted);
        }
    }
}

impl ImageLayout {
    /// Fills `buffer` with the metadata at `offset`; bytes beyond its end are zeros.
    pub fn read_metadata<S: DirectorySource>(
        &self,
        offset: u64,
        buffer: &mut [u8],
        source: &S,
    ) -> Result<(), S::Error> {
        buffer.fill(0);
        let mut window = MetadataWindow {
            start: offset,
            buffer,
        };
        window.put(SUPERBLOCK_AT, &self.superblock().encode());
        self.put_directory(0, &mut window, source)?;
        self.put_groups(&mut window, source)?;
        self.put_runs(&mut window, source)
    }

    fn superblock(&self) -> Superblock {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"castore-fs image ");
        hasher.update(&[self.version().number()]);
        hasher.update(self.digest().as_bytes());
        let mut uuid = [0; 16];
        hasher.finalize_xof().fill(&mut uuid);
        // RFC 9562: version 8, vendor-specific.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Superblock {
            // One of ROOT_SLOTS.
            root_nid: self.places[0].nid as u16,
            inodes: self.paths(),
            blocks: self.end_block(),
            uuid,
        }
    }

    /// Copies the inodes of the requested groups.
    fn put_groups<S: DirectorySource>(
        &self,
        window: &mut MetadataWindow<'_>,
        source: &S,
    ) -> Result<(), S::Error> {
        if !window.overlaps(0, self.inodes_end * SLOT) {
            return Ok(());
        }
        let start = window.start;
        let before = |slot: u32| u64::from(slot) * SLOT <= start;
        let first = self.places.partition_point(|place| before(place.files));
        for place in first.saturating_sub(1)..self.places.len() {
            if u64::from(self.places[place].files) * SLOT >= window.end() {
                break;
            }
            self.put_group(place as u32, window, source)?;
        }
        Ok(())
    }

    fn put_group<S: DirectorySource>(
        &self,
        place: u32,
        window: &mut MetadataWindow<'_>,
        source: &S,
    ) -> Result<(), S::Error> {
        let current = &self.places[place as usize];
        let first_child = self.child_places(place).next();
        let after = self.places.get(place as usize + 1);
        let end = match (first_child, after) {
            (Some(child), _) => u64::from(self.places[child as usize].nid),
            (None, Some(after)) => u64::from(after.files),
            (None, None) => self.inodes_end,
        };
        let (files, links) = (
            u64::from(current.files) * SLOT,
            u64::from(current.links) * SLOT,
        );
        if window.overlaps(files, end * SLOT) {
            let directory = self.directory(current.distinct, source)?;
            if window.overlaps(files, links) {
                self.put_leaves(place, &directory, LeafKind::Files, window);
            }
            if window.overlaps(links, end * SLOT) {
                self.put_leaves(place, &directory, LeafKind::Links, window);
            }
        }
        for child in self.child_places(place) {
            if u64::from(self.places[child as usize].nid) * SLOT >= window.end() {
                break;
            }
            self.put_directory(child, window, source)?;
        }
        Ok(())
    }

    /// Copies the inodes of files or of symlinks in the directory at `place`.
    fn put_leaves(
        &self,
        place: u32,
        directory: &Directory,
        leaves: LeafKind,
        window: &mut MetadataWindow<'_>,
    ) {
        let next = |cursor: &EntryCursor| {
            SLOT * u64::from(match leaves {
                LeafKind::Files => cursor.file,
                LeafKind::Links => cursor.link,
            })
        };
        let starts = self.starts(place);
        let skipped = starts.partition_point(|cursor| next(cursor) <= window.start);
        let mut cursor = match skipped {
            0 => self.first_entry(place),
            _ => starts[skipped - 1],
        };
        let names = DirectoryNames::new(directory);
        while next(&cursor) < window.end()
            && let Some(named) = names.get(cursor.at as usize)
        {
            let slot = self.step(&mut cursor, &named);
            let (NameMeaning::Entry(index, entry), Some(slot)) = (named, slot) else {
                continue;
            };
            match (leaves, entry.node) {
                (LeafKind::Files, NodeRef::File { size, .. }) => {
                    self.put_file(place, index, slot, size, entry.node, window);
                }
                (LeafKind::Links, NodeRef::Symlink { target }) => {
                    self.put_symlink(place, index, slot, target, entry.node, window);
                }
                _ => {}
            }
        }
    }

    fn put_file(
        &self,
        place: u32,
        index: usize,
        slot: u32,
        size: u64,
        node: NodeRef<'_>,
        window: &mut MetadataWindow<'_>,
    ) {
        let entry = self.distinct(place).entries as usize + index;
        let inode = Inode {
            mode: format::mode(node),
            size,
            links: 1,
            is_inline: false,
            block: match size {
                0 => 0,
                _ => self.data_block + self.blocks[entry],
            },
        };
        put_inode(slot, &inode, window);
    }

    fn put_symlink(
        &self,
        place: u32,
        index: usize,
        slot: u32,
        target: &[u8],
        node: NodeRef<'_>,
        window: &mut MetadataWindow<'_>,
    ) {
        let is_inline = symlink_len(target.len()) > format::COMPACT;
        let run = match is_inline {
            true => None,
            false => self.run(place, RunContent::Target(index as u32)),
        };
        let inode = Inode {
            mode: format::mode(node),
            size: target.len() as u64,
            links: 1,
            is_inline,
            block: run.map_or(0, |run| self.first_run_block + run.first),
        };
        let after = put_inode(slot, &inode, window);
        if is_inline {
            window.put(after, target);
        }
    }

    /// Copies the inode of the directory at `place`, and the inline part of its entries.
    fn put_directory<S: DirectorySource>(
        &self,
        place: u32,
        window: &mut MetadataWindow<'_>,
        source: &S,
    ) -> Result<(), S::Error> {
        let current = &self.places[place as usize];
        let one = self.distinct(place);
        let shape = DirectoryShape::new(one);
        let at = u64::from(current.nid) * SLOT;
        if !window.overlaps(at, at + shape.len() as u64) {
            return Ok(());
        }
        let run = match shape.blocks {
            0 => None,
            _ => self.directory_run(place),
        };
        let inode = Inode {
            mode: 0o040_555,
            size: one.size,
            links: one.links(),
            is_inline: shape.inline > 0,
            block: run.map_or(0, |run| self.first_run_block + run.first),
        };
        let after = put_inode(current.nid, &inode, window);
        if shape.inline > 0 && window.overlaps(after, after + shape.inline as u64) {
            let directory = self.directory(current.distinct, source)?;
            let cursor = match self.starts(place).last() {
                Some(start) => *start,
                None => self.first_entry(place),
            };
            let block = self.directory_block(place, &directory, cursor);
            window.put(after, &block);
        }
        Ok(())
    }

    /// Copies the requested directory blocks.
    fn put_runs<S: DirectorySource>(
        &self,
        window: &mut MetadataWindow<'_>,
        source: &S,
    ) -> Result<(), S::Error> {
        let at = |run: &BlockRun| u64::from(self.first_run_block + run.first) * BLOCK;
        let first = self.runs.partition_point(|run| at(run) <= window.start);
        for run in &self.runs[first.saturating_sub(1)..] {
            let (from, to) = (at(run), at(run) + u64::from(run.count) * BLOCK);
            if from >= window.end() {
                break;
            }
            if !window.overlaps(from, to) {
                continue;
            }
            let directory = self.directory(self.places[run.place as usize].distinct, source)?;
            match run.content {
                RunContent::Target(index) => {
                    let entry = directory.get(index as usize);
                    if let Some(NodeRef::Symlink { target }) = entry.map(|entry| entry.node) {
                        window.put(from, target);
                    }
                }
                RunContent::Directory(starts) => {
                    for block in 0..run.count {
                        let from = from + u64::from(block) * BLOCK;
                        if window.overlaps(from, from + BLOCK) {
                            let cursor = self.starts[(starts + block) as usize];
                            window.put(from, &self.directory_block(run.place, &directory, cursor));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The block of entries of the directory at `place` that starts at `cursor`, without the zeros
    /// at its end.
    fn directory_block(
        &self,
        place: u32,
        directory: &Directory,
        mut cursor: EntryCursor,
    ) -> Vec<u8> {
        let current = &self.places[place as usize];
        let names = DirectoryNames::new(directory);
        let mut packing = BlockPacking::default();
        let mut entries = Vec::new();
        while let Some(named) = names.get(cursor.at as usize) {
            if packing.add(named.name().len()) {
                break;
            }
            let slot = self.step(&mut cursor, &named);
            entries.push((named, slot));
        }
        let mut block = Vec::with_capacity(BLOCK as usize);
        let mut name_at = entries.len() * DIRENT;
        for (named, slot) in &entries {
            let (nid, kind) = match named {
                NameMeaning::Itself => (current.nid, TYPE_DIRECTORY),
                NameMeaning::Parent => (self.places[current.parent as usize].nid, TYPE_DIRECTORY),
                NameMeaning::Entry(_, entry) => {
                    let kind = match entry.node {
                        NodeRef::Directory { .. } => TYPE_DIRECTORY,
                        NodeRef::File { .. } => TYPE_FILE,
                        NodeRef::Symlink { .. } => TYPE_SYMLINK,
                    };
                    (slot.unwrap_or_default(), kind)
                }
            };
            block.extend_from_slice(&u64::from(nid).to_le_bytes());
            // Below BLOCK, as the packing ensures.
            block.extend_from_slice(&(name_at as u16).to_le_bytes());
            block.extend_from_slice(&[kind, 0]);
            name_at += named.name().len();
        }
        for (named, _) in &entries {
            block.extend_from_slice(named.name());
        }
        block
    }

    /// Where each block of the directory at `place` starts, and the part after its inode; nothing for
    /// one without blocks.
    fn starts(&self, place: u32) -> &[EntryCursor] {
        let Some(run) = self.directory_run(place) else {
            return &[];
        };
        let RunContent::Directory(first) = run.content else {
            return &[];
        };
        let shape = DirectoryShape::new(self.distinct(place));
        let count = shape.blocks as usize + usize::from(shape.inline > 0);
        &self.starts[first as usize..first as usize + count]
    }

    /// The blocks of the directory at `place`, if the last run is that.
    fn directory_run(&self, place: u32) -> Option<&BlockRun> {
        let after = self.runs.partition_point(|run| run.place <= place);
        let run = self.runs.get(after.checked_sub(1)?)?;
        (run.place == place && matches!(run.content, RunContent::Directory(_))).then_some(run)
    }

    fn run(&self, place: u32, content: RunContent) -> Option<&BlockRun> {
        let key = |run: &BlockRun| (run.place, run.content);
        let at = self
            .runs
            .binary_search_by_key(&(place, content), key)
            .ok()?;
        self.runs.get(at)
    }
}

/// The leaves of a directory whose inodes lie together.
#[derive(Clone, Copy)]
enum LeafKind {
    Files,
    Links,
}

/// Copies `inode` to `slot`; returns the offset after it.
fn put_inode(slot: u32, inode: &Inode, window: &mut MetadataWindow<'_>) -> u64 {
    let at = u64::from(slot) * SLOT;
    let (bytes, length) = inode.encode(slot);
    window.put(at, &bytes[..length]);
    at + length as u64
}
