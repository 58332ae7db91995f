//! Store paths: `/nix/store/<hash>-<name>`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::{decode_base32, encode_base32};

/// The store's directory: the only one whose paths this program makes. It is part of the input of a
/// path's hash.
pub const STORE_DIR: &str = "/nix/store";

/// The longest name, in bytes, as in Nix (so that the base name fits into 255 bytes with room for a
/// suffix).
const MAX_NAME: usize = 211;

/// Digits of a hash in nixbase32.
const HASH_DIGITS: usize = 32;

/// The hash in a store path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash([u8; 20]);

/// A store path in [`STORE_DIR`]. Its text form is the base name, `<hash>-<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    hash: StorePathHash,
    name: String,
}

/// Text that is no store path.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StorePathError {
    /// The hash is not 32 digits of nixbase32, with a dash after.
    #[error(
        "\"{0}\" is no base name of a Nix store path: it does not start with 32 digits \
         (0-9, a-z without e, o, t, u) and a dash"
    )]
    Hash(String),
    /// No name.
    #[error("the name of a Nix store path cannot be empty")]
    Empty,
    /// A name that is too long.
    #[error("the name of a Nix store path has at most {MAX_NAME} bytes, this has {0}")]
    TooLong(usize),
    /// A name that looks like `.` or `..` to a shell.
    #[error("\"{0}\" cannot be the name of a Nix store path: it is or starts with a dot component")]
    Dots(String),
    /// A name with a character that Nix does not accept.
    #[error(
        "\"{0}\" cannot be the name of a Nix store path: only 0-9 a-z A-Z + - . _ ? = are allowed"
    )]
    Letter(String),
}

impl StorePathHash {
    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Folds a longer hash into 20 bytes, as Nix does: byte n is combined, by exclusive or, with
    /// byte n modulo 20.
    pub(super) fn fold(long: &[u8]) -> Self {
        let mut bytes = [0; 20];
        for part in long.chunks(bytes.len()) {
            for (byte, long) in bytes.iter_mut().zip(part) {
                *byte ^= long;
            }
        }
        Self(bytes)
    }

    /// Parses 32 digits of nixbase32.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        decode_base32(digits).map(Self)
    }
}

impl From<[u8; 20]> for StorePathHash {
    fn from(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_base32(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StorePath {
    /// The store path of `hash` and `name`.
    pub fn new(hash: StorePathHash, name: &str) -> Result<Self, StorePathError> {
        Self::check_name(name.as_bytes())?;
        Ok(Self {
            hash,
            name: name.to_owned(),
        })
    }

    /// Parses a base name, `<hash>-<name>`.
    pub fn from_base_name(base_name: &[u8]) -> Result<Self, StorePathError> {
        let wrong = || StorePathError::Hash(base_name.escape_ascii().to_string());
        let (digits, rest) = base_name.split_at_checked(HASH_DIGITS).ok_or_else(wrong)?;
        let hash = StorePathHash::parse(digits).ok_or_else(wrong)?;
        let name = rest.strip_prefix(b"-").ok_or_else(wrong)?;
        Self::check_name(name)?;
        Ok(Self {
            hash,
            name: name.iter().copied().map(char::from).collect(),
        })
    }

    /// Checks that `name` can follow the dash: 1 to 211 of the letters `0-9 a-z A-Z + - . _ ? =`,
    /// and no `.` or `..` before the first dash.
    pub fn check_name(name: &[u8]) -> Result<(), StorePathError> {
        if name.is_empty() {
            return Err(StorePathError::Empty);
        }
        if name.len() > MAX_NAME {
            return Err(StorePathError::TooLong(name.len()));
        }
        let text = || name.escape_ascii().to_string();
        let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
        if !name.iter().all(letter) {
            return Err(StorePathError::Letter(text()));
        }
        if let Some(b"." | b"..") = name.split(|&byte| byte == b'-').next() {
            return Err(StorePathError::Dots(text()));
        }
        Ok(())
    }

    /// The hash.
    pub fn hash(&self) -> StorePathHash {
        self.hash
    }

    /// What follows the hash and the dash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The absolute path.
    pub fn absolute(&self) -> String {
        format!("{STORE_DIR}/{self}")
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    /// Parses a base name, or an absolute path in [`STORE_DIR`].
    fn from_str(text: &str) -> Result<Self, StorePathError> {
        let base_name = text
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .unwrap_or(text);
        Self::from_base_name(base_name.as_bytes())
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_names_and_absolute_paths_read_back() {
        let base_name = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";
        let path: StorePath = base_name.parse().unwrap();
        assert_eq!(path.name(), "tree");
        assert_eq!(path.to_string(), base_name);
        assert_eq!(path.absolute().parse(), Ok(path));
    }

    #[test]
    fn errors_about_what_is_no_store_path_have_the_reason() {
        let parse = |text: &str| text.parse::<StorePath>();
        for text in [
            "",
            "tree",
            "yra1qha6bp2fm0mrb0qspjzsh9ismik0",
            "yra1qha6bp2fm0mrb0qspjzsh9ismik-tree",
            "era1qha6bp2fm0mrb0qspjzsh9ismik0-tree",
            "YRA1QHA6BP2FM0MRB0QSPJZSH9ISMIK0-tree",
            "/gnu/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree",
        ] {
            assert_eq!(parse(text), Err(StorePathError::Hash(text.to_owned())));
        }
        assert_eq!(
            parse("yra1qha6bp2fm0mrb0qspjzsh9ismik0-"),
            Err(StorePathError::Empty)
        );
        assert_eq!(
            parse("yra1qha6bp2fm0mrb0qspjzsh9ismik0-a/b"),
            Err(StorePathError::Letter("a/b".to_owned()))
        );
    }

    #[test]
    fn names_follow_the_rules_of_nix() {
        for name in ["a", "a+b-c.d_e?f=", ".gitignore", "...", "..a", "-", "a-."] {
            assert_eq!(StorePath::check_name(name.as_bytes()), Ok(()), "{name}");
        }
        for name in [".", "..", ".-a", "..-a", "a b", "ä", "a~"] {
            assert!(StorePath::check_name(name.as_bytes()).is_err(), "{name}");
        }
        assert!(StorePath::check_name(&[b'x'; 211]).is_ok());
        assert_eq!(
            StorePath::check_name(&[b'x'; 212]),
            Err(StorePathError::TooLong(212))
        );
    }
}
