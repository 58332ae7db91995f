//! The latency guard: keeps processors out of their idle states during a walk.
//!
//! **Problem.** A program that sends one request after the other sleeps while the daemon answers,
//! and the daemon sleeps until the next request. Each of these sleeps is over in microseconds, but
//! an idle processor stops, and starting it again takes several times as long as the answer: a cold
//! `find` spends most of its time so.
//!
//! **Mechanism.** A process can cap C-state exit latency by holding /dev/cpu_dma_latency open (PM
//! QoS). With a cap of zero idle processors spin, and are woken by a store to memory. That costs
//! power, so the cap is set only during a walk: when one thread has come back [`ENOUGH`] times in a
//! row, each time soon after its answer, and until a few milliseconds after it has stopped.
//!
//! **Invariant.** The cap ends with the descriptor, so that no death of this process can leave it
//! behind. Where the device cannot be opened, only the worker itself stays awake
//! ([`busy_polling`](super::busy_polling)).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The device of the cap.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// Requests in a row that make a walk.
const ENOUGH: u32 = 32;
/// How long a walk may pause and still be one.
const PAUSE: Duration = Duration::from_millis(5);

/// Recognizes walks, and keeps the processors awake during one.
pub(super) struct LatencyGuard(Arc<GuardInner>);

struct GuardInner {
    device: PathBuf,
    /// Requests in a row that came soon.
    streak: AtomicU32,
    /// Whether the processors are kept awake, or soon will be.
    held: AtomicBool,
    state: Mutex<GuardState>,
    changed: Condvar,
}

/// The state of the guard.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum GuardState {
    /// Not started.
    #[default]
    Unwatched,
    /// Running in a thread.
    Watched,
    /// Off for good: the mount has ended, or the device cannot be opened.
    Ended,
}

impl LatencyGuard {
    pub(super) fn new() -> Self {
        Self::with_device(DEVICE.into())
    }

    fn with_device(device: PathBuf) -> Self {
        Self(Arc::new(GuardInner {
            device,
            streak: AtomicU32::new(0),
            held: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// A thread has sent another request. Returns whether the processors are awake for it, so that
    /// no worker needs to poll.
    pub(super) fn is_held(&self) -> bool {
        let held = self.0.held.load(Ordering::Relaxed);
        if held {
            self.0.streak.fetch_add(1, Ordering::Relaxed);
        }
        held
    }

    /// Whether a thread that has sent another request did so `soon`.
    pub(super) fn saw(&self, soon: bool) {
        if !soon {
            self.0.streak.store(0, Ordering::Relaxed);
        } else if self.0.streak.fetch_add(1, Ordering::Relaxed) == ENOUGH {
            self.keep();
        }
    }

    fn keep(&self) {
        let mut state = self.0.state.lock();
        if *state == GuardState::Unwatched {
            let shared = self.0.clone();
            let watch = std::thread::Builder::new().name("latency-guard".into());
            match watch.spawn(move || shared.watch()) {
                Ok(_) => *state = GuardState::Watched,
                Err(error) => tracing::debug!(%error, "cannot start the latency guard"),
            }
        }
        if *state == GuardState::Watched {
            self.0.held.store(true, Ordering::Relaxed);
            self.0.changed.notify_one();
        }
    }
}

impl Drop for LatencyGuard {
    fn drop(&mut self) {
        *self.0.state.lock() = GuardState::Ended;
        self.0.changed.notify_one();
    }
}

impl GuardInner {
    /// Keeps the processors awake during each walk.
    fn watch(&self) {
        while self.wait_for_a_walk() {
            match self.bear_no_wait() {
                Ok(request) => {
                    self.wait_for_its_end();
                    drop(request);
                }
                Err(error) => {
                    let device = self.device.display();
                    tracing::debug!(%device, %error, "processors sleep while a program walks");
                    *self.state.lock() = GuardState::Ended;
                }
            }
            self.streak.store(0, Ordering::Relaxed);
            self.held.store(false, Ordering::Relaxed);
        }
    }

    /// Waits for a walk; returns false if there will be none.
    fn wait_for_a_walk(&self) -> bool {
        let mut state = self.state.lock();
        while *state == GuardState::Watched {
            if self.held.load(Ordering::Relaxed) {
                return true;
            }
            self.changed.wait(&mut state);
        }
        false
    }

    fn wait_for_its_end(&self) {
        let mut seen = self.streak.load(Ordering::Relaxed);
        loop {
            std::thread::sleep(PAUSE);
            let now = self.streak.load(Ordering::Relaxed);
            if now == seen {
                return;
            }
            seen = now;
        }
    }

    /// Caps the exit latency at zero while the returned file lives.
    fn bear_no_wait(&self) -> io::Result<File> {
        let mut device = OpenOptions::new().write(true).open(&self.device)?;
        device.write_all(&0_i32.to_ne_bytes())?;
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn walk(latency_guard: &LatencyGuard) {
        for _ in 0..=ENOUGH {
            latency_guard.saw(true);
        }
    }

    fn wait_until(done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "never");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn processors_stay_awake_during_a_walk() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let latency_guard = LatencyGuard::with_device(device.path().into());
        let written = || std::fs::read(device.path()).unwrap();
        for _ in 0..2 {
            std::fs::write(device.path(), b"").unwrap();
            for _ in 0..3 * ENOUGH {
                latency_guard.saw(true);
                latency_guard.saw(false);
            }
            assert!(!latency_guard.is_held());
            walk(&latency_guard);
            wait_until(|| written() == 0_i32.to_ne_bytes());
            wait_until(|| !latency_guard.0.held.load(Ordering::Relaxed));
        }
        let watch = Arc::downgrade(&latency_guard.0);
        drop(latency_guard);
        wait_until(|| watch.strong_count() == 0);
    }

    #[test]
    fn without_the_device_the_guard_is_off() {
        let latency_guard = LatencyGuard::with_device("/nowhere/at/all".into());
        for _ in 0..2 {
            walk(&latency_guard);
            wait_until(|| !latency_guard.is_held());
        }
        wait_until(|| *latency_guard.0.state.lock() == GuardState::Ended);
        walk(&latency_guard);
        assert!(!latency_guard.is_held());
    }
}
