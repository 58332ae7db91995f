//! Freeing space in packs.
//!
//! A run of dead records gets one header, `gone`, with the length of the run, so that a pack can
//! still be read from its first byte to its last; the whole blocks after that header become a
//! hole. Repeated, it does the same. Space between blocks (up to two for each run) stays allocated
//! until the neighbours die too.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::super::dir::{StoreDirectory, try_lock};
use super::super::large::ST_BLOCK;
use super::super::location::{ObjectLocation, StorageKind};
use super::super::pack::{HEADER_LEN, PackRecord, RECORD_HEADER};
use crate::castore::{Digest, GroupTable};
use crate::store::Error;

/// The alignment of holes: a page, the block of every file system that has holes.
const BLOCK: u64 = 4 << 10;

/// What stays in a pack.
pub(super) struct LiveRecords {
    /// The start and end of each record that stays.
    records: Vec<(u64, u64)>,
    committed: u64,
}

impl LiveRecords {
    /// Nothing yet, of a pack that the index knows up to `committed`.
    pub(super) fn new(committed: u64) -> Self {
        Self {
            records: Vec::new(),
            committed,
        }
    }

    pub(super) fn add(&mut self, at: &ObjectLocation) {
        let start = at.offset.saturating_sub(RECORD_HEADER);
        self.records.push((start, start + record_len(at)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The runs of dead records, from where to where.
    fn dead(&self) -> Vec<(u64, u64)> {
        let mut records = self.records.clone();
        records.sort_unstable();
        let mut dead = Vec::new();
        let mut end = HEADER_LEN;
        for (start, stop) in records
            .into_iter()
            .chain([(self.committed, self.committed)])
        {
            if start >= end + RECORD_HEADER {
                dead.push((end, start));
            }
            end = end.max(stop);
        }
        dead
    }
}

/// Bytes of the record of an object, in its pack.
pub(super) fn record_len(at: &ObjectLocation) -> u64 {
    let table = GroupTable::byte_len(at.len);
    RECORD_HEADER
        + match at.kind {
            StorageKind::Packed => at.len + table,
            StorageKind::Large => table,
            StorageKind::Partial | StorageKind::Whole => at.len,
        }
}

/// Removes packs that are no longer in the index; returns the bytes that were freed.
pub(super) fn remove_packs(dir: &StoreDirectory, packs: &[u32]) -> Result<u64, Error> {
    let mut freed = 0;
    for pack in packs {
        let path = dir.pack(*pack);
        // An addition that releases the store between its client's messages may write to it: once
        // that has ended, its leftovers are removed, or become a pack again.
        let file = File::open(&path).and_then(|file| Ok((try_lock(&file)?, file)));
        if matches!(file, Ok((false, _))) {
            continue;
        }
        let len = fs::symlink_metadata(&path).map_or(0, |found| found.blocks() * ST_BLOCK);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            removed => removed.map_err(dir.io("remove", &path))?,
        }
        freed += len;
    }
    Ok(freed)
}

/// Frees the dead bytes of a pack; returns how many.
pub(super) fn punch(dir: &StoreDirectory, pack: u32, live: &LiveRecords) -> Result<u64, Error> {
    let dead = live.dead();
    if dead.is_empty() {
        return Ok(0);
    }
    let path = dir.pack(pack);
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        // Another collection removed it meanwhile; or it is damage, which readers report.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(dir.io("open for writing", &path)(error)),
    };
    punch_all(&file, &dead).map_err(dir.io("free room in", &path))
}

fn punch_all(file: &File, dead: &[(u64, u64)]) -> io::Result<u64> {
    let before = file.metadata()?;
    let mut wrote = false;
    for &(start, end) in dead {
        let mut header = Vec::with_capacity(RECORD_HEADER as usize);
        let nothing = Digest::from([0; Digest::LEN]);
        PackRecord::Gone.put_header(&mut header, &nothing, end - start - RECORD_HEADER);
        let mut there = [0; RECORD_HEADER as usize];
        file.read_exact_at(&mut there, start)?;
        if there != header[..] {
            file.write_all_at(&header, start)?;
            wrote = true;
        }
    }
    if wrote {
        // The headers are on the disk before the space beside them is freed.
        file.sync_data()?;
    }
    for &(start, end) in dead {
        let from = (start + RECORD_HEADER).next_multiple_of(BLOCK);
        let to = end - end % BLOCK;
        if from >= to {
            continue;
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(file, how, from, to - from) {
            // The file system has no holes.
            Err(Errno::OPNOTSUPP) => return Ok(0),
            punched => punched?,
        }
    }
    let after = file.metadata()?;
    Ok(before.blocks().saturating_sub(after.blocks()) * ST_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_live_records_is_dead() {
        let at = |offset, len| ObjectLocation {
            kind: StorageKind::Packed,
            pack: 0,
            offset,
            len,
        };
        let mut live = LiveRecords::new(1000);
        assert_eq!(live.dead(), [(16, 1000)]);
        live.add(&at(16 + 44, 100));
        live.add(&at(460 + 44, 100));
        live.add(&at(160 + 44, 100));
        assert_eq!(live.dead(), [(304, 460), (604, 1000)]);
        live.add(&at(604 + 44, 352));
        assert_eq!(live.dead(), [(304, 460)]);
    }
}
