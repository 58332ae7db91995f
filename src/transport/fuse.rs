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
mod busy_polling;
mod deadline;
mod device;
mod erofs_kernel;
mod existing_mount;
mod follow_in_place;
mod followed_name;
mod fork_server;
mod generic_options;
mod hand_over;
mod heartbeat;
mod helper_channel;
mod latency_guard;
mod mount_error;
mod mount_table;
mod mounter;
mod mountpoint;
mod notifier;
mod page_cache;
mod parked;
mod protected_files;
mod root_watch;
mod servers;
mod serving;
mod session;
mod trail;
mod unmount;
mod users;
mod view;
mod warm_up;
mod worker_pool;
mod workers;

pub use super::requests::RequestCounts;
pub use super::traffic::Traffic;
pub use answer::FuseAnswerer;
pub use existing_mount::ExistingMount;
pub use fork_server::ForkServer;
pub use generic_options::{GenericOptions, UnknownOption};
pub use hand_over::{MountDescriptors, MountHolder, PreviousState, TakeOverError};
pub use heartbeat::{HeartbeatMonitor, StuckWorker};
pub use mount_error::MountError;
pub use mount_table::MountWatch;
pub use mountpoint::{Mountpoint, UnmountOutcome, detach};
pub use protected_files::ProtectedFiles;
pub use session::{FuseSession, MountOptions};
pub use unmount::UnmountObstacles;
pub use users::{FileUsers, MountUsers};
pub use view::{MountView, WantedView};
