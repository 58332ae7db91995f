//! The journal: names of roots, their PathInfos, pins and paths that are valid for Nix, from which a lost
//! index is rebuilt.
//!
//! An append-only file beside the index. The change of the index that sets one of these first
//! appends it here and syncs the file; the index then commits together with the journal's
//! generation and length. Records after that length were never committed, and are cut off by the
//! next change. After a commit a record `done` is appended without a sync: a `done` that is ahead
//! of the index shows that the index is older than the journal, as after a partial restore.
//!
//! A journal that does not belong to the index (missing, another generation, shorter) is written
//! again from the index, which is authoritative as long as it can be read.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use prost::Message;

use super::dir::StoreDirectory;
use crate::castore::{Name, Root};
use crate::nix::{PathInfo, StorePath};
use crate::proto::castore::v1::Entry;
use crate::store::Error;

/// The first bytes of the file.
const MAGIC: &[u8; 15] = b"castore journal";
/// The version of the file, after [`MAGIC`].
const VERSION: u8 = 1;
/// Bytes of the header: magic, version, generation.
pub(super) const HEADER: u64 = 24;
/// Bytes before a record's payload: tag, length, checksum.
const RECORD: usize = 16;
/// Bytes of a payload, at most: more than any name, node and PathInfo take.
const LONGEST: usize = 64 << 20;
/// A journal that is longer than this, and than four times its content, is written again.
pub(super) const WORTH_REWRITING: u64 = 1 << 20;

/// Flags of a root: its content had not come; it has a PathInfo.
const INCOMPLETE: u8 = 1;
const PATH_INFO: u8 = 2;

/// A change in the journal.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JournalChange {
    /// A root as it is from now on.
    Root {
        /// When it was added, in seconds since 1970; 0 if that is not known.
        added: u64,
        /// Whether its content had not come.
        incomplete: bool,
        /// The root.
        root: Root,
        /// Its path info.
        path_info: Option<Box<PathInfo>>,
    },
    /// The root of this name was removed.
    Removed(Vec<u8>),
    /// A cache's pin of this name was set, or removed.
    Pin(Vec<u8>, bool),
    /// The store path of this base name was reported to Nix as valid, with the index's value for it; or, without
    /// one, that was forgotten.
    ValidPath(Vec<u8>, Option<Vec<u8>>),
}

/// The journal of an index, and its committed length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JournalPosition {
    /// Grows whenever the journal is written again; 0: there was none yet.
    pub(super) generation: u64,
    /// Bytes, from the start, that the index has committed.
    pub(super) length: u64,
}

/// How a journal relates to the index.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum JournalRelation {
    /// It is the index's: records are appended.
    Same,
    /// It is not: it is to be written again.
    Other,
    /// It has commits that the index does not have: the index is older.
    Ahead,
}

