//! NARs and their listings as bodies of answers.

use std::io::Write;

use bytes::Bytes;
use tonic::Status;
use zstd::stream::write::Encoder;

use super::answer::BodyProducer;
use crate::server::budget::TakenShare;
use crate::server::limits::FRAME;
use crate::server::respond::status;
use crate::tree::{self, NarListing, NarStream};

/// NARs of more bytes are sent as they are, so that an interrupted download can continue where it was.
/// A client that gets a `Content-Encoding` begins anew.
pub(super) const MOST_COMPRESSED: u64 = 16 << 20;
/// How hard zstd tries: its fastest level, so that a core compresses faster than most links send.
const LEVEL: i32 = 1;
/// Bytes of zstd's window, as a power of two.
const WINDOW_LOG: u32 = 19;
/// Bytes that an encoder takes, about (`ZSTD_estimateCStreamSize` of level 1 with this window).
pub(super) const ENCODER: usize = 1 << 20;

impl BodyProducer for NarStream {
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let before = self.remaining();
        match NarStream::next(self, FRAME) {
            Ok(None) if before > 0 => Err(Status::data_loss(
                "a tree's NAR is shorter than in its path info",
            )),
            made => made.map_err(|error| of_tree(&error)),
        }
    }

    fn remaining(&self) -> Option<u64> {
        Some(NarStream::remaining(self))
    }
}

impl BodyProducer for NarListing {
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        NarListing::next(self, FRAME).map_err(|error| of_tree(&error))
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// A NAR, compressed on its way.
pub(super) struct CompressedNar {
    nar: NarStream,
    encoder: Option<Encoder<'static, Vec<u8>>>,
    /// Memory for the encoder.
    _held: TakenShare,
}

impl CompressedNar {
    /// Compresses `nar`; `held` is for [`ENCODER`] bytes.
    pub(super) fn new(nar: NarStream, held: TakenShare) -> std::io::Result<Self> {
        let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
        encoder.window_log(WINDOW_LOG)?;
        Ok(Self {
            nar,
            encoder: Some(encoder),
            _held: held,
        })
    }
}

impl BodyProducer for CompressedNar {
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let failed = |error: std::io::Error| Status::internal(format!("cannot compress: {error}"));
        let Some(encoder) = &mut self.encoder else {
            return Ok(None);
        };
        loop {
            let Some(buffer) = BodyProducer::next(&mut self.nar)? else {
                break;
            };
            encoder.write_all(&buffer).map_err(failed)?;
            let made = std::mem::take(encoder.get_mut());
            if !made.is_empty() {
                return Ok(Some(made.into()));
            }
        }
        let ended = self.encoder.take().map(Encoder::finish).transpose();
        let last = ended.map_err(failed)?.unwrap_or_default();
        Ok((!last.is_empty()).then(|| last.into()))
    }

    fn remaining(&self) -> Option<u64> {
        None
    }
}

/// What a client gets for a tree that cannot be read.
fn of_tree(error: &tree::TreeError) -> Status {
    match error {
        tree::TreeError::Object { source, .. } | tree::TreeError::Store(source) => status(source),
        _ => Status::internal(error.to_string()),
    }
}
