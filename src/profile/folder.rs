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
use super::similar::{Likeness, likeness};
use super::{Profile, Recording, Subject};
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
        found: Subject,
    },
    /// There is no such profile.
    #[error("there is no profile of \"{subject}\" in {}", folder.display())]
    None {
        /// The key.
        subject: Subject,
        /// The directory.
        folder: PathBuf,
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
    folder: PathBuf,
    /// Held while a profile is replaced by one that follows it.
    writing: Mutex<()>,
}

/// The result of a search.
#[derive(Clone, Debug)]
pub struct Found {
    /// The profile.
    pub profile: Profile,
    /// Whether it has exactly the requested key, and is not merely similar.
    pub own: bool,
}

/// A summary of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its key.
    pub subject: Subject,
    /// The digest of the root that was recorded last.
    pub digest: Digest,
    /// Files that it names.
    pub files: u64,
    /// Extents of them, which are prefetched.
    pub stretches: u64,
}

impl Summary {
    /// Of `profile`.
    pub fn of(profile: &Profile) -> Self {
        let stretches = profile.runs().iter().map(|run| u64::from(run.count));
        Self {
            subject: profile.subject().clone(),
            digest: *profile.digest(),
            files: profile.files().len() as u64,
            stretches: stretches.sum(),
        }
    }
}

impl Profiles {
    /// The profiles in `folder`, which is made when there is something to write.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            writing: Mutex::new(()),
        }
    }

    /// The directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The profile of `subject`.
    pub fn load(&self, subject: &Subject) -> Result<Option<Profile>, ProfileError> {
        let path = self.path(subject);
        let Some(profile) = read(&path)? else {
            return Ok(None);
        };
        match profile.subject() == subject {
            true => Ok(Some(profile)),
            false => Err(ProfileError::Misnamed {
                path,
                found: profile.subject().clone(),
            }),
        }
    }

    /// The profile of `subject`, or else the most similar one: of several, the one that was written
    /// last. A damaged one is an error although there may be others.
    pub fn find(&self, subject: &Subject) -> Result<Option<Found>, ProfileError> {
        if let Some(profile) = self.load(subject)? {
            return Ok(Some(Found { profile, own: true }));
        }
        let mut best: Option<((Likeness, SystemTime), Subject)> = None;
        for path in self.files()? {
            let Some(other) = subject_of(&path) else {
                continue;
            };
            if let Some(likeness) = likeness(subject, &other) {
                let rank = (likeness, written(&path));
                if best.as_ref().is_none_or(|(best, _)| *best < rank) {
                    best = Some((rank, other));
                }
            }
        }
        let Some((_, similar)) = best else {
            return Ok(None);
        };
        let profile = self.load(&similar)?;
        Ok(profile.map(|profile| Found {
            profile,
            own: false,
        }))
    }

    /// Writes a recording, put before the entries of the existing profile. A `whole` recording
    /// covers a start completely.
    pub fn save(&self, recording: &Recording, whole: bool) -> Result<(), ProfileError> {
        let _writing = self.writing.lock();
        // An unreadable profile was reported when it was looked up, and is replaced.
        let before = self.load(recording.profile().subject()).ok().flatten();
        match before {
            Some(before) => self.put(&recording.follow(&before, whole)),
            None => self.put(recording.profile()),
        }
    }

    /// Stores `profile`, replacing any other with its key.
    pub fn put(&self, profile: &Profile) -> Result<(), ProfileError> {
        let path = self.path(profile.subject());
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ProfileError::Io {
                action,
                path,
                source,
            }
        };
        fs::create_dir_all(&self.folder).map_err(failed("make the folder", &self.folder))?;
        if !path.exists() {
            self.make_room()?;
        }
        let made = NamedTempFile::new_in(&self.folder);
        let mut made = made.map_err(failed("write to", &self.folder))?;
        made.write_all(&profile.encode())
            .map_err(failed("write", &path))?;
        made.persist(&path)
            .map(drop)
            .map_err(|error| failed("write", &path)(error.error))
    }

    /// Removes the profile of `subject`.
    pub fn remove(&self, subject: &Subject) -> Result<(), ProfileError> {
        let path = self.path(subject);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(ProfileError::None {
                subject: subject.clone(),
                folder: self.folder.clone(),
            }),
            Err(source) => Err(ProfileError::Io {
                action: "remove",
                path,
                source,
            }),
        }
    }

    /// All profiles, by key; and the errors of invalid ones.
    pub fn list(&self) -> Result<(Vec<Summary>, Vec<ProfileError>), ProfileError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for path in self.files()? {
            match read(&path) {
                Ok(Some(profile)) if self.path(profile.subject()) == path => {
                    good.push(Summary::of(&profile));
                }
                Ok(Some(profile)) => bad.push(ProfileError::Misnamed {
                    path,
                    found: profile.subject().clone(),
                }),
                // Gone meanwhile.
                Ok(None) => {}
                Err(error) => bad.push(error),
            }
        }
        good.sort_by(|one, other| one.subject.cmp(&other.subject));
        Ok((good, bad))
    }

    /// The files of profiles.
    fn files(&self) -> Result<Vec<PathBuf>, ProfileError> {
        let failed = |source| ProfileError::Io {
            action: "list",
            path: self.folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.folder) {
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

    fn path(&self, subject: &Subject) -> PathBuf {
        let mut name = escape(subject.as_bytes());
        if name.len() > LONGEST_NAME {
            // Identified by a digest, and never similar to another key.
            name.truncate(LONGEST_NAME / 2);
            let cut = name.rfind('%').filter(|at| at + 3 > name.len());
            name.truncate(cut.unwrap_or(name.len()));
            let digest = Digest::of(subject.as_bytes()).to_hex();
            name = format!("{name}~{digest}");
        }
        name.push_str(".profile");
        self.folder.join(name)
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

fn escape(subject: &[u8]) -> String {
    let mut name = String::new();
    for (at, &byte) in subject.iter().enumerate() {
        match is_plain(byte) && (at > 0 || byte != b'.') {
            true => name.push(char::from(byte)),
            false => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

/// The key that a file's name stands for, if the name has it.
fn subject_of(path: &Path) -> Option<Subject> {
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
    Subject::new(&bytes)
}
