//! One request, sent to the members one after the other until there is an answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::member::{self, MemberStanding, RequestKind};
use super::{MemberOrder, MirrorsInner};
use crate::store::{Error, Store};

/// A request in flight to one member.
pub(super) type MemberRequest<T> = Pin<Box<dyn Future<Output = Result<Option<T>, Error>> + Send>>;

/// The result of an attempt.
struct AttemptOutcome<T> {
    member: usize,
    began: Instant,
    outcome: Result<Option<T>, Error>,
}

/// One request, and the members it was sent to.
pub(super) struct RequestRound<'a, T, Q> {
    shared: &'a Arc<MirrorsInner>,
    kind: RequestKind,
    question: &'a Q,
    /// Members that can still be asked, and whose "not found" counts; best first.
    next: VecDeque<usize>,
    /// Members to ask when no other can answer.
    corrupt: VecDeque<usize>,
    /// Members with the request in flight, since when, and when that began to take long.
    asked: Vec<(usize, Instant, Instant)>,
    pending: FuturesUnordered<Pin<Box<dyn Future<Output = AttemptOutcome<T>> + Send>>>,
    /// When to hedge.
    hedge_at: Option<Instant>,
    /// Members whose word counts that do not have it.
    absent: usize,
    failures: Vec<(usize, Error)>,
    /// Members whose word counts that are not asked.
    unheard: Vec<usize>,
}

