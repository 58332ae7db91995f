//! What goes wrong on the way to a store far away, in a form that all who wait for it can share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::advice::with_advice;
use super::{Damage, Error, Object};
use crate::castore::Digest;

/// Why a call gave no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Timeout(Duration),
    /// The server, or the way to it, said so.
    Status(Code, String),
    /// What came is not what its digest promises.
    Damaged(Object, Digest, Damage),
    /// A file that holds what has come in failed.
    Spool(PathBuf, std::io::ErrorKind),
}

impl Failure {
    pub(super) fn is(&self, wanted: Code) -> bool {
        matches!(self, Failure::Status(code, _) if *code == wanted)
    }

    /// This failure of `request`, for the world outside.
    pub(super) fn of(self, store: &str, request: impl fmt::Display) -> Error {
        let store = store.to_owned();
        match self {
            Failure::Timeout(after) => Error::Timeout { store, after },
            Failure::Damaged(object, digest, damage) => Error::Damaged {
                store,
                object,
                digest,
                damage: Box::new(damage),
            },
            Failure::Status(Code::PermissionDenied, why) => Error::ReadOnly { store, why },
            Failure::Status(Code::InvalidArgument | Code::FailedPrecondition, why) => {
                Error::Refused {
                    store,
                    what: request.to_string(),
                    why,
                }
            }
            Failure::Status(code, why) => Error::Remote {
                why: with_advice(&store, code, &why),
                store,
                request: request.to_string(),
            },
            Failure::Spool(path, kind) => Error::Io {
                store,
                action: "use the spool file in",
                path,
                source: kind.into(),
            },
        }
    }

    /// A fetch that crashed.
    pub(super) fn crashed() -> Self {
        Failure::Status(Code::Internal, "the fetch broke off".to_owned())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let mut why = status.message().to_owned();
        let mut cause = std::error::Error::source(&status);
        while let Some(error) = cause {
            let text = error.to_string();
            if !why.contains(&text) {
                why = format!("{why}: {text}");
            }
            cause = error.source();
        }
        Failure::Status(status.code(), why)
    }
}

/// What turns "there is none" into nothing.
pub(super) fn found<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.is(Code::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}
