//! Names that no binary cache has, cached for an hour.
//!
//! Nix caches a negative answer for as long (`narinfo-cache-negative-ttl`). They are kept in a
//! file, since a machine that boots looks the same names up again. The file holds lines `SECONDS
//! NAME`, seconds since 1970; it is only a cache, so a file that cannot be read or written costs
//! requests and nothing else. Each name is appended when it is found to be absent: a service ends
//! without closing its stores. Removing the file drops the names: a process that uses it notices
//! within a second that it is gone, or is another file, which a process that opened it since has made.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::clock::unix_seconds;

use parking_lot::Mutex;

/// How long "not found" is valid.
pub(super) const REMEMBERED: Duration = Duration::from_secs(3600);
/// Names cached at the most; beyond that, all are dropped.
const MOST_NAMES: usize = 100_000;
/// Bytes of the file that are read at the most.
const MOST_BYTES: u64 = 32 << 20;
/// How often it is checked whether the file was removed or replaced.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Appended lines after which the file is written again, without those that no longer hold.
const APPENDED_BEFORE_WRITE: usize = 4096;

/// Names that no binary cache has.
#[derive(Debug)]
pub(super) struct AbsentNames {
    file: Option<PathBuf>,
    names: Mutex<AbsentNamesState>,
}

#[derive(Debug)]
struct AbsentNamesState {
    /// When it was last checked whether the file is still the same.
    looked: Instant,
    /// The file, for appending; nothing if it cannot be written.
    log: Option<fs::File>,
    /// Seconds since 1970 at which each was found to be absent.
    since: HashMap<String, u64>,
    /// Lines that were appended since the file was written.
    appended: usize,
}

/// Whether an answer of `since` is still valid; one of the future is not.
fn holds(since: u64, now: u64) -> bool {
    now.checked_sub(since)
        .is_some_and(|age| age < REMEMBERED.as_secs())
}

impl AbsentNames {
    /// The contents of `file`, if it exists.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let names = AbsentNamesState {
            looked: Instant::now(),
            log: None,
            since: file.as_deref().map(read).unwrap_or_default(),
            appended: 0,
        };
        let absent = Self {
            file,
            names: Mutex::new(names),
        };
        // So that its removal is seen.
        absent.write(&mut absent.names.lock());
        absent
    }

    /// Whether no cache had `name` within the last hour.
    pub(super) fn contains(&self, name: &str) -> bool {
        let mut names = self.names.lock();
        self.notice_other_file(&mut names);
        names
            .since
            .get(name)
            .is_some_and(|since| holds(*since, unix_seconds()))
    }

    /// No cache has `name` now.
    pub(super) fn insert(&self, name: &str) {
        let mut names = self.names.lock();
        if names.since.len() >= MOST_NAMES {
            names.since.clear();
        }
        let now = unix_seconds();
        names.since.insert(name.to_owned(), now);
        names.appended += 1;
        if names.appended >= APPENDED_BEFORE_WRITE {
            self.take_other_file(&mut names);
            self.write(&mut names);
        } else if let Some(log) = &mut names.log
            && let Err(error) = log.write_all(format!("{now} {name}\n").as_bytes())
        {
            tracing::debug!("cannot append to the absent names: {error}");
        }
    }

    /// A cache has `name` after all.
    pub(super) fn remove(&self, name: &str) {
        let mut names = self.names.lock();
        if names.since.contains_key(name) {
            self.take_other_file(&mut names);
            names.since.remove(name);
            self.write(&mut names);
        }
    }

    /// Looks now and then whether the file is another one.
    fn notice_other_file(&self, names: &mut AbsentNamesState) {
        if names.looked.elapsed() >= LOOK_EVERY {
            names.looked = Instant::now();
            self.take_other_file(names);
        }
    }

    /// Takes the names of the file as it is now, if it was removed or replaced, by any process.
    fn take_other_file(&self, names: &mut AbsentNamesState) {
        let Some(file) = &self.file else { return };
        if names.log.as_ref().is_some_and(|log| is_at(log, file)) {
            return;
        }
        match open_to_append(file) {
            Ok(log) => {
                names.since = read(file);
                names.log = Some(log);
            }
            Err(_) if names.log.is_some() => {
                names.since.clear();
                self.write(names);
            }
            Err(_) => {}
        }
    }

    fn write(&self, names: &mut AbsentNamesState) {
        names.appended = 0;
        let Some(file) = &self.file else { return };
        let now = unix_seconds();
        names.since.retain(|_, since| holds(*since, now));
        let mut text = String::new();
        for (name, since) in &names.since {
            writeln!(text, "{since} {name}").expect("text grows");
        }
        let new = file.with_extension("new");
        let written = fs::write(&new, text)
            .and_then(|()| fs::rename(&new, file))
            .and_then(|()| open_to_append(file));
        if let Err(error) = &written {
            tracing::debug!("cannot write {}: {error}", file.display());
        }
        names.log = written.ok();
    }
}

fn open_to_append(file: &Path) -> io::Result<fs::File> {
    fs::File::options().append(true).open(file)
}

/// Whether `log` is the file at `path`. While it is open, no other file has its inode.
fn is_at(log: &fs::File, path: &Path) -> bool {
    let identity = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino()));
    matches!(
        (identity(log.metadata()), identity(fs::metadata(path))),
        (Ok(log), Ok(path)) if log == path
    )
}

fn read(file: &Path) -> HashMap<String, u64> {
    let mut text = String::new();
    let opened = fs::File::open(file);
    let _ = opened.and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
    let now = unix_seconds();
    let lines = text.lines().filter_map(|line| {
        let (since, name) = line.split_once(' ')?;
        let since = since.parse().ok()?;
        holds(since, now).then(|| (name.to_owned(), since))
    });
    lines.take(MOST_NAMES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let absent = AbsentNames::open(None);
        for number in 0..=MOST_NAMES {
            absent.insert(&number.to_string());
        }
        assert!(absent.names.lock().since.len() <= MOST_NAMES);
        assert!(absent.contains(&MOST_NAMES.to_string()));
    }

    #[test]
    fn names_are_remembered_over_restarts_for_an_hour_and_until_they_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("absent");
        let old = unix_seconds() - 3600;
        fs::write(&file, format!("{old} old\n99999999999 future\nx y z\n")).unwrap();
        let names = AbsentNames::open(Some(file.clone()));
        assert!(!names.contains("old") && !names.contains("future"));
        names.insert("a");
        names.insert("b");
        names.remove("b");
        assert!(names.contains("a"));
        // Whose process is killed.
        std::mem::forget(names);
        let names = AbsentNames::open(Some(file.clone()));
        assert!(names.contains("a") && !names.contains("b"));
        fs::remove_file(&file).unwrap();
        assert!(names.contains("a"), "for a second");
        names.names.lock().looked -= LOOK_EVERY;
        assert!(!names.contains("a"));
        assert!(file.exists(), "so that it can be removed again");
        // Another process removes it and makes a new one before this one looks.
        names.insert("c");
        fs::remove_file(&file).unwrap();
        AbsentNames::open(Some(file.clone())).insert("d");
        names.names.lock().looked -= LOOK_EVERY;
        assert!(!names.contains("c") && names.contains("d"));
    }
}
