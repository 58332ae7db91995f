//! The system resources that a store needs, for a process that gives up the rest.

use std::path::{Path, PathBuf};

use super::binary_cache_url;
use crate::binary_cache::SCHEMES;
use crate::store::local_url::local_path;
use crate::store::{LOCAL_STORE_NAMES, RedbFile, combined, credential, shown_url};

/// Where programs find names, certificates and sockets of services, on common systems.
const SYSTEM: [&str; 5] = ["/etc", "/usr", "/nix/store", "/run", "/var/run"];
/// Environment variables that name other files to libraries: certificates, and credentials for a
/// bucket.
const VARIABLES: [&str; 5] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
];

/// Files that are read when a connection is made: names of hosts, and certificates of authorities
/// (resolver(3), and where the crate openssl-probe looks on the common systems).
const NETWORK_FILES: [&str; 5] = [
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
];

/// The needs of reading a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreNeeds {
    /// The directories of the store: additions need write access to them.
    pub dirs: Vec<PathBuf>,
    /// Files and directories beside them.
    pub read: Vec<PathBuf>,
    /// Directories that it writes to even if it is only read.
    pub write: Vec<PathBuf>,
    /// Whether it connects to anything.
    pub network: bool,
}

impl StoreNeeds {
    /// The needs of a program that connects to services.
    pub(super) fn of_network() -> Self {
        Self {
            read: SYSTEM.map(PathBuf::from).to_vec(),
            network: true,
            ..Self::default()
        }
    }
}

/// The needs of reading the store at `url`.
pub fn needs(url: &str) -> StoreNeeds {
    if let Some(addresses) = combined::addresses(url) {
        let mut all = StoreNeeds::default();
        for (_, address) in addresses {
            let needs = needs(address);
            all.network |= needs.network;
            // What is only read needs no more.
            all.read.extend(needs.dirs);
            all.read.extend(needs.read);
            all.write.extend(needs.write);
        }
        return all;
    }
    if let Ok(path) = RedbFile::path(url) {
        return StoreNeeds {
            read: vec![path.to_owned()],
            ..StoreNeeds::default()
        };
    }
    if let Some(path) = url.strip_prefix("local:").and_then(local_path) {
        return StoreNeeds {
            dirs: vec![Path::new(path).to_owned()],
            ..StoreNeeds::default()
        };
    }
    let bucket_in = |url: &str| {
        let path = url.strip_prefix("objectstore+file:")?;
        let path = path.split(['?', '#']).next().and_then(local_path)?;
        Some(PathBuf::from(path))
    };
    let scheme = url.split(':').next().unwrap_or_default();
    if scheme == "memory" {
        return StoreNeeds::default();
    }
    let mut needs = StoreNeeds::of_network();
    needs.read.extend(named(url));
    match SCHEMES.contains(&scheme) {
        true => {
            needs.write.extend(binary_cache_url::directory(url));
            needs.read.extend(binary_cache_url::files(url));
        }
        false => needs.dirs.extend(bucket_in(url)),
    }
    needs
}

/// The files that `url` or the environment names.
fn named(url: &str) -> impl Iterator<Item = PathBuf> {
    let variables = VARIABLES.iter().filter_map(std::env::var_os);
    let all = parameters(url).into_iter().map(|(_, path)| path);
    all.chain(
        variables
            .map(PathBuf::from)
            .filter(|path| path.is_absolute()),
    )
    .filter(|path| path.exists())
}

/// The parameters of `url` that are absolute paths: name and path.
fn parameters(url: &str) -> Vec<(String, PathBuf)> {
    let parsed = ::url::Url::parse(url).ok();
    let parameters = parsed.iter().flat_map(::url::Url::query_pairs);
    parameters
        .map(|(name, value)| {
            let path = credential::place(Path::new(value.as_ref()));
            (name.into_owned(), path)
        })
        .filter(|(_, path)| path.is_absolute())
        .collect()
}

/// A file or directory that a process opens while it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedFile {
    /// Its description in error messages: "the store local:/srv/store".
    pub what: String,
    /// Its path. It need not exist yet.
    pub path: PathBuf,
    /// Whether it is a directory in which everything is used, at any depth.
    pub whole: bool,
}

