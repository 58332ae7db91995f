//! Content addresses: store paths whose hash follows from what they contain.
//!
//! A path with a content address needs no signature once the address is recomputed: first the
//! store path from the address ([`ContentAddress::store_path`]), then the address's hash from the
//! contents. Source of the formats: the Nix manual, "Store path specification".

use std::fmt;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{NixHash, STORE_DIR, StorePath, StorePathError, StorePathHash};
use crate::proto::store::v1::nar_info::{Ca, ca};

/// The data that the hash of a [`ContentAddress`] is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentMethod {
    /// The bytes of one file.
    Flat,
    /// The NAR.
    Recursive,
    /// The bytes of one file that can refer to other paths (derivations, `toFile`).
    Text,
}

/// A content address, in the form of a narinfo's `CA` line: `fixed:r:sha256:…`, `fixed:sha256:…` or
/// `text:sha256:…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentAddress {
    /// What the hash is taken over.
    pub method: ContentMethod,
    /// The hash.
    pub hash: NixHash,
}

/// Text that is no content address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "\"{}\" is not a content address: expected fixed:<hash>, fixed:r:<hash> or text:<hash>",
    .0.escape_debug()
)]
pub struct ContentAddressError(String);

impl ContentAddress {
    /// Parses the text form.
    pub fn parse(text: &str) -> Result<Self, ContentAddressError> {
        let wrong = || ContentAddressError(text.chars().take(200).collect());
        let (method, hash) = if let Some(hash) = text.strip_prefix("fixed:r:") {
            (ContentMethod::Recursive, hash)
        } else if let Some(hash) = text.strip_prefix("fixed:") {
            (ContentMethod::Flat, hash)
        } else if let Some(hash) = text.strip_prefix("text:") {
            (ContentMethod::Text, hash)
        } else {
            return Err(wrong());
        };
        let hash = NixHash::parse(hash).map_err(|_| wrong())?;
        if method == ContentMethod::Text && hash.sha256().is_none() {
            return Err(wrong());
        }
        Ok(Self { method, hash })
    }

    /// The store path that this address gives to contents named `name` that refer to `references`.
    /// Nothing if the address does not determine the path alone: a path that refers to itself (its
    /// hash is then taken over rewritten contents), or references with a method that has none.
    pub fn store_path(
        &self,
        name: &str,
        references: &[StorePath],
    ) -> Option<Result<StorePath, StorePathError>> {
        let refers_to_itself = |path: &StorePath| path.name() == name;
        let hex = self.hash.to_hex();
        let algorithm = self.hash.algorithm();
        let with_references = |kind: &str| {
            let mut paths: Vec<String> = references.iter().map(StorePath::absolute).collect();
            paths.sort();
            paths.insert(0, kind.to_owned());
            paths.join(":")
        };
        let fingerprint = match (self.method, &self.hash) {
            (ContentMethod::Text, _) => {
                let kind = with_references("text");
                format!("{kind}:sha256:{hex}:{STORE_DIR}:{name}")
            }
            (ContentMethod::Recursive, NixHash::Sha256(_)) => {
                // A reference of the same name may be the path itself: only its hash would show it.
                if references.iter().any(refers_to_itself) {
                    return None;
                }
                let kind = with_references("source");
                format!("{kind}:sha256:{hex}:{STORE_DIR}:{name}")
            }
            _ if !references.is_empty() => return None,
            (method, _) => {
                let recursive = match method {
                    ContentMethod::Recursive => "r:",
                    _ => "",
                };
                let inner = Sha256::digest(format!("fixed:out:{recursive}{algorithm}:{hex}:"));
                let inner = data_encoding::HEXLOWER.encode(&inner);
                format!("output:out:sha256:{inner}:{STORE_DIR}:{name}")
            }
        };
        let hash = StorePathHash::fold(&Sha256::digest(fingerprint));
        Some(StorePath::new(hash, name))
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.method {
            ContentMethod::Flat => "fixed:",
            ContentMethod::Recursive => "fixed:r:",
            ContentMethod::Text => "text:",
        };
        write!(f, "{method}{}", self.hash)
    }
}

