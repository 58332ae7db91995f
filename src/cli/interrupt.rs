//! Ending in order on SIGINT, SIGTERM and SIGHUP: unfinished work is undone.

use std::process;
use std::time::{Duration, Instant};

use crate::tree::discard_unfinished;
use futures_util::FutureExt;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::CommandFailure;

/// Two different signals within this time are one interrupt: systemd sends SIGTERM and SIGHUP together
/// (`SendSIGHUP=`).
const TOGETHER: Duration = Duration::from_secs(1);
/// The exit status of what an interrupt has ended: 128 and the number of SIGINT.
pub(super) const STATUS: i32 = 130;

/// Calls `stop` at the first SIGINT, SIGTERM or SIGHUP; the latter unless it was ignored when the
/// program was started (nohup). The second ends the process as soon as what an export has not finished is
/// removed; the third at once.
pub(super) fn on_interrupt(
    runtime: &Runtime,
    stop: impl Fn() + Send + 'static,
) -> Result<(), CommandFailure> {
    let inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = match ignores_hang_up() {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    // A file beyond the limit (RLIMIT_FSIZE) is then an error of a write, and does not end the
    // process.
    let too_large = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
    drop(inside);
    runtime.spawn(
        async move {
            let _too_large = too_large;
            let mut last: Option<(SignalKind, Instant)> = None;
            let mut signals = 0;
            loop {
                let kind = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    Some(_) = async { hang_up.as_mut()?.recv().await } => SignalKind::hangup(),
                };
                if last.is_some_and(|(other, when)| other != kind && when.elapsed() < TOGETHER) {
                    continue;
                }
                last = Some((kind, Instant::now()));
                signals += 1;
                match signals {
                    1 => stop(),
                    2 => end_soon(),
                    _ => process::exit(STATUS),
                }
            }
        }
        .boxed(),
    );
    Ok(())
}

/// Ends the process without waiting for what it does.
fn end_soon() {
    let discard = || {
        discard_unfinished();
        process::exit(STATUS);
    };
    // In a thread of its own: another interrupt must be heard.
    let thread = std::thread::Builder::new().name("discard".into());
    if thread.spawn(discard).is_err() {
        process::exit(STATUS);
    }
}

/// Whether SIGHUP is ignored, by this process's status in /proc (proc_pid_status(5)).
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 is signal 1.
    ignored.is_some_and(|mask| mask & 1 != 0)
}
