//! Storing the contents of a stream as they are read: small files are gathered and put many at a
//! time, large ones are streamed.

use super::assembly::ReadFile;
use super::{ImportError, ImportProgress, SMALL};
use crate::castore::Digest;
use crate::store::Ingest;

/// Bytes that are gathered before they are put.
const PUT: usize = 4 << 20;
/// Bytes of a large file read at once.
const STEP: usize = 1 << 20;

/// Small blobs on their way into the store.
pub(super) struct BlobPacket<'a> {
    ingest: &'a dyn Ingest,
    progress: &'a ImportProgress,
    bytes: Vec<u8>,
    /// Digest, and where the blob ends in `bytes`.
    blobs: Vec<(Digest, usize)>,
}

impl<'a> BlobPacket<'a> {
    pub(super) fn new(ingest: &'a dyn Ingest, progress: &'a ImportProgress) -> Self {
        Self {
            ingest,
            progress,
            bytes: Vec::new(),
            blobs: Vec::new(),
        }
    }

    /// Reads a file of `size` bytes with `read`, which fills its buffer with the next of them.
    pub(super) fn file<E: Into<ImportError>>(
        &mut self,
        size: u64,
        executable: bool,
        mut read: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<ReadFile, ImportError> {
        self.progress.check()?;
        self.progress.found_file();
        let digest = if size <= SMALL {
            let start = self.bytes.len();
            self.bytes.resize(start + size as usize, 0);
            read(&mut self.bytes[start..]).map_err(Into::into)?;
            let digest = Digest::of(&self.bytes[start..]);
            if size > 0 {
                self.blobs.push((digest, self.bytes.len()));
            }
            self.progress.add_bytes(size);
            if self.bytes.len() >= PUT {
                self.put()?;
            }
            digest
        } else {
            let mut writer = self.ingest.blob_writer()?;
            let mut buffer = vec![0; STEP];
            let mut remaining = size;
            while remaining > 0 {
                self.progress.check()?;
                let step = remaining.min(STEP as u64);
                let part = &mut buffer[..step as usize];
                read(part).map_err(Into::into)?;
                writer.write(part)?;
                self.progress.add_bytes(step);
                remaining -= step;
            }
            writer.finish()?.0
        };
        self.progress.add_file();
        Ok(ReadFile {
            digest,
            size,
            executable,
        })
    }

    /// Puts the gathered blobs.
    pub(super) fn put(&mut self) -> Result<(), ImportError> {
        let mut start = 0;
        let blobs: Vec<(Digest, &[u8])> = self
            .blobs
            .iter()
            .map(|(digest, end)| {
                let bytes = &self.bytes[start..*end];
                start = *end;
                (*digest, bytes)
            })
            .collect();
        if !blobs.is_empty() {
            self.ingest.put_blobs(&blobs)?;
        }
        self.blobs.clear();
        self.bytes.clear();
        Ok(())
    }
}
