//! Whether calls to an endpoint are worth their while.
//!
//! After a call that found nobody or got no answer in time, if nothing else succeeded meanwhile, the
//! endpoint *rests*: calls fail at once, without waiting, but for one probe at a time. So nothing
//! waits for a full deadline twice.
//!
//! An endpoint that sent what is not what its digest promises is marked a **liar**: for good, as
//! long as the process lives. It is still asked (everything is verified), but what cannot be bound
//! to a digest at once is not taken from it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::failure::Failure;

/// How long an endpoint rests first, and at most; it doubles. Who comes back is noticed within the
/// longest rest, at the price of a call now and then.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(5);

/// How an endpoint has behaved.
#[derive(Debug)]
pub(super) struct Reputation {
    state: Mutex<State>,
    lies: AtomicU64,
}

#[derive(Debug)]
struct State {
    last_success: Instant,
    rest: Duration,
    /// Until when calls fail at once, and with what.
    resting: Option<(Instant, Failure)>,
}

impl Reputation {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                last_success: Instant::now(),
                rest: FIRST_REST,
                resting: None,
            }),
            lies: AtomicU64::new(0),
        }
    }

    /// Lets a call begin that may take as long as `deadline`; gives the moment.
    pub(super) fn begin(&self, deadline: Duration) -> Result<Instant, Failure> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let rest = state.rest;
        if let Some((until, failure)) = &mut state.resting {
            if now < *until {
                return Err(failure.clone());
            }
            // This call is the probe; the others go on failing while it is under way.
            *until = now + rest.max(deadline);
        }
        Ok(now)
    }

    /// A call was answered, if not with what was hoped for.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        state.last_success = Instant::now();
        state.rest = FIRST_REST;
        state.resting = None;
    }

    /// The call that began then found nobody, or got no answer.
    pub(super) fn failed(&self, endpoint: &str, began: Instant, failure: &Failure) {
        let mut state = self.state.lock();
        if state.last_success > began {
            // Others got answers meanwhile: it is this call that hangs, not the endpoint.
            return;
        }
        let rest = state.rest.mul_f64(0.75 + fastrand::f64() / 2.0);
        tracing::warn!("{endpoint} rests for {rest:?}: {failure:?}");
        state.resting = Some((Instant::now() + rest, failure.clone()));
        state.rest = (state.rest * 2).min(LONGEST_REST);
    }

    /// It sent what is not what its digest promises.
    pub(super) fn lied(&self) {
        self.lies.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it ever did.
    pub(super) fn is_liar(&self) -> bool {
        self.lies.load(Ordering::Relaxed) > 0
    }
}
