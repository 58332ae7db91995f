//! Which roots are taken for versions of one another.
//!
//! `<hash>-hello-2.12` and `<hash>-hello-2.12.1` are: what stands in front of the version is the same,
//! once the hash of a Nix store path is taken off. The version is where Nix sees it
//! (`builtins.parseDrvName`): behind the first dash that no letter follows. Names without a hash are
//! read alike: `app-41` and `app-42` are versions of one application.

use super::Subject;
use crate::nix::StorePath;

/// What two roots have to have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// Another version of the same.
    Version,
    /// The same version, made in another way: only the hash differs.
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

/// The name, and what is below it; without the version.
fn unversioned(name: &[u8]) -> (&[u8], &[u8]) {
    let end = name.iter().position(|byte| *byte == b'/');
    let (name, below) = name.split_at(end.unwrap_or(name.len()));
    let mut pairs = name.windows(2);
    let version = pairs.position(|pair| pair[0] == b'-' && !pair[1].is_ascii_alphabetic());
    (&name[..version.unwrap_or(name.len())], below)
}

/// Whether it is named by digest: then another digest is another thing.
fn is_digest(subject: &[u8]) -> bool {
    subject.starts_with(b"blake3-")
        || subject.starts_with(b"b3:")
        || subject.len() >= 64 && subject[..64].iter().all(u8::is_ascii_hexdigit)
}

/// How much alike two roots are by their names.
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