impl<'a, T, Q> RequestRound<'a, T, Q>
where
    T: Send + 'static,
    Q: Fn(Arc<dyn Store>) -> MemberRequest<T>,
{
    pub(super) fn begin(shared: &'a Arc<MirrorsInner>, kind: RequestKind, question: &'a Q) -> Self {
        shared.budget.earn();
        let now = Instant::now();
        let [healthy, slow, mut out, corrupt] = shared.standings(kind, now);
        let (mut first, someone_is_well) = (Vec::new(), !healthy.is_empty());
        for &index in slow.iter().chain(&out) {
            if !shared.members[index].take_probe(now) {
                continue;
            }
            match someone_is_well {
                true => Self::probe(shared.clone(), index, kind, question),
                // There is no better member.
                false => first.push(index),
            }
        }
        out.retain(|index| !first.contains(index));
        let slow = slow.into_iter().filter(|index| !first.contains(index));
        let next = first.iter().copied().chain(healthy).chain(slow).collect();
        let mut round = Self {
            shared,
            kind,
            question,
            next,
            corrupt: corrupt.into(),
            asked: Vec::new(),
            pending: FuturesUnordered::new(),
            hedge_at: None,
            absent: 0,
            failures: Vec::new(),
            unheard: out,
        };
        match shared.order {
            MemberOrder::Racing => round.ask_all(),
            MemberOrder::Listed | MemberOrder::Fastest => round.ask_next(),
        }
        round.ask_corrupt();
        round
    }

    /// Waits until there is an answer, or no member has one. `openings` changes when a breaker
    /// opens; `request` describes the request.
    pub(super) async fn run(
        mut self,
        mut openings: watch::Receiver<u64>,
        request: impl Fn() -> String,
    ) -> Result<Option<T>, Error> {
        while !self.pending.is_empty() {
            tokio::select! {
                biased;
                Some(attempt) = self.pending.next() => {
                    if let Some(found) = self.answer(attempt) {
                        return Ok(Some(found));
                    }
                }
                () = until(self.hedge_at) => self.hedge(),
                Ok(()) = openings.changed() => self.move_on(),
            }
        }
        self.end(request)
    }

    /// Sends the request to a member with an open breaker, beside the one that is asked, as a
    /// probe. No reader waits for it.
    fn probe(shared: Arc<MirrorsInner>, index: usize, kind: RequestKind, question: &Q) {
        let member = &shared.members[index];
        member.asked();
        let began = Instant::now();
        let asking = question(member.store.clone());
        tokio::spawn(
            async move {
                match asking.await {
                    Ok(_) => shared.answered(index, kind, began),
                    Err(error) => shared.failed(index, began, &error),
                }
            }
            .boxed(),
        );
    }

    fn ask_next(&mut self) {
        if let Some(index) = self.next.pop_front() {
            self.put_to(index);
        }
    }

    fn ask_all(&mut self) {
        while !self.next.is_empty() {
            self.ask_next();
        }
    }

    /// Asks the members with corrupt responses, one after the other, when there is no other.
    fn ask_corrupt(&mut self) {
        if self.pending.is_empty()
            && let Some(index) = self.corrupt.pop_front()
        {
            self.put_to(index);
        }
    }

    fn put_to(&mut self, index: usize) {
        let member = &self.shared.members[index];
        member.asked();
        let began = Instant::now();
        let late = began + member.patience(self.kind);
        self.asked.push((index, began, late));
        let can_hedge = !self.next.is_empty() && self.shared.order != MemberOrder::Racing;
        self.hedge_at = can_hedge.then_some(late);
        let asking = (self.question)(member.store.clone());
        self.pending.push(Box::pin(async move {
            AttemptOutcome {
                member: index,
                began,
                outcome: asking.await,
            }
        }));
    }

    /// Hedges, if the budget allows it.
    fn hedge(&mut self) {
        let Some(&(index, began, late)) = self.asked.last() else {
            return;
        };
        let member = &self.shared.members[index];
        if self.shared.budget.take() {
            member.hedged();
            self.ask_next();
        } else {
            self.hedge_at = Some(Instant::now() + (late - began));
        }
    }

    /// A breaker has opened. If its member is being asked, the next is asked as well: that is no
    /// hedge.
    fn move_on(&mut self) {
        let now = Instant::now();
        let well = |&(index, ..): &(usize, Instant, Instant)| {
            self.shared.members[index].standing(now) == MemberStanding::Healthy
        };
        if !self.asked.iter().any(well) {
            self.ask_next();
        }
    }

    /// Handles a member's response. Returns the answer, if it is one.
    fn answer(&mut self, attempt: AttemptOutcome<T>) -> Option<T> {
        let AttemptOutcome {
            member,
            began,
            outcome,
        } = attempt;
        self.asked.retain(|(index, ..)| *index != member);
        match outcome {
            Ok(Some(found)) => {
                self.shared.answered(member, self.kind, began);
                self.settle();
                return Some(found);
            }
            Ok(None) => {
                self.shared.answered(member, self.kind, began);
                let standing = self.shared.members[member].standing(Instant::now());
                self.absent += usize::from(standing != MemberStanding::Corrupt);
                // From here on "not found" must be unanimous.
                self.ask_all();
            }
            Err(error) => {
                self.shared.failed(member, began, &error);
                self.failures.push((member, error));
                self.ask_next();
            }
        }
        if !self.failures.is_empty() || !self.unheard.is_empty() || self.absent == 0 {
            self.ask_corrupt();
        }
        None
    }

    /// Updates the others' states after an answer.
    fn settle(&mut self) {
        let now = Instant::now();
        for &(index, _, late) in &self.asked {
            if now >= late && self.shared.order != MemberOrder::Racing {
                self.shared.overtaken(index);
            }
        }
        for (index, error) in &self.failures {
            if matches!(error, Error::Damaged { .. }) && !member::is_proof(error) {
                self.shared.sent_corrupt(*index, error);
            }
        }
    }

    /// No member has an answer: not found, or the reasons.
    fn end(mut self, request: impl Fn() -> String) -> Result<Option<T>, Error> {
        if self.failures.is_empty() && self.unheard.is_empty() && self.absent > 0 {
            return Ok(None);
        }
        if self.failures.len() == 1
            && self.unheard.is_empty()
            && self.absent == 0
            && let Some((_, error)) = self.failures.pop()
        {
            return Err(error);
        }
        let mut deadlines = Vec::new();
        let mut reasons = Vec::new();
        for (_, error) in &self.failures {
            deadlines.push(error.deadline());
            reasons.push(error.to_string());
        }
        for &index in &self.unheard {
            let member = &self.shared.members[index];
            let last = member.last_failure();
            deadlines.push(last.as_ref().and_then(|last| last.deadline));
            let text = last.map_or_else(|| "it does not answer".to_owned(), |last| last.text);
            reasons.push(format!(
                "{} gets no requests for a while: {text}",
                member.name
            ));
        }
        if reasons.is_empty() {
            deadlines.push(None);
            reasons.push("all other members sent wrong bytes before".to_owned());
        }
        let store = self.shared.url.clone();
        let why = reasons.join("; ");
        let deadlines: Option<Vec<Duration>> = deadlines.into_iter().collect();
        let late = deadlines.and_then(|deadlines| deadlines.into_iter().max());
        Err(match late {
            // A member that answered is reachable, and had no object to return.
            _ if self.absent > 0 => Error::Undecided {
                store,
                request: request(),
                why,
                late: late.is_some(),
            },
            Some(after) => Error::Timeout { store, after },
            None => Error::Remote {
                store,
                request: request(),
                why,
            },
        })
    }
}

/// Waits for `when`; for ever if that is never.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
