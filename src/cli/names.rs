//! Root names as arguments: as they are, or below /nix/store.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use castore_fs::castore::{Name, Node};
use castore_fs::store::Blocking;

use super::failure::{Failure, failure};

/// The root name that `path` is: `NAME` or `/nix/store/NAME`.
pub(super) fn root_name(path: &Path) -> Result<Name, Failure> {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
    Name::new(bytes).map_err(|error| failure(format!("{}: {error}", path.display())))
}

/// Fails if `name` is the root of another node than `node`, unless it may be replaced.
pub(super) fn must_be_free(
    store: &Blocking,
    name: &Name,
    node: &Node,
    replace: bool,
) -> Result<(), Failure> {
    match store.root(name)? {
        Some(root) if root.node != *node && !replace => {
            let digest = root.node.borrow().digest();
            let there = digest.map_or_else(|| "a symbolic link".to_owned(), |it| it.to_string());
            Err(failure(format!(
                "{} has a root {name} already, {there}; --replace replaces it",
                store.url()
            )))
        }
        _ => Ok(()),
    }
}
