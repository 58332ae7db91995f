//! From a description to a store: URLs, and stores made of other stores.
//!
//! A [`Plan`] is the whole tree, down to URLs; equal plans are the same store. So opening the
//! stores of a changed description ([`open_all`]) keeps those whose plan is unchanged, and opens
//! the others; a store that several are made of is opened once.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::needs::{Needs, UsedFile, needs, used_files};
use super::{binary_cache_url, url};
use crate::binary_cache::{self, BinaryCaches, CacheAddress, ClosureMode};
use crate::store::local_url::open_near;
use crate::store::{
    Cache, CacheOptions, Error, Filter, Join, LocalStore, Measured, Mirrors, Order, Pattern, Store,
    WithoutNear, open_local,
};

/// Half of what upstreams cache in memory, unless their URL has another limit.
const MEMORY_AHEAD: u64 = 64 << 20;

/// A store under the name that it has in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Its description.
    pub plan: Plan,
}

/// The description of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// What [`open`](super::open) opens.
    Url(String),
    /// A cache.
    Cache {
        /// Its local store.
        near: Box<Named>,
        /// Its upstream.
        far: Box<Named>,
        /// Its limits.
        options: CacheOptions,
    },
    /// Nix binary caches, unpacked into a local store.
    BinaryCache {
        /// Their addresses.
        caches: Vec<CacheAddress>,
        /// The local store that they are unpacked into.
        into: Box<Named>,
        /// What is prefetched of references.
        closure: ClosureMode,
        /// The limits. The age of roots does not matter.
        options: CacheOptions,
    },
    /// Several with the same content.
    Mirrors {
        /// The members, best first.
        members: Vec<Named>,
        /// The order in which they are asked.
        order: Order,
    },
    /// Some of a store's roots.
    Filter {
        /// The store.
        of: Box<Named>,
        /// The names.
        roots: Vec<Pattern>,
    },
    /// Several as one.
    Join {
        /// The members; of roots of the same name the first's is shown.
        members: Vec<Named>,
    },
}

