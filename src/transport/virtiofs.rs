//! virtiofs: the same file system inside a virtual machine, as a vhost-user device.
//!
//! A front end (QEMU, cloud-hypervisor, crosvm) connects to our socket and hands over the guest's
//! memory and a descriptor to be kicked by for each queue; from then on the guest's kernel puts
//! FUSE requests into rings in its memory, and we answer them there.
//!
//! ```text
//! socket ── endpoint ── connection ── device ── ring (a queue) ── crew (its threads)
//!                         │             └ guest: session (INIT to DESTROY): CastoreFs, as a mount's
//!                         └ record: what a successor has to know, in the hands of a keeper
//! ```
//!
//! **The guest is hostile.** It writes everything that `chain` and the crate's rings read, and
//! rewrites it while they do. Requests are copied out before they are looked at, replies are made
//! in private memory (`reply`) and copied in at the end; a malformed request is given back
//! unanswered or fails alone; numbers are checked where they enter. What a guest can spoil is its
//! own view.
//!
//! **The front end is trusted with its guest, not with us**: it may send nonsense and loses its
//! connection. It can, however, truncate the memory that it shares, which kills the process with
//! SIGBUS; who does not trust a front end so far gives it a process of its own
//! (`castore-fs virtiofs`).
//!
//! Between a guest and us no notifications exist. Root nodes are therefore kept for
//! [`ROOT_TIMEOUT`] instead of for ever, and the listing of the top is told apart by its mtime.

mod chain;
mod connection;
mod crew;
mod device;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod inflight;
mod message;
mod record;
mod ring;
mod session;
mod socket;
mod warm_up;

use std::time::Duration;

pub use endpoint::{
    DeviceOptions, Endpoint, EndpointStatus, GuestStatus, MOST_QUEUES, Tag, TagError,
};
pub use record::{Keeper, Left, LeftError};
pub use socket::{Access, Socket, SocketError};

/// Directories that a guest may know at once: about 250 MB here if it never forgets. Linux forgets
/// when its memory is short, and needs more than that for as many; beyond it a lookup gets ENOMEM.
pub const MOST_DIRECTORIES: usize = 1 << 20;

/// How long a guest may keep the name of a root node.
pub const ROOT_TIMEOUT: Duration = Duration::from_secs(1);
