//! BLAKE3 digests and their text forms.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use thiserror::Error;

use super::effort;

/// A BLAKE3-256 digest: the name of a blob or of a Directory.
///
/// Three text forms are read: `blake3-<standard base64>` (the form printed), `b3:<64 hex digits>`
/// and 64 bare hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Text or bytes that are no digest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// The bytes are not 32.
    #[error("a digest has 32 bytes, this has {0}")]
    Length(usize),
    /// The text is in none of the three forms.
    #[error(
        "{0:?} is no digest: write blake3-<base64>, b3:<64 hex digits> or the 64 hex digits alone"
    )]
    Text(String),
}

impl Digest {
    /// Bytes in a digest.
    pub const LEN: usize = 32;

    /// The digest of the blob `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*effort::hashing(|| blake3::hash(bytes)).as_bytes())
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hex digits.
    pub fn to_hex(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// The digest of the empty blob, which every store has without being given it.
    pub fn empty_blob() -> Self {
        Self::of(b"")
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = DigestError;

    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| DigestError::Length(bytes.len()))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bytes = if let Some(base64) = text.strip_prefix("blake3-") {
            BASE64.decode(base64.as_bytes()).ok()
        } else {
            let hex = text.strip_prefix("b3:").unwrap_or(text);
            HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()
        };
        bytes
            .and_then(|bytes| Self::try_from(bytes.as_slice()).ok())
            .ok_or_else(|| DigestError::Text(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3-{}", BASE64.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_form_reads_back() {
        let digest = Digest::of(b"hello");
        for text in [
            digest.to_string(),
            digest.to_hex(),
            digest.to_hex().to_uppercase(),
            format!("b3:{}", digest.to_hex()),
        ] {
            assert_eq!(text.parse::<Digest>(), Ok(digest), "{text}");
        }
    }

    #[test]
    fn what_is_no_digest_is_named_in_the_error() {
        for text in ["", "blake3-", "blake3-AAAA", "b3:00", "zz", &"0".repeat(63)] {
            assert_eq!(
                text.parse::<Digest>(),
                Err(DigestError::Text(text.to_owned()))
            );
        }
        assert_eq!(
            Digest::try_from(&[0u8; 31][..]),
            Err(DigestError::Length(31))
        );
    }
}