impl JournalChange {
    /// Appends the record.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        let tag = match self {
            JournalChange::Root {
                added,
                incomplete,
                root,
                path_info,
            } => {
                payload.extend_from_slice(&added.to_le_bytes());
                let info = if path_info.is_some() { PATH_INFO } else { 0 };
                payload.push(info | if *incomplete { INCOMPLETE } else { 0 });
                put_bytes(&mut payload, &root.name);
                put_bytes(&mut payload, &Entry::from(root).encode_to_vec());
                if let Some(info) = path_info {
                    payload.extend_from_slice(&info.encode_to_vec());
                }
                b"root"
            }
            JournalChange::Removed(name) => {
                payload.extend_from_slice(name);
                b"gone"
            }
            JournalChange::Pin(name, pinned) => {
                payload.push(u8::from(*pinned));
                payload.extend_from_slice(name);
                b"pin "
            }
            JournalChange::ValidPath(name, value) => {
                put_bytes(&mut payload, name);
                payload.extend_from_slice(value.as_deref().unwrap_or_default());
                b"nixp"
            }
        };
        put_record(out, tag, &payload);
    }

    fn decode(tag: [u8; 4], payload: &[u8]) -> Option<Self> {
        match &tag {
            b"root" => {
                let (added, rest) = payload.split_first_chunk()?;
                let (flags, rest) = rest.split_first()?;
                let (name, rest) = take_bytes(rest)?;
                let (entry, info) = take_bytes(rest)?;
                let root = Root::try_from(Entry::decode(entry).ok()?).ok()?;
                if root.name.as_bytes() != name {
                    return None;
                }
                let path_info = match flags & PATH_INFO {
                    0 => None,
                    _ => Some(Box::new(PathInfo::decode(info).ok()?)),
                };
                Some(JournalChange::Root {
                    added: u64::from_le_bytes(*added),
                    incomplete: flags & INCOMPLETE != 0,
                    root,
                    path_info,
                })
            }
            b"gone" => Some(JournalChange::Removed(payload.to_vec())),
            b"pin " => {
                let (pinned, name) = payload.split_first()?;
                Name::new(name).ok()?;
                Some(JournalChange::Pin(name.to_vec(), *pinned != 0))
            }
            b"nixp" => {
                let (name, value) = take_bytes(payload)?;
                StorePath::from_base_name(name).ok()?;
                let value = (!value.is_empty()).then(|| value.to_vec());
                Some(JournalChange::ValidPath(name.to_vec(), value))
            }
            _ => None,
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take_bytes(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fn checksum(tag: &[u8; 4], payload: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tag);
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(payload);
    let mut sum = [0; 8];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    sum
}

fn put_record(out: &mut Vec<u8>, tag: &[u8; 4], payload: &[u8]) {
    out.extend_from_slice(tag);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(tag, payload));
    out.extend_from_slice(payload);
}

/// The record at the start of `bytes`: its tag, its payload, and what follows it.
fn take_record(bytes: &[u8]) -> Option<([u8; 4], &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    if length > LONGEST {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(length)?;
    (*sum == checksum(tag, payload)).then_some((*tag, payload, rest))
}

fn header(generation: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes
}

fn generation(header: &[u8]) -> Option<u64> {
    let rest = header.strip_prefix(MAGIC)?.strip_prefix(&[VERSION])?;
    Some(u64::from_le_bytes(*rest.first_chunk()?))
}

/// How the journal in `dir` relates to an index that is at `position`.
pub(super) fn relate(
    dir: &StoreDirectory,
    position: JournalPosition,
) -> Result<(JournalRelation, u64), Error> {
    let path = dir.journal();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok((JournalRelation::Other, 0));
        }
        Err(error) => return Err(dir.io("open", &path)(error)),
    };
    let related = || -> io::Result<(JournalRelation, u64)> {
        let length = file.metadata()?.len();
        let mut head = [0; HEADER as usize];
        if length < HEADER {
            return Ok((JournalRelation::Other, 0));
        }
        file.read_exact_at(&mut head, 0)?;
        let Some(found) = generation(&head) else {
            return Ok((JournalRelation::Other, 0));
        };
        if found < position.generation || (found == position.generation && length < position.length)
        {
            return Ok((JournalRelation::Other, found));
        }
        let same = found == position.generation;
        // Of another generation, all of it is unknown to the index.
        let from = if same { position.length } else { HEADER };
        let mut tail = Vec::new();
        let mut reader = &file;
        io::Seek::seek(&mut reader, io::SeekFrom::Start(from))?;
        reader.read_to_end(&mut tail)?;
        let mut rest = &tail[..];
        while let Some((tag, payload, following)) = take_record(rest) {
            let done = payload.first_chunk().map(|done| u64::from_le_bytes(*done));
            if tag == *b"done" && (!same || done.is_some_and(|done| done > position.length)) {
                return Ok((JournalRelation::Ahead, found));
            }
            rest = following;
        }
        let relation = if same {
            JournalRelation::Same
        } else {
            JournalRelation::Other
        };
        Ok((relation, found))
    };
    related().map_err(dir.io("read", &path))
}

/// Appends records after the committed length, and makes them durable.
pub(super) fn append(
    dir: &StoreDirectory,
    position: JournalPosition,
    records: &[u8],
) -> Result<JournalPosition, Error> {
    let path = dir.journal();
    let appended = || -> io::Result<()> {
        let mut options = File::options();
        let file = options.write(true).custom_flags(libc::O_NOFOLLOW);
        let file = file.open(&path)?;
        file.set_len(position.length)?;
        file.write_all_at(records, position.length)?;
        file.sync_data()
    };
    appended().map_err(dir.io("write", &path))?;
    Ok(JournalPosition {
        length: position.length + records.len() as u64,
        ..position
    })
}

