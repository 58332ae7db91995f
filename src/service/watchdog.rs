//! Reports to systemd that the service works, from evidence.
//!
//! A thread of its own checks the progress of every mount's workers
//! ([`FuseSession::check`](crate::transport::fuse::FuseSession::check)) and reports it. It touches no
//! mount, and takes no lock that is held while anything waits, so that it can neither hang with
//! what it watches nor hide that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::systemd;
use crate::transport::fuse::{FuseSession, HeartbeatMonitor};

/// How long a worker may be at one request without waiting for an endpoint: far beyond what a busy
/// disk takes.
const BOUND: Duration = Duration::from_secs(30);
/// How often mounts are checked if systemd's watchdog is off, for the log.
const INTERVAL: Duration = Duration::from_secs(10);

/// The mounts that are watched, by name.
#[derive(Default)]
pub(super) struct WatchedMounts(Mutex<BTreeMap<String, Arc<FuseSession>>>);

impl WatchedMounts {
    /// Watches these from now on, and no others.
    pub(super) fn set(&self, sessions: BTreeMap<String, Arc<FuseSession>>) {
        *self.0.lock() = sessions;
    }

    /// The stuck mounts, and why.
    fn stuck(&self, monitors: &mut BTreeMap<String, HeartbeatMonitor>) -> Vec<(String, String)> {
        let sessions = self.0.lock().clone();
        monitors.retain(|name, _| sessions.contains_key(name));
        let mut stuck = Vec::new();
        for (name, session) in sessions {
            let heartbeat = monitors.entry(name.clone()).or_default();
            if let Some(why) = session.check(heartbeat, BOUND) {
                stuck.push((name, why.to_string()));
            }
        }
        stuck
    }
}

/// Starts the thread.
pub(super) fn start(watched: Arc<WatchedMounts>) -> std::io::Result<()> {
    let wanted = systemd::watchdog();
    // Four times as often as systemd expects it: a late thread is no dead service.
    let interval = wanted.map_or(INTERVAL, |wanted| (wanted / 4).min(INTERVAL));
    let watch = move || {
        let mut monitors = BTreeMap::new();
        loop {
            let stuck = watched.stuck(&mut monitors);
            for (name, why) in &stuck {
                tracing::error!(MOUNT = name, why, "a mount is stuck");
            }
            if stuck.is_empty() && wanted.is_some() {
                systemd::alive();
            }
            std::thread::sleep(interval);
        }
    };
    std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(watch)?;
    Ok(())
}
