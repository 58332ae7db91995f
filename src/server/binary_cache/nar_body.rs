//! NARs and their listings as bodies of answers.

use std::io::Write;

use bytes::Bytes;
use tonic::Status;
use zstd::stream::write::Encoder;

use super::answer::Produce;
use crate::server::budget::Held;
use crate::server::guard::FRAME;
use crate::server::respond::status;
use crate::tree::{self, NarListing, NarStream};

/// NARs of more bytes are sent as they are, so that a download that broke off can go on where it was.
/// A client that gets a `Content-Encoding` begins anew.
pub(super) const MOST_COMPRESSED: u64 = 16 << 20;
/// How hard zstd tries: about 300 MB/s of a core, and a third of the bytes.
const LEVEL: i32 = 1;
/// Bytes of zstd's window, as a power of two.
const WINDOW_LOG: u32 = 19;
/// Bytes that an encoder takes, about (`ZSTD_estimateCStreamSize` of level 1 with this window).
pub(super) const ENCODER: usize = 1 << 20;

impl Produce for NarStream {
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let before = self.left();
        match NarStream::next(self, FRAME) {
            Ok(None) if before > 0 => Err(Status::data_loss(
                "a tree's NAR is shorter than its path info says",
            )),
            made => made.map_err(|error| of_tree(&error)),
        }
    }

    fn left(&self) -> Option<u64> {
        Some(NarStream::left(self))
    }
}

impl Produce for NarListing {
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        NarListing::next(self, FRAME).map_err(|error| of_tree(&error))
    }

    fn left(&self) -> Option<u64> {
        None
    }
}

/// A NAR, compressed on its way.
pub(super) struct Compressed {
    nar: NarStream,
    encoder: Option<Encoder<'static, Vec<u8>>>,
    /// Memory for the encoder.
    _held: Held,
}

impl Compressed {
    /// Compresses `nar`; `held` is for [`ENCODER`] bytes.
    pub(super) fn new(nar: NarStream, held: Held) -> std::io::Result<Self> {
        let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
        encoder.window_log(WINDOW_LOG)?;
        Ok(Self {
            nar,
            encoder: Some(encoder),
            _held: held,
        })
    }
}

impl Produce for Compressed {
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let failed = |error: std::io::Error| Status::internal(format!("cannot compress: {error}"));
        let Some(encoder) = &mut self.encoder else {
            return Ok(None);
        };
        loop {
            let Some(piece) = Produce::next(&mut self.nar)? else {
                break;
            };
            encoder.write_all(&piece).map_err(failed)?;
            let made = std::mem::take(encoder.get_mut());
            if !made.is_empty() {
                return Ok(Some(made.into()));
            }
        }
        let ended = self.encoder.take().map(Encoder::finish).transpose();
        let last = ended.map_err(failed)?.unwrap_or_default();
        Ok((!last.is_empty()).then(|| last.into()))
    }

    fn left(&self) -> Option<u64> {
        None
    }
}

/// What a client gets for a tree that cannot be read.
fn of_tree(error: &tree::Error) -> Status {
    match error {
        tree::Error::Object { source, .. } | tree::Error::Store(source) => status(source),
        _ => Status::internal(error.to_string()),
    }
}
