//! From a URL to a store.

use std::path::Path;
use std::sync::Arc;

use super::{Error, LocalStore, MemoryStore, Store};

/// Opens the store that `url` names.
///
/// | URL | store |
/// |---|---|
/// | `local:PATH` | in a folder, which is made if it is not there |
/// | `memory:` | in this process's memory, gone with it |
pub fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    let wrong = |why: &str| Error::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let (scheme, rest) = url
        .split_once(':')
        .ok_or_else(|| wrong("it starts with no scheme; for a folder write local:PATH"))?;
    match scheme {
        "local" if rest.is_empty() => Err(wrong("a folder has to follow local:")),
        "local" if rest.contains('\0') => Err(wrong("no path holds a NUL byte")),
        "local" => {
            let path = local_path(rest)
                .ok_or_else(|| wrong("for a folder write local:PATH, with no //"))?;
            Ok(Arc::new(LocalStore::open(Path::new(path))?))
        }
        "memory" if rest.is_empty() || rest == "//" => Ok(Arc::new(MemoryStore::new())),
        "memory" => Err(wrong("nothing can follow memory:")),
        _ => Err(wrong("the schemes are local: and memory:")),
    }
}

/// Fails if `url` names a store in a folder where there is none yet, which [`open`] would make: for
/// who only wants to read, and may have mistyped.
pub fn must_exist(url: &str) -> Result<(), Error> {
    let path = url.strip_prefix("local:").and_then(local_path);
    match path.filter(|path| !path.is_empty()) {
        Some(path) if matches!(Path::new(path).join("format").try_exists(), Ok(false)) => {
            Err(Error::Format {
                store: url.to_owned(),
                why: "there is no store yet; `castore-fs import` makes one".to_owned(),
            })
        }
        // What cannot be looked at is opened, and says then why it cannot be.
        _ => Ok(()),
    }
}

/// The folder that a `local:` URL names; `local:///srv/store` has an empty host.
pub(super) fn local_path(rest: &str) -> Option<&str> {
    match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => Some(path),
        Some(_) => None,
        None => Some(rest),
    }
}
