//! The file `format`: the version of a store, and whether it is only a cache.
//!
//! The version is in the index as well, so that a store whose `format` was lost can still be read.

use std::fs;
use std::path::Path;

/// The version that this code writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 2;
/// The oldest version that this code reads. The first change of such a store makes it [`FORMAT`].
const OLDEST: u32 = 1;

/// The contents of the file `format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FormatFile {
    /// There is no such file.
    Missing,
    /// It holds no version of any castore-fs.
    Damaged,
    /// A version that this code reads.
    Known {
        /// The version.
        version: u32,
        /// Everything in the store can be fetched again: it is the local store of a cache.
        cache_only: bool,
    },
    /// A version of a newer castore-fs.
    Newer(u32),
}

impl FormatFile {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let value = |wanted: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let mut lines = lines.map(|(key, value)| (key.trim(), value.trim()));
            lines
                .find(|(key, _)| *key == wanted)
                .map(|(_, value)| value)
        };
        match value("format").and_then(|version| version.parse::<u32>().ok()) {
            Some(version) if (OLDEST..=FORMAT).contains(&version) => Self::Known {
                version,
                cache_only: value("use") == Some("cache"),
            },
            Some(version) if version > FORMAT => Self::Newer(version),
            _ => Self::Damaged,
        }
    }

    /// The text of the file of a store of this version.
    pub(super) fn text(cache_only: bool) -> String {
        let mut text = format!(
            "# This directory is a castore-fs store; its files are described in \
             docs/store-format.md.\nformat = {FORMAT}\n"
        );
        if cache_only {
            text.push_str(
                "# Everything in it can be fetched again: should it be damaged, it is renamed and \
                 a new one started.\nuse = cache\n",
            );
        }
        text
    }
}

/// The command that repairs the store with this URL.
pub(super) fn repair_command(url: &str) -> String {
    format!("castore-fs verify --repair --store {url}")
}

/// Whether `path` holds anything that only a store has: it must never be initialised again.
pub(super) fn holds_data(path: &Path) -> bool {
    let holds_entries = |name: &str| {
        let entries = fs::read_dir(path.join(name));
        entries.is_ok_and(|mut entries| entries.next().is_some())
    };
    // A directory that cannot be read may hold something.
    !matches!(path.join("index.redb").try_exists(), Ok(false))
        || !matches!(path.join("journal").try_exists(), Ok(false))
        || ["packs", "blobs", "parts"].into_iter().any(holds_entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_version_and_use_or_is_damaged() {
        let known = |version, cache_only| FormatFile::Known {
            version,
            cache_only,
        };
        assert_eq!(FormatFile::parse(b"# x\nformat = 1\n"), known(1, false));
        for cache_only in [false, true] {
            let text = FormatFile::text(cache_only);
            assert_eq!(
                FormatFile::parse(text.as_bytes()),
                known(FORMAT, cache_only)
            );
        }
        assert_eq!(FormatFile::parse(b"format=3"), FormatFile::Newer(3));
        for text in [&b""[..], b"\0\0\0\0", b"format = 0", b"format = x", b"form"] {
            assert_eq!(FormatFile::parse(text), FormatFile::Damaged);
        }
    }
}
