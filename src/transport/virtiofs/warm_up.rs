//! The thread that records what a guest reads first, and prefetches what was recorded.
//!
//! A guest has one, from its first session on, however often it mounts, so that repeated mounting
//! makes no more threads. When a session ends the thread writes its recording, and only then takes
//! the next session. That is a start of its own, which finds the profile of the one before, as the
//! next mount would.
//!
//! A session that ends within that moment is recorded as well. Of several, only the last is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::fs::CastoreFs;

/// The sessions of a guest, as the thread sees them.
#[derive(Default)]
pub(super) struct GuestWarmUp {
    state: Mutex<GuestWarmUpState>,
    /// Notified when there is another session, and when there will be no more.
    changed: Condvar,
    /// The number of the current session, or another number if there is none.
    session: AtomicU64,
}

#[derive(Default)]
struct GuestWarmUpState {
    has_thread: bool,
    dismissed: bool,
    /// A session that is to be recorded, and its number.
    next: Option<(Arc<CastoreFs>, u64)>,
    /// The session that is being recorded.
    current: Option<Arc<CastoreFs>>,
}

impl GuestWarmUp {
    /// Records the reads from `fs` from here on, if they are to be recorded, and no longer any
    /// others.
    pub(super) fn begin(self: &Arc<Self>, fs: &Arc<CastoreFs>, span: &tracing::Span) {
        let mut state = self.state.lock();
        let number = self.end_session(&state);
        if !fs.records_accesses() || state.dismissed {
            return;
        }
        state.next = Some((fs.clone(), number));
        self.changed.notify_one();
        if !state.has_thread {
            match self.start(span) {
                Ok(()) => state.has_thread = true,
                Err(error) => {
                    tracing::warn!(%error, "warm-up is off for a guest: its thread cannot start");
                    state.next = None;
                }
            }
        }
    }

    /// There is no session any more.
    pub(super) fn end(&self) {
        self.end_session(&self.state.lock());
    }

    /// There will be none any more.
    pub(super) fn dismiss(&self) {
        let mut state = self.state.lock();
        state.dismissed = true;
        self.end_session(&state);
        self.changed.notify_one();
    }

    /// Writes what was recorded so far, also of a session that has just ended.
    pub(super) fn remember(&self) {
        let state = self.state.lock();
        let next = state.next.as_ref().map(|(fs, _)| fs);
        let recorded: Vec<_> = state.current.iter().chain(next).cloned().collect();
        drop(state);
        recorded.iter().for_each(|fs| fs.remember());
    }

    /// Makes the thread leave its session; returns the next one's number.
    fn end_session(&self, state: &GuestWarmUpState) -> u64 {
        let number = self.session.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(current) = &state.current {
            current.stir();
        }
        number
    }

    fn start(self: &Arc<Self>, span: &tracing::Span) -> io::Result<()> {
        let (recordings, span) = (self.clone(), span.clone());
        let record = move || {
            let _in_span = span.enter();
            while let Some((fs, number)) = recordings.next() {
                fs.warm_up(|| recordings.session.load(Ordering::Relaxed) != number);
                recordings.state.lock().current = None;
            }
        };
        let thread = std::thread::Builder::new().name("warm-up".into());
        thread.spawn(record).map(drop)
    }

    /// Waits for a session to record.
    fn next(&self) -> Option<(Arc<CastoreFs>, u64)> {
        let mut state = self.state.lock();
        loop {
            if let Some((fs, number)) = state.next.take() {
                state.current = Some(fs.clone());
                return Some((fs, number));
            }
            if state.dismissed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}
