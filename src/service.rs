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
mod log_rate_limiter;
mod metrics;
mod mounts;
mod panics;
mod profiles;
mod rates;
mod reachability;
mod reloads;
mod signals;
mod socket_file;
mod sockets;
mod status;
mod systemd;
mod telemetry;
mod traffic;
mod view;
mod watchdog;

pub use crate::latencies::LatencyStatus;
pub use config::{Config, ConfigProblem, check_level};
pub use control::{CachedRoots, ControlRequest, ControlResult, ask_status, send_request};
pub use daemon::{DaemonError, run};
pub use log::text_fields;
pub use profiles::{ProfileDone, ProfileRequest, ProfileStatus, obey as obey_profile_request};
pub use rates::{StoreRate, TrafficRate};
pub use reachability::{CheckedStore, ProbeOutcome, check_reachability};
pub use reloads::{ReloadFailure, ReloadStatus};
pub use sockets::{ServedSocket, ServiceSocketError, StatusSource, listen_for_metrics, metrics_on};
pub use status::{
    CacheRoots, ListenStatus, MountStatus, PrefetchStatus, ServiceStatus, StoreStatus,
    VirtiofsStatus,
};
pub use traffic::TrafficStatus;
