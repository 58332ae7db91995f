//! The circuit breaker of an endpoint.
//!
//! After a call that found no connection or missed its deadline, if no other call succeeded
//! meanwhile, the breaker opens: calls fail at once, without waiting, except one probe at a time.
//! So no reader waits for a full deadline twice. A stream counts as a success once some of its content
//! has arrived, and as a failure if it stalls: an endpoint that begins every answer and ends none opens
//! the breaker as well.
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
    /// Until when calls fail at once, and with what error.
    open: Option<(Instant, CallFailure)>,
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
        if let Some((until, failure)) = &mut state.open {
            if now < *until {
                return Err(failure.clone());
            }
            // This call is the probe; the others still fail while it is in flight.
            *until = now + pause.max(deadline);
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
        state.open = None;
    }

    /// The call that began at `began` found no connection, or missed its deadline.
    pub(super) fn failed(&self, endpoint: &str, began: Instant, failure: &CallFailure) {
        let mut state = self.state.lock();
        if state.last_success > began {
            // Other calls got answers meanwhile: only this call hangs, not the endpoint.
            return;
        }
        let pause = state.pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        tracing::warn!("{endpoint} gets no calls for {pause:?}: {failure:?}");
        state.open = Some((Instant::now() + pause, failure.clone()));
        state.pause = (state.pause * 2).min(LONGEST_PAUSE);
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
