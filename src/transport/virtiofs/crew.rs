//! The thread of a queue.
//!
//! It sleeps until the guest kicks the queue, and serves the queue's requests in place. A request
//! that has to wait for an upstream is parked and answered by the async runtime later, so that it
//! delays no other.
//!
//! The thread listens on an edge-triggered epoll, and kicks are never read: their number carries no
//! information.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::ring::{Ring, Took};
use super::session::Guest;

/// How long to wait when epoll fails.
const PAUSE: Duration = Duration::from_millis(250);

/// The event sources that wake a queue's thread.
#[derive(Debug)]
pub struct Crew {
    kicks: OwnedFd,
    /// Registered beside the kicks, and always readable once the connection has ended.
    end: OwnedFd,
    /// The connection has ended.
    dismissed: AtomicBool,
}

impl Crew {
    /// For a queue whose thread was not started yet.
    pub fn new() -> io::Result<Self> {
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
    pub fn kick_changes(&self, old: Option<BorrowedFd<'_>>, new: Option<BorrowedFd<'_>>) {
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
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    /// Starts the thread of `ring`, which owns this.
    pub fn start_worker(ring: &Ring, guest: &Arc<Guest>) -> io::Result<()> {
        let (ring, guest) = (ring.clone(), guest.clone());
        let work = move || {
            let crew = ring.crew();
            while !crew.dismissed.load(Ordering::Relaxed) {
                if crew.listen() {
                    serve(&ring, &guest);
                }
            }
        };
        let thread = std::thread::Builder::new().name("virtiofs-queue".into());
        thread.spawn(work).map(drop)
    }

    /// Waits for a kick; returns whether there was one.
    fn listen(&self) -> bool {
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

/// Serves what the queue holds, until it is empty.
pub fn serve(ring: &Ring, guest: &Arc<Guest>) {
    let Some(mut buffers) = guest.buffers() else {
        // The guest waits, which is better than a wrong answer. Its next kick tries again.
        return;
    };
    let _in_span = guest.span().enter();
    'more: loop {
        ring.want_kicks(false);
        loop {
            match ring.take(&mut buffers.request) {
                Took::Request { ticket, room } => {
                    let ring = ring.clone();
                    guest.answer(&mut buffers, room, move |reply| ring.reply(ticket, reply));
                }
                Took::Malformed(why) => guest.complain(&why.to_string()),
                Took::Nothing => break,
                Took::Stopped => break 'more,
                Took::Broken => {
                    guest.complain("its ring contradicts itself");
                    break 'more;
                }
            }
        }
        // A request that the guest added before it saw that kicks are wanted again has no kick.
        if !ring.want_kicks(true) {
            break;
        }
    }
    guest.keep(buffers);
}
