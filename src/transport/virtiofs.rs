//! virtiofs: the same file system inside a virtual machine, as a vhost-user device.
//!
//! A front end (QEMU, cloud-hypervisor, crosvm) connects to the socket and passes the guest's
//! memory and, for each queue, a descriptor for kicks. From then on the guest's kernel puts FUSE
//! requests into rings in its memory, and they are answered there.
//!
//! ```text
//! socket ── endpoint ── connection ── device ── ring (a queue) ── queue threads
//!                         │             └ guest: session (INIT to DESTROY): CastoreFs, as a mount's
//!                         └ record: the hand-over state for the next process, held by another process
//! ```
//!
//! **The guest is hostile.** It writes everything that `chain` and the crate's rings read, and
//! rewrites it while they do. Requests are copied out before they are parsed, replies are made in
//! private memory (`reply`) and copied in at the end; a malformed request is returned unanswered or
//! fails alone; numbers are checked where they enter. A guest can spoil only its own view.
//!
//! **The front end is trusted with its guest, but not with this process**: if it sends nonsense it
//! loses its connection. It can, however, truncate the memory that it shares, which kills the
//! process with SIGBUS; for a front end that is not trusted so far, use a process of its own
//! (`castore-fs virtiofs`).
//!
//! There are no notifications to a guest. A guest may therefore cache roots for [`ROOT_TIMEOUT`]
//! instead of for ever, and recognizes a stale listing of the mount root by its mtime.

mod chain;
mod connection;
mod device;
mod endpoint;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod inflight;
mod message;
mod queue_events;
mod queue_worker;
mod record;
mod ring;
mod session;
mod socket;
mod warm_up;

use std::time::Duration;

pub use device::{DeviceTag, TagError};
pub use endpoint::{DeviceOptions, EndpointStatus, GuestStatus, MOST_QUEUES, VirtiofsEndpoint};
pub use record::{DescriptorHolder, PreviousGuest, PreviousGuestError};
pub use socket::{DeviceSocketError, Socket, SocketAccess};

/// Directories that a guest may know at once: about 250 MB of this process if it never forgets.
/// Linux forgets when its memory is short, and needs more than that for as many; beyond it a lookup
/// gets ENOMEM.
pub const MOST_DIRECTORIES: usize = 1 << 20;

/// How long a guest may cache the name of a root.
pub const ROOT_TIMEOUT: Duration = Duration::from_secs(1);
