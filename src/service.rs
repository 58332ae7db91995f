//! The service: everything that `castore-fs daemon` runs, as one systemd unit.
//!
//! [`Config`] describes it: stores, and what is made of them (mounts, listeners). [`run`] serves
//! that, reports its state to systemd, and hands its mounts over to the next process, so that a
//! restart, a crash or an upgrade is a pause for readers and nothing else.

mod claim;
pub mod config;
mod control;
mod daemon;
mod endpoints;
mod log;
mod metrics;
mod mounts;
mod panics;
mod profiles;
mod reach;
mod repeats;
mod signals;
mod socket_file;
mod sockets;
mod status;
mod systemd;
mod telemetry;
mod view;
mod watchdog;

pub use config::{Config, Problem, Size};
pub use control::{CachedRoots, Done, Request, ask_status, tell};
pub use daemon::{DaemonError, run};
pub use log::{check_level, text_fields};
pub use profiles::{ProfileDone, ProfileRequest, ProfileStatus, obey as obey_profile_request};
pub use reach::{Outcome, Reached, reach};
pub use sockets::{Ask, Serving, SocketError, listen_for_metrics, metrics_on};
pub use status::{
    LatencyStatus, ListenStatus, MountStatus, PrefetchStatus, Status, StoreStatus, VirtiofsStatus,
};
