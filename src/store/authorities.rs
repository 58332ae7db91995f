//! Whom TLS trusts: the certificates of authorities that the system has.
//!
//! A machine without any (a container made of nothing, a fresh image) can reach nothing over TLS, and
//! the libraries that find out say so deep down or not at all.

use std::error::Error;

use super::shown_url::with_shown_urls;

/// What the libraries say when there are none.
const LACKING: [&str; 2] = [
    "no native certs found",
    "No CA certificates were loaded from the system",
];

/// What went wrong, down to its first cause; and what to do if it is that nobody can be trusted. URLs
/// in it are shown without what may be secret: a request's may be signed.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    let text = with_shown_urls(&text);
    match LACKING.iter().any(|lacking| text.contains(lacking)) {
        true => format!(
            "{text}: this machine has no certificates of authorities to check the other side by; \
             install them (the package ca-certificates), or name a file of them in SSL_CERT_FILE"
        ),
        false => text,
    }
}
