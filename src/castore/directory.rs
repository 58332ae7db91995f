//! The Directory message, kept as its own canonical bytes.
//!
//! A Directory's identity is the BLAKE3 digest of its encoding, so this type *is* the encoding: the
//! validated bytes plus four bytes per entry that hold where the entry with the n-th name starts.
//! Nothing is unpacked. That makes a listing cheap to hold (the file system keeps hundreds of
//! thousands of them), a lookup a binary search, and a stray re-encoding impossible.
//!
//! Decoding is strict: whatever a canonical encoder would not have written is refused, so that no
//! two encodings of one directory exist and no byte of a digest's preimage goes unread.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::{Digest, Name, NameError, Node, NodeRef, Printable, check_name, check_symlink_target};

/// The largest encoding accepted: room for a million entries with long names.
pub const MAX_DIRECTORY_BYTES: usize = 256 << 20;

/// Subdirectories between two sums of what is below them: a sum at any place reads fewer entries
/// than this, and the sums cost a byte a subdirectory.
const STEP: usize = 16;

/// A validated Directory. Cloning is cheap.
#[derive(Clone)]
pub struct Directory(Arc<EncodedDirectory>);

struct EncodedDirectory {
    digest: Digest,
    bytes: Box<[u8]>,
    /// Offsets of the entries' tags in `bytes`, in the order of their names.
    entries: Box<[u32]>,
    subdirectories: u32,
    size: u64,
    /// For every [`STEP`]-th subdirectory, in the order of names: where its entry starts in `bytes`,
    /// and the names below those before it.
    steps: Box<[(u32, u64)]>,
}

/// A name in a Directory and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// Keeps the rules of [`Name`].
    pub name: &'a [u8],
    /// The node.
    pub node: NodeRef<'a>,
}

/// Bytes that are no canonical Directory, or entries that make none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DirectoryError {
    /// More bytes than [`MAX_DIRECTORY_BYTES`].
    #[error("{0} bytes are more than a Directory may have")]
    TooLarge(usize),
    /// The message ends inside a field.
    #[error("the message ends early, at byte {0}")]
    Truncated(usize),
    /// A field, wire type or value that a canonical encoder does not write.
    #[error("not canonical at byte {at}: {what}")]
    NotCanonical {
        /// Offset in the message.
        at: usize,
        /// What is there.
        what: &'static str,
    },
    /// A name or symlink target that breaks the rules.
    #[error("entry at byte {at}: {source}")]
    Name {
        /// Offset in the message.
        at: usize,
        /// The rule.
        source: NameError,
    },
    /// Names out of order in one of the three lists.
    #[error("the names are not sorted: \"{0}\" is out of place")]
    Unsorted(String),
    /// The same name twice.
    #[error("the name \"{0}\" occurs twice")]
    Duplicate(String),
    /// The sum of the sizes does not fit into 64 bits.
    #[error("the sizes of the child directories overflow")]
    SizeOverflow,
    /// The bytes are those of another Directory than the requested one.
    #[error("hashes to {actual} instead of {expected}")]
    WrongDigest {
        /// The requested digest.
        expected: Digest,
        /// What the bytes hash to.
        actual: Digest,
    },
}

/// Protobuf tags: field number << 3 | wire type (0 varint, 2 length-delimited).
mod tag {
    pub(super) const DIRECTORY: u8 = 0x0a;
    pub(super) const FILE: u8 = 0x12;
    pub(super) const SYMLINK: u8 = 0x1a;
    pub(super) const NAME: u8 = 0x0a;
    pub(super) const DIGEST_OR_TARGET: u8 = 0x12;
    pub(super) const SIZE: u8 = 0x18;
    pub(super) const EXECUTABLE: u8 = 0x20;
}

impl Directory {
    /// The Directory without entries: a message of no bytes, so that its digest is the empty blob's.
    pub fn empty() -> Self {
        Self(Arc::new(EncodedDirectory {
            digest: Digest::empty_blob(),
            bytes: Box::default(),
            entries: Box::default(),
            subdirectories: 0,
            size: 0,
            steps: Box::default(),
        }))
    }

