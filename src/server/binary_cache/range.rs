//! The `Range` header: one range of bytes (RFC 9110, 14.1.2 and 14.2).

use std::ops::Range;

/// What a request asks for of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RequestedRange {
    /// All of it. Also what is answered to several ranges, other units and what makes no sense.
    All,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Outside,
}

/// What `header` asks for of a file of `size` bytes.
pub(super) fn wanted(header: Option<&[u8]>, size: u64) -> RequestedRange {
    let Some((first, last)) = header.and_then(bounds) else {
        return RequestedRange::All;
    };
    let number = |text: &str| match text.is_empty() {
        true => Some(None),
        false => text.parse::<u64>().ok().map(Some),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return RequestedRange::All;
    }
    let range = match (number(first), number(last)) {
        (Some(Some(first)), Some(Some(last))) if first > last => return RequestedRange::All,
        (Some(Some(first)), Some(last)) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            first..end
        }
        (Some(None), Some(Some(last))) => size.saturating_sub(last)..size,
        _ => return RequestedRange::All,
    };
    match range.is_empty() {
        true => RequestedRange::Outside,
        false => RequestedRange::Part(range),
    }
}

fn bounds(header: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(header).ok()?;
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    range.trim().split_once('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_answered_and_what_makes_no_sense_is_as_none() {
        let of = |header: &str| wanted(Some(header.as_bytes()), 100);
        assert_eq!(wanted(None, 100), RequestedRange::All);
        assert_eq!(of("bytes=0-0"), RequestedRange::Part(0..1));
        assert_eq!(of("bytes=10-"), RequestedRange::Part(10..100));
        assert_eq!(of("Bytes = 10-1000"), RequestedRange::Part(10..100));
        assert_eq!(of("bytes=-10"), RequestedRange::Part(90..100));
        assert_eq!(of("bytes=-1000"), RequestedRange::Part(0..100));
        assert_eq!(
            of("bytes=99-18446744073709551615"),
            RequestedRange::Part(99..100)
        );
        for outside in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(of(outside), RequestedRange::Outside, "{outside}");
        }
        for other in [
            "bytes=0-1,3-4",
            "bytes=2-1",
            "bytes=-",
            "bytes=+1-2",
            "bytes=a-",
            "lines=0-1",
            "bytes=99999999999999999999-",
            "",
        ] {
            assert_eq!(of(other), RequestedRange::All, "{other}");
        }
    }
}
