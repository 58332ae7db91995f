//! The workers of a mount.
//!
//! Each worker blocks in `read()` until there is a request, and answers it itself. None of them
//! waits for an upstream: a request that has to is parked ([`super::parked`]), and its worker reads
//! the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::{self, ReceivedRequest};
use super::serving::ServingMount;

/// Starts `count` workers of `serving`, at least one.
pub(super) fn start(serving: &Arc<ServingMount>, count: usize) -> io::Result<()> {
    (0..count.max(1)).try_for_each(|_| start_worker(serving.clone()))
}

fn start_worker(serving: Arc<ServingMount>) -> io::Result<()> {
    let work = move || {
        work(&serving);
        serving.worker_pool.notify_end();
    };
    let thread = std::thread::Builder::new().name("fuse".into());
    thread.spawn(work).map(drop)
}

/// Serves requests until the mount ends.
fn work(serving: &Arc<ServingMount>) {
    let pool = &serving.worker_pool;
    let mut request = vec![0; device::REQUEST_BYTES];
    let mut reply = vec![0; device::REPLY_BYTES];
    let enrolled = pool.beats.enroll();
    // The thread whose request was answered last.
    let mut answered = None;
    let _in_span = serving.span.enter();
    loop {
        if let Some(thread) = answered.take() {
            pool.busy_polling.stay_for(thread, &serving.device);
        }
        match device::receive(&serving.device, &mut request) {
            Ok(ReceivedRequest::Request(length)) => {
                enrolled.beat.begin();
                serving.answer(&mut request[..length], &mut reply);
                enrolled.beat.end();
                answered = device::header(&request).map(|header| header.pid);
            }
            Ok(ReceivedRequest::Nothing) => {}
            Ok(ReceivedRequest::Unmounted) => break,
            Err(error) => {
                tracing::error!(%error, "cannot read from /dev/fuse");
                break;
            }
        }
    }
    serving.ended.store(true, Ordering::Relaxed);
    serving.parked.end();
}
