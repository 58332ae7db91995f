//! What a store needs of the system, for a process that gives up the rest.

use std::path::{Path, PathBuf};

use super::credential;
use super::url::local_path;

/// Where a program finds names, certificates and sockets of services on whatever system.
const SYSTEM: [&str; 5] = ["/etc", "/usr", "/nix/store", "/run", "/var/run"];
/// Variables by which libraries are told of files elsewhere: certificates, and who one is to a
/// bucket's owner.
const VARIABLES: [&str; 5] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
];

/// What a store needs to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The folders that it is kept in: to add to it, they have to be written.
    pub folders: Vec<PathBuf>,
    /// Files and folders beside them.
    pub read: Vec<PathBuf>,
    /// Folders that it writes to even if it is only read.
    pub write: Vec<PathBuf>,
    /// Whether it connects to anything.
    pub network: bool,
}

/// What the store at `url` needs to be read.
pub fn needs(url: &str) -> Needs {
    if let Some(path) = url.strip_prefix("local:").and_then(local_path) {
        return Needs {
            folders: vec![Path::new(path).to_owned()],
            ..Needs::default()
        };
    }
    let bucket_in = |url: &str| {
        let path = url.strip_prefix("objectstore+file:")?;
        let path = path.split(['?', '#']).next().and_then(local_path)?;
        Some(PathBuf::from(path))
    };
    match url.split_once(':') {
        Some(("memory", _)) => Needs::default(),
        _ => Needs {
            folders: bucket_in(url).into_iter().collect(),
            read: SYSTEM
                .map(PathBuf::from)
                .into_iter()
                .chain(named(url))
                .collect(),
            network: true,
            ..Needs::default()
        },
    }
}

/// The files that `url` or the environment names.
fn named(url: &str) -> impl Iterator<Item = PathBuf> {
    let parsed = ::url::Url::parse(url).ok();
    let values: Vec<PathBuf> = parsed
        .iter()
        .flat_map(::url::Url::query_pairs)
        .map(|(_, value)| credential::place(Path::new(value.as_ref())))
        .collect();
    let variables = VARIABLES.iter().filter_map(std::env::var_os);
    let all = values.into_iter().chain(variables.map(PathBuf::from));
    all.filter(|path| path.is_absolute() && path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_needs_itself_and_no_network() {
        let folder = |path: &str| Needs {
            folders: vec![path.into()],
            ..Needs::default()
        };
        assert_eq!(needs("local:/srv/store"), folder("/srv/store"));
        assert_eq!(needs("local:///srv/store"), folder("/srv/store"));
        assert_eq!(needs("memory:"), Needs::default());
        assert!(needs("grpc+https://example.org").network);
        let bucket = needs("objectstore+file:///srv/bucket?x=y");
        assert_eq!(bucket.folders, [PathBuf::from("/srv/bucket")]);
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
        // What is not there cannot be allowed.
        assert!(!needed.contains(&PathBuf::from("/no/file")), "{needed:?}");
    }
}
