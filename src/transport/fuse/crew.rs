//! The threads that serve a mount: its workers, and spares that stand in while they wait.
//!
//! Each blocks in `read()` until there is a request, and answers it itself. A worker that has to
//! wait for a far store says so ([`Workers`]), and a spare is started if nobody else is left to read;
//! it ends when others are.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::device::{self, Received};
use super::look_out::LookOut;
use super::pulse::{self, Stamps};
use super::serving::Serving;
use crate::fs::Workers;

/// Spare workers, at most, beside the usual ones: each holds a request that waits for a far store.
const MOST_SPARES: usize = 256;

/// The threads of a mount.
pub(super) struct Crew {
    serving: OnceLock<Weak<Serving>>,
    /// What each is at.
    pub(super) stamps: Stamps,
    look_out: LookOut,
    /// Workers that wait for a request.
    idle: AtomicUsize,
    /// Spare workers that run.
    spares: AtomicUsize,
    /// Notified, under its lock, when a worker ends.
    ended: (Mutex<()>, Condvar),
}

impl Crew {
    /// Nobody yet. `stay_awake` is whether processors are kept from sleeping while a program asks
    /// one thing after the other.
    pub(super) fn new(stay_awake: bool) -> Self {
        Self {
            serving: OnceLock::new(),
            stamps: Stamps::default(),
            look_out: LookOut::new(stay_awake),
            idle: AtomicUsize::new(0),
            spares: AtomicUsize::new(0),
            ended: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Starts `count` workers of `serving`, whose crew this is.
    pub(super) fn start(serving: &Arc<Serving>, count: usize) -> io::Result<()> {
        let _ = serving.crew.serving.set(Arc::downgrade(serving));
        (0..count.max(1)).try_for_each(|_| Self::start_worker(serving, false))
    }

    fn start_worker(serving: &Arc<Serving>, spare: bool) -> io::Result<()> {
        let served = serving.clone();
        let work = move || {
            served.crew.work(&served, spare);
            let (lock, ended) = &served.crew.ended;
            let _locked = lock.lock();
            ended.notify_all();
        };
        let thread = std::thread::Builder::new();
        let thread = thread.name(if spare { "fuse-spare" } else { "fuse" }.into());
        thread.spawn(work).map(drop)
    }

    /// Waits until `has_ended`, of which it is sure to hear if a worker has seen it; for no longer than
    /// `patience`.
    pub(super) fn wait(&self, patience: Duration, has_ended: impl Fn() -> bool) {
        let (lock, ended) = &self.ended;
        let mut locked = lock.lock();
        if !has_ended() {
            ended.wait_for(&mut locked, patience);
        }
    }

    /// Serves requests until the mount ends, or, as a spare, until others are idle again.
    fn work(&self, serving: &Serving, spare: bool) {
        let mut request = vec![0; device::REQUEST_BYTES];
        let mut reply = vec![0; device::REPLY_BYTES];
        let enrolled = self.stamps.enroll();
        // Whose request was answered last.
        let mut answered = None;
        let _in_span = serving.span.enter();
        loop {
            let others = self.idle.fetch_add(1, Ordering::Relaxed);
            if spare && others > 0 {
                self.idle.fetch_sub(1, Ordering::Relaxed);
                self.spares.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            if let Some(thread) = answered.take() {
                self.look_out.stay_for(thread, &serving.device);
            }
            let received = device::receive(&serving.device, &mut request);
            self.idle.fetch_sub(1, Ordering::Relaxed);
            match received {
                Ok(Received::Request(length)) => {
                    enrolled.stamp.begin();
                    serving.answer(&mut request[..length], &mut reply);
                    enrolled.stamp.end();
                    answered = device::header(&request).map(|header| header.pid);
                }
                Ok(Received::Nothing) => {}
                Ok(Received::Unmounted) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot read from /dev/fuse");
                    break;
                }
            }
        }
        serving.ended.store(true, Ordering::Relaxed);
    }
}

impl Workers for Crew {
    fn wait_begins(&self) {
        pulse::set_waiting(true);
        let one_more = |spares| (spares < MOST_SPARES).then_some(spares + 1);
        if self.idle.load(Ordering::Relaxed) > 0
            || self
                .spares
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                .is_err()
        {
            return;
        }
        let serving = self.serving.get().and_then(Weak::upgrade);
        if let Some(serving) = serving
            && let Err(error) = Self::start_worker(&serving, true)
        {
            self.spares.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot start a spare worker");
        }
    }

    fn wait_ends(&self) {
        pulse::set_waiting(false);
    }
}
