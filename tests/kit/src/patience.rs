//! Waiting for what another thread or process brings about.

use std::time::{Duration, Instant};

/// Waits until it is `done`; fails if `what` does not happen within a generous time.
#[track_caller]
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: never");
        std::thread::sleep(Duration::from_millis(10));
    }
}
