//! The error that ends an operation.

use super::{ERROR, Encoder};

/// How Nix shows it: as an error.
const LEVEL: u64 = 0;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationFailure {
    /// What Nix prints after "error: ".
    pub message: String,
}

impl OperationFailure {
    /// With `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }

    /// Appends the message of this error to `out`.
    pub fn put(&self, out: &mut Encoder) {
        // No name, no position and no trace.
        out.word(ERROR)
            .text("Error")
            .word(LEVEL)
            .text("Error")
            .text(&self.message)
            .word(0)
            .word(0);
    }
}
