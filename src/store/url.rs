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
            // local:///srv/store is read as a URL with an empty host.
            let path = match rest.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err(wrong("for a folder write local:PATH, with no //")),
                None => rest,
            };
            Ok(Arc::new(LocalStore::open(Path::new(path))?))
        }
        "memory" if rest.is_empty() || rest == "//" => Ok(Arc::new(MemoryStore::new())),
        "memory" => Err(wrong("nothing can follow memory:")),
        _ => Err(wrong("the schemes are local: and memory:")),
    }
}
