//! What a binary cache has, by its path.

use crate::compression::Compression;
use crate::nix::{StorePathHash, decode_base32, encode_base32};

/// One file of a cache, as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CacheResource {
    /// `/nix-cache-info`
    CacheInfo,
    /// `/<hash>.narinfo`
    Narinfo(StorePathHash),
    /// `/<hash>.ls`
    Listing(StorePathHash),
    /// `/nar/<SHA-256 of the NAR>-<hash>.nar`: where narinfos of this server have a NAR.
    Nar {
        /// Of the NAR.
        sha256: [u8; 32],
        /// Of the store path.
        path: StorePathHash,
    },
    /// `/nar/<SHA-256 of the file>.nar…`: where a client puts a NAR, compressed or not.
    UploadedNar {
        /// Of the file.
        file: [u8; 32],
        /// As the file's name has it; of a file without such an ending, only its bytes show it.
        compression: Option<Compression>,
    },
}

impl CacheResource {
    /// What is at `path`, which begins with a slash.
    pub(super) fn at(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        if path == "nix-cache-info" {
            return Some(Self::CacheInfo);
        }
        if let Some(file) = path.strip_prefix("nar/") {
            let (name, ending) = file.split_once(".nar")?;
            if let Some((sha256, hash)) = name.split_once('-').filter(|_| ending.is_empty()) {
                return Some(Self::Nar {
                    sha256: decode_base32(sha256.as_bytes())?,
                    path: StorePathHash::parse(hash.as_bytes())?,
                });
            }
            return Some(Self::UploadedNar {
                file: decode_base32(name.as_bytes())?,
                // As Nix names them; of gzip's it is the bare name.
                compression: match ending {
                    "" | ".gz" => None,
                    ".xz" => Some(Compression::Xz),
                    ".zst" => Some(Compression::Zstd),
                    ".bz2" => Some(Compression::Bzip2),
                    ".br" => Some(Compression::Brotli),
                    _ => return None,
                },
            });
        }
        let (hash, kind) = path.split_once('.')?;
        let hash = StorePathHash::parse(hash.as_bytes())?;
        match kind {
            "narinfo" => Some(Self::Narinfo(hash)),
            "ls" => Some(Self::Listing(hash)),
            _ => None,
        }
    }
}

/// Where the NAR of a path is, relative to the cache.
pub(super) fn nar_url(sha256: &[u8; 32], path: &StorePathHash) -> String {
    format!("nar/{}-{path}.nar", encode_base32(sha256))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_a_binary_cache() {
        let hash = "yra1qha6bp2fm0mrb0qspjzsh9ismik0";
        let path = StorePathHash::parse(hash.as_bytes()).unwrap();
        let at = |path: &str| CacheResource::at(path);
        assert_eq!(at("/nix-cache-info"), Some(CacheResource::CacheInfo));
        let narinfo = format!("/{hash}.narinfo");
        assert_eq!(at(&narinfo), Some(CacheResource::Narinfo(path)));
        assert_eq!(
            at(&format!("/{hash}.ls")),
            Some(CacheResource::Listing(path))
        );
        let sha256 = [7; 32];
        let url = format!("/{}", nar_url(&sha256, &path));
        assert_eq!(at(&url), Some(CacheResource::Nar { sha256, path }));
        let file = encode_base32(&sha256);
        for (ending, compression) in [("", None), (".xz", Some(Compression::Xz))] {
            let uploaded = at(&format!("/nar/{file}.nar{ending}"));
            let expected = CacheResource::UploadedNar {
                file: sha256,
                compression,
            };
            assert_eq!(uploaded, Some(expected));
        }
        for other in [
            &format!("/nar/{file}.nar.lz4"),
            "",
            "/",
            "nix-cache-info",
            "/nar/x.nar",
            &format!("/{hash}"),
            &format!("/{hash}.narinfo.xz"),
            &format!("/{}.narinfo", &hash[1..]),
            &format!("/log/{hash}-x.drv"),
            "/realisations/x.doi",
        ] {
            assert_eq!(at(other), None, "{other}");
        }
    }
}
