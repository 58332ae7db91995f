//! The causes of a library's error, in one text.

use std::error::Error;

/// The text of `error`, or `text` in its place, with those of its causes that do not repeat it.
pub(crate) fn with_causes(mut text: String, error: &dyn Error) -> String {
    let mut next = error.source();
    while let Some(cause) = next {
        let why = cause.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_cause_is_named_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("transport error")]
        struct Transport(#[source] io::Error);

        let refused = Transport(io::Error::other("refused"));
        let text = |text: &str| with_causes(text.to_owned(), &refused);
        assert_eq!(text("transport error"), "transport error: refused");
        assert_eq!(text("it was refused"), "it was refused");
    }
}
