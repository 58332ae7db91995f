//! Inode numbers: one for every path.
//!
//! **Problem.** Software takes two names of one device and inode number for one file: overlayfs
//! writes both when one is written, a lock on one is a lock on the other, `dlopen` returns the
//! first for the second, `du` and `tar` count the second as a hard link. So no two paths of a mount
//! may share a number, even with equal contents.
//!
//! **Mechanism: numbers are computed, not stored.** A Directory's size is twice the number of names
//! below it, at any depth, so every directory has a range of numbers of the right length without a
//! look at what is below: first its entries, in the order of names, then the range of each of its
//! subdirectories. The number of a path follows from the Directories on the way to it and from the
//! range of the mount root, which starts at 2. It is the same after FORGET and on the next mount of
//! the same tree, and below 2^32 if the tree has fewer names, as 32-bit programs need.
//!
//! **Invariant.** No number is given twice while the mount exists, in this process or the next, whatever
//! sizes the Directories claim.
//!
//! **Sizes are claims.** A directory whose Directory does not fit into the range that its parent's
//! entry claimed gets a range of its own when its Directory is first read, after all that were
//! given so far. So does every directory without a claim: the mount root, and in a mount of many
//! roots each of them, in the order in which they are first looked up. The given ranges are
//! remembered for the life of the mount, and kept in the hand-over state.
//!
//! **Small numbers go to real names first.** Ranges are given from below 2^32 while they fit. One that
//! does not, for a tree of more names or one that claims so, is split: the entries get small numbers, and
//! each subdirectory a range of its own when it is read. Beyond 2^32 names numbers continue above.
//!
//! **Images have numbers of their own**, in a mount that shows its trees as images too
//! ([`images`](crate::fs::images)): their directory [`IMAGES_INO`], the image of a root node the number after
//! that root's, and each other image the next one down from [`IMAGES_INO`]. So the tree itself has the
//! same numbers as without images.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::inode_table::{AssignedNumber, InodeTable, InodeTableError, NameRange};
use crate::castore::Directory;

/// The inode number of the mount root.
pub(crate) const ROOT_INO: u64 = 1;
/// The end of the numbers that 32-bit programs can take.
const SMALL_END: u64 = 1 << 32;
/// The inode number of the directory of images. The last small number is left out: 32-bit programs take
/// it for an error.
pub(crate) const IMAGES_INO: u64 = SMALL_END - 2;
/// The end of the numbers that are given in order.
const END: u64 = 1 << 63;
/// The longest range above [`SMALL_END`]: more names than any tree has, and few enough that many
/// such claims do not use numbers up.
const LONGEST: u64 = 1 << 48;
/// Ranges that are remembered, at most: some 60 MiB. Only trees with wrong sizes come near it.
const MOST_RANGES: usize = 1 << 20;

/// The inode numbers that a mount has given.
pub(crate) struct InodeNumbering {
    assigned: Mutex<AssignedNumbers>,
    inode_table: Option<Arc<InodeTable>>,
}

struct AssignedNumbers {
    /// The next number below `small_end`.
    small: u64,
    /// The end of the small numbers for paths of the tree. Those of images are from here on.
    small_end: u64,
    /// Whether each root node has a second number, for its image.
    has_images: bool,
    /// The next one above it.
    large: u64,
    /// Ranges that cannot be computed from their parent's, by the number of the directory.
    ranges: HashMap<u64, NameRange>,
}

impl InodeNumbering {
    /// No numbers are given yet; the next process finds them in `inode_table`. `has_images`: whether trees are
    /// shown as images too.
    pub(crate) fn new(has_images: bool, inode_table: Option<Arc<InodeTable>>) -> Self {
        Self {
            assigned: Mutex::new(AssignedNumbers::new(has_images)),
            inode_table,
        }
    }

    /// The numbers that the previous process gave, from its hand-over state.
    pub(crate) fn take_over(
        has_images: bool,
        inode_table: Arc<InodeTable>,
    ) -> Result<Self, InodeTableError> {
        let mut assigned = AssignedNumbers::new(has_images);
        for numbered in inode_table.numbered()? {
            match numbered {
                AssignedNumber::Root { ino, .. } => assigned.note(ino, assigned.per_root()),
                AssignedNumber::Range { ino, range, length } => {
                    assigned.note(range.first, length);
                    assigned.ranges.insert(ino, range);
                }
                AssignedNumber::Image { ino, name, .. } => assigned.note_image(ino, name.is_some()),
            }
        }
        Ok(Self {
            assigned: Mutex::new(assigned),
            inode_table: Some(inode_table),
        })
    }

    /// A number for a new root. The caller writes it into the hand-over state.
    pub(crate) fn root(&self) -> u64 {
        let mut assigned = self.assigned.lock();
        let numbers = assigned.per_root();
        assigned.take(numbers)
    }

    /// The number of the image of the root node numbered `ino`.
    pub(crate) fn root_image(ino: u64) -> u64 {
        ino + 1
    }

