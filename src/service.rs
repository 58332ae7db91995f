//! The service: everything that `castore-fs daemon` runs, as one systemd unit.
//!
//! [`Config`] says what: stores, and what is made of them (mounts, listeners).
//! The daemon keeps that running, tells systemd how it is, and hands mounts over to its own
//! successor, so that a restart, a crash or an upgrade is a pause for those who read and nothing
//! else.

pub mod config;

pub use config::{Config, Problem};
