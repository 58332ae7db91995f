//! Keeping processors out of their sleep while a program walks.
//!
//! A program that asks one thing after the other sleeps while we answer, and we sleep until it asks.
//! Each of these sleeps is over in microseconds, but a processor with nothing to do stops, and
//! starting one again takes several times as long as the answer: a cold `find` spends most of its
//! time so. Whom a processor's stop costs too much can say so: as long as somebody has
//! `/dev/cpu_dma_latency` open and has written the longest wait that he can bear, no processor
//! stops for longer (the kernel's "PM QoS"). A wait of zero makes them spin where they are idle, and
//! one is woken there by a store to memory.
//!
//! That has a price, power and what hangs on it, so it is asked for only while it serves somebody:
//! when one thread has come back [`ENOUGH`] times in a row, each time soon after its answer, and until
//! a few milliseconds after it has stopped to. The request ends with the descriptor, so that no
//! death of this process can leave it behind. Where the device is not ours to open, nothing is kept
//! awake but the worker itself ([`look_out`](super::look_out)).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Where to say how long a wait can be borne.
const DEVICE: &str = "/dev/cpu_dma_latency";
/// Requests in a row that make a walk.
const ENOUGH: u32 = 32;
/// How long a walk may pause and still be one.
const PAUSE: Duration = Duration::from_millis(5);

/// Watches for walks, and keeps the processors awake during one.
pub(super) struct Vigil(Arc<Shared>);

struct Shared {
    device: PathBuf,
    /// Requests in a row that came soon.
    streak: AtomicU32,
    /// Whether the processors are kept awake, or soon will be.
    kept: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// Who keeps watch.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nobody yet.
    #[default]
    Unwatched,
    /// A thread.
    Watched,
    /// Nobody any more: there is nothing to watch, or the device is not for us.
    Ended,
}

impl Vigil {
    pub(super) fn new() -> Self {
        Self::with_device(DEVICE.into())
    }

    fn with_device(device: PathBuf) -> Self {
        Self(Arc::new(Shared {
            device,
            streak: AtomicU32::new(0),
            kept: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// A thread has asked again. Whether the processors are awake for it: nobody needs to look out.
    pub(super) fn is_kept(&self) -> bool {
        let kept = self.0.kept.load(Ordering::Relaxed);
        if kept {
            self.0.streak.fetch_add(1, Ordering::Relaxed);
        }
        kept
    }

    /// Whether a thread that has asked again did so `soon`.
    pub(super) fn saw(&self, soon: bool) {
        if !soon {
            self.0.streak.store(0, Ordering::Relaxed);
        } else if self.0.streak.fetch_add(1, Ordering::Relaxed) == ENOUGH {
            self.keep();
        }
    }

    fn keep(&self) {
        let mut state = self.0.state.lock();
        if *state == State::Unwatched {
            let shared = self.0.clone();
            let watch = std::thread::Builder::new().name("vigil".into());
            match watch.spawn(move || shared.watch()) {
                Ok(_) => *state = State::Watched,
                Err(error) => tracing::debug!(%error, "cannot start a thread to keep vigil"),
            }
        }
        if *state == State::Watched {
            self.0.kept.store(true, Ordering::Relaxed);
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        *self.0.state.lock() = State::Ended;
        self.0.changed.notify_one();
    }
}

impl Shared {
    /// Keeps the processors awake while somebody walks, again and again.
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
                    *self.state.lock() = State::Ended;
                }
            }
            self.streak.store(0, Ordering::Relaxed);
            self.kept.store(false, Ordering::Relaxed);
        }
    }

    /// Whether there is one; else nobody is left to walk.
    fn wait_for_a_walk(&self) -> bool {
        let mut state = self.state.lock();
        while *state == State::Watched {
            if self.kept.load(Ordering::Relaxed) {
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

    /// Holds while it lives that no processor may take time to wake.
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

    fn walk(vigil: &Vigil) {
        for _ in 0..=ENOUGH {
            vigil.saw(true);
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
    fn a_walk_is_kept_awake_for_and_its_end_is_noticed() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let vigil = Vigil::with_device(device.path().into());
        let told = || std::fs::read(device.path()).unwrap();
        for _ in 0..2 {
            std::fs::write(device.path(), b"").unwrap();
            for _ in 0..3 * ENOUGH {
                vigil.saw(true);
                vigil.saw(false);
            }
            assert!(!vigil.is_kept());
            walk(&vigil);
            wait_until(|| told() == 0_i32.to_ne_bytes());
            wait_until(|| !vigil.0.kept.load(Ordering::Relaxed));
        }
        let watch = Arc::downgrade(&vigil.0);
        drop(vigil);
        wait_until(|| watch.strong_count() == 0);
    }

    #[test]
    fn without_the_device_nobody_is_thought_to_keep_vigil() {
        let vigil = Vigil::with_device("/nowhere/at/all".into());
        for _ in 0..2 {
            walk(&vigil);
            wait_until(|| !vigil.is_kept());
        }
        wait_until(|| *vigil.0.state.lock() == State::Ended);
        walk(&vigil);
        assert!(!vigil.is_kept());
    }
}