    /// Reads a Directory from its canonical encoding.
    pub fn decode(bytes: impl Into<Box<[u8]>>) -> Result<Self, DirectoryError> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        Self::decode_hashed(bytes, digest)
    }

    /// Reads the Directory that `expected` names: hashes first, then decodes.
    pub fn decode_verified(
        bytes: impl Into<Box<[u8]>>,
        expected: &Digest,
    ) -> Result<Self, DirectoryError> {
        let bytes = bytes.into();
        let actual = Digest::of(&bytes);
        if actual != *expected {
            return Err(DirectoryError::WrongDigest {
                expected: *expected,
                actual,
            });
        }
        Self::decode_hashed(bytes, actual)
    }

    fn decode_hashed(bytes: Box<[u8]>, digest: Digest) -> Result<Self, DirectoryError> {
        if bytes.len() > MAX_DIRECTORY_BYTES {
            return Err(DirectoryError::TooLarge(bytes.len()));
        }
        let mut lists: [Vec<(u32, &[u8])>; 3] = Default::default();
        let mut size = 0u64;
        let mut steps = Vec::new();
        let mut below = 0;
        let mut previous_tag = 0;
        let mut cursor = MessageCursor {
            bytes: &bytes,
            at: 0,
        };
        while cursor.at < bytes.len() {
            let at = cursor.at;
            let (tag, entry) = cursor.entry()?;
            if tag < previous_tag {
                return Err(not_canonical(at, "the lists are out of order"));
            }
            previous_tag = tag;
            let entry = entry.parse()?;
            check_name(entry.name).map_err(|source| DirectoryError::Name { at, source })?;
            let (list, child_size) = match entry.node {
                NodeRef::Directory { size, .. } => (0, size),
                NodeRef::File { .. } => (1, 0),
                NodeRef::Symlink { target } => {
                    check_symlink_target(target)
                        .map_err(|source| DirectoryError::Name { at, source })?;
                    (2, 0)
                }
            };
            size = size
                .checked_add(child_size)
                .and_then(|size| size.checked_add(2))
                .ok_or(DirectoryError::SizeOverflow)?;
            if list == 0 {
                if lists[0].len().is_multiple_of(STEP) {
                    steps.push((at as u32, below));
                }
                // Half of a sum that does not overflow.
                below += child_size / 2;
            }
            let list = &mut lists[list];
            if let Some((_, previous)) = list.last() {
                match previous.cmp(&entry.name) {
                    Ordering::Less => {}
                    Ordering::Equal => return Err(duplicate(entry.name)),
                    Ordering::Greater => return Err(unsorted(entry.name)),
                }
            }
            // The offset fits: MAX_DIRECTORY_BYTES is far below 2^32.
            list.push((at as u32, entry.name));
        }
        let subdirectories = lists[0].len() as u32;
        let entries = merge(lists)?;
        Ok(Self(Arc::new(EncodedDirectory {
            digest,
            entries,
            subdirectories,
            size,
            steps: steps.into(),
            bytes,
        })))
    }

    /// Makes a Directory of `entries`, in any order.
    pub fn from_entries(mut entries: Vec<(Name, Node)>) -> Result<Self, DirectoryError> {
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut bytes = Vec::with_capacity(entries.len() * 64);
        for list in [tag::DIRECTORY, tag::FILE, tag::SYMLINK] {
            for (name, node) in &entries {
                encode_entry(&mut bytes, list, name, node);
            }
        }
        // Decoding finds duplicates, overflow and excess; an encoding that is ours has no other
        // fault.
        Self::decode(bytes)
    }

    /// The digest of the encoding: this Directory's name.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// The canonical encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Bytes of memory that this Directory holds, index included.
    pub fn resident_bytes(&self) -> usize {
        let index = size_of_val(&*self.0.entries) + size_of_val(&*self.0.steps);
        size_of::<EncodedDirectory>() + self.0.bytes.len() + index
    }

    /// The size in a node that refers to this Directory: twice the number of entries, plus the
    /// sizes of its directory children.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// A node for this Directory.
    pub fn node(&self) -> Node {
        Node::Directory {
            digest: self.0.digest,
            size: self.0.size,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    /// Number of entries that are directories.
    pub fn subdirectories(&self) -> u32 {
        self.0.subdirectories
    }

    /// How many names are below this directory, at any depth: half of [`size`](Self::size), and as
    /// true as the entries of its subdirectories are.
    pub fn names_below(&self) -> u64 {
        self.0.size / 2
    }

    /// How many names are below the subdirectories whose names are before that of the entry at
    /// `index`, provided their entries are right. Together with [`len`](Self::len) this is at most
    /// [`names_below`](Self::names_below).
    pub fn names_below_those_before(&self, index: usize) -> u64 {
        let Some(&end) = self.0.entries.get(index) else {
            return self.names_below() - self.len() as u64;
        };
        let name = self.name_at(end as usize);
        let is_before = |at: u32| self.name_at(at as usize) < name;
        // The subdirectories are the first of the three lists, in the order of their names.
        let step = self.0.steps.partition_point(|&(at, _)| is_before(at));
        let Some(&(at, sum)) = step.checked_sub(1).and_then(|step| self.0.steps.get(step)) else {
            return 0;
        };
        let mut cursor = MessageCursor {
            bytes: &self.0.bytes,
            at: at as usize,
        };
        let mut below = sum;
        while cursor.at < self.0.bytes.len() && is_before(cursor.at as u32) {
            let entry = cursor.entry().and_then(|(_, raw)| raw.parse());
            match entry.expect("decode() parsed every entry").node {
                NodeRef::Directory { size, .. } => below += size / 2,
                _ => break,
            }
        }
        below
    }

    /// The entry with the `index`-th name in byte order.
    pub fn get(&self, index: usize) -> Option<DirectoryEntry<'_>> {
        let at = *self.0.entries.get(index)? as usize;
        Some(self.entry_at(at))
    }

    /// The place of `name` in the byte order of names, if it is there.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.0
            .entries
            .binary_search_by(|&at| self.name_at(at as usize).cmp(name))
            .ok()
    }

    /// The node of `name`.
    pub fn lookup(&self, name: &[u8]) -> Option<NodeRef<'_>> {
        self.find(name)
            .and_then(|index| self.get(index))
            .map(|entry| entry.node)
    }

    /// Every entry, in the byte order of names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = DirectoryEntry<'_>> + '_ {
        self.0.entries.iter().map(|&at| self.entry_at(at as usize))
    }

    /// The name of the entry at `at`, without parsing the rest: what a search compares.
    fn name_at(&self, at: usize) -> &[u8] {
        let mut cursor = MessageCursor {
            bytes: &self.0.bytes,
            at: at + 1,
        };
        cursor
            .varint()
            .and_then(|_length| cursor.required(tag::NAME, "an entry without a name"))
            .expect("decode() parsed every entry that the index points at")
    }

    fn entry_at(&self, at: usize) -> DirectoryEntry<'_> {
        let mut cursor = MessageCursor {
            bytes: &self.0.bytes,
            at,
        };
        cursor
            .entry()
            .and_then(|(_, raw)| raw.parse())
            .expect("decode() parsed every entry that the index points at")
    }
}

