//! What is done for whom, for those who want to follow it: a request that has to wait, and within it
//! what is asked of a store far away.
//!
//! Both are spans of `tracing` under one target. Where nobody wants them, which is the rule, a request
//! that is answered in place pays one look at a flag, and one that waits makes no span either; so the
//! flag is looked at and not what `tracing` itself would say, which takes longer to find out.
//!
//! Some fields are for the exporter and not for readers, after the habit of `tracing-opentelemetry`:
//! `otel.name`, what the span is called; `otel.kind`; and `otel.ago`, for how many microseconds what
//! the span stands for had already been going on when the span was made.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::Span;
use tracing::instrument::{Instrument, Instrumented};

/// The target of the spans.
pub const TARGET: &str = "castore_fs::spans";

static WANTED: AtomicBool = AtomicBool::new(false);

/// From here on spans are made.
pub fn want() {
    WANTED.store(true, Ordering::Relaxed);
}

/// Whether anybody wants spans.
#[inline]
pub fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// `work`, as part of what is being done here even if it is done elsewhere.
pub fn follow<F: Future>(work: F) -> Instrumented<F> {
    match wanted() {
        true => work.in_current_span(),
        false => work.instrument(Span::none()),
    }
}
