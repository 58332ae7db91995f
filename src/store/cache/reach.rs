//! Whether the far store is worth asking.
//!
//! After a question that found nobody (no answer in time, or the way there failed) the far store
//! rests: what needs it fails at once with that same error, and nobody waits for a full deadline
//! again. One question is let through now and then to see whether it is back; any answer ends the
//! rest.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::Error;

/// How long it rests first, and at most; the time doubles.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);

/// Whether the far store answers.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<Option<Resting>>);

#[derive(Debug)]
struct Resting {
    until: Instant,
    rest: Duration,
    error: Error,
}

impl Reach {
    /// Fails at once while the far store rests. Whoever gets through has to tell
    /// [`note`](Self::note) how it went.
    pub(super) fn check(&self) -> Result<(), Error> {
        let mut resting = self.0.lock();
        match &mut *resting {
            Some(resting) if resting.until > Instant::now() => Err(resting.error.again()),
            // This one goes and looks; the others go on failing meanwhile.
            Some(resting) => {
                resting.until = Instant::now() + resting.rest;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether it rests.
    pub(super) fn is_resting(&self) -> bool {
        let resting = self.0.lock();
        resting
            .as_ref()
            .is_some_and(|rest| rest.until > Instant::now())
    }

    /// Why the last question found nobody, as long as none was answered since.
    pub(super) fn why(&self) -> Option<String> {
        let resting = self.0.lock();
        resting.as_ref().map(|resting| resting.error.to_string())
    }

    /// Takes note of how a question went.
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
