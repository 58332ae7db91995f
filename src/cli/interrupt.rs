//! Ending on SIGINT and SIGTERM, in order: what was begun is taken back.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;

/// Calls `stop` at the first SIGINT or SIGTERM. The second ends the process at once.
pub(super) fn on_interrupt(
    runtime: &Runtime,
    stop: impl Fn() + Send + 'static,
) -> Result<(), Failure> {
    let inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(inside);
    let told = Arc::new(AtomicBool::new(false));
    runtime.spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if told.swap(true, Ordering::Relaxed) {
                process::exit(130);
            }
            stop();
        }
    });
    Ok(())
}
