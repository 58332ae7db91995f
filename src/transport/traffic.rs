//! What the requests of a mount or a device amount to: how many there were, how long they took, which of
//! them waited, and what programs got: bytes of files, and errors by errno.
//!
//! A reply that succeeds costs nothing here, unless it has bytes of a file: one addition.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use vm_memory::ByteValued;

use super::requests::{RequestCounters, RequestCounts};
use crate::latencies::RequestTimes;

/// Errors that are counted, with their names in errno(3). All others are counted together as `OTHER`.
const ERRORS: [(i32, &str); 20] = [
    (libc::EPERM, "EPERM"),
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::EISDIR, "EISDIR"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENFILE, "ENFILE"),
    (libc::EMFILE, "EMFILE"),
    (libc::EROFS, "EROFS"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"),
    (libc::EPROTO, "EPROTO"),
    (libc::EOVERFLOW, "EOVERFLOW"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ESTALE, "ESTALE"),
];
/// The name of all others.
const OTHER: &str = "OTHER";

/// Ordinary answers, which are no errors: a name that does not exist, a kind of request that is not sent
/// again, a file without that attribute, and the size of one that was asked for.
const ANSWERS: [i32; 4] = [libc::ENOENT, libc::ENOSYS, libc::ENODATA, libc::ERANGE];

/// Replies since the mount or device began.
#[derive(Debug, Default)]
pub(super) struct ReplyCounters {
    read_bytes: AtomicU64,
    errors: [AtomicU64; ERRORS.len() + 1],
}

impl ReplyCounters {
    /// Counts the bytes of a file that a program got.
    pub(super) fn read(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a reply with an errno.
    pub(super) fn failed(&self, errno: i32) {
        if errno == 0 || ANSWERS.contains(&errno) {
            return;
        }
        let index = ERRORS.iter().position(|(error, _)| *error == errno);
        self.errors[index.unwrap_or(ERRORS.len())].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the whole `reply` to the request of `header`; an empty one counts as none.
    pub(super) fn replied(&self, header: &InHeader, reply: &[u8]) {
        let Some((head, data)) = reply.split_at_checked(size_of::<OutHeader>()) else {
            return;
        };
        let mut out = OutHeader::default();
        out.as_mut_slice().copy_from_slice(head);
        self.failed(-out.error);
        if header.opcode == Opcode::Read as u32 {
            self.read(data.len());
        }
    }
}

/// What the requests of a mount or a device amount to, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests.
    pub requests: RequestCounts,
    /// How long they took, by kind.
    pub times: BTreeMap<&'static str, RequestTimes>,
    /// Those of them that waited for an upstream.
    pub waits: RequestCounts,
    /// Bytes of files in replies to READ.
    pub read_bytes: u64,
    /// Replies with an error, by the name of the errno. ENOENT, ENODATA, ERANGE and ENOSYS are ordinary
    /// answers and left out.
    pub errors: BTreeMap<&'static str, u64>,
}

impl Traffic {
    pub(super) fn of(requests: &RequestCounters, replies: &ReplyCounters) -> Self {
        let names = ERRORS.iter().map(|(_, name)| *name).chain([OTHER]);
        let errors = names.zip(&replies.errors);
        Self {
            requests: requests.now(),
            times: requests.times(),
            waits: requests.waits(),
            read_bytes: replies.read_bytes.load(Ordering::Relaxed),
            errors: errors
                .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_by_their_errno_and_their_bytes() {
        let replies = ReplyCounters::default();
        let reply = |opcode: Opcode, error: i32, data: &[u8]| {
            let header = InHeader {
                opcode: opcode as u32,
                ..InHeader::default()
            };
            let out = OutHeader {
                error: -error,
                ..OutHeader::default()
            };
            replies.replied(&header, &[out.as_slice(), data].concat());
        };
        reply(Opcode::Read, 0, b"content");
        reply(Opcode::Readdir, 0, b"a listing");
        reply(Opcode::Read, libc::EIO, b"");
        reply(Opcode::Getattr, libc::EIO, b"");
        reply(Opcode::Lookup, libc::ENOENT, b"");
        reply(Opcode::Ioctl, libc::ENOTTY, b"");
        replies.replied(&InHeader::default(), b"");
        let traffic = Traffic::of(&RequestCounters::default(), &replies);
        assert_eq!(traffic.read_bytes, 7);
        assert_eq!(traffic.errors, [("EIO", 2), (OTHER, 1)].into());
    }
}
