//! The budget of hedged requests.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A hedge, in the budget's unit: thousandths.
const HEDGE: u64 = 1000;
/// The income of a request: a tenth of the requests may be hedged.
const SHARE: u64 = HEDGE / 10;
/// The income of a millisecond: however few the requests, one hedge a second. Without it a store
/// after an idle time would wait for a hanging first member.
const A_MILLISECOND: u64 = HEDGE / 1000;
/// The most that is saved.
const MOST: u64 = 10 * HEDGE;

/// Allows hedges as long as the load stays near what it would be without.
#[derive(Debug)]
pub(super) struct HedgeBudget(Mutex<SavedRequests>);

#[derive(Debug)]
struct SavedRequests {
    thousandths: u64,
    when: Instant,
}

impl HedgeBudget {
    pub(super) fn new() -> Self {
        Self(Mutex::new(SavedRequests {
            thousandths: MOST,
            when: Instant::now(),
        }))
    }

    /// A request is sent.
    pub(super) fn earn(&self) {
        self.0.lock().add(SHARE);
    }

    /// Whether it may be hedged.
    pub(super) fn take(&self) -> bool {
        let mut saved = self.0.lock();
        let passed = saved.when.elapsed().as_millis() as u64;
        saved.when += Duration::from_millis(passed);
        saved.add(passed.saturating_mul(A_MILLISECOND));
        let enough = saved.thousandths >= HEDGE;
        if enough {
            saved.thousandths -= HEDGE;
        }
        enough
    }
}

impl SavedRequests {
    fn add(&mut self, thousandths: u64) {
        self.thousandths = (self.thousandths.saturating_add(thousandths)).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenth_of_the_questions_and_one_a_second() {
        let budget = HedgeBudget::new();
        let taken = |asked: u32| {
            let taken = (0..asked).filter(|_| {
                budget.earn();
                budget.take()
            });
            taken.count()
        };
        // The savings, and a tenth.
        assert!((108..=110).contains(&taken(1000)));
        assert!((99..=101).contains(&taken(1000)));
        tokio::time::advance(Duration::from_secs(3)).await;
        // And the rest of the tenth.
        assert!((3..=4).contains(&taken(9)));
    }
}
