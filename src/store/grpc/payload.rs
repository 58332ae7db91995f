//! The content of answers' messages, for the [pace](crate::store::pace) of an answer.

use prost::Message;

use crate::proto::RawDirectory;
use crate::proto::castore::v1::BlobChunk;
use crate::proto::castore_fs::v1::{BlobsTogether, PartChunk, Root};
use crate::proto::store::v1::PathInfo;
use crate::store::pace::{LEAST_RATE, Payload};

impl Payload for BlobChunk {
    fn payload(&self) -> u64 {
        self.data.len() as u64
    }
}

impl Payload for PartChunk {
    fn payload(&self) -> u64 {
        self.data.len() as u64
    }
}

impl Payload for BlobsTogether {
    fn payload(&self) -> u64 {
        let blobs = self.blobs.iter();
        blobs.map(|blob| blob.data.len() as u64).sum()
    }
}

/// Only announced Directories are accepted, each once, and a server may look each up: one a second
/// is progress.
impl Payload for RawDirectory {
    fn payload(&self) -> u64 {
        LEAST_RATE + self.content()
    }

    fn content(&self) -> u64 {
        self.0.len() as u64
    }
}

impl Payload for Root {
    fn payload(&self) -> u64 {
        self.encoded_len() as u64
    }
}

impl Payload for PathInfo {
    fn payload(&self) -> u64 {
        self.encoded_len() as u64
    }
}
