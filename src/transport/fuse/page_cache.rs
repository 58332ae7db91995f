//! The thread that walks ahead of readers, pushing contents into the kernel's page cache.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::session::Shared;

/// Starts it.
pub fn start(shared: &Arc<Shared>) -> io::Result<()> {
    // A channel of its own: it may wait for a page.
    let pages = shared.notices()?;
    let shared = shared.clone();
    let walk = move || {
        let ended = || shared.ended.load(Ordering::Relaxed);
        shared.fs().walk_ahead(&pages, ended);
    };
    std::thread::Builder::new()
        .name("walk-ahead".into())
        .spawn(walk)?;
    Ok(())
}
