//! The thread that learns what is touched first, and fetches ahead what was.

use std::io;
use std::sync::Arc;

use super::serving::Serving;

/// Starts it, if the mount is to learn.
pub fn start(serving: &Arc<Serving>) -> io::Result<()> {
    if !serving.fs.learns() {
        return Ok(());
    }
    let serving = serving.clone();
    let warm_up = move || {
        let _in_span = serving.span.enter();
        let ended = || serving.has_ended();
        serving.fs.warm_up(ended);
    };
    std::thread::Builder::new()
        .name("warm-up".into())
        .spawn(warm_up)?;
    Ok(())
}
