//! A budget: how much of a limited resource each client and each connection may hold.
//!
//! A connection may hold as much as it leaves free, and all connections of a client together three times
//! as much as they leave free (dynamic thresholds, as in the shared buffers of switches): a single
//! connection gets half of the resource, a single client three quarters. Beyond that each connection has a
//! minimum of its own, which it gets even if everything is taken. So no client starves another, nor the
//! next connection of an address that several clients share, without the server knowing any by name.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::client::ClientId;

/// How many times as much as is left free the connections of one client may hold.
const OF_CLIENT: usize = 3;
/// The part of the resource that is little enough to need only room, where nothing is held yet.
const OF_FIRST: usize = 4;

/// A limited resource: bytes, or calls.
pub(super) struct ConnectionBudget {
    total: usize,
    /// What each connection gets in any case.
    least: usize,
    taken: Mutex<TakenBytes>,
    freed: Notify,
}

#[derive(Default)]
struct TakenBytes {
    /// By all connections; above the total by no more than all their minimums.
    all: usize,
    by_client: HashMap<ClientId, usize>,
}

/// The share of one connection.
pub(super) struct BudgetShare {
    budget: Arc<ConnectionBudget>,
    client: ClientId,
    /// Changed under the lock of the budget.
    own: Mutex<usize>,
}

/// A part of a share; given back when dropped.
pub(super) struct TakenShare {
    share: Arc<BudgetShare>,
    amount: usize,
}

impl ConnectionBudget {
    /// `total` for all connections, of which each gets `least` in any case.
    pub(super) fn new(total: usize, least: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            least,
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// A share for a new connection of `client`.
    pub(super) fn share(self: &Arc<Self>, client: ClientId) -> Arc<BudgetShare> {
        Arc::new(BudgetShare {
            budget: self.clone(),
            client,
            own: Mutex::new(0),
        })
    }
}

impl BudgetShare {
    /// Holds `amount` more, if that leaves enough for the others.
    pub(super) fn try_hold(self: &Arc<Self>, amount: usize) -> Option<TakenShare> {
        let mut taken = self.budget.taken.lock();
        let mut own = self.own.lock();
        let of_client = taken.by_client.get(&self.client).copied().unwrap_or(0);
        let (own_then, client_then) = (own.checked_add(amount)?, of_client.checked_add(amount)?);
        let all_then = taken.all.checked_add(amount)?;
        let fits = || {
            let remaining = self.budget.total.checked_sub(all_then)?;
            // What is held first needs only room: of four turns, a second client gets one.
            let is_first = |held: usize| held == 0 && amount <= self.budget.total / OF_FIRST;
            let is_fair = (is_first(*own) || own_then <= remaining)
                && (is_first(of_client) || client_then <= remaining.saturating_mul(OF_CLIENT));
            is_fair.then_some(())
        };
        if own_then > self.budget.least {
            fits()?;
        }
        taken.all = all_then;
        taken.by_client.insert(self.client, client_then);
        *own = own_then;
        Some(TakenShare {
            share: self.clone(),
            amount,
        })
    }

    /// Waits until it can hold `amount` more, which has to be well below half of the resource.
    pub(super) async fn hold(self: Arc<Self>, amount: usize) -> TakenShare {
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

impl TakenShare {
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
            let mut taken = self.share.budget.taken.lock();
            taken.all -= amount;
            if let Some(of_client) = taken.by_client.get_mut(&self.share.client) {
                *of_client -= amount;
                if *of_client == 0 {
                    taken.by_client.remove(&self.share.client);
                }
            }
            *self.share.own.lock() -= amount;
            drop(taken);
            self.share.budget.freed.notify_waiters();
        }
    }
}

impl Drop for TakenShare {
    fn drop(&mut self) {
        self.give_back(self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> ClientId {
        ClientId::of_address([127, 0, 0, number].into())
    }

    /// As many parts of `amount` as it gets.
    fn all_of(share: &Arc<BudgetShare>, amount: usize) -> Vec<TakenShare> {
        std::iter::from_fn(|| share.try_hold(amount)).collect()
    }

    #[test]
    fn no_connection_takes_what_the_next_one_needs() {
        let budget = ConnectionBudget::new(1000, 0);
        let first = budget.share(client(1));
        let held = all_of(&first, 10);
        assert_eq!(held.len(), 50, "alone, it may have half");
        let others: Vec<_> = (2..7).map(|number| budget.share(client(number))).collect();
        let held_too: Vec<_> = others.iter().map(|share| all_of(share, 1)).collect();
        assert!(held_too.iter().all(|held| !held.is_empty()));
        drop((held, held_too));
        assert!(first.try_hold(500).is_some());
        assert!(first.try_hold(501).is_none());
        assert!(first.try_hold(usize::MAX).is_none());
        let part = first.try_hold(1);
        assert!(first.try_hold(500).is_none() && part.is_some());
    }

    #[test]
    fn a_client_with_many_connections_leaves_a_quarter_and_each_connection_has_a_minimum() {
        let budget = ConnectionBudget::new(32, 1);
        let hostile: Vec<_> = (0..200).map(|_| budget.share(client(1))).collect();
        let held: Vec<_> = hostile.iter().map(|share| all_of(share, 1)).collect();
        let beyond: usize = held.iter().map(|held| held.len() - 1).sum();
        assert!(beyond <= 24, "{beyond}");
        assert!(held.iter().all(|held| !held.is_empty()));
        drop(held);
        // Some is left for others.
        let held: Vec<_> = hostile[..5].iter().map(|share| all_of(share, 1)).collect();
        let other = budget.share(client(2));
        let other = all_of(&other, 1);
        assert!(other.len() >= 2, "{}", other.len());
        let same = budget.share(client(1));
        assert_eq!(all_of(&same, 1).len(), 1, "and an address that is shared");
        drop(held);
        assert!(other[0].share.budget.taken.lock().by_client.len() == 1);
    }

    #[tokio::test]
    async fn a_release_wakes_a_waiter() {
        let budget = ConnectionBudget::new(100, 0);
        let share = budget.share(client(1));
        let mut held = share.try_hold(30).unwrap();
        assert!(held.grow(20) && !held.grow(1));
        let other = budget.share(client(2));
        let own = other.try_hold(1);
        let waiting = tokio::spawn(other.hold(40));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
        drop(own);
    }
}
