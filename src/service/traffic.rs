//! The traffic of a mount or a device, for the status.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rates::TrafficRate;
use crate::latencies::LatencyStatus;
use crate::transport::fuse::{RequestCounts, Traffic};

/// The requests of a mount or a device, since this process began to serve it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// Requests by kind.
    pub requests: BTreeMap<String, u64>,
    /// How long they took, by kind.
    #[serde(default)]
    pub latencies: BTreeMap<String, LatencyStatus>,
    /// Requests that waited for an upstream, by kind.
    #[serde(default)]
    pub waits: BTreeMap<String, u64>,
    /// Bytes of files in replies to READ. What the kernel has cached, or reads through passthrough, is not
    /// in it.
    #[serde(default)]
    pub read_bytes: u64,
    /// Replies with an error, by the name of the errno; without ENOENT, ENODATA, ERANGE and ENOSYS, which are
    /// ordinary answers.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Rates over the last 10 s and over the last minute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<TrafficRate>,
}

impl TrafficStatus {
    /// `traffic`, with its `rates`.
    pub(super) fn new(traffic: Traffic, rates: Vec<TrafficRate>) -> Self {
        let by_kind = |counts: RequestCounts| {
            let counts = counts.0.into_iter();
            counts
                .map(|(kind, count)| (kind.to_owned(), count))
                .collect()
        };
        let (latencies, errors) = (traffic.times.into_iter(), traffic.errors.into_iter());
        Self {
            requests: by_kind(traffic.requests),
            latencies: latencies
                .map(|(kind, times)| (kind.to_owned(), times.into()))
                .collect(),
            waits: by_kind(traffic.waits),
            read_bytes: traffic.read_bytes,
            errors: errors
                .map(|(errno, count)| (errno.to_owned(), count))
                .collect(),
            rates,
        }
    }
}

impl From<Traffic> for TrafficStatus {
    fn from(traffic: Traffic) -> Self {
        Self::new(traffic, Vec::new())
    }
}
