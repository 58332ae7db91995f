//! Reading a pack without the index: every record that matches its header.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::ingest::SMALL;
use super::super::location::PackKind;
use super::super::location::{ObjectLocation, StorageKind};
use super::super::pack::{HEADER_LEN, PackRecord, RECORD_HEADER};
use crate::castore::{Digest, Directory, GroupTable, MAX_DIRECTORY_BYTES};

/// Bytes read at once, at least.
const WINDOW: usize = 4 << 20;

/// The records of a pack.
#[derive(Debug, Default)]
pub(super) struct ScannedPack {
    pub(super) blobs: Vec<(Digest, ObjectLocation)>,
    pub(super) directories: Vec<(Digest, ObjectLocation)>,
    /// Where the last sound record ends; 0 if there is none.
    pub(super) end: u64,
    /// Runs of bytes that are no sound record.
    pub(super) damaged: u64,
}

impl ScannedPack {
    pub(super) fn kind(&self) -> PackKind {
        match self.directories.is_empty() {
            true => PackKind::Blobs,
            false => PackKind::Directories,
        }
    }
}

/// A file that is read from its start to its end, a piece at a time.
struct ScanWindow {
    file: File,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl ScanWindow {
    /// The `length` bytes at `offset`; nothing if the file ends before.
    fn get(&mut self, offset: u64, length: usize) -> io::Result<Option<&[u8]>> {
        if offset + length as u64 > self.length {
            return Ok(None);
        }
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + length as u64 > end {
            let remaining = self.length - offset;
            let wanted = length
                .max(WINDOW)
                .min(usize::try_from(remaining).unwrap_or(usize::MAX));
            self.bytes.resize(wanted, 0);
            self.start = offset;
            self.file.read_exact_at(&mut self.bytes, offset)?;
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes.get(from..from + length))
    }
}

/// A sound record.
enum SoundRecord {
    Blob(Digest, u64),
    Table(Digest, u64),
    Directory(Digest, u64),
    Gone,
}

/// Reads the pack `id` at `path`.
pub(super) fn scan(id: u32, path: &Path) -> io::Result<ScannedPack> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut window = ScanWindow {
        file,
        length,
        start: 0,
        bytes: Vec::new(),
    };
    let mut scanned = ScannedPack::default();
    let mut at = HEADER_LEN;
    let mut sound = true;
    while at + RECORD_HEADER <= length {
        let Some(found) = record(&mut window, at)? else {
            scanned.damaged += u64::from(sound);
            sound = false;
            at = next_tag(&mut window, at + 1)?;
            continue;
        };
        sound = true;
        scanned.damaged += u64::from(!found.is_named);
        let place = |kind, len| ObjectLocation {
            kind,
            pack: id,
            offset: at + RECORD_HEADER,
            len,
        };
        match found.sound {
            SoundRecord::Blob(digest, len) => scanned
                .blobs
                .push((digest, place(StorageKind::Packed, len))),
            SoundRecord::Table(digest, len) => {
                scanned.blobs.push((digest, place(StorageKind::Large, len)))
            }
            SoundRecord::Directory(digest, len) => {
                scanned
                    .directories
                    .push((digest, place(StorageKind::Partial, len)));
            }
            SoundRecord::Gone => {}
        }
        at = found.end;
        scanned.end = found.end;
    }
    scanned.damaged += u64::from(sound && at < length);
    Ok(scanned)
}

/// A record, and where it ends.
struct RecordWithEnd {
    sound: SoundRecord,
    end: u64,
    /// Its header has its digest.
    is_named: bool,
}

/// The record at `at`, if it matches its header.
fn record(window: &mut ScanWindow, at: u64) -> io::Result<Option<RecordWithEnd>> {
    let Some(header) = window.get(at, RECORD_HEADER as usize)? else {
        return Ok(None);
    };
    let Some((record, digest, len)) = PackRecord::parse_header(header) else {
        return Ok(None);
    };
    let start = at + RECORD_HEADER;
    let table = GroupTable::byte_len(len);
    let limit = match record {
        PackRecord::Blob => SMALL as u64,
        PackRecord::Directory => MAX_DIRECTORY_BYTES as u64,
        PackRecord::Table | PackRecord::Gone => i64::MAX as u64 / 2,
    };
    if len > limit {
        return Ok(None);
    }
    let size = match record {
        PackRecord::Blob => len + table,
        PackRecord::Table => table,
        PackRecord::Directory | PackRecord::Gone => len,
    };
    let end = start + size;
    if record == PackRecord::Gone {
        // Its content cannot be verified: a record, or the end, has to follow.
        let follows = match window.get(end, RECORD_HEADER as usize)? {
            Some(header) => PackRecord::parse_header(header).is_some(),
            None => end == window.length,
        };
        let is_gone = digest == Digest::from([0; Digest::LEN]) && follows;
        return Ok(is_gone.then_some(RecordWithEnd {
            sound: SoundRecord::Gone,
            end,
            is_named: true,
        }));
    }
    let Some(bytes) = window.get(start, size as usize)? else {
        return Ok(None);
    };
    let content = bytes.get(..len.min(size) as usize).unwrap_or_default();
    let actual = match record {
        // The bytes of the blob are elsewhere.
        PackRecord::Table => digest,
        _ => Digest::of(content),
    };
    let is_sound = match record {
        PackRecord::Blob | PackRecord::Table => {
            let groups = bytes.get((size - table) as usize..).unwrap_or_default();
            match table {
                0 => record == PackRecord::Blob,
                _ => GroupTable::decode(groups, &actual, len).is_ok(),
            }
        }
        _ => Directory::decode_verified(content.to_vec(), &actual).is_ok(),
    };
    if !is_sound {
        return Ok(None);
    }
    let sound = match record {
        PackRecord::Blob => SoundRecord::Blob(actual, len),
        PackRecord::Table => SoundRecord::Table(actual, len),
        _ => SoundRecord::Directory(actual, len),
    };
    let is_named = actual == digest;
    // Its digest in the header may be what is damaged: the object's bytes decide. But then the
    // length has to be right, and a record, or the end, has to follow.
    let follows = is_named
        || match window.get(end, RECORD_HEADER as usize)? {
            Some(header) => PackRecord::parse_header(header).is_some(),
            None => end == window.length,
        };
    Ok(follows.then_some(RecordWithEnd {
        sound,
        end,
        is_named,
    }))
}

/// The place of the next tag of a record, at `from` or later; else the file's end.
fn next_tag(window: &mut ScanWindow, mut from: u64) -> io::Result<u64> {
    while from + RECORD_HEADER <= window.length {
        let length = (window.length - from).min(WINDOW as u64) as usize;
        let bytes = window.get(from, length)?.unwrap_or_default();
        let found = bytes.windows(4).position(PackRecord::is_tag);
        if let Some(found) = found {
            return Ok(from + found as u64);
        }
        from += (length - 3) as u64;
    }
    Ok(window.length)
}
