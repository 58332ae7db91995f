//! From a URL to a store.

use std::path::Path;
use std::sync::Arc;

use super::shown_url::shown_url;
use super::{Error, GrpcStore, LocalStore, MemoryStore, ObjectStore, Store};

/// Opens the store that `url` names.
///
/// | URL | store |
/// |---|---|
/// | `local:PATH` | in a folder, which is made if it is not there |
/// | `memory:` | in this process's memory, gone with it |
/// | `grpc+http://HOST:PORT`, `grpc+https://HOST:PORT`, `grpc+unix:/PATH` | behind a gRPC server |
/// | `objectstore+{file,s3,gs,az,http,https}://…` | in an object store |
pub fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    if let Some(store) = open_local(url)? {
        return Ok(Arc::new(store));
    }
    let wrong = |why: &str| Error::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let (scheme, rest) = url
        .split_once(':')
        .ok_or_else(|| wrong("it starts with no scheme; for a folder write local:PATH"))?;
    match scheme {
        "memory" if rest.is_empty() || rest == "//" => Ok(Arc::new(MemoryStore::new())),
        "memory" => Err(wrong("nothing can follow memory:")),
        "grpc+http" | "grpc+https" | "grpc+unix" => Ok(Arc::new(GrpcStore::open(url)?)),
        _ if scheme.starts_with("objectstore+") => Ok(Arc::new(ObjectStore::open(url)?)),
        "store" => Err(wrong(
            "that is a name of a configuration file, and there is none here",
        )),
        _ => Err(wrong(
            "the schemes are local:, memory:, grpc+{http,https,unix}: and \
             objectstore+{file,s3,gs,az,http,https}:",
        )),
    }
}

/// Opens the store that `url` names if that is one in a folder; nothing if it is of another kind.
pub fn open_local(url: &str) -> Result<Option<LocalStore>, Error> {
    check_local(url)?.map(LocalStore::open).transpose()
}

/// As [`open_local`], for a cache to keep in it what it reads.
pub(super) fn open_near(url: &str) -> Result<Option<LocalStore>, Error> {
    check_local(url)?.map(LocalStore::open_near).transpose()
}

fn check_local(url: &str) -> Result<Option<&Path>, Error> {
    let Some(rest) = url.strip_prefix("local:") else {
        return Ok(None);
    };
    let wrong = |why: &str| Error::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let path = check_folder(rest).map_err(wrong)?;
    Ok(Some(Path::new(path)))
}

/// The directory of the store that `url` names, if it is an embedded one.
pub fn local_folder(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("local:").and_then(local_path);
    path.filter(|path| !path.is_empty()).map(Path::new)
}

/// The folder that follows `local:`; says what is wrong otherwise.
fn check_folder(rest: &str) -> Result<&str, &'static str> {
    if rest.is_empty() {
        return Err("a folder has to follow local:");
    }
    if rest.starts_with('~') {
        return Err("local: does not know ~: write local:$HOME/… in a shell, or the whole path");
    }
    if rest.contains('\0') {
        return Err("no path holds a NUL byte");
    }
    local_path(rest).ok_or("for a folder write local:PATH, with no //")
}

/// Says what is wrong with `url`, as far as that can be told without opening it: what [`open`]
/// refuses before it looks at any file or connects anywhere.
pub fn check_url(url: &str) -> Result<(), String> {
    match url.split_once(':') {
        Some(("local", rest)) => check_folder(rest).map(drop).map_err(str::to_owned),
        Some(("memory", "" | "//")) => Ok(()),
        Some(("memory", _)) => Err("nothing can follow memory:".to_owned()),
        Some(("grpc+http" | "grpc+https" | "grpc+unix", _)) => GrpcStore::check_url(url),
        Some((scheme, _)) if scheme.starts_with("objectstore+") => ObjectStore::check_url(url),
        Some(("store", _)) => Err(
            "store:NAME is for the command line: here, name the store where \
                                  a name is asked for"
                .to_owned(),
        ),
        _ => Err(format!(
            "{:?} names no kind of store: local:/PATH, memory:, grpc+{{http,https,unix}}: and \
             objectstore+{{file,s3,gs,az,http,https}}:",
            shown_url(url)
        )),
    }
}

/// Fails if `url` names a store in a folder where there is none yet, which [`open`] would make: for
/// who only wants to read, and may have mistyped.
pub fn must_exist(url: &str) -> Result<(), Error> {
    check_local(url)?;
    match local_folder(url) {
        Some(path) if !LocalStore::may_be_in(path) => Err(Error::Format {
            store: url.to_owned(),
            why: "there is no store yet; `castore-fs import` makes one".to_owned(),
        }),
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