impl Plan {
    /// Its kind, as in a configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Plan::Url(_) => "url",
            Plan::Cache { .. } => "cache",
            Plan::BinaryCache { .. } => "binary-cache",
            Plan::Mirrors { .. } => "mirrors",
            Plan::Filter { .. } => "filter",
            Plan::Join { .. } => "join",
        }
    }

    /// Its direct members.
    pub fn members(&self) -> Vec<&Named> {
        match self {
            Plan::Url(_) => Vec::new(),
            Plan::Mirrors { members, .. } | Plan::Join { members } => members.iter().collect(),
            Plan::Filter { of, .. } => vec![of],
            Plan::Cache { near, far, .. } => vec![near, far],
            Plan::BinaryCache { into, .. } => vec![into],
        }
    }

    /// The names of the local stores of caches in it.
    fn nears(&self) -> HashSet<String> {
        let members = self.members().into_iter();
        let mut nears: HashSet<_> = members.flat_map(|member| member.plan.nears()).collect();
        if let Plan::Cache { near, .. } | Plan::BinaryCache { into: near, .. } = self {
            nears.insert(near.name.clone());
        }
        nears
    }

    /// The needs of reading it.
    pub fn needs(&self) -> Needs {
        if let Plan::Url(url) = self {
            return needs(url);
        }
        let mut all = Needs::default();
        for member in self.members() {
            let needs = member.plan.needs();
            all.network |= needs.network;
            all.folders.extend(needs.folders);
            all.read.extend(needs.read);
            all.write.extend(needs.write);
        }
        match self {
            Plan::Cache { near, .. } => all.write.extend(near.plan.needs().folders),
            Plan::BinaryCache { caches, into, .. } => {
                all.write.extend(into.plan.needs().folders);
                let files = caches.iter().flat_map(CacheAddress::files);
                all.read.extend(files.map(Path::to_owned));
                all.read.extend(Needs::of_network().read);
                all.network = true;
            }
            _ => {}
        }
        all.read.sort();
        all.read.dedup();
        all
    }

    /// The files and directories that are opened while it is used. A mount of it must not hide
    /// them.
    pub fn used_files(&self) -> Vec<UsedFile> {
        let urls = self.urls().into_iter();
        let mut files: Vec<UsedFile> = urls.flat_map(used_files).collect();
        if let Plan::BinaryCache { caches, .. } = self {
            for cache in caches {
                files.extend(cache.files().into_iter().map(|path| UsedFile {
                    what: format!("a file of the binary cache {}", cache.shown),
                    path: path.to_owned(),
                    whole: false,
                }));
            }
        }
        let members = self.members().into_iter();
        let below = members.filter(|member| !matches!(member.plan, Plan::Url(_)));
        files.extend(below.flat_map(|member| member.plan.used_files()));
        files
    }

    /// Identifies what it shows, without access and limits: two with the same text show the same.
    pub fn identity(&self) -> String {
        let list = |members: &[Named]| {
            let plans = members.iter().map(|named| named.plan.identity());
            plans.collect::<Vec<_>>().join(", ")
        };
        match self {
            // The query of other URLs may have a part of the address.
            Plan::Url(url) if url.starts_with("grpc+") => url
                .split_once('?')
                .map_or(url.as_str(), |(url, _)| url)
                .to_owned(),
            Plan::Url(url) => url.clone(),
            Plan::Cache { far, .. } => format!("cache({})", far.plan.identity()),
            Plan::BinaryCache { caches, .. } => {
                // A trusted key decides what is shown.
                let shown = caches.iter().map(|cache| {
                    let keys = cache.trusted_public_keys.iter().map(ToString::to_string);
                    let keys = keys.collect::<Vec<_>>().join(" ");
                    let signed = if cache.require_signatures {
                        ""
                    } else {
                        " unsigned"
                    };
                    format!("{}{signed} {keys}", cache.shown)
                });
                let shown: Vec<String> = shown.collect();
                format!("binary-cache({})", shown.join(", "))
            }
            Plan::Mirrors { members, .. } => format!("mirrors({})", list(members)),
            Plan::Filter { of, roots } => format!("filter({}, {roots:?})", of.plan.identity()),
            Plan::Join { members } => format!("join({})", list(members)),
        }
    }

    /// Fails if a local store in it does not exist yet, which opening would make. The local store
    /// of a cache may be made.
    pub fn must_exist(&self) -> Result<(), Error> {
        match self {
            Plan::Url(url) => url::must_exist(url),
            Plan::Cache { far, .. } => far.plan.must_exist(),
            Plan::BinaryCache { .. } => Ok(()),
            _ => {
                let mut members = self.members().into_iter();
                members.try_for_each(|member| member.plan.must_exist())
            }
        }
    }

    /// Drops the names that its binary caches do not have, so that they are requested again: by
    /// processes that have them open too, within a second.
    pub fn forget_absent_names(&self) -> std::io::Result<()> {
        let directory = match self {
            Plan::Url(url) => binary_cache_url::directory(url).ok(),
            Plan::BinaryCache { into, .. } => into.plan.needs().folders.into_iter().next(),
            _ => None,
        };
        if let Some(directory) = directory {
            match std::fs::remove_file(directory.join(binary_cache_url::ABSENT)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut members = self.members().into_iter();
        members.try_for_each(|member| member.plan.forget_absent_names())
    }

    /// Bytes that can be prefetched and are still there when they are read: half of a cache, and of
    /// an upstream's memory cache without one.
    pub fn room_ahead(&self) -> u64 {
        match self {
            Plan::Cache { options, .. } | Plan::BinaryCache { options, .. } => {
                options.size.map_or(u64::MAX, |size| size / 2)
            }
            Plan::Url(_) => MEMORY_AHEAD,
            _ => {
                let members = self.members().into_iter();
                let rooms = members.map(|member| member.plan.room_ahead());
                rooms.min().unwrap_or(MEMORY_AHEAD)
            }
        }
    }

    /// The URLs that it comes down to.
    pub fn urls(&self) -> Vec<&str> {
        match self {
            Plan::Url(url) => vec![url],
            _ => {
                let members = self.members().into_iter();
                members.flat_map(|member| member.plan.urls()).collect()
            }
        }
    }
}

/// A store that is open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its description.
    pub plan: Plan,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same, if it is a local one.
    pub local: Option<LocalStore>,
    /// The same, if it is a cache.
    pub cache: Option<Cache>,
    /// The upstream of that cache, if it is binary caches.
    pub binary_caches: Option<BinaryCaches>,
    /// It is a cache whose local store could not be opened, so that nothing is kept. The next
    /// [`open_all`] tries again.
    pub without_near: bool,
}

/// Stores that are open, by name.
pub type OpenStores = BTreeMap<String, Opened>;

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the store {name:?}: {source}")]
pub struct OpenError {
    /// Its name.
    pub name: String,
    /// Why.
    pub source: Box<Error>,
}

/// Opens the stores of `wanted` and their members. Those that are open in `before` with the same
/// plan are taken from there.
pub fn open_all(wanted: &[Named], before: &OpenStores) -> Result<OpenStores, OpenError> {
    let (now, failed) = open_each(wanted, before);
    match failed.into_iter().next() {
        None => Ok(now),
        Some((_, error)) => Err(error),
    }
}

/// As [`open_all`], but stores that cannot be opened do not affect the others: those of `wanted`
/// that are not open are returned by name, with the error.
pub fn open_each(
    wanted: &[Named],
    before: &OpenStores,
) -> (OpenStores, BTreeMap<String, OpenError>) {
    let nears = wanted.iter().flat_map(|named| named.plan.nears()).collect();
    let mut now = OpenStores::new();
    let mut failed = BTreeMap::new();
    for named in wanted {
        if let Err(error) = open_named(named, &nears, before, &mut now) {
            failed.insert(named.name.clone(), error);
        }
    }
    (now, failed)
}

