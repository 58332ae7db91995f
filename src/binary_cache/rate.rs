//! The least speed of a download.

use std::time::{Duration, Instant};

/// A download with less than this in a [`WINDOW`] is aborted.
const LEAST: u64 = 64 << 10;
/// See [`LEAST`]. As curl's `--speed-time` and `--speed-limit`.
pub(super) const WINDOW: Duration = Duration::from_secs(30);

/// Measures a download by its bytes, so that one that drips ends like one that stands still. Time
/// in which nothing was requested does not count.
#[derive(Debug)]
pub(super) struct SlowestRate {
    remaining: Duration,
    bytes: u64,
}

impl SlowestRate {
    pub(super) fn new() -> Self {
        Self {
            remaining: WINDOW,
            bytes: 0,
        }
    }

    /// How long the next bytes may take.
    pub(super) fn patience(&self) -> Duration {
        self.remaining
    }

    /// `bytes` came, which were waited for since `since`. Fails if too few came in the last window.
    pub(super) fn took(&mut self, bytes: u64, since: Instant) -> Result<(), SlowDownload> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= LEAST {
            *self = Self::new();
            return Ok(());
        }
        self.remaining = self.remaining.saturating_sub(since.elapsed());
        match self.remaining.is_zero() {
            true => Err(SlowDownload),
            false => Ok(()),
        }
    }
}

/// The download is too slow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SlowDownload;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_do_not_buy_more_time() {
        let mut rate = SlowestRate::new();
        let long_ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        assert_eq!(rate.took(1, long_ago(20)), Ok(()));
        assert!(rate.patience() <= Duration::from_secs(10));
        assert_eq!(rate.took(1, long_ago(10)), Err(SlowDownload));
        let mut rate = SlowestRate::new();
        assert_eq!(rate.took(LEAST, long_ago(100)), Ok(()));
        assert_eq!(rate.patience(), WINDOW);
    }
}
