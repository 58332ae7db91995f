//! The mapping from a store's error to the errno that a program gets: the only place that decides
//! it.

use std::io;

use crate::castore::Digest;
use crate::store::Error;

/// The errno for a request that failed with `error`.
///
/// `ENOENT` is never returned for a failure: it means "does not exist", and a store that failed did
/// not answer that. There is one exception, which a mount's options can enable, for names in its
/// root that were never seen: [`WhenUnreachable::Absent`](super::UnreachableLookup::Absent).
pub(super) fn errno(error: &Error) -> i32 {
    match error {
        Error::Timeout { .. } | Error::Undecided { late: true, .. } => libc::ETIMEDOUT,
        Error::ReadOnly { .. } => libc::EROFS,
        Error::Unlisted { .. } => libc::EOPNOTSUPP,
        Error::Undecided { late: false, .. }
        | Error::Remote { .. }
        | Error::Url { .. }
        | Error::NotOpened { .. }
        | Error::Damaged { .. }
        | Error::Io { .. }
        | Error::Index { .. }
        | Error::Format { .. }
        | Error::NameTaken { .. }
        | Error::Full { .. }
        | Error::Refused { .. } => libc::EIO,
    }
}

/// Whether the store's endpoint failed: it could not be reached, did not answer in time, or
/// answered with an error. This machine's own disk is no endpoint.
pub(super) fn is_unreachable(error: &Error) -> bool {
    matches!(
        error,
        Error::Timeout { .. } | Error::Undecided { .. } | Error::Remote { .. }
    )
}

/// The address of the endpoint that failed, for the log; of several mirrors that all failed, the name of the
/// store that they are.
pub(super) fn endpoint(error: &Error) -> Option<&str> {
    match error {
        Error::Timeout { store, .. }
        | Error::Remote { store, .. }
        | Error::Undecided { store, .. } => Some(store),
        _ => None,
    }
}

/// The digest of the damaged object, for the log.
pub(super) fn damaged(error: &Error) -> Option<&Digest> {
    match error {
        Error::Damaged { digest, .. } => Some(digest),
        _ => None,
    }
}

/// The error type of a [parked](super::waiting) request, which no program gets.
pub(super) fn parked() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// An errno as the error type of a FUSE request.
pub(super) fn failure(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_as_an_endpoint_is_named_and_a_damaged_object_is_none() {
        let store = "store:main".to_owned();
        let undecided = Error::Undecided {
            store: store.clone(),
            request: "reading".to_owned(),
            why: "both are down".to_owned(),
            late: false,
        };
        assert_eq!(endpoint(&undecided), Some("store:main"));
        let damaged = Error::Damaged {
            store,
            object: crate::store::Object::Blob,
            digest: Digest::of(b""),
            damage: Box::new(crate::store::Damage::Quarantined),
        };
        assert_eq!(endpoint(&damaged), None);
        assert_eq!(self::damaged(&damaged), Some(&Digest::of(b"")));
    }
}
