//! Counting requests by kind: "warm operations make none" is shown by counting.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_backend_rs::abi::fuse_abi::InHeader;

/// Opcodes are numbered from 1; those above share the last place.
const KINDS: usize = 64;

/// Requests since the mount began, by opcode.
#[derive(Debug)]
pub struct Counters([AtomicU64; KINDS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS])
    }
}

/// Requests by kind, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts(pub BTreeMap<&'static str, u64>);

impl RequestCounts {
    /// Requests of this kind, by its name in the kernel's `fuse.h`.
    pub fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    /// Requests that a program waited for: all but those with which the kernel tidies up.
    pub fn total(&self) -> u64 {
        let tidying = ["FORGET", "BATCH_FORGET", "INTERRUPT", "INIT", "DESTROY"];
        let waited_for = self.0.iter().filter(|(kind, _)| !tidying.contains(*kind));
        waited_for.map(|(_, count)| count).sum()
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let new = self
            .0
            .iter()
            .map(|(kind, count)| (*kind, count - earlier.of(kind)));
        Self(new.filter(|(_, count)| *count > 0).collect())
    }
}

impl Counters {
    /// Counts a request.
    pub fn count(&self, header: &InHeader) {
        let kind = (header.opcode as usize).min(KINDS - 1);
        self.0[kind].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn now(&self) -> RequestCounts {
        let mut counts = BTreeMap::new();
        for (opcode, count) in self.0.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                *counts.entry(name(opcode)).or_insert(0) += count;
            }
        }
        RequestCounts(counts)
    }
}

/// What the kernel's `fuse.h` calls requests of this kind.
pub fn name(opcode: usize) -> &'static str {
    match opcode {
        1 => "LOOKUP",
        2 => "FORGET",
        3 => "GETATTR",
        4 => "SETATTR",
        5 => "READLINK",
        14 => "OPEN",
        15 => "READ",
        16 => "WRITE",
        17 => "STATFS",
        18 => "RELEASE",
        20 => "FSYNC",
        22 => "GETXATTR",
        23 => "LISTXATTR",
        25 => "FLUSH",
        26 => "INIT",
        27 => "OPENDIR",
        28 => "READDIR",
        29 => "RELEASEDIR",
        30 => "FSYNCDIR",
        34 => "ACCESS",
        36 => "INTERRUPT",
        38 => "DESTROY",
        39 => "IOCTL",
        40 => "POLL",
        42 => "BATCH_FORGET",
        44 => "READDIRPLUS",
        46 => "LSEEK",
        50 => "SYNCFS",
        52 => "STATX",
        _ => "OTHER",
    }
}
