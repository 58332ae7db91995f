//! Tracing spans: a request that has to wait, and within it the calls to an upstream.
//!
//! Both are spans of `tracing` under one target. Without an exporter, which is the rule, a request
//! that is answered in place pays one check of a flag, and one that waits makes no span either. The
//! flag is checked instead of `tracing`'s own filter because that takes longer.
//!
//! Some fields are for the exporter, following `tracing-opentelemetry`: `otel.name`, the span's
//! name; `otel.kind`; and `otel.ago`, how many microseconds before the span was made its work
//! began.

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

/// Whether spans are exported.
#[inline]
pub fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// `work`, as part of the current span even if it runs elsewhere.
pub fn follow<F: Future>(work: F) -> Instrumented<F> {
    match wanted() {
        true => work.in_current_span(),
        false => work.instrument(Span::none()),
    }
}
