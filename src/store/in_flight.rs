//! A bound on the bytes in flight into memory.
//!
//! A thousand calls with the largest possible answer each would fill any memory. So each takes its
//! share of a fixed sum before it begins, by the most that it may bring.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes in flight at once, of one store: a thousand extents of 256 KiB.
const MOST: u64 = 256 << 20;
/// The unit of counting.
const UNIT: u64 = 64 << 10;

/// The remaining permits.
#[derive(Debug)]
pub(super) struct InFlight(Semaphore);

impl InFlight {
    pub(super) fn new() -> Self {
        Self(Semaphore::new((MOST / UNIT) as usize))
    }

    /// Waits until up to `bytes` more may be in flight; they count until the permit is dropped.
    ///
    /// A caller that holds a permit must not wait here.
    pub(super) async fn begin(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let units = bytes.min(MOST).div_ceil(UNIT).max(1);
        // It is never closed.
        self.0.acquire_many(units as u32).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[tokio::test]
    async fn more_than_the_sum_waits() {
        let in_flight = InFlight::new();
        let all = in_flight.begin(u64::MAX).await;
        let mut another = pin!(in_flight.begin(1));
        let mut context = Context::from_waker(Waker::noop());
        assert!(another.as_mut().poll(&mut context).is_pending());
        drop(all);
        assert!(matches!(another.poll(&mut context), Poll::Ready(Some(_))));
    }
}
