//! The failures of calls to upstreams, in a form that all waiting readers can share.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use super::failure_kind::FailureKind;

use super::advice::with_advice;
use super::{Damage, Error, Object};
use crate::castore::Digest;

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(crate) enum CallFailure {
    Timeout(Duration),
    /// The server, or the connection, failed in this way.
    Failed(FailureKind, String),
    /// The server cannot answer now, and asks for this pause; with its message.
    Busy(Duration, String),
    /// The server looks roots up by name and lists none; with its message.
    Unlisted(String),
    /// The received bytes do not match their digest.
    Damaged(Object, Digest, Damage),
    /// A download buffer file failed.
    BufferFile(PathBuf, std::io::ErrorKind),
}

impl CallFailure {
    /// The request is refused, or its answer, for `why`.
    pub(crate) fn refused(why: impl Into<String>) -> Self {
        CallFailure::Failed(FailureKind::Refused, why.into())
    }

    pub(super) fn is(&self, wanted: FailureKind) -> bool {
        matches!(self, CallFailure::Failed(kind, _) if *kind == wanted)
    }

    /// Whether the endpoint has answered: that there is no such object, say, or that it has no such
    /// call.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            CallFailure::Failed(kind, _) => matches!(
                kind,
                FailureKind::NotFound
                    | FailureKind::Exists
                    | FailureKind::Unsupported
                    | FailureKind::Refused
                    | FailureKind::TooLarge
            ),
            CallFailure::Unlisted(_) => true,
            CallFailure::Timeout(_)
            | CallFailure::Busy(..)
            | CallFailure::Damaged(..)
            | CallFailure::BufferFile(..) => false,
        }
    }

    /// Whether there was no connection, no answer in time, or none but that the endpoint is busy.
    pub(super) fn is_silence(&self) -> bool {
        matches!(
            self,
            CallFailure::Timeout(_)
                | CallFailure::Busy(..)
                | CallFailure::Failed(FailureKind::Unreachable, _)
        )
    }

    /// The public error for this failure of `request`.
    pub(crate) fn of(self, store: &str, request: impl fmt::Display) -> Error {
        let store = store.to_owned();
        match self {
            CallFailure::Timeout(after) => Error::Timeout { store, after },
            CallFailure::Damaged(object, digest, damage) => Error::Damaged {
                store,
                object,
                digest,
                damage: Box::new(damage),
            },
            CallFailure::Unlisted(why) => Error::Unlisted { store, why },
            CallFailure::Failed(FailureKind::Exists, why) => Error::NameTaken { store, why },
            CallFailure::Failed(FailureKind::Denied, why) => {
                // The server's message may begin with the same name.
                let named = format!("{store} cannot be written to: ");
                let why = why.strip_prefix(&named).unwrap_or(&why).to_owned();
                Error::ReadOnly { store, why }
            }
            CallFailure::Failed(FailureKind::Refused, why) => Error::Refused {
                store,
                what: request.to_string(),
                why,
            },
            CallFailure::Busy(_, why) => Error::Remote {
                store,
                request: request.to_string(),
                why,
            },
            CallFailure::Failed(kind, why) => Error::Remote {
                why: with_advice(&store, kind, &why),
                store,
                request: request.to_string(),
            },
            CallFailure::BufferFile(path, kind) => Error::Io {
                store,
                action: "use the download buffer in",
                path,
                source: Arc::new(kind.into()),
            },
        }
    }

    /// A fetch that crashed.
    pub(super) fn crashed() -> Self {
        CallFailure::Failed(FailureKind::Other, "the fetch was interrupted".to_owned())
    }
}

/// Turns "not found" into nothing.
pub(super) fn found<T>(answer: Result<T, CallFailure>) -> Result<Option<T>, CallFailure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.is(FailureKind::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}
