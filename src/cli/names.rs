//! Root names as arguments: as they are, or below /nix/store.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::castore::{Name, Node, Printable, Root};
use crate::store::Blocking;
use crate::tree::closure;

use super::failure::{CommandFailure, failure};
use super::store::CommandStore;

/// The root name that `path` is: `NAME` or `/nix/store/NAME`.
pub(super) fn root_name(path: &Path) -> Result<Name, CommandFailure> {
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
    let shown = Printable::path(path);
    if bytes.contains(&b'/') {
        return Err(failure(format!("{shown}: a root's name has no /")));
    }
    Name::new(bytes).map_err(|error| failure(format!("{shown}: {error}")))
}

/// As [`root_name`], of a root that `verb` takes, and not what is below it.
pub(super) fn taken_root_name(path: &Path, verb: &str) -> Result<Name, CommandFailure> {
    let bytes = path.as_os_str().as_bytes();
    let name = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
    if !name.starts_with(b"/") && name.contains(&b'/') {
        let shown = Printable::path(path);
        return Err(failure(format!(
            "{shown} is a path below a root; {verb} takes names of roots"
        )));
    }
    root_name(path)
}

/// Fails if `name` is the root of another node than `node`, unless it may be replaced.
pub(super) fn must_be_free(
    store: &Blocking,
    name: &Name,
    node: &Node,
    replace: bool,
) -> Result<(), CommandFailure> {
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

/// The roots that `paths` name, and what they refer to.
pub(super) fn closure_roots(
    store: &Blocking,
    paths: &[impl AsRef<Path>],
) -> Result<Vec<Root>, CommandFailure> {
    let names = paths.iter().map(|path| root_name(path.as_ref()));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let found = closure::closure(store.store().as_ref(), &names);
    Ok(store.runtime().block_on(found)?)
}

/// Fails if another root of the store refers to one of `names`.
pub(super) fn refuse_referred(opened: &CommandStore, names: &[Name]) -> Result<(), CommandFailure> {
    let names = names.iter().cloned().collect();
    let referrers = closure::referrers(opened.store.store().as_ref(), &names);
    match opened.runtime.block_on(referrers)?.first() {
        Some((name, by)) => Err(referred(name, by)),
        None => Ok(()),
    }
}

/// The error for a root that stays since another one refers to it.
pub(super) fn referred(name: &Name, by: &Name) -> CommandFailure {
    failure(format!(
        "{by} refers to {name}: remove {by} too (`castore-fs rm --closure {by}` removes it with all that no other \
         root refers to), or {name} alone with `castore-fs rm --referred {name}`"
    ))
}
