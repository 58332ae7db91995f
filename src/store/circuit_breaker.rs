//! The circuit breaker of an endpoint.
//!
//! After a call that found no connection or missed its deadline, if no other call succeeded
//! meanwhile, the breaker opens: calls fail at once, without waiting, except one probe at a time.
//! So no reader waits for a full deadline twice. A stream counts as a success once some of its content
//! has arrived, and as a failure if it stalls: an endpoint that begins every answer and ends none opens
//! the breaker as well.
//!
//! It logs when it opens and when it closes, but no probe that fails in between.
//!
//! An endpoint that sent bytes that do not match their digest is marked for as long as the process
//! lives. It still gets requests (everything is verified), but data that cannot be bound to a
//! digest at once is not accepted from it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::failure::CallFailure;

/// How long the breaker stays open at first, and at most; it doubles. A recovered endpoint is
/// noticed within the longest pause, at the price of a call now and then.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The state of an endpoint.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    state: Mutex<BreakerState>,
    corrupt_responses: AtomicU64,
}

#[derive(Debug)]
struct BreakerState {
    last_success: Instant,
    pause: Duration,
    open: Option<OpenState>,
}

#[derive(Debug)]
struct OpenState {
    /// Until when calls fail at once.
    until: Instant,
    /// With what error.
    failure: CallFailure,
    since: Instant,
    endpoint: String,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            state: Mutex::new(BreakerState {
                last_success: Instant::now(),
                pause: FIRST_PAUSE,
                open: None,
            }),
            corrupt_responses: AtomicU64::new(0),
        }
    }
}

impl CircuitBreaker {
    /// Begins a call that may take as long as `deadline`; returns its start.
    pub(super) fn begin(&self, deadline: Duration) -> Result<Instant, CallFailure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let pause = state.pause;
        if let Some(open) = &mut state.open {
            if now < open.until {
                return Err(open.failure.clone());
            }
            // This call is the probe; the others still fail while it is in flight.
            open.until = now + pause.max(deadline);
        }
        Ok(now)
    }

    /// Whether calls fail at once, or one is in flight that decides that.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }

    /// A call was answered, even if with an error.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        state.last_success = Instant::now();
        state.pause = FIRST_PAUSE;
        let Some(open) = state.open.take() else {
            return;
        };
        drop(state);
        tracing::info!(
            ENDPOINT = open.endpoint,
            "the endpoint answers again, after {:.1?}",
            open.since.elapsed()
        );
    }

    /// The call that began at `began` found no connection, or missed its deadline. Returns whether it opened
    /// the breaker, or was a probe.
    pub(super) fn failed(&self, endpoint: &str, began: Instant, failure: &CallFailure) -> bool {
        let mut state = self.state.lock();
        if state.last_success > began {
            // Other calls got answers meanwhile: only this call hangs, not the endpoint.
            return false;
        }
        let pause = state.pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        let now = Instant::now();
        let before = state.open.take();
        state.open = Some(OpenState {
            until: now + pause,
            failure: failure.clone(),
            since: before.as_ref().map_or(now, |open| open.since),
            endpoint: endpoint.to_owned(),
        });
        state.pause = (state.pause * 2).min(LONGEST_PAUSE);
        drop(state);
        if before.is_none() {
            tracing::warn!(
                ENDPOINT = endpoint,
                error = %failure.clone().of(endpoint, "a call"),
                "the endpoint gets no calls until it answers a probe"
            );
        }
        before.is_none_or(|open| open.since < began)
    }

    /// It sent bytes that do not match their digest.
    pub(super) fn sent_corrupt(&self) {
        self.corrupt_responses.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it ever did.
    pub(super) fn has_sent_corrupt(&self) -> bool {
        self.corrupt_responses.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::store::failure::FailureKind;

    /// Keeps the log.
    #[derive(Clone, Default)]
    struct LogBuffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogBuffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Found by a user: a line each six seconds for as long as an endpoint was down.
    #[test]
    fn an_endpoint_that_stays_down_is_one_line_and_its_return_another() {
        let log = LogBuffer::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let breaker = CircuitBreaker::default();
            let refused =
                CallFailure::Failed(FailureKind::Unreachable, "connection refused".to_owned());
            breaker.succeeded();
            for _ in 0..10 {
                breaker.failed("grpc+http://host", Instant::now(), &refused);
            }
            breaker.succeeded();
            breaker.succeeded();
        });
        let log = String::from_utf8(std::mem::take(&mut *log.0.lock())).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines.len(), 2, "{log}");
        assert!(
            lines[0].contains("WARN") && lines[1].contains("INFO"),
            "{log}"
        );
        for line in &lines {
            assert!(line.contains("ENDPOINT=\"grpc+http://host\""), "{line}");
        }
        assert!(lines[0].contains("connection refused"), "{log}");
        assert!(!lines[0].contains("Status("), "{log}");
        assert!(lines[1].contains("answers again"), "{log}");
    }
}
