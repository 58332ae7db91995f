//! Rates: what happened in the last 10 s and in the last minute.
//!
//! The thread of the service samples the counters of mounts, devices and stores every two seconds, from
//! their status, and keeps the samples of a minute. A rate is the difference between now
//! and the youngest sample that is as old as the window; after a start, or for a new mount, the oldest one
//! there is, so that each rate comes with the length of its window.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::stores::OpenedStore;
use crate::transport::fuse::Traffic;

/// The windows.
const WINDOWS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];
/// A window that is shorter has no rate: one request would seem to be hundreds a second.
const SHORTEST: Duration = Duration::from_secs(1);
/// Samples that are kept, at most: two minutes, if the thread samples every two seconds.
const MOST_SAMPLES: usize = 60;

/// The rates of a mount or a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficRate {
    /// The length of the window.
    pub seconds: f64,
    /// Requests that programs waited for: all but FORGET and the like.
    pub requests_per_second: f64,
    /// Bytes of files in replies to READ.
    pub read_bytes_per_second: f64,
    /// The share of the READs that were answered without waiting for an upstream; nothing without a READ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
}

/// The rates of a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreRate {
    /// The length of the window.
    pub seconds: f64,
    /// Requests to the endpoint, of an upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Bytes of blobs and Directories in its answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes_per_second: Option<f64>,
    /// Of a cache, the share of Directories and parts of blobs that were read from it and not requested from
    /// its upstream; nothing without a read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
}

/// The counters of a mount or a device that rates are computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TrafficCounts {
    requests: u64,
    read_bytes: u64,
    reads: u64,
    waiting_reads: u64,
}

/// Those of a store. What it does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreCounts {
    is_upstream: bool,
    requests: u64,
    received: u64,
    hits: u64,
    misses: u64,
}

/// The counters at one moment, by name.
#[derive(Debug)]
pub(super) struct CounterSample {
    pub(super) at: Instant,
    pub(super) mounts: BTreeMap<String, TrafficCounts>,
    pub(super) devices: BTreeMap<String, TrafficCounts>,
    pub(super) stores: BTreeMap<String, StoreCounts>,
}

/// The samples of the last minute, the oldest first.
#[derive(Debug, Default)]
pub(super) struct RateHistory(Mutex<VecDeque<CounterSample>>);

impl From<&Traffic> for TrafficCounts {
    fn from(traffic: &Traffic) -> Self {
        Self {
            requests: traffic.requests.total(),
            read_bytes: traffic.read_bytes,
            reads: traffic.requests.of("READ"),
            waiting_reads: traffic.waits.of("READ"),
        }
    }
}

impl From<&OpenedStore> for StoreCounts {
    fn from(opened: &OpenedStore) -> Self {
        let endpoint = opened.health().endpoint;
        let (hits, misses) = opened.cache.as_ref().map_or((0, 0), |cache| cache.reads());
        Self {
            is_upstream: endpoint.is_some(),
            requests: endpoint.as_ref().map_or(0, |endpoint| endpoint.requests),
            received: endpoint.as_ref().map_or(0, |endpoint| endpoint.bytes_in),
            hits,
            misses,
        }
    }
}

/// A counter's growth. One that is smaller than before has begun anew: a reload made the mount again.
fn growth(now: u64, before: u64) -> f64 {
    now.checked_sub(before).unwrap_or(now) as f64
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| (part / whole).clamp(0.0, 1.0))
}

