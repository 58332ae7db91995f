//! The thread that records what is read first, and prefetches what was recorded.

use std::io;
use std::sync::Arc;

use super::serving::ServingMount;

/// Starts it, if the mount has warm-up.
pub(super) fn start(serving: &Arc<ServingMount>) -> io::Result<()> {
    if !serving.fs.records_accesses() {
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
