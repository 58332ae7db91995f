//! Sizes and durations in text: a number and a unit.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Bytes: `"512MiB"`, `"10GB"`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A length of time: `"30s"`, `"1h30m"`; never a plain number, which has no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSpan(pub Duration);

/// Permissions of a socket, in octal: `"0660"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

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

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!(
                "{text:?} is no mode: write three octal digits, as in \"660\""
            )),
        }
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
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
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
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
        ] {
            let span = TimeSpan(Duration::from_millis(millis));
            let spaced = text.replace(" min", "min").replace(" s", "s");
            assert_eq!(spaced.parse(), Ok(span), "{text}");
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
}
