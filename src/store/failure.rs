//! The failures of calls to upstreams, in a form that all waiting readers can share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::{Code, Status};

use super::advice::with_advice;
use super::{Damage, Error, Object};
use crate::castore::Digest;

/// Bytes of a server's message that are kept, at most: it comes to logs and terminals.
const LONGEST: usize = 1024;

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(super) enum CallFailure {
    Timeout(Duration),
    /// The server, or the connection, failed with this status.
    Status(Code, String),
    /// The server looks roots up by name and lists none; with its message.
    Unlisted(String),
    /// The received bytes do not match their digest.
    Damaged(Object, Digest, Damage),
    /// A download buffer file failed.
    BufferFile(PathBuf, std::io::ErrorKind),
}

impl CallFailure {
    pub(super) fn is(&self, wanted: Code) -> bool {
        matches!(self, CallFailure::Status(code, _) if *code == wanted)
    }

    /// Whether the endpoint has answered: that there is no such object, say, or that it has no such
    /// call.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            CallFailure::Status(code, _) => matches!(
                code,
                Code::NotFound
                    | Code::AlreadyExists
                    | Code::Unimplemented
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::OutOfRange
            ),
            CallFailure::Unlisted(_) => true,
            CallFailure::Timeout(_) | CallFailure::Damaged(..) | CallFailure::BufferFile(..) => {
                false
            }
        }
    }

    /// The public error for this failure of `request`.
    pub(super) fn of(self, store: &str, request: impl fmt::Display) -> Error {
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
            CallFailure::Status(Code::AlreadyExists, why) => Error::NameTaken { store, why },
            CallFailure::Status(Code::PermissionDenied, why) => {
                // A server's store that is read-only is named as a whole there.
                let named = format!("{store} cannot be written to: ");
                let why = why.strip_prefix(&named).unwrap_or(&why).to_owned();
                Error::ReadOnly { store, why }
            }
            CallFailure::Status(Code::InvalidArgument | Code::FailedPrecondition, why) => {
                Error::Refused {
                    store,
                    what: request.to_string(),
                    why,
                }
            }
            CallFailure::Status(code, why) => Error::Remote {
                why: with_advice(&store, code, &why),
                store,
                request: request.to_string(),
            },
            CallFailure::BufferFile(path, kind) => Error::Io {
                store,
                action: "use the download buffer in",
                path,
                source: kind.into(),
            },
        }
    }

    /// A fetch that crashed.
    pub(super) fn crashed() -> Self {
        CallFailure::Status(Code::Internal, "the fetch was interrupted".to_owned())
    }
}

impl From<Status> for CallFailure {
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
        CallFailure::Status(status.code(), shortened(why))
    }
}

/// `text`, or its beginning if it is longer than any reason is.
fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

/// Turns "not found" into nothing.
pub(super) fn found<T>(answer: Result<T, CallFailure>) -> Result<Option<T>, CallFailure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.is(Code::NotFound) => Ok(None),
        Err(failure) => Err(failure),
    }
}
