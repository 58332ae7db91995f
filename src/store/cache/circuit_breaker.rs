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
pub(super) struct UpstreamBreaker(Mutex<Option<OpenBreaker>>);

#[derive(Debug)]
struct OpenBreaker {
    until: Instant,
    pause: Duration,
    error: Error,
}

impl UpstreamBreaker {
    /// Fails at once while the breaker is open. A caller that gets through has to report the
    /// outcome to [`note`](Self::note).
    pub(super) fn check(&self) -> Result<(), Error> {
        let mut open = self.0.lock();
        match &mut *open {
            Some(open) if open.until > Instant::now() => Err(open.error.again()),
            // This call is the probe; the others still fail meanwhile.
            Some(open) => {
                open.until = Instant::now() + open.pause;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether the breaker is open.
    pub(super) fn is_open(&self) -> bool {
        let open = self.0.lock();
        open.as_ref()
            .is_some_and(|pause| pause.until > Instant::now())
    }

    /// Why the last call had no answer, until another one has.
    pub(super) fn why(&self) -> Option<String> {
        let open = self.0.lock();
        open.as_ref().map(|open| open.error.to_string())
    }

    /// Records the outcome of a call.
    pub(super) fn note<T>(&self, answer: &Result<T, Error>) {
        let error = match answer {
            Err(error @ (Error::Timeout { .. } | Error::Remote { .. } | Error::Io { .. })) => error,
            _ => return *self.0.lock() = None,
        };
        let mut open = self.0.lock();
        let pause = match &*open {
            Some(before) => (before.pause * 2).min(LONGEST),
            None => FIRST,
        };
        *open = Some(OpenBreaker {
            until: Instant::now() + pause.mul_f64(0.75 + 0.5 * fastrand::f64()),
            pause,
            error: error.again(),
        });
    }
}
