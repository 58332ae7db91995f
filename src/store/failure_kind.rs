//! The kinds of failure of a call to an upstream.

/// What kind of failure a call ended with. The client of each protocol maps that protocol's own statuses to these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// There is no such object.
    NotFound,
    /// The call creates an object that exists already, or asks for a newer version than there is.
    Exists,
    /// The endpoint has no such call.
    Unsupported,
    /// The endpoint refuses the request as wrong, or in its present state.
    Refused,
    /// The answer is larger than the caller takes.
    TooLarge,
    /// The caller is known, and may not do this.
    Denied,
    /// The caller gave no token, key or login, or a wrong one.
    Unauthenticated,
    /// There is no connection, or the endpoint cannot answer now.
    Unreachable,
    /// What came makes no sense.
    Corrupt,
    /// Another change came between.
    Conflict,
    /// It takes more memory, disk or time than its bound.
    Exhausted,
    /// Anything else.
    Other,
}
