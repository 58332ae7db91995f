//! Unpacking a NAR into a local store while it arrives.

use std::io::{self, Read};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::castore::Node;
use crate::compression::{Compression, Decoder, DecompressionLimits};
use crate::import::{self, ImportProgress};
use crate::nix::{ContentMethod, NarinfoFile, NixHash};
use crate::store::{CallFailure, FailureKind, LocalStore, Store};

/// The chunks of a download, read by a thread that may block.
pub(super) struct ChunkReader {
    chunks: mpsc::Receiver<Result<Bytes, CallFailure>>,
    chunk: Bytes,
    /// The error that ended the download early.
    failure: Option<CallFailure>,
}

impl ChunkReader {
    pub(super) fn new(chunks: mpsc::Receiver<Result<Bytes, CallFailure>>) -> Self {
        Self {
            chunks,
            chunk: Bytes::new(),
            failure: None,
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(failure)) => {
                    self.failure = Some(failure);
                    return Err(io::Error::other("the download failed"));
                }
            }
        }
        let length = buffer.len().min(self.chunk.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

/// Hashes and counts what is read through it.
struct HashedRead<R> {
    input: R,
    size: u64,
    hasher: Sha256,
}

impl<R: Read> Read for HashedRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.size += read as u64;
        Ok(read)
    }
}

/// Whether a NAR of `narinfo` can be unpacked; returns its compression.
pub(super) fn compression(narinfo: &NarinfoFile) -> Result<Option<Compression>, CallFailure> {
    if narinfo.compression == "none" {
        return Ok(None);
    }
    let known = Compression::from_name(&narinfo.compression).map(Some);
    known.ok_or_else(|| {
        CallFailure::refused(format!(
            "its Compression {:?} is not one of none, xz, zstd, bzip2, gzip and br",
            narinfo.compression
        ))
    })
}

/// Unpacks the NAR of `narinfo` into `into`, and returns its node once its size and hash match the
/// narinfo; otherwise nothing of it stays. Blocks.
pub(super) fn unpack(
    into: &LocalStore,
    narinfo: &NarinfoFile,
    mut input: ChunkReader,
) -> Result<Node, CallFailure> {
    let compression = compression(narinfo)?;
    let kept =
        |error: crate::store::Error| CallFailure::Failed(FailureKind::Other, error.to_string());
    let ingest = into.ingest().map_err(kept)?;
    let limits = DecompressionLimits::of_output(narinfo.nar.size.saturating_add(1));
    let decoder = Decoder::new(&mut input, compression, limits)
        .map_err(|error| CallFailure::refused(error.to_string()))?;
    let mut nar = HashedRead {
        input: decoder,
        size: 0,
        hasher: Sha256::new(),
    };
    let added = import::add(
        &*ingest,
        import::ImportSource::PlainNar(&mut nar),
        &import::ImportOptions::default(),
        &ImportProgress::new(),
    );
    // The reader of a NAR stops after its end: nothing may follow.
    let rest = added.is_ok().then(|| io::copy(&mut nar, &mut io::sink()));
    let (size, sha256) = (nar.size, nar.hasher.finalize());
    if let Some(failure) = input.failure {
        return Err(failure);
    }
    let refused = |error: &dyn std::fmt::Display| CallFailure::refused(format!("its NAR: {error}"));
    if let Some(Err(error)) = &rest {
        return Err(refused(error));
    }
    let node = match added {
        Ok(node) => node,
        Err(import::ImportError::Store(error)) => return Err(kept(error)),
        Err(error) => return Err(refused(&error)),
    };
    if size != narinfo.nar.size {
        let expected = narinfo.nar.size;
        let why = format!("its NAR has {size} bytes instead of the {expected} of its NarSize");
        return Err(CallFailure::refused(why));
    }
    if sha256[..] != narinfo.nar.sha256 {
        return Err(CallFailure::refused(format!(
            "its NAR has the hash {} instead of its NarHash {}",
            NixHash::Sha256(sha256.into()),
            NixHash::Sha256(narinfo.nar.sha256),
        )));
    }
    ingest.commit().map_err(kept)?;
    Ok(node)
}

/// Whether the hash in the path's content address is that of the contents, as far as the NAR's hash
/// or the `contents` of its only file show.
pub(super) fn address_fits_contents(
    narinfo: &NarinfoFile,
    contents: impl FnOnce() -> Option<[u8; 32]>,
) -> bool {
    let Some(address) = narinfo.content_address else {
        return false;
    };
    let Some(expected) = address.hash.sha256() else {
        return false;
    };
    match address.method {
        ContentMethod::Recursive => narinfo.nar.sha256 == expected,
        ContentMethod::Flat | ContentMethod::Text => contents() == Some(expected),
    }
}
