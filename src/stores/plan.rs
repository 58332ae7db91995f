//! From a description to a store: URLs, and stores made of other stores.
//!
//! A [`StorePlan`] is the whole tree, down to URLs; equal plans are the same store. So opening the
//! stores of a changed description ([`open_all`]) keeps those whose plan is unchanged, and opens
//! the others; a store that several are made of is opened once.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::needs::{StoreNeeds, UsedFile, needs, used_files};
use super::{binary_cache_url, url};
use crate::binary_cache::{self, BinaryCaches, CacheAddress, ClosureMode};
use crate::store::local_url::open_cache_store;
use crate::store::{
    Cache, CacheOptions, Error, FilteredStore, Health, JoinedStore, LocalStore, MemberOrder,
    Mirrors, RootPattern, Store, WithoutCache, open_local,
};

/// Half of the memory that upstreams have for blobs, unless their URL has another limit.
const MEMORY_AHEAD: u64 = 16 << 20;

/// A store under the name that it has in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedStore {
    /// The name.
    pub name: String,
    /// Its description.
    pub plan: StorePlan,
}

/// The description of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlan {
    /// What [`open`](super::open) opens.
    Url(String),
    /// A cache.
    Cache {
        /// Its local store.
        local_store: Box<NamedStore>,
        /// Its upstream.
        upstream: Box<NamedStore>,
        /// Its limits.
        options: CacheOptions,
    },
    /// Nix binary caches, unpacked into a local store.
    BinaryCache {
        /// Their addresses.
        caches: Vec<CacheAddress>,
        /// The local store that they are unpacked into.
        into: Box<NamedStore>,
        /// What is prefetched of references.
        closure: ClosureMode,
        /// The limits. The age of roots does not matter.
        options: CacheOptions,
    },
    /// Several with the same content.
    Mirrors {
        /// The members, best first.
        members: Vec<NamedStore>,
        /// The order in which they are asked.
        order: MemberOrder,
    },
    /// Some of a store's roots.
    Filter {
        /// The store.
        of: Box<NamedStore>,
        /// The names.
        roots: Vec<RootPattern>,
    },
    /// Several as one.
    Join {
        /// The members; of roots of the same name the first's is shown.
        members: Vec<NamedStore>,
    },
}

