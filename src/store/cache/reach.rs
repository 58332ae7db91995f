//! The circuit breaker for the upstream.
//!
//! After a call without an answer (a deadline was missed, or the connection failed) the breaker
//! opens: later calls fail at once with that same error, and no reader waits for a full deadline
//! again. One call is let through now and then as a probe; any answer closes the breaker.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::Error;

/// How long it stays open at first, and at most; the time doubles.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

/// The state of the breaker.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<Option<Resting>>);

#[derive(Debug)]
struct Resting {
    until: Instant,
    rest: Duration,
    error: Error,
}

impl Reach {
    /// Fails at once while the breaker is open. A caller that gets through has to report the
    /// outcome to [`note`](Self::note).
    pub(super) fn check(&self) -> Result<(), Error> {
        let mut resting = self.0.lock();
        match &mut *resting {
            Some(resting) if resting.until > Instant::now() => Err(resting.error.again()),
            // This call is the probe; the others still fail meanwhile.
            Some(resting) => {
                resting.until = Instant::now() + resting.rest;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether the breaker is open.
    pub(super) fn is_resting(&self) -> bool {
        let resting = self.0.lock();
        resting
            .as_ref()
            .is_some_and(|rest| rest.until > Instant::now())
    }

    /// Why the last call had no answer, until another one has.
    pub(super) fn why(&self) -> Option<String> {
        let resting = self.0.lock();
        resting.as_ref().map(|resting| resting.error.to_string())
    }

    /// Records the outcome of a call.
    pub(super) fn note<T>(&self, answer: &Result<T, Error>) {
        let error = match answer {
            Err(error @ (Error::Timeout { .. } | Error::Remote { .. } | Error::Io { .. })) => error,
            _ => return *self.0.lock() = None,
        };
        let mut resting = self.0.lock();
        let rest = match &*resting {
            Some(before) => (before.rest * 2).min(LONGEST),
            None => FIRST,
        };
        *resting = Some(Resting {
            until: Instant::now() + rest.mul_f64(0.75 + 0.5 * fastrand::f64()),
            rest,
            error: error.again(),
        });
    }
}
