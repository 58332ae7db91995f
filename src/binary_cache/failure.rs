//! The failures of a binary cache.

use std::time::Duration;

use thiserror::Error;

use crate::store;

/// Why a binary cache gave no answer, or an unacceptable one. All readers that wait for one answer
/// share it.
#[derive(Clone, Debug, Error)]
pub(super) enum CacheFailure {
    /// No answer in time, or bytes that come too slowly.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The server cannot be reached, or breaks the connection.
    #[error("{0}")]
    Unreachable(String),
    /// An HTTP status that is neither success nor "not found".
    #[error("HTTP status {0}")]
    Status(u16),
    /// A login is required, or was refused.
    #[error(
        "HTTP status {0}: the login was refused; name a netrc file (netrc-file) or a token file (token-file)"
    )]
    Unauthorized(u16),
    /// The answer is unacceptable: wrong, too long, or not signed.
    #[error("{0}")]
    Refused(String),
    /// The local store that the contents go to failed.
    #[error("{0}")]
    Store(String),
}

impl CacheFailure {
    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Unreachable(_) => true,
            Self::Status(status) => *status == 429 || *status >= 500,
            Self::Unauthorized(_) | Self::Refused(_) | Self::Store(_) => false,
        }
    }

    /// The store error for this failure of `request` to `cache`.
    pub(super) fn of(self, cache: &str, request: String) -> store::Error {
        let store = cache.to_owned();
        match self {
            Self::TimedOut(after) => store::Error::Timeout { store, after },
            Self::Refused(why) => store::Error::Refused {
                store,
                what: request,
                why,
            },
            other => store::Error::Remote {
                store,
                request,
                why: other.to_string(),
            },
        }
    }
}
