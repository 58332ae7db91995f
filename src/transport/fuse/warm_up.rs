//! The thread that learns what is touched first, and fetches ahead what was.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::session::Shared;

/// Starts it, if the mount is to learn.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    if !shared.fs().learns() {
        return Ok(());
    }
    let shared = shared.clone();
    let warm_up = move || {
        let _in_span = shared.span.enter();
        let ended = || shared.ended.load(Ordering::Relaxed);
        shared.fs().warm_up(ended);
    };
    std::thread::Builder::new()
        .name("warm-up".into())
        .spawn(warm_up)?;
    Ok(())
}