impl PartialEq for Directory {
    fn eq(&self, other: &Self) -> bool {
        self.0.digest == other.0.digest
    }
}

impl Eq for Directory {}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Directory({}, {} entries)", self.digest(), self.len())
    }
}

/// Merges the three sorted lists into one, by name.
fn merge(lists: [Vec<(u32, &[u8])>; 3]) -> Result<Box<[u32]>, DirectoryError> {
    let mut all = lists.concat();
    // Three sorted runs: a stable sort merges them in linear time.
    all.sort_by_key(|(_, name)| *name);
    if let Some(pair) = all.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        return Err(duplicate(pair[0].1));
    }
    Ok(all.into_iter().map(|(at, _)| at).collect())
}

fn not_canonical(at: usize, what: &'static str) -> DirectoryError {
    DirectoryError::NotCanonical { at, what }
}

fn duplicate(name: &[u8]) -> DirectoryError {
    DirectoryError::Duplicate(Printable(name).to_string())
}

fn unsorted(name: &[u8]) -> DirectoryError {
    DirectoryError::Unsorted(Printable(name).to_string())
}

fn encode_entry(out: &mut Vec<u8>, list: u8, name: &Name, node: &Node) {
    let mut body = Vec::with_capacity(64 + name.len());
    let mut field = |tag: u8, value: &[u8]| {
        body.push(tag);
        put_varint(&mut body, value.len() as u64);
        body.extend_from_slice(value);
    };
    field(tag::NAME, name);
    let (own_list, size, executable) = match node {
        Node::Directory { digest, size } => {
            field(tag::DIGEST_OR_TARGET, digest.as_bytes());
            (tag::DIRECTORY, *size, false)
        }
        Node::File {
            digest,
            size,
            executable,
        } => {
            field(tag::DIGEST_OR_TARGET, digest.as_bytes());
            (tag::FILE, *size, *executable)
        }
        Node::Symlink { target } => {
            field(tag::DIGEST_OR_TARGET, target);
            (tag::SYMLINK, 0, false)
        }
    };
    if own_list != list {
        return;
    }
    if size != 0 {
        body.push(tag::SIZE);
        put_varint(&mut body, size);
    }
    if executable {
        body.extend_from_slice(&[tag::EXECUTABLE, 1]);
    }
    out.push(list);
    put_varint(out, body.len() as u64);
    out.extend_from_slice(&body);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A place in an encoded message.
struct MessageCursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The body of one entry, still encoded.
struct RawEntry<'a> {
    list: u8,
    body: MessageCursor<'a>,
}

