//! Profiles: what programs read first below a root, in that order.
//!
//! Programs that start from a root read the same files in the same order each time, one after the
//! other, and with an upstream that order decides how long the start takes. A profile stores it:
//! the next cold mount prefetches those files.
//!
//! **Paths, not digests.** A profile names files by their paths below the root. So it serves both
//! the same root and its replacement after an upgrade, and can cause no fetch outside the root,
//! wherever the profile came from.
//!
//! **Extents, not files.** A program may need little of a large file: reads are recorded by aligned
//! extents of [`EXTENT`] bytes.
//!
//! **It follows its root.** Each recording is put before the older entries, so that the order is
//! that of the last start ([`ProfileRecording::follow`]); what [`MOST_MISSED`] complete recordings in a
//! row did not read is removed.
//!
//! A profile is a hint. A damaged or wrong one costs what it would have saved, and nothing else.

mod codec;
mod profiles;
mod similarity;

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::castore::{Digest, Printable, check_name};

pub use codec::FormatError;
pub use profiles::{FoundProfile, ProfileError, ProfileSummary, Profiles};

/// Bytes of an extent.
pub const EXTENT: u64 = 1 << 20;
/// Files in a profile, at most.
pub const MOST_FILES: usize = 16 << 10;
/// Runs of extents in a profile, at most.
pub const MOST_RUNS: usize = 32 << 10;
/// Extents in a profile, at most: of files of an extent or less, all that fit.
pub const MOST_EXTENTS: u64 = 64 << 10;
/// Bytes of all paths in a profile, at most.
const MOST_PATH_BYTES: usize = 4 << 20;
/// The longest path, in bytes.
const LONGEST_PATH: usize = 4096;
/// Complete recordings that did not read a file, after which it is removed.
pub const MOST_MISSED: u8 = 4;

/// A profile's key: the name of a root, or `NAME/PATH` of a directory below one, or a digest, as in
/// a mount's `root`. 1 to 4096 bytes, no NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileKey(Box<[u8]>);

impl ProfileKey {
    /// The key that `bytes` stand for: slashes around it and a leading `/nix/store/` are ignored.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
        let is_slash = |byte: &u8| *byte == b'/';
        let start = bytes.iter().position(|byte| !is_slash(byte))?;
        let end = bytes.iter().rposition(|byte| !is_slash(byte))? + 1;
        let trimmed = &bytes[start..end];
        (trimmed.len() <= LONGEST_PATH && !trimmed.contains(&0)).then(|| Self(trimmed.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ProfileKey {
    /// As [`Printable`] shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0).fmt(f)
    }
}

impl fmt::Debug for ProfileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A file of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileFile {
    /// Its path below the root: names with slashes between them. Empty if the root is the file.
    pub path: Box<[u8]>,
    /// Complete recordings in a row that did not read it, up to the last one.
    pub missed: u8,
}

/// Extents of a file that were read one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentRun {
    /// The file, by its index in the profile.
    pub file: u32,
    /// The first extent.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What was read first below a root, and in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    profile_key: ProfileKey,
    digest: Digest,
    files: Vec<ProfileFile>,
    runs: Vec<ExtentRun>,
}

impl Profile {
    /// Its key.
    pub fn profile_key(&self) -> &ProfileKey {
        &self.profile_key
    }

    /// The digest of the root that was recorded last.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its files, in the order of their first access.
    pub fn files(&self) -> &[ProfileFile] {
        &self.files
    }

    /// The same profile under another key.
    pub fn renamed(self, profile_key: ProfileKey) -> Self {
        Self {
            profile_key,
            ..self
        }
    }

    /// The extents that were read, in that order.
    pub fn runs(&self) -> &[ExtentRun] {
        &self.runs
    }
}

/// A profile that is being recorded.
#[derive(Clone, Debug)]
pub struct ProfileRecording {
    profile: Profile,
    files: HashMap<Box<[u8]>, u32>,
    extents: HashSet<(u32, u32)>,
    path_bytes: usize,
    full: bool,
}

impl ProfileRecording {
    /// For the root with `digest`.
    pub fn new(profile_key: ProfileKey, digest: Digest) -> Self {
        Self {
            profile: Profile {
                profile_key,
                digest,
                files: Vec::new(),
                runs: Vec::new(),
            },
            files: HashMap::new(),
            extents: HashSet::new(),
            path_bytes: 0,
            full: false,
        }
    }

    /// What was recorded so far.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Whether something was dropped because a limit was reached.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Records an access to an extent of the file at `path`; returns whether it is the first.
    pub fn record(&mut self, path: &[u8], extent: u32) -> bool {
        self.take(path, extent, 0)
    }

    fn take(&mut self, path: &[u8], extent: u32, missed: u8) -> bool {
        let known = self.files.get(path).copied();
        let file = known.unwrap_or(self.profile.files.len() as u32);
        // The end of every run must fit too.
        if extent == u32::MAX || self.extents.contains(&(file, extent)) || !is_path(path) {
            return false;
        }
        let last = self.profile.runs.last_mut();
        let follows =
            last.filter(|run| run.file == file && run.first.checked_add(run.count) == Some(extent));
        let needs_run = follows.is_none();
        self.full |= self.extents.len() as u64 >= MOST_EXTENTS
            || needs_run && self.profile.runs.len() >= MOST_RUNS
            || known.is_none()
                && (self.profile.files.len() >= MOST_FILES
                    || self.path_bytes + path.len() > MOST_PATH_BYTES);
        if self.full {
            return false;
        }
        match self.profile.runs.last_mut() {
            Some(run) if !needs_run => run.count += 1,
            _ => self.profile.runs.push(ExtentRun {
                file,
                first: extent,
                count: 1,
            }),
        }
        self.extents.insert((file, extent));
        if known.is_none() {
            self.path_bytes += path.len();
            self.files.insert(path.into(), file);
            self.profile.files.push(ProfileFile {
                path: path.into(),
                missed,
            });
        }
        true
    }

    /// The profile that follows `before`: this recording, then older entries that it does not
    /// contain. A `whole` recording covers a start completely: what it did not read counts as
    /// missed.
    pub fn follow(&self, before: &Profile, whole: bool) -> Profile {
        let mut all = self.clone();
        for run in &before.runs {
            let Some(file) = before.files.get(run.file as usize) else {
                continue;
            };
            let is_recorded = self.files.contains_key(&file.path);
            let missed = file.missed.saturating_add(u8::from(whole));
            if (is_recorded && whole) || missed >= MOST_MISSED {
                continue;
            }
            for extent in run.first..run.first.saturating_add(run.count) {
                all.take(&file.path, extent, missed);
            }
        }
        all.profile
    }
}

/// Whether `path` is names with slashes between them, or empty.
fn is_path(path: &[u8]) -> bool {
    path.is_empty()
        || path.len() <= LONGEST_PATH
            && path
                .split(|byte| *byte == b'/')
                .all(|name| check_name(name).is_ok())
}

#[cfg(test)]
mod tests;
