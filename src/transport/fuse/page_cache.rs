//! The threads that change what is in the kernel's page cache: one walks ahead of readers and pushes
//! contents, one drops what the kernel has twice of an image.

use std::io;
use std::sync::Arc;

use super::serving::ServingMount;

/// Starts it.
pub(super) fn start(serving: &Arc<ServingMount>) -> io::Result<()> {
    // A channel of its own: it may wait for a page.
    let pages = serving.notifier()?;
    let serving = serving.clone();
    let walk = move || {
        let ended = || serving.has_ended();
        serving.fs.page_cache_push(&pages, ended);
    };
    std::thread::Builder::new()
        .name("page-cache-push".into())
        .spawn(walk)?;
    Ok(())
}

/// Starts the one for the image that `serving` serves.
pub(super) fn start_for_image(serving: &Arc<ServingMount>) -> io::Result<()> {
    let pages = serving.notifier()?;
    let serving = serving.clone();
    let drop_pages = move || {
        let ended = || serving.has_ended();
        serving.fs.drop_image_pages(&pages, ended);
    };
    std::thread::Builder::new()
        .name("image-pages".into())
        .spawn(drop_pages)?;
    Ok(())
}