impl<'a> MessageCursor<'a> {
    fn byte(&mut self) -> Result<u8, DirectoryError> {
        let byte = *self
            .bytes
            .get(self.at)
            .ok_or(DirectoryError::Truncated(self.at))?;
        self.at += 1;
        Ok(byte)
    }

    /// A varint in its shortest form.
    #[inline]
    fn varint(&mut self) -> Result<u64, DirectoryError> {
        let start = self.at;
        if let Some(&byte @ 0..=0x7f) = self.bytes.get(start) {
            // Nearly all: lengths and sizes of one byte.
            self.at += 1;
            return Ok(u64::from(byte));
        }
        self.long_varint(start)
    }

    fn long_varint(&mut self, start: usize) -> Result<u64, DirectoryError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(not_canonical(start, "a number beyond 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(not_canonical(
                        start,
                        "a number that is not in its shortest form",
                    ));
                }
                return Ok(value);
            }
        }
        Err(not_canonical(start, "a number beyond 64 bits"))
    }

    fn delimited(&mut self) -> Result<&'a [u8], DirectoryError> {
        let length = self.varint()?;
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| self.at.checked_add(length))
            .filter(|&end| end <= self.bytes.len())
            .ok_or(DirectoryError::Truncated(self.bytes.len()))?;
        let field = &self.bytes[self.at..end];
        self.at = end;
        Ok(field)
    }

    /// One entry of one of the three lists.
    fn entry(&mut self) -> Result<(u8, RawEntry<'a>), DirectoryError> {
        let at = self.at;
        let list = self.byte()?;
        if !matches!(list, tag::DIRECTORY | tag::FILE | tag::SYMLINK) {
            return Err(not_canonical(at, "an unknown field"));
        }
        let body = self.delimited()?;
        let start = self.at - body.len();
        let body = MessageCursor {
            bytes: &self.bytes[..self.at],
            at: start,
        };
        Ok((list, RawEntry { list, body }))
    }

    /// The value of the length-delimited field `tag`, which must come next.
    fn required(&mut self, tag: u8, missing: &'static str) -> Result<&'a [u8], DirectoryError> {
        if self.bytes.get(self.at) != Some(&tag) {
            return Err(not_canonical(self.at, missing));
        }
        self.at += 1;
        self.delimited()
    }

    /// The value of the varint field `tag` if it comes next, else 0, its default.
    fn optional(&mut self, tag: u8) -> Result<u64, DirectoryError> {
        if self.bytes.get(self.at) != Some(&tag) {
            return Ok(0);
        }
        self.at += 1;
        let at = self.at;
        match self.varint()? {
            0 => Err(not_canonical(at, "a default value written out")),
            value => Ok(value),
        }
    }
}

impl<'a> RawEntry<'a> {
    fn parse(self) -> Result<DirectoryEntry<'a>, DirectoryError> {
        let mut body = self.body;
        let name = body.required(tag::NAME, "an entry without a name")?;
        let node = if self.list == tag::SYMLINK {
            let target = body.required(tag::DIGEST_OR_TARGET, "a symlink without a target")?;
            NodeRef::Symlink { target }
        } else {
            let at = body.at;
            let digest = body.required(tag::DIGEST_OR_TARGET, "an entry without a digest")?;
            let digest = Digest::try_from(digest)
                .map_err(|_| not_canonical(at, "a digest that is not 32 bytes long"))?;
            let size = body.optional(tag::SIZE)?;
            if self.list == tag::DIRECTORY {
                NodeRef::Directory { digest, size }
            } else {
                let at = body.at;
                let executable = match body.optional(tag::EXECUTABLE)? {
                    0 => false,
                    1 => true,
                    _ => return Err(not_canonical(at, "a flag that is neither 0 nor 1")),
                };
                NodeRef::File {
                    digest,
                    size,
                    executable,
                }
            }
        };
        if body.at < body.bytes.len() {
            return Err(not_canonical(
                body.at,
                "an unknown or misplaced field in an entry",
            ));
        }
        Ok(DirectoryEntry { name, node })
    }
}

#[cfg(test)]
mod tests;
