//! The failures of calls to upstreams, in a form that all waiting readers can share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::advice::with_advice;
use super::{Damage, Error, Object};
use crate::castore::Digest;

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Timeout(Duration),
    /// The server, or the connection, failed with this status.
    Status(Code, String),
    /// The server looks roots up by name and lists none; with its message.
    Unlisted(String),
    /// The received bytes do not match their digest.
    Damaged(Object, Digest, Damage),
    /// A download buffer file failed.
    Spool(PathBuf, std::io::ErrorKind),
}

impl Failure {
    pub(super) fn is(&self, wanted: Code) -> bool {
        matches!(self, Failure::Status(code, _) if *code == wanted)
    }

    /// The public error for this failure of `request`.
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
            Failure::Unlisted(why) => Error::Unlisted { store, why },
            Failure::Status(Code::AlreadyExists, why) => Error::NameTaken { store, why },
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
        Failure::Status(Code::Internal, "the fetch was interrupted".to_owned())
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

/// Turns "not found" into nothing.
pub(super) fn found<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.is(Code::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}