    /// A number for an image of something else. The caller writes it into the hand-over state.
    pub(crate) fn image(&self) -> u64 {
        self.assigned.lock().take_for_image()
    }

    /// The range of the directory numbered `ino`, whose Directory is `directory`. Its parent's entry
    /// claimed `length` numbers for it, from `claim` on, or none if that is 0.
    pub(crate) fn range(
        &self,
        ino: u64,
        claim: u64,
        length: u64,
        directory: &Directory,
    ) -> NameRange {
        if claim != 0 && directory.names_below() <= length {
            return NameRange {
                first: claim,
                nested: true,
            };
        }
        let mut assigned = self.assigned.lock();
        if let Some(range) = assigned.ranges.get(&ino) {
            return *range;
        }
        if assigned.ranges.len() >= MOST_RANGES {
            return scattered(ino);
        }
        let (range, length) = assigned.assign(directory);
        assigned.ranges.insert(ino, range);
        if let Some(inode_table) = &self.inode_table {
            inode_table.append_range(ino, range, length);
        }
        range
    }
}

impl AssignedNumbers {
    fn new(has_images: bool) -> Self {
        Self {
            small: ROOT_INO + 1,
            small_end: if has_images { IMAGES_INO } else { SMALL_END },
            has_images,
            large: SMALL_END,
            ranges: HashMap::new(),
        }
    }

    /// How many numbers a root node takes.
    fn per_root(&self) -> u64 {
        1 + u64::from(self.has_images)
    }

    /// Notes that an image has the number `ino`, which follows from a root's unless it `has_own`.
    fn note_image(&mut self, ino: u64, has_own: bool) {
        match ino < SMALL_END {
            true if has_own => self.small_end = self.small_end.min(ino),
            true => {}
            false => self.note(ino, 1),
        }
    }

    fn take_for_image(&mut self) -> u64 {
        match self.small < self.small_end {
            true => {
                self.small_end -= 1;
                self.small_end
            }
            false => self.take(1),
        }
    }

    /// Notes that `length` numbers from `first` on were given.
    fn note(&mut self, first: u64, length: u64) {
        let end = first.saturating_add(length);
        match first < SMALL_END {
            true => self.small = self.small.max(end),
            false => self.large = self.large.max(end),
        }
    }

    /// A range for `directory`, and its length.
    fn assign(&mut self, directory: &Directory) -> (NameRange, u64) {
        let (all, entries) = (directory.names_below(), directory.len() as u64);
        let is_small = |length| self.is_small(length);
        // What is above has room for any number of ranges as long as each takes little of it.
        let longest = LONGEST.min((END - self.large) / 256);
        let nested = is_small(all) || !is_small(entries) && all <= longest;
        let length = if nested { all } else { entries };
        let first = self.take(length);
        (NameRange { first, nested }, length)
    }

    /// Whether `length` more numbers can be small ones.
    fn is_small(&self, length: u64) -> bool {
        self.small.saturating_add(length) <= self.small_end
    }

    /// The next `length` numbers, small ones if there are so many.
    fn take(&mut self, length: u64) -> u64 {
        let next = if self.is_small(length) {
            &mut self.small
        } else {
            &mut self.large
        };
        let first = *next;
        *next += length;
        first
    }
}

