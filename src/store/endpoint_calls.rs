//! The calls to one endpoint: repeated, counted, timed, and stopped by a circuit breaker.
//!
//! The clients of gRPC servers, buckets and binary caches make every call through [`EndpointCalls`]. A call
//! that finds no connection or a busy endpoint is repeated, as the endpoint's [`RetryPolicy`] says, with
//! growing pauses of random length. The circuit breaker ([`super::circuit_breaker`]) and the meter
//! ([`super::call_meter`]) see one call, however many attempts it takes.
//!
//! An answer in many parts is a call until its first part. Its client reports how the rest goes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::call_meter::CallMeter;
use super::circuit_breaker::CircuitBreaker;
use super::failure::CallFailure;
use super::{Damage, EndpointHealth, Object};
use crate::castore::Digest;

/// Which calls are repeated, how often, and after which pauses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    /// Attempts at a call, at most.
    pub(crate) attempts: u32,
    /// The mean pause before the second attempt.
    pub(crate) first_pause: Duration,
    /// Each pause is so many times the one before.
    pub(crate) growth: u32,
    /// The longest pause, but for its random part, even if the endpoint asks for a longer one.
    pub(crate) longest_pause: Duration,
    /// The time after the start of a call at which no other attempt begins.
    pub(crate) within: Duration,
    /// Whether a missed deadline is repeated. Otherwise a reader has waited long enough by then.
    pub(crate) timeouts: bool,
}

/// The attempts at one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    began: tokio::time::Instant,
    failed: u32,
    pause: Duration,
}

impl Attempts {
    /// Before the first one.
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        Self {
            policy,
            began: tokio::time::Instant::now(),
            failed: 0,
            pause: policy.first_pause,
        }
    }

    /// Waits after an attempt that ended with `failure`, until the next one; fails if there is none.
    pub(crate) async fn pause(&mut self, failure: CallFailure) -> Result<(), CallFailure> {
        self.failed += 1;
        let is_repeated = match &failure {
            CallFailure::Timeout(_) => self.policy.timeouts,
            failure => failure.is_silence(),
        };
        let is_late = self.began.elapsed() >= self.policy.within;
        if !is_repeated || is_late || self.failed >= self.policy.attempts {
            return Err(failure);
        }
        // A pause that the endpoint asks for is not made shorter.
        let (pause, shortest) = match failure {
            CallFailure::Busy(pause, _) => (pause, 1.0),
            _ => (self.pause, 0.75),
        };
        let pause = pause.min(self.policy.longest_pause);
        self.pause *= self.policy.growth;
        tokio::time::sleep(pause.mul_f64(shortest + fastrand::f64() / 2.0)).await;
        Ok(())
    }
}

/// The calls to one endpoint.
#[derive(Debug)]
pub(crate) struct EndpointCalls {
    /// Of the endpoint, for logs and errors.
    url: String,
    policy: RetryPolicy,
    circuit_breaker: CircuitBreaker,
    meter: Arc<CallMeter>,
    attempts: AtomicU64,
}

impl EndpointCalls {
    /// No calls yet to the endpoint at `url`. Several endpoints may share a meter.
    pub(crate) fn new(url: String, policy: RetryPolicy, meter: Arc<CallMeter>) -> Self {
        Self {
            url,
            policy,
            circuit_breaker: CircuitBreaker::default(),
            meter,
            attempts: AtomicU64::new(0),
        }
    }

    /// The endpoint as the calls show it; of those in the background, only failures count.
    pub(crate) fn health(&self) -> EndpointHealth {
        self.meter.health(self.is_stopped())
    }

    /// Whether the circuit breaker is open.
    pub(crate) fn is_stopped(&self) -> bool {
        self.circuit_breaker.is_open()
    }

