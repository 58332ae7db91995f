//! A progress line, on a terminal only.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::failure::print_error;
use super::units;

/// How often the line is drawn again.
const INTERVAL: Duration = Duration::from_millis(100);
/// The time left is shown from this moment on: before, it is a guess.
const FIRST_ESTIMATE: Duration = Duration::from_secs(2);
/// A time left that is longer is no estimate.
const LONGEST_ESTIMATE: Duration = Duration::from_secs(100 * 24 * 3600);

/// Whether the command was called with `--quiet`.
static QUIET: AtomicBool = AtomicBool::new(false);

/// The `--quiet` of verbs that show progress.
#[derive(Debug, Args)]
pub(super) struct QuietArgument {
    /// Print results and errors only: no progress, no notes
    ///
    /// Progress is shown on a terminal only.
    #[arg(long, short)]
    quiet: bool,
}

/// Keeps this process quiet from now on.
pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

impl QuietArgument {
    /// Keeps this process quiet from now on, if the argument is given.
    pub(super) fn apply(&self) {
        QUIET.fetch_or(self.quiet, Ordering::Relaxed);
    }
}

/// Whether progress is shown: standard error is a terminal.
pub(super) fn is_shown() -> bool {
    !QUIET.load(Ordering::Relaxed) && std::io::stderr().is_terminal()
}

/// Prints a line on standard error that is no error, unless the command is quiet.
pub(super) fn print_note(note: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        print_error(note);
    }
}

/// How far a command is.
pub(super) struct ProgressState {
    /// What is done, in words.
    pub(super) words: String,
    /// Bytes so far.
    pub(super) bytes: u64,
    /// What is done of how much, in any unit that grows evenly, if that is known.
    pub(super) part: Option<(u64, u64)>,
}

/// The share that is done, and the time that the rest takes if it goes on at the same rate.
fn estimate(elapsed: Duration, done: u64, all: u64) -> Option<(f64, Duration)> {
    if elapsed < FIRST_ESTIMATE || done == 0 || done > all {
        return None;
    }
    let share = done as f64 / all as f64;
    let remaining = elapsed.as_secs_f64() * (1.0 - share) / share;
    let remaining = Duration::try_from_secs_f64(remaining).ok()?;
    (remaining <= LONGEST_ESTIMATE).then_some((share, remaining))
}

/// The words of `state`, with the time left.
fn described(state: &ProgressState, elapsed: Duration) -> String {
    let estimate = state
        .part
        .and_then(|(done, all)| estimate(elapsed, done, all));
    match estimate {
        Some((share, left)) => {
            let (share, left) = (units::percent(share), units::span(left));
            format!("{}, {share}, {left} left", state.words)
        }
        None => state.words.clone(),
    }
}

/// A line on standard error with files or objects, bytes, rate and time left; removed on drop.
pub(super) struct ProgressLine {
    ended: Arc<AtomicBool>,
    drawer: Option<JoinHandle<()>>,
}

impl ProgressLine {
    /// Shows `state` until this is dropped. Without a terminal there is nothing to show and `state` is not
    /// called.
    pub(super) fn show(
        verb: &'static str,
        state: impl Fn() -> ProgressState + Send + 'static,
    ) -> Self {
        Self::draw(
            verb,
            "{prefix} {bytes} ({bytes_per_sec}) in {elapsed}: {msg} {spinner}",
            state,
        )
    }

    /// As [`show`](Self::show), for work that is not measured in bytes.
    pub(super) fn show_without_bytes(
        verb: &'static str,
        state: impl Fn() -> ProgressState + Send + 'static,
    ) -> Self {
        Self::draw(verb, "{prefix} in {elapsed}: {msg} {spinner}", state)
    }

    fn draw(
        verb: &'static str,
        template: &str,
        state: impl Fn() -> ProgressState + Send + 'static,
    ) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        if !is_shown() {
            let drawer = None;
            return Self { ended, drawer };
        }
        let style = ProgressStyle::with_template(template);
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(verb);
        let (until, began) = (ended.clone(), Instant::now());
        let drawer = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let state = state();
                bar.set_message(described(&state, began.elapsed()));
                bar.set_position(state.bytes);
                bar.tick();
                std::thread::park_timeout(INTERVAL);
            }
            bar.finish_and_clear();
        });
        Self {
            ended,
            drawer: Some(drawer),
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(drawer) = self.drawer.take() {
            drawer.thread().unpark();
            // A panic of the drawing thread was reported already.
            let _ = drawer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_what_the_rest_takes_at_the_same_rate() {
        let state = |part| ProgressState {
            words: "3 files".to_owned(),
            bytes: 0,
            part,
        };
        let after = |seconds, part| described(&state(part), Duration::from_secs(seconds));
        assert_eq!(after(60, None), "3 files");
        assert_eq!(after(60, Some((1, 4))), "3 files, 25.0 %, 3 min left");
        assert_eq!(after(60, Some((4, 4))), "3 files, 100 %, 0 s left");
        // Nothing to compute it from, or a claim that was wrong.
        assert_eq!(after(1, Some((1, 4))), "3 files");
        assert_eq!(after(60, Some((0, 4))), "3 files");
        assert_eq!(after(60, Some((5, 4))), "3 files");
        assert_eq!(after(60, Some((1, u64::MAX))), "3 files");
    }
}
