//! Announcing blobs to a store ahead of their reader, where the order of reading is known: an
//! export, or the prefetch of a root.
//!
//! A program that reads through a mount announces nothing: for it `fs::walk_prefetch` guesses.

use std::collections::VecDeque;

use super::ANNOUNCED_HEAD;
use crate::castore::Digest;

/// Bytes that are announced ahead of the reader, at most. One more blob may exceed it.
const WINDOW: u64 = 16 << 20;
/// Blobs that are announced ahead of the reader, at most.
const MOST: usize = 4096;

/// Blobs in the order in which they will be read.
pub(crate) struct ReadAhead<I> {
    blobs: I,
    /// Bytes of each blob that was announced and is not passed.
    announced: VecDeque<u64>,
    bytes: u64,
}

impl<I: Iterator<Item = (Digest, u64)>> ReadAhead<I> {
    /// Of digests and sizes; each is taken from the iterator once.
    pub(crate) fn new(blobs: I) -> Self {
        Self {
            blobs,
            announced: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Notes that the reader begins with the next blob, and passes more to `announce` once half of
    /// the window is read.
    pub(crate) fn pass(&mut self, announce: impl FnOnce(&[(Digest, u64)])) {
        self.bytes -= self.announced.pop_front().unwrap_or(0);
        if self.bytes > WINDOW / 2 || self.announced.len() > MOST / 2 {
            return;
        }
        let mut blobs = Vec::new();
        while self.bytes < WINDOW
            && self.announced.len() < MOST
            && let Some((digest, size)) = self.blobs.next()
        {
            let bytes = size.min(ANNOUNCED_HEAD);
            self.announced.push_back(bytes);
            self.bytes += bytes;
            blobs.push((digest, size));
        }
        if !blobs.is_empty() {
            announce(&blobs);
        }
    }
}
