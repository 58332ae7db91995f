//! The health of a store, for `castore-fs status` and metrics.
//!
//! A store reports only itself: the stores that it is made of are open under names of their own,
//! and report there. No request is made for it.

use serde::{Deserialize, Serialize};

use crate::latencies::LatencyStatus;

/// The health of a store. A local store has nothing to report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The endpoint, if the store is an upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointHealth>,
    /// The mirrors that it is made of, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberHealth>,
}

/// An upstream, as its client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    /// Whether the last request was answered.
    pub state: EndpointState,
    /// Requests that were sent to it. Answers from memory are none.
    pub requests: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Bytes of content in the answers: of blobs, Directories and NARs.
    pub bytes_in: u64,
    /// The median of the latest answers, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_micros: Option<u64>,
    /// The 95th percentile of the latest answers, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_micros: Option<u64>,
    /// The times of all answers.
    #[serde(default)]
    pub times: LatencyStatus,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// Whether the endpoint answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// There was no request yet.
    #[default]
    Unknown,
    /// The last request was answered.
    Up,
    /// The last request failed.
    Failing,
}

/// One of several mirrors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHealth {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: MemberState,
    /// Requests that it got.
    pub requests: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests that were hedged because this one took long.
    pub hedges: u64,
    /// Answers that did not match their digest.
    pub corrupt_responses: u64,
    /// The median of its latest small answers, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_micros: Option<u64>,
    /// The 95th percentile of its latest small answers, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_micros: Option<u64>,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// The state of one of several mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It gets requests.
    Up,
    /// It failed, and gets only probes.
    Open,
    /// Others were faster for a while; it is asked when they cannot answer, and probed.
    Slow,
    /// It sent wrong bytes, and is asked when no other can answer.
    Corrupt,
}
