//! The profile directory: a file for each profile.
//!
//! A file is named after its profile's key, so that a listing shows the contents, and a disk image
//! can bring its own profiles. Files are replaced whole. They are not synced: a file that a power
//! cut damages is detected and recorded again. Nothing is cached in memory: a file that is added or
//! removed counts from the next mount on.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use tempfile::NamedTempFile;
use thiserror::Error;

use super::codec::{FormatError, MOST_BYTES};
use super::similarity::{RootSimilarity, similarity};
use super::{Profile, ProfileKey, ProfileRecording};
use crate::castore::Digest;

/// The suffix of the names of profile files.
const SUFFIX: &[u8] = b".profile";
/// The longest name of a file without the suffix, in bytes.
const LONGEST_NAME: usize = 200;
/// Profiles in the directory; beyond that the oldest is removed.
const MOST_PROFILES: usize = 4096;

/// Why a profile cannot be used.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// Its file is invalid.
    #[error("the profile {}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The error.
        source: FormatError,
    },
    /// The file has the profile of another root.
    #[error("the profile {}: it contains the profile of \"{found}\", which does not match its name", path.display())]
    Misnamed {
        /// The file.
        path: PathBuf,
        /// The key in the file.
        found: ProfileKey,
    },
    /// There is no such profile.
    #[error("there is no profile of \"{profile_key}\" in {}", dir.display())]
    None {
        /// The key.
        profile_key: ProfileKey,
        /// The directory.
        dir: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action: a verb.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// A directory of profiles.
#[derive(Debug)]
pub struct Profiles {
    dir: PathBuf,
    /// Held while a profile is replaced by one that follows it.
    writing: Mutex<()>,
}

/// The result of a search.
#[derive(Clone, Debug)]
pub struct FoundProfile {
    /// The profile.
    pub profile: Profile,
    /// Whether it has exactly the requested key, and is not merely similar.
    pub own: bool,
}

/// A summary of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileSummary {
    /// Its key.
    pub profile_key: ProfileKey,
    /// The digest of the root that was recorded last.
    pub digest: Digest,
    /// Files that it names.
    pub files: u64,
    /// Extents of them, which are prefetched.
    pub extents: u64,
}

impl ProfileSummary {
    /// Of `profile`.
    pub fn of(profile: &Profile) -> Self {
        let extents = profile.runs().iter().map(|run| u64::from(run.count));
        Self {
            profile_key: profile.profile_key().clone(),
            digest: *profile.digest(),
            files: profile.files().len() as u64,
            extents: extents.sum(),
        }
    }
}

impl Profiles {
    /// The profiles in `dir`, which is made when there is something to write.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            writing: Mutex::new(()),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The profile of `profile_key`.
    pub fn load(&self, profile_key: &ProfileKey) -> Result<Option<Profile>, ProfileError> {
        let path = self.path(profile_key);
        let Some(profile) = read(&path)? else {
            return Ok(None);
        };
        match profile.profile_key() == profile_key {
            true => Ok(Some(profile)),
            false => Err(ProfileError::Misnamed {
                path,
                found: profile.profile_key().clone(),
            }),
        }
    }

    /// The profile of `profile_key`, or else the most similar one: of several, the one that was written
    /// last. A damaged one is an error although there may be others.
    pub fn find(&self, profile_key: &ProfileKey) -> Result<Option<FoundProfile>, ProfileError> {
        if let Some(profile) = self.load(profile_key)? {
            return Ok(Some(FoundProfile { profile, own: true }));
        }
        let mut best: Option<((RootSimilarity, SystemTime), ProfileKey)> = None;
        for path in self.files()? {
            let Some(other) = profile_key_of(&path) else {
                continue;
            };
            if let Some(similarity) = similarity(profile_key, &other) {
                let rank = (similarity, written(&path));
                if best.as_ref().is_none_or(|(best, _)| *best < rank) {
                    best = Some((rank, other));
                }
            }
        }
        let Some((_, similar)) = best else {
            return Ok(None);
        };
        let profile = self.load(&similar)?;
        Ok(profile.map(|profile| FoundProfile {
            profile,
            own: false,
        }))
    }

    /// Writes a recording, put before the entries of the existing profile. A `whole` recording
    /// covers a start completely.
    pub fn save(&self, recording: &ProfileRecording, whole: bool) -> Result<(), ProfileError> {
        let _writing = self.writing.lock();
        // An unreadable profile was reported when it was looked up, and is replaced.
        let before = self.load(recording.profile().profile_key()).ok().flatten();
        match before {
            Some(before) => self.put(&recording.follow(&before, whole)),
            None => self.put(recording.profile()),
        }
    }