/// The files and directories that the store at `url` opens while it is read or written.
pub(super) fn used_files(url: &str) -> Vec<UsedFile> {
    if let Some(addresses) = combined::addresses(url) {
        let addresses = addresses.into_iter();
        return addresses
            .flat_map(|(_, address)| used_files(address))
            .collect();
    }
    let shown = shown_url(url);
    let of_store = |path: &Path, whole| UsedFile {
        what: format!("the store {shown}"),
        path: path.to_owned(),
        whole,
    };
    let store = |path: &Path| of_store(path, false);
    if let Ok(path) = RedbFile::path(url) {
        return vec![store(path)];
    }
    let needs = needs(url);
    // A local store can share its directory with what is not its own.
    let is_shared = url.starts_with("local:");
    let mut files = Vec::new();
    for path in needs.dirs.iter().chain(&needs.write) {
        files.push(of_store(path, !is_shared));
        if is_shared {
            files.extend(LOCAL_STORE_NAMES.map(|name| of_store(&path.join(name), true)));
        }
    }
    let socket = url.strip_prefix("grpc+unix:");
    let socket = socket.and_then(|rest| local_path(rest.split('?').next().unwrap_or(rest)));
    files.extend(socket.map(|path| store(Path::new(path))));
    if needs.network {
        let named = parameters(url).into_iter();
        files.extend(named.map(|(name, path)| UsedFile {
            what: format!("the {name} of the store {shown}"),
            path,
            whole: false,
        }));
        let variables = VARIABLES
            .iter()
            .filter_map(|name| Some((*name, PathBuf::from(std::env::var_os(name)?))));
        files.extend(variables.map(|(name, path)| UsedFile {
            what: format!("the file that {name} names"),
            path,
            whole: false,
        }));
        files.extend(NETWORK_FILES.map(|path| UsedFile {
            what: "what connections need".to_owned(),
            path: path.into(),
            whole: false,
        }));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_needs_itself_and_no_network() {
        let dir = |path: &str| StoreNeeds {
            dirs: vec![path.into()],
            ..StoreNeeds::default()
        };
        assert_eq!(needs("local:/srv/store"), dir("/srv/store"));
        assert_eq!(needs("local:///srv/store"), dir("/srv/store"));
        assert_eq!(needs("memory:"), StoreNeeds::default());
        assert!(needs("grpc+https://example.org").network);
        let bucket = needs("objectstore+file:///srv/bucket?x=y");
        assert_eq!(bucket.dirs, [PathBuf::from("/srv/bucket")]);
    }

    #[test]
    fn files_in_use_are_listed_with_their_kind() {
        let used = |url: &str| {
            let files = used_files(url).into_iter();
            let files = files.map(|file| (file.what, file.path.display().to_string()));
            files.collect::<Vec<_>>()
        };
        let pair = |what: &str, path: &str| (what.to_owned(), path.to_owned());
        let local = used("local:/srv/store");
        for path in ["/srv/store", "/srv/store/blobs", "/srv/store/index.redb"] {
            assert!(
                local.contains(&pair("the store local:/srv/store", path)),
                "{local:?}"
            );
        }
        assert!(used("memory:").is_empty());
        let peer = used("grpc+unix:/run/peer.sock?token-file=/etc/secret&verify=root");
        assert_eq!(
            peer[..2],
            [
                pair("the store grpc+unix:/run/peer.sock", "/run/peer.sock"),
                pair(
                    "the token-file of the store grpc+unix:/run/peer.sock",
                    "/etc/secret"
                )
            ]
        );
        assert!(peer.contains(&pair("what connections need", "/etc/resolv.conf")));
    }

    #[test]
    fn files_that_a_url_names_are_needed_too() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let url = format!(
            "grpc+https://example.org?token-file={}&x=/no/file",
            path.display()
        );
        let needed = needs(&url).read;
        assert!(needed.contains(&path), "{needed:?}");
        // A file must exist to be allowed.
        assert!(!needed.contains(&PathBuf::from("/no/file")), "{needed:?}");
    }
}