/// A range for a directory beyond those that are remembered: far above all others, at a place that
/// is computed from its own number. Two such ranges collide with a chance of one in 2^40.
fn scattered(ino: u64) -> NameRange {
    let hash = blake3::hash(&ino.to_le_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    NameRange {
        first: END | u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 2,
        nested: false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::castore::{Name, Node, SymlinkTarget};

    /// A directory of so many links, and of subdirectories that claim these sizes.
    fn directory(links: usize, claims: &[u64]) -> Directory {
        let link = Node::Symlink {
            target: SymlinkTarget::new(b"x").unwrap(),
        };
        let links = (0..links).map(|at| (format!("l{at}"), link.clone()));
        let child = |size: &u64| Node::Directory {
            digest: Directory::empty().digest(),
            size: *size,
        };
        let children = claims.iter().enumerate();
        let children = children.map(|(at, size)| (format!("d{at:03}"), child(size)));
        let named = children
            .chain(links)
            .map(|(name, node)| (Name::new(name.as_bytes()).unwrap(), node));
        Directory::from_entries(named.collect()).unwrap()
    }

    fn entries(range: NameRange, directory: &Directory) -> impl Iterator<Item = u64> {
        (0..directory.len() as u32).map(move |index| range.ino(index))
    }

    #[test]
    fn a_tree_is_numbered_without_a_gap() {
        let numbering = InodeNumbering::new(false, None);
        let leaf = directory(3, &[]);
        let middle = directory(1, &[leaf.size(), 0, leaf.size()]);
        let mount_root = directory(2, &[middle.size(), leaf.size()]);
        let range = numbering.range(ROOT_INO, 0, 0, &mount_root);
        let mut seen: Vec<u64> = entries(range, &mount_root).collect();
        let below = |range: NameRange, of: &Directory, index: u32, child: &Directory| {
            let claim = range.claim(of, index);
            numbering.range(range.ino(index), claim, child.names_below(), child)
        };
        let first = below(range, &mount_root, 0, &middle);
        seen.extend(entries(first, &middle));
        for index in [0, 2] {
            seen.extend(entries(below(first, &middle, index, &leaf), &leaf));
        }
        seen.extend(entries(below(range, &mount_root, 1, &leaf), &leaf));
        assert_eq!(seen, (2..2 + mount_root.names_below()).collect::<Vec<_>>());
        assert_eq!(
            numbering.assigned.lock().ranges.len(),
            1,
            "that of the root"
        );
    }

    #[test]
    fn what_claims_too_little_gets_a_range_of_its_own_and_keeps_it() {
        let numbering = InodeNumbering::new(false, None);
        let wrong_claim = directory(5, &[]);
        let honest = directory(4, &[]);
        let mount_root = directory(0, &[2, honest.size()]);
        let range = numbering.range(ROOT_INO, 0, 0, &mount_root);
        let wrong_range = numbering.range(2, range.claim(&mount_root, 0), 1, &wrong_claim);
        let claimed = numbering.range(3, range.claim(&mount_root, 1), 4, &honest);
        let mut all: HashSet<u64> = entries(range, &mount_root).collect();
        all.extend(entries(wrong_range, &wrong_claim));
        all.extend(entries(claimed, &honest));
        assert_eq!(all.len(), 2 + 5 + 4);
        assert_eq!(
            numbering.range(2, range.claim(&mount_root, 0), 1, &wrong_claim),
            wrong_range
        );
    }

    #[test]
    fn claims_of_very_many_names_leave_small_numbers_to_real_ones() {
        for claim in [1 << 33, 1 << 40, u64::MAX - 100] {
            let numbering = InodeNumbering::new(false, None);
            let leaf = directory(5, &[]);
            let mount_root = directory(2, &[claim, leaf.size()]);
            let range = numbering.range(ROOT_INO, 0, 0, &mount_root);
            let mut all: Vec<u64> = entries(range, &mount_root).collect();
            for index in 0..2 {
                let claimed = [claim, leaf.size()][index as usize] / 2;
                let range = numbering.range(
                    range.ino(index),
                    range.claim(&mount_root, index),
                    claimed,
                    &leaf,
                );
                all.extend(entries(range, &leaf));
            }
            assert!(all.iter().all(|ino| *ino < SMALL_END), "{all:?}");
            assert_eq!(HashSet::<u64>::from_iter(all).len(), 4 + 2 * 5);
        }
    }

    #[test]
    fn numbers_continue_above_where_the_small_ones_end() {
        let numbering = InodeNumbering::new(false, None);
        let vast = directory(0, &[2 * SMALL_END - 100]);
        let first = numbering.range(10, 0, 0, &vast);
        assert!(first.nested);
        // It takes all that is left below, but for a few; then it is the turn of what is above.
        let leaf = directory(100, &[]);
        let second = numbering.range(11, 0, 0, &leaf);
        assert!(second.first >= SMALL_END && second.nested);
        let wide = directory(100, &[u64::MAX / 2]);
        let third = numbering.range(12, 0, 0, &wide);
        assert!(!third.nested && third.first >= second.first + 100);
        assert_eq!(third.claim(&wide, 0), 0);
    }

    #[test]
    fn images_have_numbers_that_no_path_has() {
        let plain = InodeNumbering::new(false, None);
        let numbering = InodeNumbering::new(true, None);
        let mount_root = directory(3, &[]);
        // The tree's are the same with images and without.
        let range = numbering.range(ROOT_INO, 0, 0, &mount_root);
        assert_eq!(range, plain.range(ROOT_INO, 0, 0, &mount_root));
        let mut all: Vec<u64> = entries(range, &mount_root).collect();
        for _ in 0..2 {
            let ino = numbering.root();
            all.extend([ino, InodeNumbering::root_image(ino)]);
            all.push(numbering.image());
        }
        all.extend([ROOT_INO, IMAGES_INO]);
        assert!(all.iter().all(|ino| *ino < SMALL_END), "{all:?}");
        assert_eq!(HashSet::<u64>::from_iter(all).len(), 3 + 2 * 3 + 2);
        // A tree that takes all that is left, and what comes then.
        let remaining = IMAGES_INO - 2 - (2 + 3 + 2 * 2);
        let vast = directory(0, &[2 * (remaining - 1)]);
        let last = numbering.range(10, 0, 0, &vast);
        assert!(last.nested && last.first + remaining == IMAGES_INO - 2);
        let (image, root) = (numbering.image(), numbering.root());
        assert!(image >= SMALL_END && root > image);
    }

    #[test]
    fn ranges_that_are_not_remembered_are_the_same_each_time() {
        assert_eq!(scattered(7), scattered(7));
        assert_ne!(scattered(7), scattered(8));
        assert!(scattered(7).first >= END);
        assert!(
            scattered(7)
                .first
                .checked_add(u64::from(u32::MAX))
                .is_some()
        );
    }
}