impl From<ContentAddress> for Ca {
    fn from(address: ContentAddress) -> Self {
        use ca::Hash as Kind;
        let kind = match (address.method, &address.hash) {
            (ContentMethod::Text, _) => Kind::TextSha256,
            (ContentMethod::Recursive, NixHash::Md5(_)) => Kind::NarMd5,
            (ContentMethod::Recursive, NixHash::Sha1(_)) => Kind::NarSha1,
            (ContentMethod::Recursive, NixHash::Sha256(_)) => Kind::NarSha256,
            (ContentMethod::Recursive, NixHash::Sha512(_)) => Kind::NarSha512,
            (ContentMethod::Flat, NixHash::Md5(_)) => Kind::FlatMd5,
            (ContentMethod::Flat, NixHash::Sha1(_)) => Kind::FlatSha1,
            (ContentMethod::Flat, NixHash::Sha256(_)) => Kind::FlatSha256,
            (ContentMethod::Flat, NixHash::Sha512(_)) => Kind::FlatSha512,
        };
        Ca {
            r#type: kind.into(),
            digest: bytes::Bytes::copy_from_slice(address.hash.as_bytes()),
        }
    }
}

impl TryFrom<&Ca> for ContentAddress {
    type Error = ContentAddressError;

    fn try_from(ca: &Ca) -> Result<Self, ContentAddressError> {
        use ca::Hash as Kind;
        let wrong = || ContentAddressError(format!("type {} of {:x}", ca.r#type, ca.digest));
        let digest = &ca.digest[..];
        let md5 = || digest.try_into().map(NixHash::Md5);
        let sha1 = || digest.try_into().map(NixHash::Sha1);
        let sha256 = || digest.try_into().map(NixHash::Sha256);
        let sha512 = || digest.try_into().map(NixHash::Sha512);
        let (method, hash) = match Kind::try_from(ca.r#type).map_err(|_| wrong())? {
            Kind::TextSha256 => (ContentMethod::Text, sha256()),
            Kind::NarMd5 => (ContentMethod::Recursive, md5()),
            Kind::NarSha1 => (ContentMethod::Recursive, sha1()),
            Kind::NarSha256 => (ContentMethod::Recursive, sha256()),
            Kind::NarSha512 => (ContentMethod::Recursive, sha512()),
            Kind::FlatMd5 => (ContentMethod::Flat, md5()),
            Kind::FlatSha1 => (ContentMethod::Flat, sha1()),
            Kind::FlatSha256 => (ContentMethod::Flat, sha256()),
            Kind::FlatSha512 => (ContentMethod::Flat, sha512()),
        };
        let hash = hash.map_err(|_| wrong())?;
        Ok(Self { method, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_read_back_and_survive_the_message() {
        let hash = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        for text in [
            format!("fixed:{hash}"),
            format!("fixed:r:{hash}"),
            format!("text:{hash}"),
        ] {
            let address = ContentAddress::parse(&text).unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(ContentAddress::try_from(&Ca::from(address)), Ok(address));
        }
        for text in ["", hash, "fixed:", "text:sha1:0", "fixed:r:r:sha256:0"] {
            assert!(ContentAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_recursive_sha256_gives_the_path_of_an_imported_source() {
        // From the fixture `expected.json`.
        let nar = "sha256:7864d072fd3b87c1f966ceb11e98c932967017782d1fc6eb36c1eb3228e6616c";
        let address = ContentAddress::parse(&format!("fixed:r:{nar}")).unwrap();
        let path = address.store_path("tree", &[]).unwrap().unwrap();
        assert_eq!(path.to_string(), "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree");
        let of_itself = address.store_path("tree", std::slice::from_ref(&path));
        assert_eq!(of_itself, None);
    }
}
