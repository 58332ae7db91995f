//! The certificates of authorities that TLS trusts: those of the system.
//!
//! A machine without any (a container without files, a fresh image) can connect nowhere over TLS,
//! and the libraries report that in a deep cause or not at all.

use std::error::Error;

use super::shown_url::with_shown_urls;
use crate::causes::with_causes;

/// The libraries' messages if there are none.
const LACKING: [&str; 2] = [
    "no native certs found",
    "No CA certificates were loaded from the system",
];

/// An error with all its causes; and advice if no certificates are trusted. URLs in it are shown
/// without secrets: a request's URL may be signed.
pub(super) fn explain(error: &dyn Error) -> String {
    let text = with_causes(error.to_string(), error);
    let text = with_shown_urls(&text);
    match LACKING.iter().any(|lacking| text.contains(lacking)) {
        true => format!(
            "{text}: this machine has no certificates of authorities to check the other side by; \
             install them (the package ca-certificates), or name a file of them in SSL_CERT_FILE"
        ),
        false => text,
    }
}
