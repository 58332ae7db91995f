//! Profiles: learned by a mount, used by the next one, shipped by a command.

mod counts;
mod mounts;
mod numbers;
mod service;

use std::fs;
use std::path::Path;

use castore_fs::profile::Subject;
use kit::model::{Model, directory, file};

const FOLDERS: usize = 12;

/// What the file in `folder` of version `version` holds.
pub fn contents(version: u32, folder: usize) -> String {
    format!("version {version}, folder {folder}\n").repeat(100)
}

/// A tree with files `FOLDER/file` and `FOLDER/other`.
pub fn tree(version: u32) -> Model {
    let folder = |folder| {
        let files = [
            ("file", file(contents(version, folder))),
            ("other", file(format!("{version} other {folder}"))),
        ];
        (format!("folder-{folder}"), directory(files))
    };
    directory((0..FOLDERS).map(folder))
}

/// The folders whose files a program reads when it starts, in its order.
pub const STARTS_WITH: [usize; 6] = [7, 3, 11, 0, 8, 2];

/// What `text` names.
pub fn subject_of(text: &str) -> Subject {
    Subject::new(text.as_bytes()).unwrap()
}

/// Reads as a program does when it starts.
pub fn start(at: &Path, version: u32) {
    for folder in STARTS_WITH {
        let read = fs::read_to_string(at.join(format!("folder-{folder}/file"))).unwrap();
        assert_eq!(read, contents(version, folder));
    }
}
