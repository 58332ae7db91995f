//! From a store's error to the errno that a program sees: the one place that decides.

use std::io;

use crate::castore::Digest;
use crate::store::Error;

/// The errno for a request that failed with `error`.
///
/// `ENOENT` is never among them: it means "does not exist", and a store that failed did not say
/// that. The one exception is asked for by a mount's options, for names at its top that were never
/// seen: [`WhenUnreachable::Absent`](super::WhenUnreachable::Absent).
pub fn errno(error: &Error) -> i32 {
    match error {
        Error::Timeout { .. } | Error::Undecided { late: true, .. } => libc::ETIMEDOUT,
        Error::ReadOnly { .. } => libc::EROFS,
        Error::Undecided { late: false, .. }
        | Error::Remote { .. }
        | Error::Url { .. }
        | Error::Damaged { .. }
        | Error::Io { .. }
        | Error::Index { .. }
        | Error::Format { .. }
        | Error::Refused { .. } => libc::EIO,
    }
}

/// Whether the store's endpoint is what failed: it could not be reached, did not answer in time, or
/// answered with an error. This machine's own disk is none.
pub fn is_unreachable(error: &Error) -> bool {
    matches!(
        error,
        Error::Timeout { .. } | Error::Undecided { .. } | Error::Remote { .. }
    )
}

/// The address of whoever is not this machine and failed, for the log.
pub fn endpoint(error: &Error) -> Option<&str> {
    match error {
        Error::Timeout { store, .. } | Error::Remote { store, .. } => Some(store),
        _ => None,
    }
}

/// The digest of what was found damaged, for the log.
pub fn damaged(error: &Error) -> Option<&Digest> {
    match error {
        Error::Damaged { digest, .. } => Some(digest),
        _ => None,
    }
}

/// What a request comes to that is [parked](super::waiting): nothing that a program sees.
pub fn parked() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// An errno as the error type of a FUSE request.
pub fn failure(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
