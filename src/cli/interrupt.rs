//! Ending on SIGINT, SIGTERM and SIGHUP, in order: what was begun is taken back.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::Failure;

/// Calls `stop` at the first SIGINT, SIGTERM or SIGHUP; the latter unless it was ignored when the
/// program was started (nohup). The second ends the process at once.
pub(super) fn on_interrupt(
    runtime: &Runtime,
    stop: impl Fn() + Send + 'static,
) -> Result<(), Failure> {
    let inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = match ignores_hang_up() {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    // A file beyond the limit (RLIMIT_FSIZE) is then an error of a write, and does not end the process.
    let too_large = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
    drop(inside);
    let told = Arc::new(AtomicBool::new(false));
    runtime.spawn(async move {
        let _too_large = too_large;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                Some(_) = async { hang_up.as_mut()?.recv().await } => {}
            }
            if told.swap(true, Ordering::Relaxed) {
                process::exit(130);
            }
            stop();
        }
    });
    Ok(())
}

/// Whether SIGHUP is ignored, by what the system says of this process (proc_pid_status(5)).
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 is signal 1.
    ignored.is_some_and(|mask| mask & 1 != 0)
}
