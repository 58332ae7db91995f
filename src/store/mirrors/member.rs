//! A member of mirrors: its measurements and its state.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::castore::DirectoryError;
use crate::store::health::{MemberHealth, MemberState};
use crate::store::latency::RecentLatencies;
use crate::store::{Damage, Error, Store};

/// Failures in a row, without a missed deadline, that open the breaker.
const FAILURES: u32 = 3;
/// Lost hedges in a row that open the breaker.
const OVERTAKEN: u32 = 5;
/// How long the breaker stays open at first, and at most; it doubles, and a random part is added.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long wrong bytes count against a member at first, and at most; it doubles.
const FIRST_MARK: Duration = Duration::from_secs(10 * 60);
const LONGEST_MARK: Duration = Duration::from_secs(24 * 3600);
/// Answers that are needed to know a member's speed.
const KNOWN: usize = 16;
/// How long a member of unknown speed may take before a hedge.
const PATIENCE: Duration = Duration::from_millis(500);
/// The bounds of that time for the others: below, it measures the scheduler; above, readers wait
/// too long.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(5);

/// The kind of a request, which determines how long an answer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// A Directory, a root, a yes or no.
    Small,
    /// Parts of blobs, lists.
    Bulk,
}

/// The state of a member when a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberStanding {
    Healthy,
    /// Others were faster.
    Slow,
    /// It failed, and its breaker is open.
    Out,
    /// It sent wrong bytes.
    Corrupt,
}

/// Why a member cannot be asked: its last failure.
#[derive(Clone, Debug)]
pub(super) struct LastFailure {
    pub(super) text: String,
    /// The missed deadline, if that was the failure.
    pub(super) deadline: Option<Duration>,
}

/// A change of state to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberChange {
    None,
    /// Its breaker is open from now on.
    Opened,
    /// It is asked again.
    Closed,
}

#[derive(Debug)]
pub(super) struct MirrorMember {
    pub(super) name: String,
    pub(super) store: Arc<dyn Store>,
    state: Mutex<MirrorState>,
}

#[derive(Debug)]
struct MirrorState {
    breaker: BreakerPosition,
    /// How long the breaker stays open at the next failure.
    pause: Duration,
    /// How long it is avoided at the next corrupt response.
    mark: Duration,
    failures_in_a_row: u32,
    overtaken_in_a_row: u32,
    last_success: Option<Instant>,
    last_failure: Option<LastFailure>,
    small: RecentLatencies,
    bulk: RecentLatencies,
    requests: u64,
    failures: u64,
    hedges: u64,
    corrupt_responses: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerPosition {
    Closed,
    /// `slow`: others were faster; otherwise it failed.
    Open {
        slow: bool,
        since: Instant,
        probe_at: Instant,
    },
    Marked {
        until: Instant,
    },
}

impl MirrorState {
    fn latencies(&mut self, kind: RequestKind) -> &mut RecentLatencies {
        match kind {
            RequestKind::Small => &mut self.small,
            RequestKind::Bulk => &mut self.bulk,
        }
    }

    fn open(&mut self, slow: bool, now: Instant) {
        let pause = self.pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        self.breaker = BreakerPosition::Open {
            slow,
            since: now,
            probe_at: now + pause,
        };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.failures_in_a_row = 0;
        self.overtaken_in_a_row = 0;
    }
}

impl MirrorMember {
    pub(super) fn new(name: String, store: Arc<dyn Store>) -> Self {
        Self {
            name,
            store,
            state: Mutex::new(MirrorState {
                breaker: BreakerPosition::Closed,
                pause: FIRST_PAUSE,
                mark: FIRST_MARK,
                failures_in_a_row: 0,
                overtaken_in_a_row: 0,
                last_success: None,
                last_failure: None,
                small: RecentLatencies::default(),
                bulk: RecentLatencies::default(),
                requests: 0,
                failures: 0,
                hedges: 0,
                corrupt_responses: 0,
            }),
        }
    }

    pub(super) fn standing(&self, now: Instant) -> MemberStanding {
        let mut state = self.state.lock();
        match state.breaker {
            BreakerPosition::Closed => MemberStanding::Healthy,
            BreakerPosition::Open { slow: true, .. } => MemberStanding::Slow,
            BreakerPosition::Open { slow: false, .. } => MemberStanding::Out,
            BreakerPosition::Marked { until } if now < until => MemberStanding::Corrupt,
            BreakerPosition::Marked { .. } => {
                state.breaker = BreakerPosition::Closed;
                MemberStanding::Healthy
            }
        }
    }

    /// Whether it is time to probe the member. Returns true for one caller only; again after
    /// another pause.
    pub(super) fn take_probe(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let pause = state.pause;
        match &mut state.breaker {
            BreakerPosition::Open { probe_at, .. } if *probe_at <= now => {
                *probe_at = now + pause;
                true
            }
            _ => false,
        }
    }

