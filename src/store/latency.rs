//! The times of the latest answers.

use std::time::Duration;

/// Answers that are remembered. The 95th percentile of so many is the fourth slowest: recent enough
/// to follow a connection that changes, and not moved by one outlier.
const REMEMBERED: usize = 64;

/// The times of the latest answers.
#[derive(Debug, Default)]
pub(super) struct RecentLatencies {
    latest: Vec<Duration>,
    next: usize,
}

impl RecentLatencies {
    pub(super) fn add(&mut self, took: Duration) {
        match self.latest.get_mut(self.next) {
            Some(oldest) => *oldest = took,
            None => self.latest.push(took),
        }
        self.next = (self.next + 1) % REMEMBERED;
    }

    /// Answers that are remembered.
    pub(super) fn count(&self) -> usize {
        self.latest.len()
    }

    /// The time within which `percent` of the answers came; nothing before the first.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.latest.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
        sorted.get(place).copied()
    }

    pub(super) fn median_micros(&self) -> Option<u64> {
        self.percentile(50).map(micros)
    }

    pub(super) fn p95_micros(&self) -> Option<u64> {
        self.percentile(95).map(micros)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest_answers() {
        let mut latencies = RecentLatencies::default();
        assert_eq!(latencies.percentile(95), None);
        latencies.add(Duration::from_secs(100));
        assert_eq!(latencies.percentile(50), Some(Duration::from_secs(100)));
        for millis in 1..=REMEMBERED as u64 {
            latencies.add(Duration::from_millis(millis));
        }
        // The first is dropped by now.
        assert_eq!(latencies.percentile(100), Some(Duration::from_millis(64)));
        assert_eq!(latencies.percentile(95), Some(Duration::from_millis(61)));
        assert_eq!(latencies.median_micros(), Some(32_000));
        assert_eq!(latencies.p95_micros(), Some(61_000));
    }
}
