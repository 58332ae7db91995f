//! `nix+https:` and the like: a binary cache, and the local store that it is unpacked into.
//!
//! A URL alone names no local store, so there is one for each URL in the user's cache directory:
//! which keys are trusted is part of the URL, and what one URL trusts another may not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::binary_cache::{AddressError, BinaryCaches, CacheAddress, ClosureMode};
use crate::store::{Cache, CacheOptions, Error, LocalStore, shown_url};

/// The file of a local store's directory that remembers names which no binary cache has.
pub(super) const ABSENT: &str = "absent-names";

/// A parsed URL: the cache, and what is done with its contents.
struct BinaryCacheUrl {
    address: CacheAddress,
    /// `into=`: the directory of the local store.
    into: Option<PathBuf>,
    /// `closure=`: what is prefetched of references.
    closure: ClosureMode,
}

fn parse(url: &str) -> Result<BinaryCacheUrl, String> {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut into, mut closure, mut others) = (None, ClosureMode::default(), Vec::new());
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let decoded = ::url::form_urlencoded::parse(parameter.as_bytes()).next();
        let Some((name, value)) = decoded else {
            continue;
        };
        match &name[..] {
            "into" if value.starts_with('/') => into = Some(PathBuf::from(&value[..])),
            "into" => return Err("into: expected the absolute path of a directory".to_owned()),
            "closure" => closure = value.parse()?,
            _ => others.push(parameter),
        }
    }
    let text = match others.is_empty() {
        true => place.to_owned(),
        false => format!("{place}?{}", others.join("&")),
    };
    let address = CacheAddress::parse(&text).map_err(|error: AddressError| error.to_string())?;
    address.check_trust()?;
    Ok(BinaryCacheUrl {
        address,
        into,
        closure,
    })
}

/// Returns what is wrong with `url`, as far as that is known without connecting.
pub(super) fn check(url: &str) -> Result<(), String> {
    parse(url).map(drop)
}

/// The address of the cache at `url`.
pub(crate) fn address(url: &str) -> Result<CacheAddress, Error> {
    let parsed = parse(url).map_err(|why| Error::Url {
        url: shown_url(url),
        why,
    })?;
    Ok(parsed.address)
}

/// The files and directories that reading the cache at `url` takes.
pub(super) fn files(url: &str) -> Vec<PathBuf> {
    let parsed = parse(url).ok();
    let files = parsed.iter().flat_map(|parsed| parsed.address.files());
    files.map(Path::to_owned).collect()
}

/// The directories that `url` is unpacked into.
pub(super) fn directory(url: &str) -> Result<PathBuf, String> {
    match parse(url)?.into {
        Some(into) => Ok(into),
        None => default_directory(url),
    }
}

/// Opens the cache at `url`.
pub(super) fn open(url: &str) -> Result<(Cache, BinaryCaches), Error> {
    let wrong = |why| Error::Url {
        url: shown_url(url),
        why,
    };
    let parsed = parse(url).map_err(wrong)?;
    let directory = directory(url).map_err(wrong)?;
    let local_store = LocalStore::open_cache_store(&directory)?;
    let options = CacheOptions::default();
    cache(
        vec![parsed.address],
        local_store,
        &directory,
        parsed.closure,
        options,
    )
}

/// The binary caches at `addresses`, unpacked into `local_store`, which is in `directory`.
pub(super) fn cache(
    addresses: Vec<CacheAddress>,
    local_store: LocalStore,
    directory: &Path,
    closure: ClosureMode,
    options: CacheOptions,
) -> Result<(Cache, BinaryCaches), Error> {
    let absent = directory.join(ABSENT);
    let upstream = BinaryCaches::new(addresses, local_store.clone(), closure, Some(absent))?;
    let options = CacheOptions {
        // A store path's contents never change.
        roots_max_age: Duration::MAX,
        keep_path_infos: true,
        ..options
    };
    let cache = Cache::new(local_store, Arc::new(upstream.clone()), options)?;
    Ok((cache, upstream))
}

/// The default directory for the contents of `url`.
fn default_directory(url: &str) -> Result<PathBuf, String> {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/cache")
    } else {
        let set = |name| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        set("XDG_CACHE_HOME")
            .or_else(|| Some(set("HOME")?.join(".cache")))
            .ok_or("neither XDG_CACHE_HOME nor HOME is set; name a directory with into=/PATH")?
    };
    let hash = blake3::hash(url.as_bytes()).to_hex();
    Ok(base.join("castore-fs").join(format!("nix-{}", &hash[..16])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_cache_and_each_has_a_directory_of_its_own() {
        let key = "k:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let url = format!("nix+https://h?trusted-public-keys={key}");
        let parsed = parse(&format!("{url}&into=/srv/x&closure=off")).unwrap();
        assert_eq!(parsed.into, Some(PathBuf::from("/srv/x")));
        assert_eq!(parsed.closure, ClosureMode::Off);
        assert_eq!(parsed.address, CacheAddress::parse(&url).unwrap());
        let other = format!("{url}&require-signatures=false");
        assert_ne!(directory(&url), directory(&other));
        assert!(
            check("nix+https://h")
                .unwrap_err()
                .contains("trusted-public-keys")
        );
        assert!(check(&format!("{url}&into=srv")).is_err());
        assert!(check(&format!("{url}&closure=some")).is_err());
    }
}