    /// Stores `profile`, replacing any other with its key.
    pub fn put(&self, profile: &Profile) -> Result<(), ProfileError> {
        let path = self.path(profile.profile_key());
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ProfileError::Io {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(&self.dir).map_err(failed("make the directory", &self.dir))?;
        if !path.exists() {
            self.make_room()?;
        }
        let made = NamedTempFile::new_in(&self.dir);
        let mut made = made.map_err(failed("write to", &self.dir))?;
        made.write_all(&profile.encode())
            .map_err(failed("write", &path))?;
        made.persist(&path)
            .map(drop)
            .map_err(|error| failed("write", &path)(error.error))
    }

    /// Removes the profile of `profile_key`.
    pub fn remove(&self, profile_key: &ProfileKey) -> Result<(), ProfileError> {
        let path = self.path(profile_key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(ProfileError::None {
                profile_key: profile_key.clone(),
                dir: self.dir.clone(),
            }),
            Err(source) => Err(ProfileError::Io {
                action: "remove",
                path,
                source,
            }),
        }
    }

    /// All profiles, by key; and the errors of invalid ones.
    pub fn list(&self) -> Result<(Vec<ProfileSummary>, Vec<ProfileError>), ProfileError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for path in self.files()? {
            match read(&path) {
                Ok(Some(profile)) if self.path(profile.profile_key()) == path => {
                    good.push(ProfileSummary::of(&profile));
                }
                Ok(Some(profile)) => bad.push(ProfileError::Misnamed {
                    path,
                    found: profile.profile_key().clone(),
                }),
                // Gone meanwhile.
                Ok(None) => {}
                Err(error) => bad.push(error),
            }
        }
        good.sort_by(|one, other| one.profile_key.cmp(&other.profile_key));
        Ok((good, bad))
    }

    /// The files of profiles.
    fn files(&self) -> Result<Vec<PathBuf>, ProfileError> {
        let failed = |source| ProfileError::Io {
            action: "list",
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_bytes().ends_with(SUFFIX) {
                files.push(entry.path());
            }
        }
        Ok(files)
    }

    fn make_room(&self) -> Result<(), ProfileError> {
        let mut files = self.files()?;
        if files.len() >= MOST_PROFILES {
            files.sort_by_cached_key(|path| written(path));
            for path in &files[..=files.len() - MOST_PROFILES] {
                // If it cannot be removed, there is one too many, and no harm.
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    fn path(&self, profile_key: &ProfileKey) -> PathBuf {
        let mut name = escape(profile_key.as_bytes());
        if name.len() > LONGEST_NAME {
            // Identified by a digest, and never similar to another key.
            name.truncate(LONGEST_NAME / 2);
            let cut = name.rfind('%').filter(|at| at + 3 > name.len());
            name.truncate(cut.unwrap_or(name.len()));
            let digest = Digest::of(profile_key.as_bytes()).to_hex();
            name = format!("{name}~{digest}");
        }
        name.push_str(".profile");
        self.dir.join(name)
    }
}

/// When a file was written; long ago if it is gone.
fn written(path: &Path) -> SystemTime {
    let written = fs::metadata(path).and_then(|about| about.modified());
    written.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The profile in the file `path`; none if there is no such file.
fn read(path: &Path) -> Result<Option<Profile>, ProfileError> {
    let failed = |source| ProfileError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let profile = Profile::decode(&bytes).map_err(|source| ProfileError::Format {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(profile))
}

/// Whether a byte can be part of a file's name unescaped.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_+=?@:,.".contains(&byte)
}

fn escape(profile_key: &[u8]) -> String {
    let mut name = String::new();
    for (at, &byte) in profile_key.iter().enumerate() {
        match is_plain(byte) && (at > 0 || byte != b'.') {
            true => name.push(char::from(byte)),
            false => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

/// The key that a file's name stands for, if the name has it.
fn profile_key_of(path: &Path) -> Option<ProfileKey> {
    let name = path.file_name()?.as_bytes().strip_suffix(SUFFIX)?;
    let mut bytes = Vec::new();
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                let digits = std::str::from_utf8(digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = after;
            }
            byte if is_plain(byte) => bytes.push(byte),
            _ => return None,
        }
    }
    ProfileKey::new(&bytes)
}