fn open_named(
    named: &Named,
    nears: &HashSet<String>,
    before: &OpenStores,
    now: &mut OpenStores,
) -> Result<Opened, OpenError> {
    let Named { name, plan } = named;
    if let Some(opened) = now.get(name) {
        return Ok(opened.clone());
    }
    // Its members as well, even if it has them already: they are stores of their own.
    for member in plan.members() {
        // A cache works without its local store, if need be.
        if !matches!(plan, Plan::Cache { near, .. } if near.name == member.name) {
            open_named(member, nears, before, now)?;
        }
    }
    let opened = match before.get(name) {
        Some(opened) if opened.plan == *plan && !opened.without_near => opened.clone(),
        _ => {
            let is_near = nears.contains(name);
            let open = |member: &Named| open_named(member, nears, before, now);
            let made = make(name, plan, is_near, open)?;
            tracing::info!(STORE = name, url = made.store.url(), "opened a store");
            made
        }
    };
    now.insert(name.clone(), opened.clone());
    Ok(opened)
}

fn make(
    name: &str,
    plan: &Plan,
    is_near: bool,
    mut open: impl FnMut(&Named) -> Result<Opened, OpenError>,
) -> Result<Opened, OpenError> {
    let failed = |source| OpenError {
        name: name.to_owned(),
        source: Box::new(source),
    };
    let mut stores = |members: &[Named]| {
        let stores = members.iter();
        let stores = stores.map(|member| Ok((member.name.clone(), open(member)?.store)));
        stores.collect::<Result<Vec<_>, OpenError>>()
    };
    // In the command line's form.
    let called = format!("store:{name}");
    let (mut local, mut cache, mut binary_caches) = (None, None, None);
    let store: Arc<dyn Store> = match plan {
        Plan::Url(url) if binary_cache::is_url(url) => {
            let (made, caches) = binary_cache_url::open(url).map_err(failed)?;
            (cache, binary_caches) = (Some(made.clone()), Some(caches));
            Arc::new(Measured::new(Arc::new(made)))
        }
        Plan::Url(url) => {
            local = match is_near {
                true => open_near(url).map_err(failed)?,
                false => open_local(url).map_err(failed)?,
            };
            match &local {
                Some(local) => Arc::new(local.clone()),
                None => {
                    let store = url::open(url).map_err(failed)?;
                    match needs(url).network {
                        true => Arc::new(Measured::new(store)),
                        false => store,
                    }
                }
            }
        }
        Plan::Cache { near, far, options } => {
            let far_store = open(far)?.store;
            let near = match open(near) {
                Ok(near) => near,
                Err(error) if matches!(*error.source, Error::Url { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(
                        STORE = name,
                        "nothing is kept by this cache, and roots imported into its near store are \
                         not shown, until that can be opened and the configuration is read again: \
                         {error}"
                    );
                    let store = WithoutNear::new(called, far_store, *error.source);
                    return Ok(Opened {
                        plan: plan.clone(),
                        store: Arc::new(store),
                        local: None,
                        cache: None,
                        binary_caches: None,
                        without_near: true,
                    });
                }
            };
            let not_local = || Error::Url {
                url: near.plan.identity(),
                why: "a cache needs a local store: its near store has to be local:PATH".to_owned(),
            };
            let near = near.local.clone().ok_or_else(|| failed(not_local()))?;
            let made = Cache::new(near, far_store, options.clone()).map_err(failed)?;
            cache = Some(made.clone());
            Arc::new(made)
        }
        Plan::BinaryCache {
            caches,
            into,
            closure,
            options,
        } => {
            let near = open(into)?;
            let not_local = || Error::Url {
                url: near.plan.identity(),
                why: "binary caches are unpacked into a directory: the store has to be local:PATH"
                    .to_owned(),
            };
            let near = near.local.clone().ok_or_else(|| failed(not_local()))?;
            let directory = near.folder().to_owned();
            let options = options.clone();
            let made = binary_cache_url::cache(caches.clone(), near, &directory, *closure, options);
            let (made, caches) = made.map_err(failed)?;
            (cache, binary_caches) = (Some(made.clone()), Some(caches));
            Arc::new(made)
        }
        Plan::Mirrors { members, order } => {
            Arc::new(Mirrors::new(called, stores(members)?, *order))
        }
        Plan::Filter { of, roots } => Arc::new(Filter::new(called, open(of)?.store, roots.clone())),
        Plan::Join { members } => Arc::new(Join::new(called, stores(members)?)),
    };
    Ok(Opened {
        plan: plan.clone(),
        store,
        local,
        cache,
        binary_caches,
        without_near: false,
    })
}