    /// How long to wait for its answer before a hedge.
    pub(super) fn patience(&self, kind: RequestKind) -> Duration {
        let mut state = self.state.lock();
        let latencies = state.latencies(kind);
        match latencies.percentile(95) {
            Some(p95) if latencies.count() >= KNOWN => p95.clamp(SHORTEST, LONGEST),
            _ => PATIENCE,
        }
    }

    /// The median of its answers' times; nothing without answers.
    pub(super) fn median(&self, kind: RequestKind) -> Option<Duration> {
        self.state.lock().latencies(kind).percentile(50)
    }

    pub(super) fn asked(&self) {
        self.state.lock().requests += 1;
    }

    /// It took so long that another was asked as well.
    pub(super) fn hedged(&self) {
        self.state.lock().hedges += 1;
    }

    /// It answered, with whatever result.
    pub(super) fn answered(&self, kind: RequestKind, took: Duration, now: Instant) -> MemberChange {
        let in_time = took <= self.patience(kind);
        let mut state = self.state.lock();
        state.latencies(kind).add(took);
        state.last_success = Some(now);
        state.failures_in_a_row = 0;
        state.overtaken_in_a_row = 0;
        match state.breaker {
            BreakerPosition::Open { slow: true, .. } if !in_time => {
                state.open(true, now);
                MemberChange::None
            }
            BreakerPosition::Open { .. } => {
                state.breaker = BreakerPosition::Closed;
                state.pause = FIRST_PAUSE;
                MemberChange::Closed
            }
            BreakerPosition::Closed | BreakerPosition::Marked { .. } => MemberChange::None,
        }
    }

    /// The request that was sent at `began` ended with `error`.
    pub(super) fn failed(&self, error: &Error, began: Instant, now: Instant) -> MemberChange {
        let mut state = self.state.lock();
        state.failures += 1;
        let deadline = error.deadline();
        state.last_failure = Some(LastFailure {
            text: error.to_string(),
            deadline,
        });
        if matches!(error, Error::Damaged { .. }) {
            // It is reachable; its wrong bytes are handled elsewhere.
            return MemberChange::None;
        }
        match state.breaker {
            BreakerPosition::Marked { .. } => MemberChange::None,
            // A probe, unless it was sent before all this.
            BreakerPosition::Open { since, .. } => {
                if began >= since {
                    state.open(false, now);
                }
                MemberChange::None
            }
            BreakerPosition::Closed => {
                state.failures_in_a_row += 1;
                // Others got answers meanwhile: only this request hangs, not the member.
                let hangs = deadline.is_some() && state.last_success.is_none_or(|at| at <= began);
                if !hangs && state.failures_in_a_row < FAILURES {
                    return MemberChange::None;
                }
                state.open(false, now);
                MemberChange::Opened
            }
        }
    }

    /// It lost a hedge.
    pub(super) fn overtaken(&self, now: Instant) -> MemberChange {
        let mut state = self.state.lock();
        state.overtaken_in_a_row += 1;
        if state.breaker != BreakerPosition::Closed || state.overtaken_in_a_row < OVERTAKEN {
            return MemberChange::None;
        }
        state.open(true, now);
        MemberChange::Opened
    }

    /// It sent wrong bytes; returns how long it is avoided.
    pub(super) fn sent_corrupt(&self, now: Instant) -> Duration {
        let mut state = self.state.lock();
        let mark = state.mark;
        state.corrupt_responses += 1;
        state.breaker = BreakerPosition::Marked { until: now + mark };
        state.mark = (mark * 2).min(LONGEST_MARK);
        mark
    }

    pub(super) fn last_failure(&self) -> Option<LastFailure> {
        self.state.lock().last_failure.clone()
    }

    pub(super) fn health(&self, now: Instant) -> MemberHealth {
        let standing = self.standing(now);
        let state = self.state.lock();
        MemberHealth {
            name: self.name.clone(),
            state: match standing {
                MemberStanding::Healthy => MemberState::Up,
                MemberStanding::Slow => MemberState::Slow,
                MemberStanding::Out => MemberState::Open,
                MemberStanding::Corrupt => MemberState::Corrupt,
            },
            requests: state.requests,
            failures: state.failures,
            hedges: state.hedges,
            corrupt_responses: state.corrupt_responses,
            median_micros: state.small.median_micros(),
            p95_micros: state.small.p95_micros(),
            last_failure: state.last_failure.as_ref().map(|last| last.text.clone()),
        }
    }
}

/// Whether `error` alone proves the member's fault: a Directory that does not match its digest
/// does. A blob that does not match does not: the size, which comes from a Directory, may be wrong,
/// and only another member's answer can decide.
pub(super) fn is_proof(error: &Error) -> bool {
    match error {
        Error::Damaged { damage, .. } => {
            matches!(
                **damage,
                Damage::Directory(DirectoryError::WrongDigest { .. })
            )
        }
        _ => false,
    }
}