    /// Attempts so far.
    pub(crate) fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Counts an attempt that is not made here.
    pub(crate) fn count_attempt(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a call whose attempts may take `limit` each. Fails at once while the circuit breaker is open.
    pub(crate) async fn make<T, F>(
        &self,
        limit: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        self.make_with(&mut Attempts::new(self.policy), limit, attempt)
            .await
    }

    /// As [`make`](Self::make), with the attempts that are left of a larger task.
    pub(crate) async fn make_with<T, F>(
        &self,
        attempts: &mut Attempts,
        limit: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        let answer = self.begin_with(attempts, limit, attempt).await?;
        self.answered();
        Ok(answer)
    }

    /// As [`make`](Self::make), for an answer in many parts. The caller reports whether it was
    /// [`answered`](Self::answered) or [`interrupted`](Self::interrupted).
    pub(crate) async fn begin<T, F>(
        &self,
        limit: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        self.begin_with(&mut Attempts::new(self.policy), limit, attempt)
            .await
    }

    async fn begin_with<T, F>(
        &self,
        attempts: &mut Attempts,
        limit: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        let began = self.circuit_breaker.begin(limit)?;
        let metered = self.meter.begin();
        let outcome = self.repeat(attempts, attempt).await;
        match &outcome {
            Ok(_) => metered.answered(),
            Err(failure) => {
                self.report(began, failure);
                match failure.is_answer() {
                    true => metered.answered(),
                    false => metered.failed(self.describe(failure)),
                }
            }
        }
        outcome
    }

    /// As [`make`](Self::make), for what no reader waits for: it is not timed. It counts if it opens the
    /// circuit breaker, or is a probe that fails: the failures of readers, which then make no call, are due to
    /// it.
    pub(crate) async fn make_in_background<T, F>(
        &self,
        limit: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        let began = self.circuit_breaker.begin(limit)?;
        let was_stopped = self.is_stopped();
        let attempts = &mut Attempts::new(self.policy);
        let outcome = self.repeat(attempts, attempt).await;
        match &outcome {
            Ok(_) => {
                self.answered();
                if was_stopped {
                    self.meter.recovered();
                }
            }
            Err(failure) => {
                if self.report(began, failure) {
                    self.meter.failed_in_background(self.describe(failure));
                }
            }
        }
        outcome
    }

    async fn repeat<T, F>(
        &self,
        attempts: &mut Attempts,
        attempt: impl Fn() -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        loop {
            self.count_attempt();
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.pause(failure).await?,
            }
        }
    }

    /// Reports to the circuit breaker that the call that began at `began` failed. Returns whether that opened
    /// it, or the call was its probe.
    fn report(&self, began: Instant, failure: &CallFailure) -> bool {
        match failure.is_silence() {
            true => self.circuit_breaker.failed(&self.url, began, failure),
            // There is an answer, even if it is an error.
            false => {
                self.answered();
                false
            }
        }
    }

    /// The endpoint has answered, or sent so much of an answer that it counts as one.
    pub(crate) fn answered(&self) {
        self.circuit_breaker.succeeded();
    }

    /// Content has come.
    pub(crate) fn received(&self, bytes: u64) {
        self.meter.received(bytes);
    }

    /// An answer that had begun stopped with `failure`, when nothing had come since `since`. Returns whether
    /// that is the endpoint's silence; anything else it has answered.
    pub(crate) fn interrupted(&self, since: Instant, failure: &CallFailure) -> bool {
        let is_silence = failure.is_silence();
        if is_silence {
            self.circuit_breaker.failed(&self.url, since, failure);
            let error = failure.clone().of(&self.url, "the rest of an answer");
            self.meter.failed(error.to_string());
        }
        is_silence
    }

    /// Marks the endpoint: it sent bytes that do not match their digest.
    pub(crate) fn sent_corrupt(
        &self,
        object: Object,
        digest: &Digest,
        damage: Damage,
    ) -> CallFailure {
        tracing::error!(
            "{} sent {object} {digest} and {damage}: the bytes were discarded",
            self.url
        );
        self.circuit_breaker.sent_corrupt();
        let failure = CallFailure::Damaged(object, *digest, damage);
        self.meter.failed(self.describe(&failure));
        failure
    }

    /// Whether the endpoint ever sent such bytes.
    pub(crate) fn has_sent_corrupt(&self) -> bool {
        self.circuit_breaker.has_sent_corrupt()
    }

    fn describe(&self, failure: &CallFailure) -> String {
        failure.clone().of(&self.url, "a call").to_string()
    }
}

