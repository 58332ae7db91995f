//! Times as text.

use chrono::{DateTime, Utc};

fn at(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

/// A time in seconds since 1970, for people.
pub(super) fn utc(seconds: u64) -> String {
    let time = at(seconds).map(|time| time.format("%F %T UTC").to_string());
    time.unwrap_or_else(|| "a time that has no date".to_owned())
}

/// A time in seconds since 1970, to the minute, for a column of times in UTC.
pub(super) fn minutes(seconds: u64) -> Option<String> {
    at(seconds).map(|time| time.format("%F %R").to_string())
}

/// A time in seconds since 1970, as in RFC 3339.
pub(super) fn rfc_3339(seconds: u64) -> Option<String> {
    at(seconds).map(|time| time.format("%FT%TZ").to_string())
}
