//! What a store needs of the system, for a process that gives up the rest.

use std::path::{Path, PathBuf};

use super::url::local_path;

/// Where a program finds names, certificates and sockets of services on whatever system.
const SYSTEM: [&str; 5] = ["/etc", "/usr", "/nix/store", "/run", "/var/run"];

/// What a store needs to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files and folders.
    pub read: Vec<PathBuf>,
    /// Folders that it writes to even so.
    pub write: Vec<PathBuf>,
    /// Whether it connects to anything.
    pub network: bool,
}

/// What the store at `url` needs to be read.
pub fn needs(url: &str) -> Needs {
    if let Some(path) = url.strip_prefix("local:").and_then(local_path) {
        return Needs {
            read: vec![Path::new(path).to_owned()],
            ..Needs::default()
        };
    }
    match url.split_once(':') {
        Some(("memory", _)) => Needs::default(),
        _ => Needs {
            read: SYSTEM.map(PathBuf::from).to_vec(),
            network: true,
            ..Needs::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_needs_itself_and_no_network() {
        let folder = |path: &str| Needs {
            read: vec![path.into()],
            ..Needs::default()
        };
        assert_eq!(needs("local:/srv/store"), folder("/srv/store"));
        assert_eq!(needs("local:///srv/store"), folder("/srv/store"));
        assert_eq!(needs("memory:"), Needs::default());
        assert!(needs("grpc+https://example.org").network);
    }
}