/// Writes a journal again, and makes it durable.
pub(super) fn replace(
    dir: &StoreDirectory,
    generation: u64,
    records: &[u8],
) -> Result<JournalPosition, Error> {
    let new = dir.path().join("journal.new");
    let path = dir.journal();
    let written = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        dir.give_to_owner(&file, &new);
        file.write_all(&header(generation))?;
        file.write_all(records)?;
        file.sync_data()?;
        fs::rename(&new, &path)
    };
    written().map_err(dir.io("write", &path))?;
    dir.sync(dir.path())?;
    Ok(JournalPosition {
        generation,
        length: HEADER + records.len() as u64,
    })
}

/// Notes that the index has committed up to `position`. If it does not reach the disk, an older
/// index in the place of this one is only harder to detect.
pub(super) fn note_done(dir: &StoreDirectory, position: JournalPosition) {
    let mut record = Vec::new();
    put_record(&mut record, b"done", &position.length.to_le_bytes());
    let mut options = File::options();
    options.write(true).custom_flags(libc::O_NOFOLLOW);
    if let Ok(file) = options.open(dir.journal()) {
        let _ = file.write_all_at(&record, position.length);
    }
}

/// The readable content of a journal.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// What was entered, in order.
    pub(super) entered: Vec<JournalChange>,
    /// Its generation.
    pub(super) generation: u64,
    /// Invalid places that were skipped.
    pub(super) damaged: u64,
}

/// Reads the whole journal; nothing if it does not exist.
pub(super) fn read(dir: &StoreDirectory) -> Result<Option<Journal>, Error> {
    let path = dir.journal();
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(parse(&bytes))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(dir.io("read", &path)(error)),
    }
}

fn parse(bytes: &[u8]) -> Journal {
    let mut journal = Journal::default();
    let mut rest = match generation(bytes) {
        Some(generation) => {
            journal.generation = generation;
            bytes.get(HEADER as usize..).unwrap_or_default()
        }
        None => {
            journal.damaged += 1;
            bytes
        }
    };
    let mut sound = true;
    while rest.len() >= RECORD {
        match take_record(rest) {
            Some((tag, payload, following)) => {
                let entered = JournalChange::decode(tag, payload);
                journal.damaged += u64::from(entered.is_none() && tag != *b"done");
                journal.entered.extend(entered);
                sound = true;
                rest = following;
            }
            None => {
                journal.damaged += u64::from(sound);
                sound = false;
                // The next tag that a record follows.
                let next = rest
                    .windows(4)
                    .skip(1)
                    .position(|tag| matches!(tag, b"root" | b"gone" | b"pin " | b"nixp" | b"done"));
                rest = next.and_then(|at| rest.get(at + 1..)).unwrap_or_default();
            }
        }
    }
    journal.damaged += u64::from(sound && !rest.is_empty());
    journal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Digest, Node};

    fn root(name: &str) -> JournalChange {
        JournalChange::Root {
            added: 7,
            incomplete: false,
            root: Root {
                name: Name::new(name.as_bytes()).unwrap(),
                node: Node::File {
                    digest: Digest::of(name.as_bytes()),
                    size: name.len() as u64,
                    executable: false,
                },
            },
            path_info: None,
        }
    }

    #[test]
    fn a_damaged_record_costs_itself_and_no_other() {
        let entered = [
            root("first"),
            JournalChange::Pin(b"pinned".to_vec(), true),
            JournalChange::Removed(b"first".to_vec()),
            JournalChange::ValidPath(
                b"00000000000000000000000000000000-tool".to_vec(),
                Some(b"value".to_vec()),
            ),
            JournalChange::ValidPath(b"00000000000000000000000000000000-tool".to_vec(), None),
            root("second"),
        ];
        let mut bytes = header(3);
        let mut starts = Vec::new();
        for entry in &entered {
            starts.push(bytes.len());
            entry.encode(&mut bytes);
        }
        let whole = parse(&bytes);
        assert_eq!((whole.generation, whole.damaged), (3, 0));
        assert_eq!(whole.entered, entered);
        for flipped in HEADER as usize..bytes.len() {
            let mut bad = bytes.clone();
            bad[flipped] ^= 0x40;
            let hit = starts.iter().rposition(|start| *start <= flipped).unwrap();
            let mut expected = entered.to_vec();
            expected.remove(hit);
            let journal = parse(&bad);
            assert_eq!(journal.entered, expected, "byte {flipped}");
            assert!(journal.damaged > 0);
        }
        // After a cut anywhere, what was complete before the cut is there.
        for cut in HEADER as usize..bytes.len() {
            let whole = starts.iter().skip(1).filter(|start| **start <= cut).count();
            assert_eq!(parse(&bytes[..cut]).entered, entered[..whole]);
        }
    }
}
