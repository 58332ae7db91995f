//! The units of everything that is printed for people: bytes in powers of 1024 (KiB, MiB), times in the
//! unit that fits, rates a second, shares in percent. And those of arguments.

use std::time::Duration;

use crate::quantity::{Size, TimeSpan};
use indicatif::HumanBytes;

/// An argument that is a size, in bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    text.parse().map(|Size(bytes)| bytes)
}

/// An argument that is a length of time.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    text.parse().map(|TimeSpan(time)| time)
}

/// As [`time`], of an argument that was a number of seconds in former versions.
pub(super) fn time_or_seconds(text: &str) -> Result<Duration, String> {
    let time = TimeSpan::or_seconds(text).map(|TimeSpan(time)| time);
    time.map_err(str::to_owned)
}

/// A time, in microseconds: `12 µs`, `3.4 ms`, `5.6 s`.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// A span of seconds or more, by its two largest units: `42 s`, `3 min 20 s`, `5 h`, `2 d 4 h`.
pub(super) fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut remaining = span.as_secs();
    let largest = UNITS.iter().position(|(seconds, _)| remaining >= *seconds);
    let largest = largest.unwrap_or(UNITS.len() - 1);
    let mut parts = Vec::new();
    for (seconds, unit) in &UNITS[largest..UNITS.len().min(largest + 2)] {
        let count = remaining / seconds;
        remaining %= seconds;
        if count > 0 || parts.is_empty() {
            parts.push(format!("{count} {unit}"));
        }
    }
    parts.join(" ")
}

/// Bytes a second.
pub(super) fn bytes_per_second(rate: f64) -> String {
    format!("{}/s", HumanBytes(rate as u64))
}

/// A number of events a second.
pub(super) fn per_second(rate: f64, what: &str) -> String {
    match rate {
        0.0 => format!("0 {what}/s"),
        0.0..10.0 => format!("{rate:.1} {what}/s"),
        _ => format!("{rate:.0} {what}/s"),
    }
}

/// A share, in percent. Only all of it is 100 %.
pub(super) fn percent(share: f64) -> String {
    let percent = (share * 1000.0).floor() / 10.0;
    match percent {
        100.0 => "100 %".to_owned(),
        _ => format!("{percent:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_quantity_has_one_form() {
        assert_eq!(
            [micros(7), micros(3400), micros(5_600_000)],
            ["7 µs", "3.4 ms", "5.6 s"]
        );
        for (seconds, shown) in [
            (0, "0 s"),
            (42, "42 s"),
            (200, "3 min 20 s"),
            (3600, "1 h"),
            (3661, "1 h 1 min"),
            (187_200, "2 d 4 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), shown);
        }
        assert_eq!(bytes_per_second(3.5 * 1048576.0), "3.50 MiB/s");
        assert_eq!(per_second(0.0, "requests"), "0 requests/s");
        assert_eq!(per_second(2.25, "requests"), "2.2 requests/s");
        assert_eq!(per_second(120.4, "requests"), "120 requests/s");
        assert_eq!(
            [percent(1.0), percent(0.9999), percent(0.0)],
            ["100 %", "99.9 %", "0.0 %"]
        );
    }
}
