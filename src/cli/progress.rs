//! A progress line, on a terminal only.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the line is drawn again.
const INTERVAL: Duration = Duration::from_millis(100);

/// Whether standard error is a terminal.
pub(super) fn is_shown() -> bool {
    std::io::stderr().is_terminal()
}

/// A line on standard error with files, bytes and rate; removed on drop.
pub(super) struct ProgressLine {
    ended: Arc<AtomicBool>,
    drawer: Option<JoinHandle<()>>,
}

impl ProgressLine {
    /// Shows the text and bytes of `state` until this is dropped. Without a terminal there is
    /// nothing to show and `state` is not called.
    pub(super) fn show(
        verb: &'static str,
        state: impl Fn() -> (String, u64) + Send + 'static,
    ) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        if !is_shown() {
            let drawer = None;
            return Self { ended, drawer };
        }
        let style = ProgressStyle::with_template(
            "{prefix} {msg}, {bytes} ({bytes_per_sec}) {elapsed} {spinner}",
        );
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(verb);
        let until = ended.clone();
        let drawer = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let (words, bytes) = state();
                bar.set_message(words);
                bar.set_position(bytes);
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
