//! Names and symlink targets: byte strings with rules.

use std::fmt;
use std::ops::Deref;

use thiserror::Error;

use super::Printable;

/// The longest name, in bytes.
const MAX_NAME: usize = 255;
/// The longest symlink target, in bytes.
const MAX_TARGET: usize = 4095;

/// A byte string that cannot be a name or a symlink target.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing at all.
    #[error("a name or symlink target cannot be empty")]
    Empty,
    /// Longer than the limit.
    #[error("{length} bytes are too long, the limit is {limit}")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// `.` or `..`.
    #[error("{0:?} cannot be a name")]
    Dots(&'static str),
    /// A slash or NUL in a name, or a NUL in a target.
    #[error("\"{name}\" holds a byte that is not allowed: {byte:#04x}")]
    Byte {
        /// The whole string, escaped.
        name: String,
        /// The byte.
        byte: u8,
    },
}

/// Checks that `bytes` can be a name: 1 to 255 bytes, not `.` or `..`, neither `/` nor NUL.
pub fn check_name(bytes: &[u8]) -> Result<(), NameError> {
    check_length(bytes, MAX_NAME)?;
    match bytes {
        b"." => return Err(NameError::Dots(".")),
        b".." => return Err(NameError::Dots("..")),
        _ => {}
    }
    check_bytes(bytes, |byte| byte != 0 && byte != b'/')
}

/// Checks that `bytes` can be a symlink target: 1 to 4095 bytes, no NUL.
pub fn check_symlink_target(bytes: &[u8]) -> Result<(), NameError> {
    check_length(bytes, MAX_TARGET)?;
    check_bytes(bytes, |byte| byte != 0)
}

fn check_length(bytes: &[u8], limit: usize) -> Result<(), NameError> {
    match bytes.len() {
        0 => Err(NameError::Empty),
        length if length > limit => Err(NameError::TooLong { length, limit }),
        _ => Ok(()),
    }
}

fn check_bytes(bytes: &[u8], allowed: impl Fn(u8) -> bool) -> Result<(), NameError> {
    match bytes.iter().find(|&&byte| !allowed(byte)) {
        None => Ok(()),
        Some(&byte) => Err(NameError::Byte {
            name: Printable(bytes).to_string(),
            byte,
        }),
    }
}

macro_rules! byte_string {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<[u8]>);

        impl $name {
            /// Takes `bytes` if they keep the rules.
            pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
                $check(bytes)?;
                Ok(Self(bytes.into()))
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = [u8];

            fn deref(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            /// As [`Printable`] shows it.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Printable(&self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{}\"", self.0.escape_ascii())
            }
        }
    };
}

byte_string! {
    /// The name of an entry in a Directory, or of a root node: 1 to 255 bytes, not `.` or `..`,
    /// no `/`, no NUL. Any other byte is legal, UTF-8 or not.
    Name, check_name
}

byte_string! {
    /// What a symlink points to: 1 to 4095 bytes, no NUL.
    SymlinkTarget, check_symlink_target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_but_slash_and_nul_makes_a_name() {
        for byte in 0..=255u8 {
            let legal = !matches!(byte, 0 | b'/' | b'.');
            assert_eq!(Name::new(&[byte]).is_ok(), legal, "{byte}");
        }
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert!(Name::new(b"...").is_ok());
    }

    #[test]
    fn errors_about_illegal_names_have_the_reason() {
        assert_eq!(Name::new(b""), Err(NameError::Empty));
        assert_eq!(Name::new(b".."), Err(NameError::Dots("..")));
        assert_eq!(
            Name::new(&[b'x'; 256]),
            Err(NameError::TooLong {
                length: 256,
                limit: 255
            })
        );
        assert!(matches!(
            Name::new(b"a/b"),
            Err(NameError::Byte { byte: b'/', .. })
        ));
        assert!(SymlinkTarget::new(b"../a/b").is_ok());
        assert!(SymlinkTarget::new(&[b'x'; 4096]).is_err());
    }
}
