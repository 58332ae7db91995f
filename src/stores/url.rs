//! From a URL to a store.

use std::sync::Arc;

use super::binary_cache_url;
use crate::binary_cache;
use crate::store::combined;
use crate::store::local_url::{check_dir, check_local};
use crate::store::{
    CombinedStore, Error, GrpcStore, LocalStore, MemoryStore, ObjectStore, RedbFile, Store,
    local_dir, open_local, shown_url,
};

/// The schemes of stores, for an error.
const SCHEMES: &str = "local:, memory:, grpc+{http,https,unix}:, objectstore+{file,s3,gs,az,http,https}:, \
                       nix+{https,http,file}: and redb:";

/// Opens the store at `url`.
///
/// | URL | store |
/// |---|---|
/// | `local:PATH` | a local store, which is made if it does not exist |
/// | `memory:` | in this process's memory, gone with it |
/// | `grpc+http://HOST:PORT`, `grpc+https://HOST:PORT`, `grpc+unix:/PATH` | a gRPC server |
/// | `objectstore+{file,s3,gs,az,http,https}://…` | an object store |
/// | `nix+{https,http,file}://…` | a Nix binary cache, unpacked into a local store |
/// | `redb:/PATH` | a snix store's file of Directories or path infos, only read |
/// | `blobs=URL&directories=URL&path-infos=URL` | three of these as one, only read |
///
/// ```
/// use castore_fs::stores;
///
/// let dir = tempfile::tempdir()?;
/// let url = format!("local:{}", dir.path().join("store").display());
/// let store = stores::open(&url)?;
/// assert_eq!(store.url(), url);
/// assert!(stores::open("nowhere").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    if let Some(three) = combined::three(url) {
        let three = three.map_err(|why| Error::Url {
            url: url.to_owned(),
            why,
        })?;
        let [blobs, directories, path_infos] = three.map(open);
        let parts = [blobs?, directories?, path_infos?];
        return Ok(Arc::new(CombinedStore::new(shown_url(url), parts)));
    }
    if let Some(store) = open_local(url)? {
        return Ok(Arc::new(store));
    }
    let wrong = |why: &str| Error::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let (scheme, rest) = url
        .split_once(':')
        .ok_or_else(|| {
            wrong(&format!(
                "it starts with no scheme; for a directory write local:PATH, for a store of the configuration \
                 file store:NAME. The schemes are {SCHEMES}"
            ))
        })?;
    match scheme {
        "memory" if rest.is_empty() || rest == "//" => Ok(Arc::new(MemoryStore::new())),
        "memory" => Err(wrong("nothing can follow memory:")),
        "grpc+http" | "grpc+https" | "grpc+unix" => Ok(Arc::new(GrpcStore::open(url)?)),
        _ if scheme.starts_with("objectstore+") => Ok(Arc::new(ObjectStore::open(url)?)),
        _ if binary_cache::SCHEMES.contains(&scheme) => {
            let (cache, _) = binary_cache_url::open(url)?;
            Ok(Arc::new(cache))
        }
        "redb" => Ok(Arc::new(RedbFile::open(url)?)),
        "store" => Err(wrong(
            "that is a name of a configuration file, and there is none here",
        )),
        _ => {
            let why = peers_only(scheme).unwrap_or_else(|| unknown(scheme));
            Err(wrong(&why))
        }
    }
}

/// What is wrong with a scheme that no store has.
fn unknown(scheme: &str) -> String {
    format!("its scheme {scheme:?} is none of {SCHEMES}")
}

/// What to do about a scheme that snix knows and this program does not.
fn peers_only(scheme: &str) -> Option<String> {
    let what = match scheme {
        "bigtable" | "sled" | "simplefs" => "it is a store that only snix opens",
        "cache" | "combined" => {
            "it is a store that snix makes of others: give the one of them that holds everything, or \
             describe a cache in a configuration file (docs/stores.md)"
        }
        "lru" => "it is a cache in snix's memory: give the store that it stands before",
        "keyfile-signing" => {
            "it signs what snix puts into its inner store: give that store, the signatures are in it"
        }
        _ => return None,
    };
    Some(format!(
        "{what}. To migrate, run snix-store's daemon on it and copy: `castore-fs copy --all --from \
         grpc+http://[::1]:8000 --to local:/PATH` (docs/interoperation.md)"
    ))
}

