//! How a test reports that it cannot run.

use std::fs::OpenOptions;
use std::io::Write;

/// Prints why the test that calls this cannot run. It has to return then. Under `CI=true` nothing
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
