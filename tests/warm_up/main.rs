//! Profiles: recorded by a mount, used by the next one, shipped by a command.

mod counts;
mod mounts;
mod numbers;
mod service;

use std::fs;
use std::path::Path;

use castore_fs::profile::ProfileKey;
use kit::model::{Model, directory, file};

const DIRS: usize = 12;

/// What the file in `dir` of version `version` holds.
pub fn contents(version: u32, dir: usize) -> String {
    format!("version {version}, number {dir}\n").repeat(100)
}

/// A tree with files `DIR/file` and `DIR/other`.
pub fn tree(version: u32) -> Model {
    let dir = |dir| {
        let files = [
            ("file", file(contents(version, dir))),
            ("other", file(format!("{version} other {dir}"))),
        ];
        (format!("dir-{dir}"), directory(files))
    };
    directory((0..DIRS).map(dir))
}

/// The directories whose files a program reads when it starts, in its order.
pub const STARTS_WITH: [usize; 6] = [7, 3, 11, 0, 8, 2];

/// What `text` names.
pub fn profile_key_of(text: &str) -> ProfileKey {
    ProfileKey::new(text.as_bytes()).unwrap()
}

/// Reads as a program does when it starts.
pub fn start(at: &Path, version: u32) {
    for dir in STARTS_WITH {
        let read = fs::read_to_string(at.join(format!("dir-{dir}/file"))).unwrap();
        assert_eq!(read, contents(version, dir));
    }
}