/// Checks `url` without opening it: returns the error of [`open`] for everything that is refused
/// before any file is accessed or any connection made.
pub fn check_url(url: &str) -> Result<(), String> {
    if let Some(three) = combined::three(url) {
        return three?.into_iter().try_for_each(check_url);
    }
    match url.split_once(':') {
        Some(("local", rest)) => check_dir(rest).map(drop).map_err(str::to_owned),
        Some(("memory", "" | "//")) => Ok(()),
        Some(("memory", _)) => Err("nothing can follow memory:".to_owned()),
        Some(("grpc+http" | "grpc+https" | "grpc+unix", _)) => GrpcStore::check_url(url),
        Some((scheme, _)) if scheme.starts_with("objectstore+") => ObjectStore::check_url(url),
        Some((scheme, _)) if binary_cache::SCHEMES.contains(&scheme) => {
            binary_cache_url::check(url)
        }
        Some(("redb", _)) => RedbFile::path(url).map(drop),
        Some(("store", _)) => Err(
            "store:NAME is for the command line: here, name the store where \
                                  a name is asked for"
                .to_owned(),
        ),
        Some((scheme, _)) => Err(peers_only(scheme).unwrap_or_else(|| unknown(scheme))),
        None => Err(format!(
            "it starts with no scheme; the schemes are {SCHEMES}"
        )),
    }
}

/// Fails if `url` names a local store that does not exist yet, which [`open`] would make: for
/// readers, whose URL may be mistyped.
pub fn must_exist(url: &str) -> Result<(), Error> {
    if let Some(Ok(three)) = combined::three(url) {
        return three.into_iter().try_for_each(must_exist);
    }
    check_local(url)?;
    match local_dir(url) {
        Some(path) if !LocalStore::may_be_in(path) => Err(Error::Format {
            store: url.to_owned(),
            why: "there is no store yet; `castore-fs import` makes one".to_owned(),
        }),
        // A path that cannot be checked is opened, and the error comes from there.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Secrets at any place of a URL: no error has them, and [`check_url`] refuses the same as opening.
    #[test]
    fn no_error_about_a_url_repeats_a_secret() {
        const KEY: &str = "k:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        let trusting = format!("trusted-public-keys={KEY}");
        let schemes = [
            "grpc+http",
            "grpc+https",
            "grpc+unix",
            "objectstore+s3",
            "objectstore+gs",
            "objectstore+az",
            "objectstore+https",
            "objectstore+http",
            "nix+https",
            "nix+http",
            "nix+s3",
            "s3",
            "https",
        ];
        for scheme in schemes {
            for rest in [
                "user:hunter2@host.invalid/",
                "hunter2@host.invalid",
                "user:hunter2",
                "user:hun?hunter2@host.invalid",
                "user:hun#hunter2@host.invalid",
                "host.invalid/#hunter2",
                "host.invalid/?hunter2",
                "host.invalid/?hunter2&",
                "host.invalid/?token=hunter2",
                "host.invalid/?password=hunter2",
                "host.invalid/?secret_access_key=hunter2",
                "host.invalid/?sig=hunter2",
                "host.invalid/?verify=hunter2",
                "host.invalid/?connect-timeout=hunter2",
                "host.invalid/?priority=hunter2",
                "host.invalid/?require-signatures=hunter2",
                "host.invalid/?trusted-public-keys=hunter2",
            ] {
                for more in ["", &trusting] {
                    let joint = match (more, rest.contains('?')) {
                        ("", _) => "",
                        (_, true) => "&",
                        (_, false) => "?",
                    };
                    let url = format!("{scheme}://{rest}{joint}{more}");
                    if let Err(why) = check_url(&url) {
                        assert!(!why.contains("hunter2"), "{url}: {why}");
                        let error = open(&url).unwrap_err().to_string();
                        assert!(!error.contains("hunter2"), "{url}: {error}");
                    }
                    let shown = shown_url(&url);
                    assert!(!shown.contains("hunter2"), "{url}: {shown}");
                }
            }
        }
        // Those that are paths have no parameters.
        for url in [
            "local:/tmp/x?token=hunter2",
            "local:x?a=1&password=hunter2",
            "redb:/tmp/x?password=hunter2",
            "memory:?token=hunter2",
            "memory://user:hunter2@host",
        ] {
            let why = check_url(url).unwrap_err();
            let error = open(url).unwrap_err().to_string();
            for shown in [why, error, shown_url(url)] {
                assert!(!shown.contains("hunter2"), "{url}: {shown}");
            }
        }
        assert_eq!(shown_url("local:/what?/why"), "local:/what?/why");
    }
}
