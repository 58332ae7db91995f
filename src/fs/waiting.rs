//! How a request waits for a store.
//!
//! Nearly every request is answered in place. One that is not blocks the worker it runs on, on the
//! async runtime that the store's work runs on; the transport is told, so that it can start a
//! spare worker and a slow endpoint never keeps requests from being read.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::runtime::Handle;

use super::slow;

/// Told when a worker stops to wait, and when it goes on.
pub trait Workers: Send + Sync {
    /// This worker is about to wait.
    fn wait_begins(&self);
    /// This worker goes on.
    fn wait_ends(&self);
}

/// Where requests wait.
#[derive(Clone)]
pub struct Waiting {
    runtime: Handle,
    workers: Arc<dyn Workers>,
    /// Requests that wait at this moment.
    count: Arc<AtomicUsize>,
}

impl Waiting {
    /// Waits on `runtime`, telling `workers`.
    pub fn new(runtime: Handle, workers: Arc<dyn Workers>) -> Self {
        Self {
            runtime,
            workers,
            count: Arc::default(),
        }
    }

    /// What requests wait on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How many requests wait at this moment.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The outcome of `work`: at once if it is ready, else after a wait.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        let span = slow::span();
        let _in_span = span.enter();
        let mut work = pin!(work);
        // Work that needs the runtime's timers or sockets must be polled inside it.
        let inside = self.runtime.enter();
        let first = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        drop(inside);
        if let Poll::Ready(outcome) = first {
            return outcome;
        }
        let began = Instant::now();
        self.workers.wait_begins();
        self.count.fetch_add(1, Ordering::Relaxed);
        let outcome = self.runtime.block_on(work);
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.workers.wait_ends();
        slow::waited(began.elapsed());
        outcome
    }
}

/// Workers that are not counted: for a transport that never runs out of them.
pub struct Uncounted;

impl Workers for Uncounted {
    fn wait_begins(&self) {}
    fn wait_ends(&self) {}
}
