//! How many questions may be asked twice.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Of the questions asked, how many may be asked a second time.
const SHARE: f64 = 0.1;
/// However few are asked: so many a second. Without it a store that nobody had asked for a while
/// would wait out the first member that hangs.
const A_SECOND: f64 = 1.0;
/// The most that is saved up.
const MOST: f64 = 10.0;

/// Lets a second question through as often as that keeps the load near what it would be without.
#[derive(Debug)]
pub(super) struct Budget(Mutex<Saved>);

#[derive(Debug)]
struct Saved {
    hedges: f64,
    when: Instant,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Saved {
            hedges: MOST,
            when: Instant::now(),
        }))
    }

    /// A question is asked.
    pub(super) fn earn(&self) {
        self.0.lock().add(SHARE);
    }

    /// Whether it may be asked of another as well.
    pub(super) fn take(&self) -> bool {
        let mut saved = self.0.lock();
        let now = Instant::now();
        let passed: Duration = now.saturating_duration_since(saved.when);
        saved.when = now;
        saved.add(passed.as_secs_f64() * A_SECOND);
        let enough = saved.hedges >= 1.0;
        if enough {
            saved.hedges -= 1.0;
        }
        enough
    }
}

impl Saved {
    fn add(&mut self, hedges: f64) {
        self.hedges = (self.hedges + hedges).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tenth_of_the_questions_and_one_a_second() {
        let budget = Budget::new();
        let taken = |asked: u32| {
            let taken = (0..asked).filter(|_| {
                budget.earn();
                budget.take()
            });
            taken.count()
        };
        // What was saved up, and a tenth.
        assert_eq!(taken(1000), 110);
        assert_eq!(taken(1000), 100);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(taken(1), 1);
        assert_eq!(taken(1), 1);
        assert_eq!(taken(1), 1);
        assert_eq!(taken(1), 0);
    }
}
