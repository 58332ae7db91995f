//! Data of other implementations, outside of the repository.

use std::path::PathBuf;

use crate::skip::skip;

/// The fixture `name`: in the directory that `CASTORE_FS_FIXTURES` names, or beside the repository.
/// Without it the test is skipped.
pub fn fixture(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures");
    let dir = std::env::var_os("CASTORE_FS_FIXTURES").unwrap_or_else(|| beside.into());
    let path = PathBuf::from(dir).join(name);
    match path.exists() {
        true => Some(path),
        false => {
            skip(&format!(
                "the fixture {} is not there (CASTORE_FS_FIXTURES can name the directory)",
                path.display()
            ));
            None
        }
    }
}

/// The bytes of a name in `expected.json`, which writes those that are not UTF-8 as `\udcNN`.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split(r"\udc");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}
