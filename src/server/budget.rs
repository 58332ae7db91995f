//! A budget: how much of a limited resource each connection may hold.
//!
//! A connection may hold as much as it leaves free: a single one gets half of the resource, and
//! however many there are, the next one still gets something (a dynamic threshold, as in the shared
//! buffers of switches). So no client can starve the others, without knowing any by name.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A limited resource: bytes, or calls.
pub(super) struct Budget {
    total: usize,
    used: Mutex<usize>,
    freed: Notify,
}

/// The share of one connection.
pub(super) struct Share {
    budget: Arc<Budget>,
    /// Changed under the lock of the budget.
    own: Mutex<usize>,
}

/// A part of a share; given back when dropped.
pub(super) struct Held {
    share: Arc<Share>,
    amount: usize,
}

impl Budget {
    pub(super) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            used: Mutex::new(0),
            freed: Notify::new(),
        })
    }

    /// A share for a new connection.
    pub(super) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share {
            budget: self.clone(),
            own: Mutex::new(0),
        })
    }
}

impl Share {
    /// Holds `amount` more, if what is left afterwards is at least what this connection has.
    pub(super) fn try_hold(self: &Arc<Self>, amount: usize) -> Option<Held> {
        let mut used = self.budget.used.lock();
        let mut own = self.own.lock();
        let left = self.budget.total.checked_sub(*used)?.checked_sub(amount)?;
        if *own + amount > left {
            return None;
        }
        *used += amount;
        *own += amount;
        Some(Held {
            share: self.clone(),
            amount,
        })
    }

    /// Waits until it can hold `amount` more, which has to be well below half of the resource.
    pub(super) async fn hold(self: Arc<Self>, amount: usize) -> Held {
        loop {
            let freed = self.budget.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Before the try, so that what is freed right after it is noticed.
            freed.as_mut().enable();
            if let Some(held) = self.try_hold(amount) {
                return held;
            }
            freed.await;
        }
    }
}

impl Held {
    /// Holds `amount` more together with this; returns whether that succeeded.
    pub(super) fn grow(&mut self, amount: usize) -> bool {
        let Some(mut more) = self.share.try_hold(amount) else {
            return false;
        };
        self.amount += std::mem::take(&mut more.amount);
        true
    }

    /// Releases all but `amount`.
    pub(super) fn shrink(&mut self, amount: usize) {
        let less = self.amount.saturating_sub(amount);
        self.amount -= less;
        self.give_back(less);
    }

    fn give_back(&self, amount: usize) {
        if amount > 0 {
            let mut used = self.share.budget.used.lock();
            *used -= amount;
            *self.share.own.lock() -= amount;
            drop(used);
            self.share.budget.freed.notify_waiters();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_connection_takes_what_the_next_one_needs() {
        let budget = Budget::new(1000);
        let first = budget.share();
        let held: Vec<_> = std::iter::from_fn(|| first.try_hold(10)).collect();
        assert_eq!(held.len(), 50, "alone, it may have half");
        let others: Vec<_> = (0..5).map(|_| budget.share()).collect();
        let held_too: Vec<_> = others
            .iter()
            .map(|share| std::iter::from_fn(|| share.try_hold(1)).collect::<Vec<_>>())
            .collect();
        assert!(held_too.iter().all(|held| !held.is_empty()));
        drop((held, held_too));
        assert!(first.try_hold(500).is_some());
        assert!(first.try_hold(501).is_none());
        assert!(first.try_hold(usize::MAX).is_none());
    }

    #[tokio::test]
    async fn a_release_wakes_a_waiter() {
        let budget = Budget::new(100);
        let share = budget.share();
        let mut held = share.try_hold(30).unwrap();
        assert!(held.grow(20) && !held.grow(1));
        let waiting = tokio::spawn(budget.share().hold(40));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.shrink(20);
        waiting.await.unwrap();
    }
}
