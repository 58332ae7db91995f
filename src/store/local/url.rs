//! `local:PATH`: the URL of a store in a directory.

use std::path::Path;

use super::LocalStore;
use crate::store::Error;
use crate::store::shown_url::has_parameters;

/// Opens the store at `url` if that is a local one; nothing if it is of another kind.
pub fn open_local(url: &str) -> Result<Option<LocalStore>, Error> {
    check_local(url)?.map(LocalStore::open).transpose()
}

/// As [`open_local`], for the local store of a cache.
pub(crate) fn open_cache_store(url: &str) -> Result<Option<LocalStore>, Error> {
    check_local(url)?
        .map(LocalStore::open_cache_store)
        .transpose()
}

pub(crate) fn check_local(url: &str) -> Result<Option<&Path>, Error> {
    let Some(rest) = url.strip_prefix("local:") else {
        return Ok(None);
    };
    let wrong = |why: &str| Error::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let path = check_dir(rest).map_err(wrong)?;
    Ok(Some(Path::new(path)))
}

/// The directory of the store at `url`, if it is a local one.
pub fn local_dir(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("local:").and_then(local_path);
    path.filter(|path| !path.is_empty()).map(Path::new)
}

/// The directory that follows `local:`; returns what is wrong otherwise.
pub(crate) fn check_dir(rest: &str) -> Result<&str, &'static str> {
    if rest.is_empty() {
        return Err("a directory has to follow local:");
    }
    if rest.starts_with('~') {
        return Err("local: does not know ~: write local:$HOME/… in a shell, or the whole path");
    }
    if has_parameters(rest) {
        return Err("local: takes no parameters");
    }
    if rest.contains('\0') {
        return Err("no path holds a NUL byte");
    }
    local_path(rest).ok_or("for a directory write local:PATH, with no //")
}

/// The directory of a `local:` URL; `local:///srv/store` has an empty host.
pub(crate) fn local_path(rest: &str) -> Option<&str> {
    match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => Some(path),
        Some(_) => None,
        None => Some(rest),
    }
}
