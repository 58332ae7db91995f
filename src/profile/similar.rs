//! Similar roots: which keys count as versions of one another.
//!
//! Examples are `<hash>-hello-2.12` and `<hash>-hello-2.12.1`: the part in front of the version is
//! the same, once the hash of a Nix store path is removed. The version begins where Nix has it
//! begin (`builtins.parseDrvName`): behind the first dash that no letter follows. Names without a
//! hash are compared alike: `app-41` and `app-42` are versions of one application.

use super::Subject;
use crate::nix::StorePath;

/// What two roots have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// Another version of the same package.
    Version,
    /// The same version, built differently: only the hash differs.
    Hash,
    /// The same name.
    Same,
}

/// The name in `subject` without the hash of a Nix store path.
fn unhashed(subject: &[u8]) -> &[u8] {
    let base = subject
        .split(|byte| *byte == b'/')
        .next()
        .unwrap_or(subject);
    match StorePath::from_base_name(base) {
        Ok(path) => &subject[base.len() - path.name().len()..],
        Err(_) => subject,
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
fn is_digest(subject: &[u8]) -> bool {
    subject.starts_with(b"blake3-")
        || subject.starts_with(b"b3:")
        || subject.len() >= 64 && subject[..64].iter().all(u8::is_ascii_hexdigit)
}

/// How similar two keys are.
pub fn likeness(one: &Subject, other: &Subject) -> Option<Likeness> {
    if one == other {
        return Some(Likeness::Same);
    }
    if is_digest(one.as_bytes()) || is_digest(other.as_bytes()) {
        return None;
    }
    let (one, other) = (unhashed(one.as_bytes()), unhashed(other.as_bytes()));
    if one == other {
        return Some(Likeness::Hash);
    }
    (unversioned(one) == unversioned(other)).then_some(Likeness::Version)
}
