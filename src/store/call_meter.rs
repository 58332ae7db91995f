//! The calls to an endpoint, counted and timed.
//!
//! **Problem.** What an endpoint costs is the time of its answers. Most questions to a store on another
//! machine never get there: they are answered from memory, or join a call that is under way. Times that
//! contain those show a microsecond where the network takes forty milliseconds.
//!
//! **Mechanism.** The meter is where calls are made, below everything that remembers answers: the clients
//! of gRPC servers, of buckets and of binary caches hold one each, and begin a [`MeteredCall`] for each
//! call, which ends with the answer or its first part. Repeated attempts of one call are one.
//!
//! **Invariant.** What did not leave this process is in none of the numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::health::{EndpointHealth, EndpointState};
use super::latency::RecentLatencies;
use crate::latencies::LatencyHistogram;

/// The calls to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct CallMeter {
    requests: AtomicU64,
    failures: AtomicU64,
    in_flight: AtomicU64,
    received: AtomicU64,
    times: LatencyHistogram,
    latest: Mutex<LatestCalls>,
}

#[derive(Debug, Default)]
struct LatestCalls {
    latencies: RecentLatencies,
    state: EndpointState,
    failure: Option<String>,
}

/// A call in flight; its caller may be dropped.
pub(crate) struct MeteredCall<'a> {
    meter: &'a CallMeter,
    began: Instant,
}

impl CallMeter {
    /// Counts a call, which is in flight until the returned value is dropped.
    pub(crate) fn begin(&self) -> MeteredCall<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        MeteredCall {
            meter: self,
            began: Instant::now(),
        }
    }

    /// Counts content that has come.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a call that failed after its answer began: for `why`.
    pub(crate) fn failed(&self, why: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut latest = self.latest.lock();
        latest.state = EndpointState::Failing;
        latest.failure = Some(why);
    }

    /// Counts a call that was not begun here, and failed for `why`.
    pub(crate) fn failed_in_background(&self, why: String) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.failed(why);
    }

    /// The endpoint answers again, by a call that was not begun here.
    pub(crate) fn recovered(&self) {
        self.latest.lock().state = EndpointState::Up;
    }

    /// The numbers now. An endpoint whose circuit breaker `is_open` gets no calls: it is not up, whatever the
    /// last answer was.
    pub(crate) fn health(&self, is_open: bool) -> EndpointHealth {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let latest = self.latest.lock();
        EndpointHealth {
            state: match is_open {
                true => EndpointState::Failing,
                false => latest.state,
            },
            requests: load(&self.requests),
            failures: load(&self.failures),
            in_flight: load(&self.in_flight),
            bytes_in: load(&self.received),
            median_micros: latest.latencies.median_micros(),
            p95_micros: latest.latencies.p95_micros(),
            times: self.times.now().into(),
            last_failure: latest.failure.clone(),
        }
    }
}

impl MeteredCall<'_> {
    /// The answer has come, or its first part.
    pub(crate) fn answered(self) {
        let took = self.began.elapsed();
        self.meter.times.add(took);
        let mut latest = self.meter.latest.lock();
        latest.latencies.add(took);
        latest.state = EndpointState::Up;
    }

    /// There is no answer, for `why`.
    pub(crate) fn failed(self, why: String) {
        self.meter.failed(why);
    }
}

impl Drop for MeteredCall<'_> {
    fn drop(&mut self) {
        self.meter.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_are_timed_until_their_answer_and_failures_keep_their_reason() {
        let meter = CallMeter::default();
        let (one, two, three) = (meter.begin(), meter.begin(), meter.begin());
        assert_eq!(meter.health(false).in_flight, 3);
        tokio::time::advance(std::time::Duration::from_millis(40)).await;
        one.answered();
        meter.received(100);
        let up = meter.health(false);
        assert_eq!(
            (up.state, up.in_flight, up.bytes_in),
            (EndpointState::Up, 2, 100)
        );
        assert_eq!(
            (up.median_micros, up.times.total_micros),
            (Some(40_000), 40_000)
        );
        assert_eq!(up.times.buckets.iter().sum::<u64>(), 1);
        two.failed("it is down".to_owned());
        // A caller that is gone is neither.
        drop(three);
        let down = meter.health(false);
        assert_eq!((down.state, down.in_flight), (EndpointState::Failing, 0));
        assert_eq!((down.requests, down.failures), (3, 1));
        assert_eq!(down.last_failure.as_deref(), Some("it is down"));
        assert_eq!(down.times, up.times, "what failed has no time");
        meter.recovered();
        assert_eq!(meter.health(false).state, EndpointState::Up);
        assert_eq!(meter.health(true).state, EndpointState::Failing);
    }
}
