//! The thread that pushes contents into the kernel's page cache ahead of readers.

use std::io;
use std::sync::Arc;

use super::serving::Serving;

/// Starts it.
pub fn start(serving: &Arc<Serving>) -> io::Result<()> {
    // A channel of its own: it may wait for a page.
    let pages = serving.notices()?;
    let serving = serving.clone();
    let walk = move || {
        let ended = || serving.has_ended();
        serving.fs.walk_ahead(&pages, ended);
    };
    std::thread::Builder::new()
        .name("walk-ahead".into())
        .spawn(walk)?;
    Ok(())
}
