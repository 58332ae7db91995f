//! Statuses of gRPC as failures of calls.

use tonic::{Code, Status};

use crate::causes::with_causes;
use crate::store::failure::{CallFailure, FailureKind};

/// Bytes of a server's message that are kept, at most: it comes to logs and terminals.
const LONGEST: usize = 1024;

impl From<Status> for CallFailure {
    fn from(status: Status) -> Self {
        let mut why = with_causes(status.message().to_owned(), &status);
        if why.is_empty() {
            why = status.code().description().to_owned();
        }
        CallFailure::Failed(kind(status.code()), shortened(why))
    }
}

fn kind(code: Code) -> FailureKind {
    match code {
        Code::NotFound => FailureKind::NotFound,
        Code::AlreadyExists => FailureKind::Exists,
        Code::Unimplemented => FailureKind::Unsupported,
        Code::InvalidArgument | Code::FailedPrecondition => FailureKind::Refused,
        Code::OutOfRange => FailureKind::TooLarge,
        Code::PermissionDenied => FailureKind::Denied,
        Code::Unauthenticated => FailureKind::Unauthenticated,
        Code::Unavailable => FailureKind::Unreachable,
        Code::DataLoss => FailureKind::Corrupt,
        Code::Aborted => FailureKind::Conflict,
        Code::ResourceExhausted => FailureKind::Exhausted,
        Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal => {
            FailureKind::Other
        }
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
