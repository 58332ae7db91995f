//! What a store tells of how it fares, for `castore-fs status` and metrics.
//!
//! A store speaks for itself only: the stores that it is made of are open under names of their own,
//! and speak there. Nothing here is asked of anybody; it is what was seen anyway.

use serde::{Deserialize, Serialize};

/// How a store fares. A store that has nothing to tell, such as a folder, tells nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The other end, if the store is far away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointHealth>,
    /// The equals that it is made of, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberHealth>,
}

/// A store far away, as seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    /// Whether the last question was answered.
    pub state: EndpointState,
    /// Questions that memory could not answer.
    pub requests: u64,
    /// Those of them that got an error.
    pub failures: u64,
    /// Those that wait for their answer.
    pub in_flight: u64,
    /// Bytes of blobs and Directories in the answers.
    pub bytes_in: u64,
    /// Of the latest answers, in microseconds: half came within this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_micros: Option<u64>,
    /// Of the latest answers, in microseconds: 19 of 20 came within this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_micros: Option<u64>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// Whether somebody is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Nothing was asked yet.
    #[default]
    Unknown,
    /// The last question was answered.
    Up,
    /// The last question got an error.
    Failing,
}

/// One of several equals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHealth {
    /// Its name.
    pub name: String,
    /// Whether it is asked.
    pub state: MemberState,
    /// Questions that it was asked.
    pub requests: u64,
    /// Those of them that got an error.
    pub failures: u64,
    /// Questions that another was asked as well because this one took long.
    pub hedges: u64,
    /// Answers that were not what their digest promises.
    pub lies: u64,
    /// Of its latest small answers, in microseconds: half came within this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_micros: Option<u64>,
    /// Of its latest small answers, in microseconds: 19 of 20 came within this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_micros: Option<u64>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// Whether one of several equals is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// It is.
    Up,
    /// It failed, and is left alone but for probes.
    Open,
    /// Others were faster for a while; it is asked when they cannot answer, and probed.
    Slow,
    /// It sent wrong bytes, and is asked when nobody else can answer.
    Liar,
}
