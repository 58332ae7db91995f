//! The worker pool of a mount.
//!
//! Each worker blocks in `read()` until there is a request, and answers it itself. None of them
//! waits for an upstream: a request that has to is parked ([`super::parked`]), and its worker reads
//! the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::device::{self, Received};
use super::look_out::LookOut;
use super::pulse::Stamps;
use super::serving::Serving;

/// The workers of a mount.
pub(super) struct Crew {
    /// The heartbeat of each.
    pub(super) stamps: Stamps,
    look_out: LookOut,
    /// Notified, under its lock, when a worker ends.
    ended: (Mutex<()>, Condvar),
}

impl Crew {
    /// No workers yet. `stay_awake` is whether processors are kept from sleeping while a program
    /// sends one request after the other.
    pub(super) fn new(stay_awake: bool) -> Self {
        Self {
            stamps: Stamps::default(),
            look_out: LookOut::new(stay_awake),
            ended: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Starts `count` workers of `serving`, which owns this.
    pub(super) fn start(serving: &Arc<Serving>, count: usize) -> io::Result<()> {
        (0..count.max(1)).try_for_each(|_| Self::start_worker(serving))
    }

    fn start_worker(serving: &Arc<Serving>) -> io::Result<()> {
        let served = serving.clone();
        let work = move || {
            served.crew.work(&served);
            let (lock, ended) = &served.crew.ended;
            let _locked = lock.lock();
            ended.notify_all();
        };
        let thread = std::thread::Builder::new().name("fuse".into());
        thread.spawn(work).map(drop)
    }

    /// Waits until `has_ended`, which it notices for certain if a worker has; for no longer than
    /// `patience`.
    pub(super) fn wait(&self, patience: Duration, has_ended: impl Fn() -> bool) {
        let (lock, ended) = &self.ended;
        let mut locked = lock.lock();
        if !has_ended() {
            ended.wait_for(&mut locked, patience);
        }
    }

    /// Serves requests until the mount ends.
    fn work(&self, serving: &Arc<Serving>) {
        let mut request = vec![0; device::REQUEST_BYTES];
        let mut reply = vec![0; device::REPLY_BYTES];
        let enrolled = self.stamps.enroll();
        // The thread whose request was answered last.
        let mut answered = None;
        let _in_span = serving.span.enter();
        loop {
            if let Some(thread) = answered.take() {
                self.look_out.stay_for(thread, &serving.device);
            }
            match device::receive(&serving.device, &mut request) {
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
        serving.parked.end();
    }
}
