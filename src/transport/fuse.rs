//! FUSE: a mount of this machine, served over `/dev/fuse`.
//!
//! The mount, the INIT negotiation, the loop and the frequent requests are implemented here; the
//! crate `fuse-backend-rs` decodes and encodes the rare ones. Its own session wakes every worker at
//! every request and unmounts when it is dropped; plain blocking `read()`s on one descriptor cost
//! less, and leave the descriptor intact for the next process.
//!
//! Workers block in `read()` until there is a request and answer it themselves. A request that has
//! to wait for an upstream is parked, and answered by the async runtime later.

mod answer;
mod backing;
mod crew;
mod deadline;
mod device;
mod generic_options;
mod handover;
mod look_out;
mod mount_table;
mod mounter;
mod mountpoint;
mod notices;
mod own_files;
mod page_cache;
mod parked;
mod pulse;
mod remount;
mod root_watch;
mod serving;
mod session;
mod trail;
mod unmount;
mod users;
mod view;
mod vigil;
mod warm_up;

pub use super::requests::{RequestCounts, RequestTimes};
pub use answer::Answerer;
pub use generic_options::{GenericOptions, UnknownOption};
pub use handover::{AdoptError, Inherited, Kept};
pub use mount_table::MountWatch;
pub use mountpoint::{MountError, Mountpoint, Unmounted, detach};
pub use notices::Nursery;
pub use own_files::OwnFiles;
pub use pulse::{Pulse, Stuck};
pub use remount::ExistingMount;
pub use session::{MountOptions, Session};
pub use unmount::Obstacles;
pub use users::{FileUsers, Users};
pub use view::{View, WantedView};
