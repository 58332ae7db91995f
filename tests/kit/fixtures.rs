//! Data made by other implementations, which lies outside of the repository.

use std::path::PathBuf;

use crate::skip::skip;

/// The fixture `name`: in the folder that `CASTORE_FS_FIXTURES` names, or beside the repository.
/// Without it the test is skipped.
#[allow(dead_code)] // not every test has data of others
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
