//! Similar roots: which keys count as versions of one another.
//!
//! Examples are `<hash>-hello-2.12` and `<hash>-hello-2.12.1`: the part in front of the version is
//! the same, once the hash of a Nix store path is removed. The version begins where Nix has it
//! begin (`builtins.parseDrvName`): after the first dash that no letter follows. Names without a
//! hash are compared alike: `app-41` and `app-42` are versions of one application.

use super::ProfileKey;
use crate::nix::StorePath;

/// What two roots have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RootSimilarity {
    /// Another version of the same package.
    Version,
    /// The same version, built differently: only the hash differs.
    Hash,
    /// The same name.
    Same,
}

/// The name in `profile_key` without the hash of a Nix store path.
fn unhashed(profile_key: &[u8]) -> &[u8] {
    let base = profile_key
        .split(|byte| *byte == b'/')
        .next()
        .unwrap_or(profile_key);
    match StorePath::from_base_name(base) {
        Ok(path) => &profile_key[base.len() - path.name().len()..],
        Err(_) => profile_key,
    }
}

/// The name without the version, and the path below it.
fn unversioned(name: &[u8]) -> (&[u8], &[u8]) {
    let end = name.iter().position(|byte| *byte == b'/');
    let (name, below) = name.split_at(end.unwrap_or(name.len()));
    let mut pairs = name.windows(2);
    let version = pairs.position(|pair| pair[0] == b'-' && !pair[1].is_ascii_alphabetic());
    (&name[..version.unwrap_or(name.len())], below)
}

/// Whether the key is a digest: then another digest is another tree.
fn is_digest(profile_key: &[u8]) -> bool {
    profile_key.starts_with(b"blake3-")
        || profile_key.starts_with(b"b3:")
        || profile_key.len() >= 64 && profile_key[..64].iter().all(u8::is_ascii_hexdigit)
}

/// How similar two keys are.
pub(super) fn similarity(one: &ProfileKey, other: &ProfileKey) -> Option<RootSimilarity> {
    if one == other {
        return Some(RootSimilarity::Same);
    }
    if is_digest(one.as_bytes()) || is_digest(other.as_bytes()) {
        return None;
    }
    let (one, other) = (unhashed(one.as_bytes()), unhashed(other.as_bytes()));
    if one == other {
        return Some(RootSimilarity::Hash);
    }
    (unversioned(one) == unversioned(other)).then_some(RootSimilarity::Version)
}
