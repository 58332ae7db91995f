//! The messages that a server sends before a result.

use super::{ERROR, Field, LAST};

/// A line for a user.
const LINE: u64 = 0x6f6c_6d67;
/// An activity begins.
const START_ACTIVITY: u64 = 0x5354_5254;
/// An activity ends.
const STOP_ACTIVITY: u64 = 0x5354_4f50;
/// Something that an activity reports.
const ACTIVITY_RESULT: u64 = 0x5253_4c54;

/// A message of a server, by what follows the word that it begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// The result.
    Last,
    /// An error, which ends the operation.
    Failure,
    /// Fields for a user.
    Fields {
        /// The first of them.
        before: &'static [Field],
        /// Those after a list of values, if there is that list: its length, then for each value its type (0: a word;
        /// else a text) and the value.
        after: Option<&'static [Field]>,
    },
}

impl ServerMessage {
    /// The message that begins with `word`; else what is wrong with it.
    pub fn from_word(word: u64) -> Result<Self, String> {
        use Field::{Text, Word};
        Ok(match word {
            LAST => Self::Last,
            ERROR => Self::Failure,
            LINE => Self::Fields {
                before: &[Text],
                after: None,
            },
            // Its number, level and type, and its text; the number of the one that it is part of.
            START_ACTIVITY => Self::Fields {
                before: &[Word, Word, Word, Text],
                after: Some(&[Word]),
            },
            STOP_ACTIVITY => Self::Fields {
                before: &[Word],
                after: None,
            },
            // The activity's number, and the type of the result.
            ACTIVITY_RESULT => Self::Fields {
                before: &[Word, Word],
                after: Some(&[]),
            },
            other => return Err(format!("it sends the unknown message {other:#x}")),
        })
    }
}
