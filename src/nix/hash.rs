//! Hashes in Nix's text forms: an algorithm's name, and the digest in one of three encodings.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use thiserror::Error;

use super::{decode_base32, encode_base32};

/// A hash of one of Nix's algorithms. Its text form is `sha256:<nix32>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NixHash {
    /// 16 bytes; only in old content addresses.
    Md5([u8; 16]),
    /// 20 bytes; only in old content addresses.
    Sha1([u8; 20]),
    /// 32 bytes: the hash of NARs.
    Sha256([u8; 32]),
    /// 64 bytes.
    Sha512([u8; 64]),
}

/// Text that is no hash.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "\"{}\" is not a hash: expected sha256:<52 nixbase32 digits>, sha256:<64 hex digits> or \
     sha256-<base64>",
    .0.escape_debug()
)]
pub struct NixHashError(String);

impl NixHash {
    /// Parses `<algorithm>:<digits>` (nixbase32, hex or base64, distinguished by their length) or
    /// the SRI form `<algorithm>-<base64>`.
    pub fn parse(text: &str) -> Result<Self, NixHashError> {
        let wrong = || NixHashError(text.chars().take(200).collect());
        let at = text.find([':', '-']).ok_or_else(wrong)?;
        let (algorithm, digits) = (&text[..at], &text.as_bytes()[at + 1..]);
        let is_sri = text.as_bytes()[at] == b'-';
        match algorithm {
            "md5" => decode(digits, is_sri).map(NixHash::Md5),
            "sha1" => decode(digits, is_sri).map(NixHash::Sha1),
            "sha256" => decode(digits, is_sri).map(NixHash::Sha256),
            "sha512" => decode(digits, is_sri).map(NixHash::Sha512),
            _ => None,
        }
        .ok_or_else(wrong)
    }

    /// The 32 bytes, if this is a SHA-256.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        match self {
            NixHash::Sha256(bytes) => Some(*bytes),
            _ => None,
        }
    }

    /// The algorithm's name.
    pub fn algorithm(&self) -> &'static str {
        match self {
            NixHash::Md5(_) => "md5",
            NixHash::Sha1(_) => "sha1",
            NixHash::Sha256(_) => "sha256",
            NixHash::Sha512(_) => "sha512",
        }
    }

    /// The digest's bytes: 16, 20, 32 or 64.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            NixHash::Md5(bytes) => bytes,
            NixHash::Sha1(bytes) => bytes,
            NixHash::Sha256(bytes) => bytes,
            NixHash::Sha512(bytes) => bytes,
        }
    }

    /// The digest in lower-case hex, without the algorithm.
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(self.as_bytes())
    }
}

/// The `N` bytes of `digits`; nothing if they are in none of the encodings.
fn decode<const N: usize>(digits: &[u8], is_sri: bool) -> Option<[u8; N]> {
    let bytes = |encoding: &data_encoding::Encoding| encoding.decode(digits).ok()?.try_into().ok();
    if is_sri {
        return bytes(&BASE64);
    }
    match digits.len() {
        length if length == N * 2 => bytes(&HEXLOWER_PERMISSIVE),
        length if length == (N * 8).div_ceil(5) => decode_base32(digits),
        _ => bytes(&BASE64),
    }
}

impl fmt::Display for NixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), encode_base32(self.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_encodings_read_as_the_same_hash_and_print_as_nixbase32() {
        // The SHA-256 of the empty string, as `nix hash` prints it.
        let nix32 = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        let hex = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let sri = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let hash = NixHash::parse(nix32).unwrap();
        assert_eq!(NixHash::parse(hex), Ok(hash));
        assert_eq!(NixHash::parse(sri), Ok(hash));
        assert_eq!(hash.to_string(), nix32);
        assert_eq!(format!("sha256:{}", hash.to_hex()), hex);
    }

    #[test]
    fn text_of_another_form_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha257:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c7",
            "sha1:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256-0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73",
            "sha256:zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        ] {
            assert!(NixHash::parse(text).is_err(), "{text}");
        }
    }
}
