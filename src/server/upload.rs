//! Additions to the store while their client sends them.
//!
//! Between two messages an upload holds no thread and delays no garbage collection: received
//! objects are in the addition, which releases the store until the next message
//! ([`Ingest::release`]). Before the first message there is not even that. So a client that leaves
//! a thousand uploads open holds nothing but their places, until a deadline ends them
//! ([`super::guard`]).

use std::sync::Arc;

use tonic::{Request, Status};

use super::ServedState;
use super::authorize::ClientRights;
use super::budget::{BudgetShare, TakenShare};
use super::capacity::ConnectionState;
use super::limits::ServerLimits;
use super::respond::status;
use super::turns::ConnectionTurns;
use crate::store::{Ingest, Store};

/// Bytes that come in between two looks at the disk.
pub(super) const LOOK: u64 = 16 << 20;

/// An upload, with the state `T` of its method.
pub(super) struct Upload<T: Send + 'static> {
    store: Arc<dyn Store>,
    limits: Arc<ServerLimits>,
    share: Arc<BudgetShare>,
    turns: ConnectionTurns,
    held: Option<TakenShare>,
    /// Bytes until the next check of the disk.
    look: u64,
    state: DroppedOffThread<BegunUpload<T>>,
}

/// The state of an upload from its first message on.
pub(super) struct BegunUpload<T> {
    pub(super) ingest: Box<dyn Ingest>,
    pub(super) kept: T,
}

/// Something whose end may touch the disk: it comes about on a thread that may wait for that.
pub(super) struct DroppedOffThread<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DroppedOffThread<T> {
    pub(super) fn new(inner: T) -> Self {
        Self(Some(inner))
    }

    /// What it is, for a thread that may wait.
    pub(super) fn into_inner(mut self) -> Result<T, Status> {
        let inner = self.0.take();
        inner.ok_or_else(|| Status::internal("the upload was not begun"))
    }
}

impl<T: Send + 'static> Drop for DroppedOffThread<T> {
    fn drop(&mut self) {
        if let (Some(rest), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(rest));
        }
    }
}

impl<T: Default + Send + 'static> Upload<T> {
    /// The upload of `request`, if its client may add to the store.
    pub(super) fn of<R>(served: &ServedState, request: &Request<R>) -> Result<Self, Status> {
        served.may_add(request)?;
        let connection = request.extensions().get::<Arc<ConnectionState>>();
        let connection = connection.ok_or_else(|| Status::internal("no connection"))?;
        Ok(Self {
            store: served.store.clone(),
            limits: served.limits.clone(),
            share: connection.requests.clone(),
            turns: connection.turns.clone(),
            held: None,
            look: 0,
            state: DroppedOffThread(None),
        })
    }

    /// Reserves memory until the upload ends.
    pub(super) fn keep(&mut self, bytes: usize) -> Result<(), Status> {
        let grown = match &mut self.held {
            Some(held) => held.grow(bytes),
            None => {
                self.held = self.share.try_hold(bytes);
                self.held.is_some()
            }
        };
        match grown {
            true => Ok(()),
            false => Err(Status::resource_exhausted(
                "this server has no memory left for unfinished uploads of this connection: wait for \
                 others to end, or send less at once",
            )),
        }
    }

    /// Reserves no more than `bytes`.
    pub(super) fn keep_only(&mut self, bytes: usize) {
        if let Some(held) = &mut self.held {
            held.shrink(bytes);
        }
    }

    /// Does `work`, for which `bytes` came, on a thread that may block; begins the addition with
    /// the first call.
    pub(super) async fn work<R: Send + 'static>(
        &mut self,
        bytes: usize,
        work: impl FnOnce(&mut BegunUpload<T>) -> Result<R, Status> + Send + 'static,
    ) -> Result<R, Status> {
        let check = self.look <= bytes as u64;
        self.look = match check {
            true => LOOK,
            false => self.look - bytes as u64,
        };
        let (state, store, limits) = (self.state.0.take(), self.store.clone(), self.limits.clone());
        let work = move || {
            if check {
                check_room(&limits)?;
            }
            let mut state = match state {
                Some(state) => state,
                None => BegunUpload {
                    ingest: store.ingest().map_err(|error| status(&error))?,
                    kept: T::default(),
                },
            };
            let done = work(&mut state)?;
            state.ingest.release();
            Ok((state, done))
        };
        let (state, done) = self.turns.work(work).await?;
        self.state.0 = Some(state);
        Ok(done)
    }

    /// Ends the upload by `work`, on a thread that may block.
    pub(super) async fn finish<R: Send + 'static>(
        self,
        work: impl FnOnce(BegunUpload<T>) -> Result<R, Status> + Send + 'static,
    ) -> Result<R, Status> {
        let turns = self.turns.clone();
        let (begun, _held) = self.end().await?;
        turns.work(move || work(begun.into_inner()?)).await
    }

    /// What there is of it at its end, and the memory that this takes.
    pub(super) async fn end(
        mut self,
    ) -> Result<(DroppedOffThread<BegunUpload<T>>, Option<TakenShare>), Status> {
        // Begun by now, or it is now.
        self.work(0, |_| Ok(())).await?;
        Ok((DroppedOffThread(self.state.0.take()), self.held.take()))
    }
}

/// Fails if uploads have to leave free what the disk still has.
pub(super) fn check_room(limits: &ServerLimits) -> Result<(), Status> {
    let Some(disk) = limits.disk.as_deref().filter(|_| limits.keep_free > 0) else {
        return Ok(());
    };
    let found = rustix::fs::statvfs(disk)
        .map_err(|error| Status::internal(format!("cannot read the disk's free space: {error}")))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    match free >= limits.keep_free {
        true => Ok(()),
        false => Err(Status::resource_exhausted(format!(
            "the disk with {} has {free} bytes free, and {} are to stay free (--keep-free): run \
             `castore-fs gc` there, or free some space",
            disk.display(),
            limits.keep_free
        ))),
    }
}

impl ServedState {
    /// The turns of the client of `request`.
    pub(super) fn turns<R>(&self, request: &Request<R>) -> ConnectionTurns {
        let connection = request.extensions().get::<Arc<ConnectionState>>();
        connection.map_or_else(|| self.own_turns.clone(), |it| it.turns.clone())
    }

    /// What the client of `request` may do.
    pub(super) fn rights<R>(&self, request: &Request<R>) -> ClientRights {
        let rights = request.extensions().get::<ClientRights>();
        rights.copied().unwrap_or_default()
    }

    /// Fails unless the client of `request` may add to the store.
    pub(super) fn may_add<R>(&self, request: &Request<R>) -> Result<(), Status> {
        if !self.writable {
            return Err(Status::permission_denied(
                "this server is read-only; `castore-fs serve --writable` takes additions",
            ));
        }
        match self.rights(request).add {
            true => Ok(()),
            false => Err(Status::permission_denied(
                "the token has no right to add: give it the word `add` in the server's token file",
            )),
        }
    }
}
