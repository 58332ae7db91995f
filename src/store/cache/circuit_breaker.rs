//! The circuit breaker for the upstream.
//!
//! After a call without an answer (a deadline was missed, or the connection failed) the breaker
//! opens: later calls fail at once for that same reason, and no reader waits for a full deadline
//! again. Their errors name their own request, not the one that opened the breaker. One call is let through now and then as a probe; any answer closes the breaker.

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
    /// Fails `request` at once while the breaker is open. A caller that gets through has to report the
    /// outcome to [`note`](Self::note).
    pub(super) fn check(&self, request: impl FnOnce() -> String) -> Result<(), Error> {
        let mut open = self.0.lock();
        match &mut *open {
            Some(open) if open.until > Instant::now() => Err(match open.error.clone() {
                Error::Remote { store, why, .. } => Error::Remote {
                    store,
                    request: request(),
                    why,
                },
                error => error,
            }),
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
            error: error.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_fails_each_request_in_its_own_name() {
        let breaker = UpstreamBreaker::default();
        let failed: Result<(), Error> = Err(Error::Remote {
            store: "grpc+http://host".to_owned(),
            request: "reading blob A".to_owned(),
            why: "connection refused".to_owned(),
        });
        breaker.note(&failed);
        let error = breaker.check(|| "reading blob B".to_owned()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "grpc+http://host: reading blob B failed: connection refused"
        );
    }
}
