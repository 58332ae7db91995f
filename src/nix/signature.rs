//! Signatures of store paths: Ed25519 over a [fingerprint](super::NarinfoFile::fingerprint).
//!
//! Keys and signatures are `name:base64`, as `nix key generate-secret` prints them: 32 bytes of a
//! public key, 64 of a secret one (seed, then public key) and 64 of a signature.

use std::fmt;

use data_encoding::BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use thiserror::Error;

use crate::proto::store::v1::nar_info;

/// A key that signatures are checked with. Its text form is `name:base64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    bytes: [u8; 32],
}

/// A key that signs. Never printed.
pub struct SecretKey {
    name: String,
    pair: Ed25519KeyPair,
}

/// A signature, and the name of the key that made it. Its text form is `name:base64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The key's name.
    pub key: String,
    /// The Ed25519 signature.
    pub bytes: [u8; 64],
}

/// Text that is no key or signature. Holds nothing of the text, which may be a secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("not a {what}: expected NAME:BASE64 with {bytes} bytes after the colon")]
pub struct KeyError {
    what: &'static str,
    bytes: usize,
}

/// Splits `name:base64`.
fn parse<const N: usize>(text: &str, what: &'static str) -> Result<(String, [u8; N]), KeyError> {
    let wrong = || KeyError { what, bytes: N };
    let (name, digits) = text.trim().split_once(':').ok_or_else(wrong)?;
    let bytes = BASE64.decode(digits.as_bytes()).map_err(|_| wrong())?;
    let bytes = bytes.try_into().map_err(|_| wrong())?;
    match name.is_empty() || name.contains(char::is_whitespace) {
        true => Err(wrong()),
        false => Ok((name.to_owned(), bytes)),
    }
}

impl PublicKey {
    /// Reads `name:base64`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse(text, "public key")?;
        Ok(Self { name, bytes })
    }

    /// The key's name, as signatures carry it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `signature` is this key's, over `fingerprint`.
    pub fn verifies(&self, fingerprint: &[u8], signature: &Signature) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.bytes);
        self.name == signature.key && key.verify(fingerprint, &signature.bytes).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(&self.bytes))
    }
}

impl SecretKey {
    /// Reads `name:base64`, the contents of a secret key file.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, bytes) = parse::<64>(text, "secret key")?;
        let (seed, public) = bytes.split_at(32);
        let pair =
            Ed25519KeyPair::from_seed_and_public_key(seed, public).map_err(|_| KeyError {
                what: "secret key",
                bytes: 64,
            })?;
        Ok(Self { name, pair })
    }

    /// The key that checks this one's signatures.
    pub fn public(&self) -> PublicKey {
        use ring::signature::KeyPair;
        let bytes = self.pair.public_key().as_ref();
        PublicKey {
            name: self.name.clone(),
            bytes: bytes.try_into().expect("an Ed25519 key has 32 bytes"),
        }
    }

    /// Signs `fingerprint`.
    pub fn sign(&self, fingerprint: &[u8]) -> Signature {
        let signature = self.pair.sign(fingerprint);
        Signature {
            key: self.name.clone(),
            bytes: (signature.as_ref().try_into()).expect("an Ed25519 signature has 64 bytes"),
        }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

impl Signature {
    /// Reads `name:base64`.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (key, bytes) = parse(text, "signature")?;
        Ok(Self { key, bytes })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, BASE64.encode(&self.bytes))
    }
}

impl From<&Signature> for nar_info::Signature {
    fn from(signature: &Signature) -> Self {
        Self {
            name: signature.key.clone(),
            data: bytes::Bytes::copy_from_slice(&signature.bytes),
        }
    }
}

impl TryFrom<&nar_info::Signature> for Signature {
    type Error = KeyError;

    fn try_from(message: &nar_info::Signature) -> Result<Self, KeyError> {
        let bytes = message.data[..].try_into().map_err(|_| KeyError {
            what: "signature",
            bytes: 64,
        })?;
        Ok(Self {
            key: message.name.clone(),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_key_name_and_fingerprint_only() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        use ring::signature::KeyPair;
        let both = [&[7; 32], pair.public_key().as_ref()].concat();
        let text = format!("cache-1:{}\n", BASE64.encode(&both));
        let secret = SecretKey::parse(&text).unwrap();
        let public = PublicKey::parse(&secret.public().to_string()).unwrap();
        let signature = secret.sign(b"1;path");
        let signature = Signature::parse(&signature.to_string()).unwrap();
        assert!(public.verifies(b"1;path", &signature));
        assert!(!public.verifies(b"1;other", &signature));
        let renamed = Signature {
            key: "cache-2".to_owned(),
            ..signature.clone()
        };
        assert!(!public.verifies(b"1;path", &renamed));
        let message = nar_info::Signature::from(&signature);
        assert_eq!(Signature::try_from(&message), Ok(signature));
        assert!(!format!("{secret:?}").contains(&BASE64.encode(&[7; 32])));
    }

    #[test]
    fn text_of_another_form_is_refused_without_repeating_it() {
        let short = format!("cache-1:{}", BASE64.encode(&[1; 31]));
        for text in ["", "cache-1", "cache-1:", ":AAAA", "cache-1:!", &short] {
            assert!(PublicKey::parse(text).is_err(), "{text}");
            assert!(Signature::parse(text).is_err(), "{text}");
            let error = SecretKey::parse(text).unwrap_err().to_string();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }
}
