//! Nix's own formats: hashes as text, store paths, and their metadata.
//!
//! A Nix store path is named by a hash that Nix computes from how the path came to be, not from its
//! bytes alone. The one kind made here is that of a source tree added to the store
//! ([`content_addressed`]): its name follows from the SHA-256 of its NAR, so that every reader can
//! check it, and importing a tree gives the path that `nix-store --add` would.

mod base32;
mod content_address;
pub mod daemon_protocol;
mod derivation;
mod hash;
mod narinfo;
mod path_info;
mod reference_graph;
mod signature;
mod store_path;

pub use base32::{decode as decode_base32, encode as encode_base32};
pub use content_address::{ContentAddress, ContentAddressError, ContentMethod};
pub use derivation::derivation_outputs;
pub use hash::{NixHash, NixHashError};
pub use narinfo::{MAX_NARINFO_BYTES, NarinfoError, NarinfoFile};
pub use path_info::{MOST_SIGNATURES, NarHash, TooManySignatures, content_addressed, renew, unite};
pub use reference_graph::{
    MAX_GRAPH_BYTES, NarMismatch, ReferenceGraphError, parse_reference_graph,
};
pub use signature::{KeyError, PublicKey, SecretKey, Signature};
pub use store_path::{STORE_DIR, StorePath, StorePathError, StorePathHash};

pub use crate::proto::store::v1::{NarInfo, PathInfo};

/// The 20 bytes at the start of `base_name`, if it is the base name of a store path.
pub fn output_hash(base_name: &[u8]) -> Option<[u8; 20]> {
    let path = StorePath::from_base_name(base_name).ok()?;
    Some(*path.hash().as_bytes())
}

/// Whether `base_name` can be that of a store path with content that another machine has: the base
/// name of a store path, and none of those that Nix makes beside one for itself: derivations
/// (`.drv`), locks (`.lock`), build directories and outputs of a check (`.chroot`, `.check`), and
/// what it moves aside (`.old-1-2`) or has not finished (`.tmp-1-2`), as NixOS/nix 2.26 names them.
///
/// A source with such a name (`<hash>-Cargo.lock`) is not distinguished from it.
pub fn is_content_name(base_name: &[u8]) -> bool {
    let Ok(path) = StorePath::from_base_name(base_name) else {
        return false;
    };
    let name = path.name();
    let own = [".drv", ".lock", ".chroot", ".check"];
    let is_numbered = |mark: &str| {
        name.rsplit_once(mark).is_some_and(|(_, numbers)| {
            !numbers.is_empty()
                && (numbers.bytes()).all(|byte| byte.is_ascii_digit() || byte == b'-')
        })
    };
    !own.iter().any(|end| name.ends_with(end)) && ![".old-", ".tmp-"].into_iter().any(is_numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nix_makes_for_itself_hold_no_content() {
        let hash = "yra1qha6bp2fm0mrb0qspjzsh9ismik0";
        for name in [
            "hello-2.12",
            "bash-5.2-doc",
            "locksmith",
            "drv",
            "x.lock.d",
            "a.old-times",
            ".tmp",
        ] {
            assert!(
                is_content_name(format!("{hash}-{name}").as_bytes()),
                "{name}"
            );
        }
        for name in [
            "hello.drv",
            "hello.drv.lock",
            "hello.lock",
            "hello.drv.chroot",
            "hello.check",
            "hello.old-123-456",
            "hello.tmp-123-456",
        ] {
            assert!(
                !is_content_name(format!("{hash}-{name}").as_bytes()),
                "{name}"
            );
        }
        for name in [
            "",
            ".links",
            ".tmp-link-1-2",
            "tmp-4711-0",
            "yra1qha6-x",
            hash,
        ] {
            assert!(!is_content_name(name.as_bytes()), "{name}");
        }
    }
}