impl StorePlan {
    /// Its kind, as in a configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            StorePlan::Url(_) => "url",
            StorePlan::Cache { .. } => "cache",
            StorePlan::BinaryCache { .. } => "binary-cache",
            StorePlan::Mirrors { .. } => "mirrors",
            StorePlan::Filter { .. } => "filter",
            StorePlan::Join { .. } => "join",
        }
    }

    /// Its direct members.
    pub fn members(&self) -> Vec<&NamedStore> {
        match self {
            StorePlan::Url(_) => Vec::new(),
            StorePlan::Mirrors { members, .. } | StorePlan::Join { members } => {
                members.iter().collect()
            }
            StorePlan::Filter { of, .. } => vec![of],
            StorePlan::Cache {
                local_store,
                upstream,
                ..
            } => vec![local_store, upstream],
            StorePlan::BinaryCache { into, .. } => vec![into],
        }
    }

    /// The names of the local stores of caches in it.
    fn local_stores(&self) -> HashSet<String> {
        let members = self.members().into_iter();
        let mut local_stores: HashSet<_> = members
            .flat_map(|member| member.plan.local_stores())
            .collect();
        if let StorePlan::Cache { local_store, .. }
        | StorePlan::BinaryCache {
            into: local_store, ..
        } = self
        {
            local_stores.insert(local_store.name.clone());
        }
        local_stores
    }

    /// The needs of reading it.
    pub fn needs(&self) -> StoreNeeds {
        if let StorePlan::Url(url) = self {
            return needs(url);
        }
        let mut all = StoreNeeds::default();
        for member in self.members() {
            let needs = member.plan.needs();
            all.network |= needs.network;
            all.dirs.extend(needs.dirs);
            all.read.extend(needs.read);
            all.write.extend(needs.write);
        }
        match self {
            StorePlan::Cache { local_store, .. } => all.write.extend(local_store.plan.needs().dirs),
            StorePlan::BinaryCache { caches, into, .. } => {
                all.write.extend(into.plan.needs().dirs);
                let files = caches.iter().flat_map(CacheAddress::files);
                all.read.extend(files.map(Path::to_owned));
                all.read.extend(StoreNeeds::of_network().read);
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
        if let StorePlan::BinaryCache { caches, .. } = self {
            for cache in caches {
                files.extend(cache.files().into_iter().map(|path| UsedFile {
                    what: format!("a file of the binary cache {}", cache.shown),
                    path: path.to_owned(),
                    whole: false,
                }));
            }
        }
        let members = self.members().into_iter();
        let below = members.filter(|member| !matches!(member.plan, StorePlan::Url(_)));
        files.extend(below.flat_map(|member| member.plan.used_files()));
        files
    }

    /// Identifies what it shows, without access and limits: two with the same text show the same.
    pub fn identity(&self) -> String {
        let list = |members: &[NamedStore]| {
            let plans = members.iter().map(|named| named.plan.identity());
            plans.collect::<Vec<_>>().join(", ")
        };
        match self {
            // The query of other URLs may have a part of the address.
            StorePlan::Url(url) if url.starts_with("grpc+") => url
                .split_once('?')
                .map_or(url.as_str(), |(url, _)| url)
                .to_owned(),
            StorePlan::Url(url) => url.clone(),
            StorePlan::Cache { upstream, .. } => format!("cache({})", upstream.plan.identity()),
            StorePlan::BinaryCache { caches, .. } => {
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
            StorePlan::Mirrors { members, .. } => format!("mirrors({})", list(members)),
            StorePlan::Filter { of, roots } => format!("filter({}, {roots:?})", of.plan.identity()),
            StorePlan::Join { members } => format!("join({})", list(members)),
        }
    }

    /// Fails if a local store in it does not exist yet, which opening would make. The local store
    /// of a cache may be made.
    pub fn must_exist(&self) -> Result<(), Error> {
        match self {
            StorePlan::Url(url) => url::must_exist(url),
            StorePlan::Cache { upstream, .. } => upstream.plan.must_exist(),
            StorePlan::BinaryCache { .. } => Ok(()),
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
            StorePlan::Url(url) => binary_cache_url::directory(url).ok(),
            StorePlan::BinaryCache { into, .. } => into.plan.needs().dirs.into_iter().next(),
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
            StorePlan::Cache { options, .. } | StorePlan::BinaryCache { options, .. } => {
                options.size.map_or(u64::MAX, |size| size / 2)
            }
            StorePlan::Url(_) => MEMORY_AHEAD,
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
            StorePlan::Url(url) => vec![url],
            _ => {
                let members = self.members().into_iter();
                members.flat_map(|member| member.plan.urls()).collect()
            }
        }
    }
}

/// A store that is open.
#[derive(Clone, Debug)]
pub struct OpenedStore {
    /// Its description.
    pub plan: StorePlan,
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
    pub without_cache: bool,
}

impl OpenedStore {
    /// Its health, without that of stores that are open under names of their own.
    pub fn health(&self) -> Health {
        match &self.binary_caches {
            // They are no store of their own.
            Some(binary_caches) => binary_caches.health(),
            None => self.store.health(),
        }
    }
}

/// Stores that are open, by name.
pub type OpenStores = BTreeMap<String, OpenedStore>;

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
pub fn open_all(wanted: &[NamedStore], before: &OpenStores) -> Result<OpenStores, OpenError> {
    let (now, failed) = open_each(wanted, before);
    match failed.into_iter().next() {
        None => Ok(now),
        Some((_, error)) => Err(error),
    }
}

/// As [`open_all`], but stores that cannot be opened do not affect the others: those of `wanted`
/// that are not open are returned by name, with the error.
pub fn open_each(
    wanted: &[NamedStore],
    before: &OpenStores,
) -> (OpenStores, BTreeMap<String, OpenError>) {
    let local_stores = wanted
        .iter()
        .flat_map(|named| named.plan.local_stores())
        .collect();
    let mut now = OpenStores::new();
    let mut failed = BTreeMap::new();
    for named in wanted {
        if let Err(error) = open_named(named, &local_stores, before, &mut now) {
            failed.insert(named.name.clone(), error);
        }
    }
    (now, failed)
}

fn open_named(
    named: &NamedStore,
    local_stores: &HashSet<String>,
    before: &OpenStores,
    now: &mut OpenStores,
) -> Result<OpenedStore, OpenError> {
    let NamedStore { name, plan } = named;
    if let Some(opened) = now.get(name) {
        return Ok(opened.clone());
    }
    // Its members as well, even if it has them already: they are stores of their own.
    for member in plan.members() {
        // A cache works without its local store, if need be.
        if !matches!(plan, StorePlan::Cache { local_store, .. } if local_store.name == member.name)
        {
            open_named(member, local_stores, before, now)?;
        }
    }
    let opened = match before.get(name) {
        Some(opened) if opened.plan == *plan && !opened.without_cache => opened.clone(),
        _ => {
            let is_local_side = local_stores.contains(name);
            let open = |member: &NamedStore| open_named(member, local_stores, before, now);
            let made = make(name, plan, is_local_side, open)?;
            tracing::info!(STORE = name, url = made.store.url(), "opened a store");
            made
        }
    };
    now.insert(name.clone(), opened.clone());
    Ok(opened)
}

fn make(
    name: &str,
    plan: &StorePlan,
    is_local_side: bool,
    mut open: impl FnMut(&NamedStore) -> Result<OpenedStore, OpenError>,
) -> Result<OpenedStore, OpenError> {
    let failed = |source| OpenError {
        name: name.to_owned(),
        source: Box::new(source),
    };
    let mut stores = |members: &[NamedStore]| {
        let stores = members.iter();
        let stores = stores.map(|member| Ok((member.name.clone(), open(member)?.store)));
        stores.collect::<Result<Vec<_>, OpenError>>()
    };
    // In the command line's form.
    let called = format!("store:{name}");
    let (mut local, mut cache, mut binary_caches) = (None, None, None);
    let store: Arc<dyn Store> = match plan {
        StorePlan::Url(url) if binary_cache::is_url(url) => {
            let (made, caches) = binary_cache_url::open(url).map_err(failed)?;
            (cache, binary_caches) = (Some(made.clone()), Some(caches));
            Arc::new(made)
        }
        StorePlan::Url(url) => {
            local = match is_local_side {
                true => open_cache_store(url).map_err(failed)?,
                false => open_local(url).map_err(failed)?,
            };
            match &local {
                Some(local) => Arc::new(local.clone()),
                None => url::open(url).map_err(failed)?,
            }
        }
        StorePlan::Cache {
            local_store,
            upstream,
            options,
        } => {
            let upstream_store = open(upstream)?.store;
            let local_store = match open(local_store) {
                Ok(local_store) => local_store,
                Err(error) if matches!(*error.source, Error::Url { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(
                        STORE = name,
                        "nothing is kept by this cache, and roots imported into its near store are \
                         not shown, until that can be opened and the configuration is read again: \
                         {error}"
                    );
                    let store = WithoutCache::new(called, upstream_store, *error.source);
                    return Ok(OpenedStore {
                        plan: plan.clone(),
                        store: Arc::new(store),
                        local: None,
                        cache: None,
                        binary_caches: None,
                        without_cache: true,
                    });
                }
            };
            let not_local = || Error::Url {
                url: local_store.plan.identity(),
                why: "a cache needs a local store: its near store has to be local:PATH".to_owned(),
            };
            let local_store = local_store
                .local
                .clone()
                .ok_or_else(|| failed(not_local()))?;
            let made = Cache::new(local_store, upstream_store, options.clone()).map_err(failed)?;
            cache = Some(made.clone());
            Arc::new(made)
        }
        StorePlan::BinaryCache {
            caches,
            into,
            closure,
            options,
        } => {
            let local_store = open(into)?;
            let not_local = || Error::Url {
                url: local_store.plan.identity(),
                why: "binary caches are unpacked into a directory: the store has to be local:PATH"
                    .to_owned(),
            };
            let local_store = local_store
                .local
                .clone()
                .ok_or_else(|| failed(not_local()))?;
            let directory = local_store.dir().to_owned();
            let options = options.clone();
            let made =
                binary_cache_url::cache(caches.clone(), local_store, &directory, *closure, options);
            let (made, caches) = made.map_err(failed)?;
            (cache, binary_caches) = (Some(made.clone()), Some(caches));
            Arc::new(made)
        }
        StorePlan::Mirrors { members, order } => {
            Arc::new(Mirrors::new(called, stores(members)?, *order))
        }
        StorePlan::Filter { of, roots } => {
            Arc::new(FilteredStore::new(called, open(of)?.store, roots.clone()))
        }
        StorePlan::Join { members } => Arc::new(JoinedStore::new(called, stores(members)?)),
    };
    Ok(OpenedStore {
        plan: plan.clone(),
        store,
        local,
        cache,
        binary_caches,
        without_cache: false,
    })
}
