//! Closures: roots that are Nix store paths, with everything that they refer to; and the other direction,
//! which roots refer to some.
//!
//! What a root refers to is in its PathInfo. A root that is no store path refers to nothing. One level of
//! references is a round trip, however many paths are in it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use thiserror::Error;

use crate::castore::{Name, Root};
use crate::nix::{NarinfoFile, PathInfo, StorePath};
use crate::store::{self, Store};

/// Requests for path infos at once.
const AT_ONCE: usize = 64;
/// The roots of a closure, at most.
const MAX_ROOTS: usize = 1_000_000;

/// Why there is no closure.
#[derive(Debug, Error)]
pub enum ClosureError {
    /// There is no root of that name.
    #[error("{store} has no root named {name}; `castore-fs ls` lists the names it has")]
    NoRoot {
        /// The store's URL.
        store: String,
        /// The name.
        name: Name,
    },
    /// A path of the closure is not in the store.
    #[error(
        "{by} refers to {name}, which {store} does not have: add it with `castore-fs import --closure`, \
         `castore-fs copy --closure` or `nix copy`"
    )]
    Incomplete {
        /// The store's URL.
        store: String,
        /// The absent path.
        name: Name,
        /// The path that refers to it.
        by: Name,
    },
    /// The references of a path are not known.
    #[error(
        "{store} does not know what {name} refers to: import it with `castore-fs import --closure \
         /nix/store/{name}`, or copy it with `nix copy`"
    )]
    Unknown {
        /// The store's URL.
        store: String,
        /// The path.
        name: Name,
    },
    /// A closure of too many roots.
    #[error("the closure has more than {MAX_ROOTS} roots: name fewer")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// `names` and everything that they refer to, in `store`, each root once, in the order of the names.
pub async fn closure(store: &dyn Store, names: &[Name]) -> Result<Vec<Root>, ClosureError> {
    walk(store, names, ClosureGaps::Refused).await
}

/// How a closure treats paths that are absent, or whose references are not known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClosureGaps {
    /// There is no such closure.
    Refused,
    /// They refer to nothing: what is to be removed need not be complete.
    Ends,
}

async fn walk(
    store: &dyn Store,
    names: &[Name],
    gaps: ClosureGaps,
) -> Result<Vec<Root>, ClosureError> {
    // By name the root that refers to it, and none for those that were named.
    let mut level: BTreeMap<Name, Option<Name>> =
        names.iter().map(|name| (name.clone(), None)).collect();
    let mut found: BTreeMap<Name, Option<Root>> = BTreeMap::new();
    while !level.is_empty() {
        if found.len() + level.len() > MAX_ROOTS {
            return Err(ClosureError::TooMany);
        }
        let answers: Vec<(Name, Option<Root>, BTreeSet<Name>)> =
            stream::iter(std::mem::take(&mut level))
                .map(|(name, by)| find(store, name, by, gaps))
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
        let mut next = Vec::new();
        for (name, root, references) in answers {
            next.extend(references.into_iter().map(|to| (to, name.clone())));
            found.insert(name, root);
        }
        for (name, by) in next {
            if !found.contains_key(&name) {
                level.entry(name).or_insert(Some(by));
            }
        }
    }
    Ok(found.into_values().flatten().collect())
}

/// A root of a closure, to which `by` refers, and what it refers to.
async fn find(
    store: &dyn Store,
    name: Name,
    by: Option<Name>,
    gaps: ClosureGaps,
) -> Result<(Name, Option<Root>, BTreeSet<Name>), ClosureError> {
    let url = || store.url().to_owned();
    let is_path = StorePath::from_base_name(name.as_bytes()).is_ok();
    let info = async {
        match is_path {
            true => store.path_info(&name).await,
            false => Ok(None),
        }
    };
    let (root, info) = futures_util::try_join!(store.root(&name), info)?;
    let Some(root) = root else {
        return match by {
            Some(_) if gaps == ClosureGaps::Ends => Ok((name, None, BTreeSet::new())),
            Some(by) => Err(ClosureError::Incomplete {
                store: url(),
                name,
                by,
            }),
            None => Err(ClosureError::NoRoot { store: url(), name }),
        };
    };
    match info.and_then(|info| references(info, &name)) {
        Some(references) => Ok((name, Some(root), references)),
        None if !is_path || gaps == ClosureGaps::Ends => Ok((name, Some(root), BTreeSet::new())),
        None => Err(ClosureError::Unknown { store: url(), name }),
    }
}

/// Of the roots that are not among `names`, those that refer to one of them: pairs of that one and the root
/// that refers to it. The references of paths without a PathInfo are not known, and count as none.
pub async fn referrers(
    store: &dyn Store,
    names: &BTreeSet<Name>,
) -> Result<Vec<(Name, Name)>, store::Error> {
    if !names
        .iter()
        .any(|name| StorePath::from_base_name(name.as_bytes()).is_ok())
    {
        return Ok(Vec::new());
    }
    let others = store.roots().await?.into_iter().map(|root| root.name);
    let others = others
        .filter(|name| !names.contains(name) && StorePath::from_base_name(name.as_bytes()).is_ok());
    let found = stream::iter(others)
        .map(|name| async move {
            let info = store.path_info(&name).await?;
            let references = info.and_then(|info| references(info, &name));
            let references = references.unwrap_or_default();
            Ok::<_, store::Error>((name, references))
        })
        .buffer_unordered(AT_ONCE);
    let mut pairs = Vec::new();
    futures_util::pin_mut!(found);
    while let Some((by, references)) = found.try_next().await? {
        let referred = references.intersection(names);
        pairs.extend(referred.map(|name| (name.clone(), by.clone())));
    }
    pairs.sort();
    Ok(pairs)
}

/// What of a closure can be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemovableClosure {
    /// The roots to which none refers that stays.
    pub names: BTreeSet<Name>,
    /// The others to which a root outside the closure refers, each with one of these.
    pub referred: BTreeMap<Name, Name>,
}

/// Looks in the closure of `names` for the roots that can be removed.
pub async fn removable(
    store: &dyn Store,
    names: &[Name],
) -> Result<RemovableClosure, ClosureError> {
    let roots = walk(store, names, ClosureGaps::Ends).await?.into_iter();
    let mut removable: BTreeSet<Name> = roots.map(|root| root.name).collect();
    let referred: BTreeMap<Name, Name> = referrers(store, &removable).await?.into_iter().collect();
    // What stays keeps what it refers to.
    let staying: Vec<Name> = referred.keys().cloned().collect();
    for root in walk(store, &staying, ClosureGaps::Ends).await? {
        removable.remove(&root.name);
    }
    Ok(RemovableClosure {
        names: removable,
        referred,
    })
}

/// The names that `path` refers to, without itself, if `info` has them.
fn references(info: PathInfo, path: &Name) -> Option<BTreeSet<Name>> {
    let known = NarinfoFile::of_path_info(&info, String::new())?;
    let names = known.references.iter().map(ToString::to_string);
    let names = names.filter(|name| name.as_bytes() != path.as_bytes());
    let names = names.map(|name| Name::new(name.as_bytes()).ok()).collect();
    known.knows_references().then_some(names)?
}
