//! Quantities in text: sizes and durations that are read, a number and a unit, and counts that are printed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use indicatif::HumanCount;
use serde::{Deserialize, Deserializer, de};

/// Bytes: `"512MiB"`, `"10GB"`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A length of time: `"30s"`, `"1h30m"`. A plain number has no unit, and is one only where that was always
/// seconds ([`or_seconds`](Self::or_seconds)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSpan(pub Duration);

/// Binary and decimal units of size, largest first if one ends like another.
const SIZE_UNITS: [(&str, u64); 15] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1000 * 1000),
    ("GB", 1000 * 1000 * 1000),
    ("TB", 1000 * 1000 * 1000 * 1000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("B", 1),
];

const SPAN_UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("s", 1000),
    ("min", 60 * 1000),
    ("m", 60 * 1000),
    ("h", 60 * 60 * 1000),
    ("d", 24 * 60 * 60 * 1000),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size: write a number and a unit, as in \"512MiB\"");
        let digits = text.trim_end_matches(|at: char| !at.is_ascii_digit());
        let unit = text[digits.len()..].trim();
        let factor = match unit {
            "" => 1,
            unit => {
                let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
                known.map(|(_, factor)| *factor).ok_or_else(wrong)?
            }
        };
        let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
        number
            .checked_mul(factor)
            .map(Size)
            .ok_or_else(|| format!("{text:?} is more bytes than can be counted"))
    }
}

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no length of time: write numbers with units, as in \"30s\" or \"1h30m\" \
                 (units: ms, s, m or min, h, d)"
            )
        };
        let mut total = Some(0u64);
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let after_number = rest.trim_start_matches(|at: char| at.is_ascii_digit());
            let (number, after) = rest.split_at(rest.len() - after_number.len());
            let after = after.trim_start();
            let next = after.trim_start_matches(|at: char| at.is_ascii_alphabetic());
            let (unit, next) = after.split_at(after.len() - next.len());
            let unit = SPAN_UNITS.iter().find(|(name, _)| *name == unit);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let (_, factor) = unit.ok_or_else(wrong)?;
            total = number
                .checked_mul(*factor)
                .and_then(|part| total?.checked_add(part));
            rest = next.trim_start();
        }
        total
            .map(|total| TimeSpan(Duration::from_millis(total)))
            .ok_or_else(|| format!("{text:?} is longer than can be counted"))
    }
}

impl Size {
    /// Reads a size of at least 1 MiB; a number alone is MiB. Nothing of `text` is in the error, as it may be a
    /// secret.
    pub(crate) fn or_mebibytes(text: &str) -> Result<Self, &'static str> {
        let size = match text.parse::<u32>() {
            Ok(mebibytes) => Some(Size(u64::from(mebibytes) << 20)),
            Err(_) => text.parse().ok(),
        };
        match size {
            Some(size) if size.0 >= 1 << 20 => Ok(size),
            Some(_) => Err("write 1MiB or more; a number alone is MiB"),
            None => Err("write a size, as in 512MiB or 4GiB; a number alone is MiB"),
        }
    }
}

impl TimeSpan {
    /// Reads a length of time; a number alone, which may have a fraction, is seconds. Nothing of `text` is in the
    /// error, as it may be a secret.
    pub fn or_seconds(text: &str) -> Result<Self, &'static str> {
        let span = match text.parse::<f64>() {
            Ok(seconds) => Duration::try_from_secs_f64(seconds).map(TimeSpan).ok(),
            Err(_) => text.parse().ok(),
        };
        span.ok_or("write a length of time, as in 500ms, 20s or 1min; a number alone is seconds")
    }
}

/// A number and what it counts, in the singular for 1: `1 root`, `2 roots`, `1,000 roots`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{} {many}", HumanCount(number)),
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl de::Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512MiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let bytes = u64::try_from(bytes);
                bytes
                    .map(Size)
                    .map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
        }
        from.deserialize_any(SizeVisitor)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TimeSpanVisitor;
        impl de::Visitor<'_> for TimeSpanVisitor {
            type Value = TimeSpan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time such as \"30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeSpan, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_str(TimeSpanVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512MiB", 512 << 20),
            ("10 GB", 10_000_000_000),
            ("4K", 4096),
            ("17B", 17),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "12 parsecs", "-3", "1.5GiB", "99999999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_have_units() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("2 min 1 s", 121_000),
            ("1d", 86_400_000),
        ] {
            let span = TimeSpan(Duration::from_millis(millis));
            assert_eq!(text.parse(), Ok(span), "{text}");
        }
        for text in [
            "",
            "30",
            "s",
            "1 fortnight",
            "1s x",
            "99999999999999999999h",
        ] {
            assert!(text.parse::<TimeSpan>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_alone_has_the_unit_that_it_always_had() {
        for (text, millis) in [("20", 20_000), ("0.5", 500), ("2min", 120_000), ("0", 0)] {
            let span = TimeSpan(Duration::from_millis(millis));
            assert_eq!(TimeSpan::or_seconds(text), Ok(span), "{text}");
        }
        for (text, bytes) in [("64", 64 << 20), ("64MiB", 64 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(Size::or_mebibytes(text), Ok(Size(bytes)), "{text}");
        }
        for text in ["hunter2", "-1", "nan", "inf", "", "99999999TiB"] {
            let why = TimeSpan::or_seconds(text).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
            let why = Size::or_mebibytes(text).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn one_of_what_is_counted_is_in_the_singular() {
        for (number, text) in [
            (0, "0 entries"),
            (1, "1 entry"),
            (12, "12 entries"),
            (999, "999 entries"),
            (1_000, "1,000 entries"),
            (1_234_567, "1,234,567 entries"),
        ] {
            assert_eq!(count(number, "entry", "entries"), text);
        }
    }
}
