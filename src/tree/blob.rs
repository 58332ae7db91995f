//! The contents of one file, from its beginning to its end.

use super::{TreeError, TreePath};
use crate::castore::Digest;
use crate::store::{self, Blocking, Damage, Object};

/// Bytes of one read from the store: the most that one kernel READ has, and enough to keep the
/// connection to an upstream busy.
pub(super) const READ_SIZE: usize = 1 << 20;

/// Reads the blob `digest` of `size` bytes, which is at `path`, and passes it to `sink` piece by
/// piece with each piece's offset. Every piece was verified.
pub fn copy_blob(
    store: &Blocking,
    digest: &Digest,
    size: u64,
    path: &TreePath,
    sink: impl FnMut(u64, &[u8]) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    copy_range(store, digest, size, 0..size, path, sink)
}

/// As [`copy_blob`], for the bytes in `range` only.
pub(super) fn copy_range(
    store: &Blocking,
    digest: &Digest,
    size: u64,
    range: std::ops::Range<u64>,
    path: &TreePath,
    mut sink: impl FnMut(u64, &[u8]) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let mut buffer = vec![0; READ_SIZE.min((range.end - range.start) as usize)];
    let mut offset = range.start;
    // An empty blob is read once too, so that a missing one is noticed.
    loop {
        let wanted = buffer.len().min((range.end - offset) as usize);
        let length = store
            .read(digest, size, offset, &mut buffer[..wanted])
            .map_err(TreeError::at(path))?
            .ok_or_else(|| TreeError::Absent {
                path: path.clone(),
                store: store.url().to_owned(),
                object: Object::Blob,
                digest: *digest,
            })?;
        if length == 0 && offset < range.end {
            return Err(TreeError::at(path)(store::Error::Damaged {
                store: store.url().to_owned(),
                object: Object::Blob,
                digest: *digest,
                damage: Box::new(Damage::WrongSize {
                    expected: size,
                    actual: offset,
                }),
            }));
        }
        sink(offset, &buffer[..length])?;
        offset += length as u64;
        if offset >= range.end {
            return Ok(());
        }
    }
}