/// The outcome of an attempt within `limit`.
pub(crate) async fn in_time<T, E: Into<CallFailure>>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, E>>,
) -> Result<T, CallFailure> {
    match tokio::time::timeout(limit, attempt).await {
        Ok(outcome) => outcome.map_err(E::into),
        Err(_) => Err(CallFailure::Timeout(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{EndpointState, FailureKind};

    const SECOND: Duration = Duration::from_secs(1);
    const POLICY: RetryPolicy = RetryPolicy {
        attempts: 5,
        first_pause: Duration::from_millis(250),
        growth: 2,
        longest_pause: Duration::from_secs(10),
        within: Duration::MAX,
        timeouts: false,
    };

    fn calls(policy: RetryPolicy) -> EndpointCalls {
        EndpointCalls::new("grpc+http://host".to_owned(), policy, Arc::default())
    }

    fn busy() -> CallFailure {
        CallFailure::Failed(FailureKind::Unreachable, "busy".to_owned())
    }

    /// Makes a call that always fails with `failure`, after `takes`; returns its attempts.
    async fn attempts_at(policy: RetryPolicy, failure: CallFailure, takes: Duration) -> u64 {
        let calls = calls(policy);
        let outcome = calls.make(SECOND, || async {
            tokio::time::sleep(takes).await;
            Err::<(), _>(failure.clone())
        });
        outcome.await.unwrap_err();
        calls.attempts()
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_says_what_is_repeated_and_how_often() {
        let zero = Duration::ZERO;
        assert_eq!(attempts_at(POLICY, busy(), zero).await, 5);
        for lasting in [
            CallFailure::refused("wrong"),
            CallFailure::Failed(FailureKind::NotFound, String::new()),
            CallFailure::Timeout(SECOND),
        ] {
            assert_eq!(attempts_at(POLICY, lasting, zero).await, 1);
        }
        let patient = RetryPolicy {
            timeouts: true,
            ..POLICY
        };
        let timeout = CallFailure::Timeout(SECOND);
        assert_eq!(attempts_at(patient, timeout, zero).await, 5);
        let short = RetryPolicy {
            within: 2 * SECOND,
            ..POLICY
        };
        assert_eq!(attempts_at(short, busy(), SECOND).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_up_to_the_longest_which_an_endpoint_cannot_exceed() {
        let began = tokio::time::Instant::now();
        let calls = calls(POLICY);
        let outcome = calls.make(SECOND, || async {
            Err::<(), _>(CallFailure::Busy(
                3600 * SECOND,
                "HTTP status 429".to_owned(),
            ))
        });
        outcome.await.unwrap_err();
        let paused = began.elapsed();
        assert!((40 * SECOND..60 * SECOND).contains(&paused), "{paused:?}");
        let began = tokio::time::Instant::now();
        attempts_at(POLICY, busy(), Duration::ZERO).await;
        // 250, 500, 1000 and 2000 ms, each with up to a quarter less or more.
        let paused = began.elapsed().as_millis();
        assert!((2800..4800).contains(&paused), "{paused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_one_however_many_attempts_it_takes() {
        let calls = calls(POLICY);
        let answer = calls.make(SECOND, || async {
            match calls.attempts() {
                1 | 2 => Err(busy()),
                attempts => Ok(attempts),
            }
        });
        assert_eq!(answer.await.unwrap(), 3);
        let health = calls.health();
        assert_eq!((health.requests, health.failures), (1, 0));
        assert_eq!(health.state, EndpointState::Up);
        // Now the last attempt opens the circuit breaker, and no other call is made.
        for _ in 0..2 {
            let outcome = calls.make(SECOND, async || Err::<(), _>(busy())).await;
            assert!(outcome.unwrap_err().is(FailureKind::Unreachable));
        }
        assert_eq!(calls.attempts(), 3 + 5);
        let health = calls.health();
        assert_eq!((health.requests, health.failures), (2, 1));
        assert_eq!(health.state, EndpointState::Failing);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stops_opens_the_circuit_breaker_unless_others_came_meanwhile() {
        let calls = calls(POLICY);
        let ask = || calls.begin(SECOND, async || Ok::<_, CallFailure>(()));
        ask().await.unwrap();
        let since = Instant::now();
        assert!(!calls.interrupted(since, &CallFailure::refused("wrong")));
        calls.answered();
        assert!(calls.interrupted(since, &busy()));
        assert!(!calls.is_stopped());
        assert!(calls.interrupted(Instant::now(), &busy()));
        assert!(calls.is_stopped());
        assert!(ask().await.is_err());
    }
}
