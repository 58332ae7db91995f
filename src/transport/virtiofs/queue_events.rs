//! What wakes the thread of a queue ([`super::queue_worker`]).
//!
//! The thread listens on an edge-triggered epoll, and kicks are never read: their number carries no
//! information.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

/// How long to wait when epoll fails.
const PAUSE: Duration = Duration::from_millis(250);

/// The event sources that wake a queue's thread.
#[derive(Debug)]
pub(super) struct QueueEvents {
    kicks: OwnedFd,
    /// Registered beside the kicks, and always readable once the connection has ended.
    end: OwnedFd,
    /// The connection has ended.
    dismissed: AtomicBool,
}

impl QueueEvents {
    /// For a queue whose thread was not started yet.
    pub(super) fn new() -> io::Result<Self> {
        let kicks = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&kicks, &end, data, epoll::EventFlags::IN)?;
        Ok(Self {
            kicks,
            end,
            dismissed: AtomicBool::new(false),
        })
    }

    /// The queue is kicked through another descriptor from here on.
    pub(super) fn kick_changes(&self, old: Option<BorrowedFd<'_>>, new: Option<BorrowedFd<'_>>) {
        if let Some(old) = old {
            // Fails if it was not registered, which is harmless.
            let _ = epoll::delete(&self.kicks, old);
        }
        if let Some(new) = new {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(&self.kicks, new, epoll::EventData::new_u64(0), flags) {
                tracing::warn!(%error, "cannot listen for a queue's kicks");
            }
        }
    }

    /// Ends the thread.
    pub(super) fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    /// Whether the connection has ended.
    pub(super) fn is_dismissed(&self) -> bool {
        self.dismissed.load(Ordering::Relaxed)
    }

    /// Waits for a kick; returns whether there was one.
    pub(super) fn listen(&self) -> bool {
        let mut events = Vec::with_capacity(1);
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.kicks, room, None) {
            Ok(count) => count > 0,
            Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot listen for a queue's kicks");
                std::thread::sleep(PAUSE);
                true
            }
        }
    }
}
