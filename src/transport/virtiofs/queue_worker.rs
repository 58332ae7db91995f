//! The thread of a queue.
//!
//! It sleeps until the guest kicks the queue, and serves the queue's requests in place. A request
//! that has to wait for an upstream is parked and answered by the async runtime later, so that it
//! delays no other.

use std::io;
use std::sync::Arc;

use super::ring::{Ring, TakenRequest};
use super::session::Guest;

/// Starts the thread of `ring`.
pub(super) fn start(ring: &Ring, guest: &Arc<Guest>) -> io::Result<()> {
    let (ring, guest) = (ring.clone(), guest.clone());
    let work = move || {
        let queue_events = ring.queue_events();
        while !queue_events.is_dismissed() {
            if queue_events.listen() {
                serve(&ring, &guest);
            }
        }
    };
    let thread = std::thread::Builder::new().name("virtiofs-queue".into());
    thread.spawn(work).map(drop)
}

/// Serves what the queue holds, until it is empty.
pub(super) fn serve(ring: &Ring, guest: &Arc<Guest>) {
    let Some(mut buffers) = guest.buffers() else {
        // The guest waits, which is better than a wrong answer. Its next kick tries again.
        return;
    };
    let _in_span = guest.span().enter();
    'more: loop {
        ring.want_kicks(false);
        loop {
            match ring.take(&mut buffers.request) {
                TakenRequest::Request { ticket, room } => {
                    let ring = ring.clone();
                    guest.answer(&mut buffers, room, move |reply| ring.reply(ticket, reply));
                }
                TakenRequest::Malformed(why) => guest.complain(&why.to_string()),
                TakenRequest::Nothing => break,
                TakenRequest::Stopped => break 'more,
                TakenRequest::Broken => {
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
