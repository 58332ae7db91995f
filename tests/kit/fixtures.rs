//! Data made by other implementations, which lies outside of the repository, and how a test says
//! that it could not run.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// The fixture `name`: in the folder that `CASTORE_FS_FIXTURES` names, or beside the repository.
/// Without it the test is [skipped](skip).
pub fn fixture(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/fixtures");
    let folder = std::env::var_os("CASTORE_FS_FIXTURES").unwrap_or_else(|| beside.into());
    let path = PathBuf::from(folder).join(name);
    match path.exists() {
        true => Some(path),
        false => {
            skip(&format!(
                "the fixture {} is not there (CASTORE_FS_FIXTURES can name the folder)",
                path.display()
            ));
            None
        }
    }
}

/// Says why the test that calls this cannot run. It has to return then. Under `CI=true` nothing
/// may be skipped: this fails.
///
/// cargo shows nothing of a test that passes, so the reason also goes to the file that
/// `CASTORE_FS_SKIPS` names, which `tests/run` reads out at the end.
pub fn skip(why: &str) {
    let current = std::thread::current();
    let line = format!("{}: {why}\n", current.name().unwrap_or("a test"));
    eprint!("skipped: {line}");
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "skipped under CI=true: {line}"
    );
    if let Some(path) = std::env::var_os("CASTORE_FS_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("the file that CASTORE_FS_SKIPS names can be written");
    }
}
