//! The least speed of an answer.
//!
//! Progress is measured in bytes, as by curl's `--speed-limit` and `--speed-time`: an answer that
//! waits for longer than the stall deadline without [`LEAST_RATE`] bytes for each second of it has
//! failed. An empty message is no progress. As every reader stops at the size that it knows, a call
//! ends after `size / LEAST_RATE` seconds at the latest.
//!
//! Only the time spent waiting counts: a slow disk on this side is not the endpoint's fault.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::failure::{CallFailure, FailureKind};

/// Bytes that have to come in a second. A modem of 1998 was five times as fast; a link with a
/// thousand calls at this rate has 1 MB/s.
pub(super) const LEAST_RATE: u64 = 1024;
/// Messages without content that may follow one another. Some servers end a stream with one.
pub(super) const MOST_EMPTY: u32 = 100;

/// The content of a message, in bytes.
pub(super) trait Payload {
    /// Bytes of content, without the message's own framing.
    fn payload(&self) -> u64;

    /// Bytes of content that have come with it, to be counted.
    fn content(&self) -> u64 {
        self.payload()
    }
}

/// The progress of one answer.
#[derive(Debug)]
pub(crate) struct AnswerPace {
    stall: Duration,
    /// Time spent waiting since the last full measure of bytes, and the bytes that came in it.
    waited: Duration,
    came: u64,
    empty: u32,
}

impl AnswerPace {
    /// An answer whose bytes may stop coming for `stall`.
    pub(crate) fn new(stall: Duration) -> Self {
        Self {
            stall,
            waited: Duration::ZERO,
            came: 0,
            empty: 0,
        }
    }

    /// Waits for the `next` piece, which brings so many `bytes`.
    pub(crate) async fn wait<T>(
        &mut self,
        next: impl Future<Output = T>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Result<T, CallFailure> {
        let mut next = pin!(next);
        loop {
            let remaining = self.stall.saturating_sub(self.waited);
            let began = Instant::now();
            let came = tokio::time::timeout(remaining, next.as_mut()).await;
            self.waited += began.elapsed();
            if let Ok(buffer) = came {
                self.note(bytes(&buffer))?;
                return Ok(buffer);
            }
            self.measure()?;
        }
    }

    /// Records a piece of `bytes` bytes.
    pub(super) fn note(&mut self, bytes: u64) -> Result<(), CallFailure> {
        self.came = self.came.saturating_add(bytes);
        if bytes > 0 {
            self.empty = 0;
        } else {
            self.empty += 1;
            if self.empty > MOST_EMPTY {
                let why = format!("it sent {MOST_EMPTY} messages without content in a row");
                return Err(CallFailure::Failed(FailureKind::Corrupt, why));
            }
        }
        match self.waited >= self.stall {
            true => self.measure(),
            false => Ok(()),
        }
    }

    /// A stall deadline is over: starts the next if enough has come.
    fn measure(&mut self) -> Result<(), CallFailure> {
        let wanted = (self.stall.as_secs_f64() * LEAST_RATE as f64) as u64;
        if self.came < wanted.max(1) {
            return Err(CallFailure::Timeout(self.stall));
        }
        self.came = 0;
        self.waited = Duration::ZERO;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(10);

    /// Pieces of `bytes`, one each `pause`, until it fails; returns for how long that was.
    async fn fails_after(pause: Duration, bytes: u64, most: u32) -> Option<Duration> {
        let began = Instant::now();
        let mut pace = AnswerPace::new(STALL);
        for _ in 0..most {
            let buffer = tokio::time::sleep(pause);
            if pace.wait(buffer, |()| bytes).await.is_err() {
                return Some(began.elapsed());
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_measured_in_bytes() {
        let second = Duration::from_secs(1);
        // Nothing at all, nothing in many messages, and a drip: none of them outlives a deadline.
        assert_eq!(fails_after(second * 1000, 1 << 20, 1).await, Some(STALL));
        assert_eq!(fails_after(second, 0, 1000).await, Some(STALL));
        assert_eq!(fails_after(second, 1, 1000).await, Some(STALL));
        // At the least rate, and in few large pieces, it may take as long as it needs.
        assert_eq!(fails_after(second, LEAST_RATE + 1, 1000).await, None);
        assert_eq!(fails_after(second * 9, 20 * LEAST_RATE, 100).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn messages_without_content_end_even_if_they_come_at_once() {
        let mut pace = AnswerPace::new(STALL);
        let mut came = 0;
        while pace.wait(std::future::ready(()), |()| 0).await.is_ok() {
            came += 1;
        }
        assert_eq!(came, MOST_EMPTY);
    }
}