impl RateHistory {
    /// Adds a sample, and drops those that no window needs any more.
    pub(super) fn add(&self, sample: CounterSample) {
        let mut samples = self.0.lock();
        let longest = WINDOWS[WINDOWS.len() - 1];
        // The second oldest is old enough for the longest window.
        while samples
            .get(1)
            .is_some_and(|second| sample.at.duration_since(second.at) >= longest)
            || samples.len() >= MOST_SAMPLES
        {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The rates of the mount `name`, whose counters are `counts` now.
    pub(super) fn of_mount(
        &self,
        name: &str,
        counts: TrafficCounts,
        now: Instant,
    ) -> Vec<TrafficRate> {
        let rate = |seconds, before: &TrafficCounts| traffic_rate(seconds, &counts, before);
        self.rates(now, |sample| sample.mounts.get(name), rate)
    }

    /// Those of the device `name`.
    pub(super) fn of_device(
        &self,
        name: &str,
        counts: TrafficCounts,
        now: Instant,
    ) -> Vec<TrafficRate> {
        let rate = |seconds, before: &TrafficCounts| traffic_rate(seconds, &counts, before);
        self.rates(now, |sample| sample.devices.get(name), rate)
    }

    /// Those of the store `name`, if it is an upstream or a cache.
    pub(super) fn of_store(&self, name: &str, counts: StoreCounts, now: Instant) -> Vec<StoreRate> {
        if !counts.is_upstream && counts.hits + counts.misses == 0 {
            return Vec::new();
        }
        let rate = |seconds, before: &StoreCounts| {
            let hits = growth(counts.hits, before.hits);
            let growth_a_second = |now, before| Some(growth(now, before) / seconds);
            StoreRate {
                seconds,
                requests_per_second: growth_a_second(counts.requests, before.requests)
                    .filter(|_| counts.is_upstream),
                received_bytes_per_second: growth_a_second(counts.received, before.received)
                    .filter(|_| counts.is_upstream),
                hit_ratio: ratio(hits, hits + growth(counts.misses, before.misses)),
            }
        };
        self.rates(now, |sample| sample.stores.get(name), rate)
    }

    /// `rate` for each window, of its length in seconds and of what `of` finds in its first sample.
    fn rates<T, R>(
        &self,
        now: Instant,
        of: impl Fn(&CounterSample) -> Option<&T>,
        rate: impl Fn(f64, &T) -> R,
    ) -> Vec<R> {
        let samples = self.0.lock();
        let known = samples.iter().filter_map(|sample| {
            let age = now.saturating_duration_since(sample.at);
            Some((age, of(sample)?))
        });
        let all: Vec<_> = known.collect();
        let Some(oldest) = all.first() else {
            return Vec::new();
        };
        let mut rates = Vec::new();
        let mut last = None;
        for window in WINDOWS {
            let old_enough = all.iter().rev().find(|(age, _)| *age >= window);
            let (age, before) = old_enough.unwrap_or(oldest);
            if *age < SHORTEST || last == Some(*age) {
                continue;
            }
            last = Some(*age);
            rates.push(rate(age.as_secs_f64(), before));
        }
        rates
    }
}

fn traffic_rate(seconds: f64, now: &TrafficCounts, before: &TrafficCounts) -> TrafficRate {
    let reads = growth(now.reads, before.reads);
    let waiting = growth(now.waiting_reads, before.waiting_reads);
    TrafficRate {
        seconds,
        requests_per_second: growth(now.requests, before.requests) / seconds,
        read_bytes_per_second: growth(now.read_bytes, before.read_bytes) / seconds,
        hit_ratio: ratio(reads - waiting, reads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(requests: u64) -> TrafficCounts {
        TrafficCounts {
            requests,
            read_bytes: requests << 20,
            reads: requests / 2,
            waiting_reads: requests / 8,
        }
    }

    fn sample(at: Instant, mount: Option<u64>) -> CounterSample {
        CounterSample {
            at,
            mounts: mount
                .map(|requests| ("tree".to_owned(), counts(requests)))
                .into_iter()
                .collect(),
            devices: BTreeMap::new(),
            stores: BTreeMap::new(),
        }
    }

    #[test]
    fn rates_are_of_the_last_ten_seconds_and_of_the_last_minute() {
        let history = RateHistory::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        // 8 requests a second for a minute and a half, then 80.
        let requests_at = |seconds: u64| seconds * 8 + seconds.saturating_sub(90) * 72;
        for second in (0..=100).step_by(2) {
            history.add(sample(after(second), Some(requests_at(second))));
        }
        let rates = history.of_mount("tree", counts(requests_at(100)), after(100));
        let [short, long] = &rates[..] else {
            panic!("{rates:?}");
        };
        assert_eq!((short.seconds, short.requests_per_second), (10.0, 80.0));
        assert_eq!(short.read_bytes_per_second, 80.0 * 1048576.0);
        assert_eq!(short.hit_ratio, Some(0.75));
        assert_eq!((long.seconds, long.requests_per_second), (60.0, 20.0));
        assert!(history.0.lock().len() <= 32, "a minute is kept");
        assert_eq!(history.of_mount("other", counts(1), after(100)), []);
        assert_eq!(history.of_device("tree", counts(1), after(100)), []);
    }

    #[test]
    fn a_young_or_new_mount_has_the_rates_of_the_time_that_it_is_there() {
        let history = RateHistory::default();
        let start = Instant::now();
        history.add(sample(start, None));
        assert_eq!(history.of_mount("tree", counts(8), start), []);
        history.add(sample(start + Duration::from_secs(2), Some(100)));
        let now = start + Duration::from_secs(6);
        let rates = history.of_mount("tree", counts(140), now);
        assert_eq!(rates.len(), 1);
        assert_eq!(
            (rates[0].seconds, rates[0].requests_per_second),
            (4.0, 10.0)
        );
        // A reload made it anew, and its counters began again.
        let rates = history.of_mount("tree", counts(8), now);
        assert_eq!(rates[0].requests_per_second, 2.0);
        // Nothing was read: there is no ratio.
        let rates = history.of_mount("tree", counts(100), now);
        assert_eq!(rates[0].hit_ratio, None);
    }

    #[test]
    fn a_store_has_the_rates_of_its_endpoint_or_of_its_cache() {
        let history = RateHistory::default();
        let start = Instant::now();
        let (upstream, cache) = (
            StoreCounts {
                is_upstream: true,
                ..StoreCounts::default()
            },
            StoreCounts::default(),
        );
        history.add(CounterSample {
            stores: [("far".to_owned(), upstream), ("main".to_owned(), cache)].into(),
            ..sample(start, None)
        });
        let now = start + Duration::from_secs(2);
        let upstream = StoreCounts {
            requests: 6,
            received: 4096,
            ..upstream
        };
        let rates = history.of_store("far", upstream, now);
        assert_eq!(rates[0].requests_per_second, Some(3.0));
        assert_eq!(rates[0].received_bytes_per_second, Some(2048.0));
        assert_eq!(rates[0].hit_ratio, None);
        assert_eq!(history.of_store("main", cache, now), []);
        let cache = StoreCounts {
            hits: 9,
            misses: 1,
            ..cache
        };
        let rates = history.of_store("main", cache, now);
        assert_eq!(
            (rates[0].hit_ratio, rates[0].requests_per_second),
            (Some(0.9), None)
        );
    }
}
