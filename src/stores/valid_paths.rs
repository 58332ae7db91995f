//! Which store paths of a store are valid for Nix, and stay so.
//!
//! Nix keeps for good what it learns of a path below its own store. So a path is entered in a local store
//! ([`LocalStore::add_valid_paths`]) before it is reported as valid, in one commit with everything that it refers
//! to, and is answered from there for ever: over restarts, and with every server out of reach. Of a binary
//! cache this takes the narinfos and no contents.
//!
//! **A path that is not valid may become so; one that is valid stays.** While the upstream cannot be
//! reached, a path that was never reported is not valid, as for Nix itself without its substituters.
//!
//! Looking takes time, in which a root can be removed or replaced. The commit compares the roots, and enters
//! nothing if one of them has changed; then all is looked at again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use thiserror::Error;

use super::{OpenedStore, StorePlan};
use crate::binary_cache::{self, BinaryCaches};
use crate::castore::Root;
use crate::nix::{StorePath, StorePathHash};
use crate::store::{Cache, Error, LocalStore, NamesVersion, Store, ValidPath};

/// The part of what a question may lead to that roots of the local store are looked at together.
const TOGETHER: usize = 20;
/// How long nothing is requested after the upstream failed.
const PAUSE: Duration = Duration::from_secs(10);
/// How often a question is looked at while roots that it leads to change.
const TRIES: usize = 8;

/// A store that cannot promise that a path stays valid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct CannotPromise(pub String);

/// Why the store that `plan` describes cannot promise that a path stays valid; nothing if it can.
pub fn cannot_promise(plan: &StorePlan) -> Option<CannotPromise> {
    let why = match plan {
        StorePlan::BinaryCache { .. } => return None,
        StorePlan::Url(url) if url.starts_with("local:") => return None,
        StorePlan::Url(url) if binary_cache::is_url(url) => return None,
        StorePlan::Cache { upstream, .. } => {
            let forgets = |url: &&&str| url.starts_with("memory:");
            match upstream.plan.urls().iter().find(forgets) {
                None => return None,
                Some(url) => {
                    format!("its upstream {url} forgets everything when this process ends")
                }
            }
        }
        StorePlan::Url(url) if url.starts_with("memory:") => {
            "it forgets everything when this process ends".to_owned()
        }
        _ => "nothing of it is kept on this machine: put a cache in front of it".to_owned(),
    };
    Some(CannotPromise(format!(
        "what is reported to Nix as valid has to stay valid, and this store cannot promise that: {why} (a \
         store for this is local:, a binary-cache, or a cache)"
    )))
}

/// What one question may lead to: a path is valid only with everything that it refers to.
#[derive(Clone, Copy, Debug)]
pub struct QuestionLimits {
    /// Paths that are looked at.
    pub paths: usize,
    /// References of all of them.
    pub references: usize,
    /// Paths whose metadata are requested at once.
    pub requests: usize,
    /// How long the upstream may take for the metadata of one path.
    pub patience: Duration,
    /// How long it may take for all of them. What came until then is known to the next question.
    pub total: Duration,
}

impl Default for QuestionLimits {
    fn default() -> Self {
        Self {
            paths: 200_000,
            references: 4_000_000,
            requests: 32,
            patience: Duration::from_secs(10),
            total: Duration::from_secs(300),
        }
    }
}

/// The valid paths of a store. Clones share everything.
#[derive(Clone, Debug)]
pub struct ValidPaths(Arc<ValidPathsInner>);

#[derive(Debug)]
struct ValidPathsInner {
    /// Where reported paths are entered; its own roots are paths too.
    local: LocalStore,
    upstream: Upstream,
    store: Arc<dyn Store>,
    limits: QuestionLimits,
    /// Until when nothing is requested of the upstream.
    pause: Mutex<Option<Instant>>,
    referrers: Mutex<OfAllPaths<HashMap<StorePath, Vec<StorePath>>>>,
    all: Mutex<OfAllPaths<Arc<[StorePath]>>>,
    /// The version of the roots of `local` whose paths were all entered. Locked while they are entered, so that
    /// clients that ask at the same time share that work.
    entered: tokio::sync::Mutex<Option<u64>>,
}

/// Where paths are from that `local` does not have as roots.
#[derive(Debug)]
enum Upstream {
    Nothing,
    Store(Cache),
    Caches(BinaryCaches),
}

/// What was computed from all valid paths, for every client until they change.
#[derive(Debug, Default)]
struct OfAllPaths<T> {
    version: Option<NamesVersion>,
    computed: T,
}

/// What is known of a path during a check.
enum Finding {
    /// It was reported before.
    Reported(ValidPath),
    /// It is a root of the local store.
    OfRoot(ValidPath),
    /// The upstream has it.
    OfUpstream(ValidPath),
    /// It is being asked for, or it is not valid.
    Invalid,
}

impl ValidPaths {
    /// The valid paths of `opened`.
    pub fn of(opened: &OpenedStore) -> Result<Self, CannotPromise> {
        Self::with_limits(opened, QuestionLimits::default())
    }

    /// As [`of`](Self::of), with other limits.
    pub fn with_limits(
        opened: &OpenedStore,
        limits: QuestionLimits,
    ) -> Result<Self, CannotPromise> {
        if let Some(why) = cannot_promise(&opened.plan) {
            return Err(why);
        }
        let (local, upstream) = match (&opened.local, &opened.cache, &opened.binary_caches) {
            (Some(local), ..) => (local.clone(), Upstream::Nothing),
            (None, Some(cache), Some(caches)) => (
                cache.local_store().clone(),
                Upstream::Caches(caches.clone()),
            ),
            (None, Some(cache), None) => {
                (cache.local_store().clone(), Upstream::Store(cache.clone()))
            }
            (None, None, _) => {
                let why = "its local store cannot be opened, so that nothing would be kept";
                return Err(CannotPromise(why.to_owned()));
            }
        };
        Ok(Self(Arc::new(ValidPathsInner {
            local,
            upstream,
            store: opened.store.clone(),
            limits,
            pause: Mutex::default(),
            referrers: Mutex::default(),
            all: Mutex::default(),
            entered: tokio::sync::Mutex::default(),
        })))
    }

    /// The store that has the contents.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// What is known of `path`, if it is valid. May block.
    pub async fn get(&self, path: &StorePath) -> Result<Option<ValidPath>, Error> {
        if let Some(valid) = self.0.local.valid_path(path.to_string().as_bytes())? {
            return Ok(Some(valid));
        }
        let mut valid = self.check(std::slice::from_ref(path)).await?;
        Ok(valid.remove(path))
    }

    /// What is known of those of `paths` that are valid. May block.
    pub async fn check(&self, paths: &[StorePath]) -> Result<HashMap<StorePath, ValidPath>, Error> {
        for _ in 0..TRIES {
            let total = self.0.limits.total;
            let walk = tokio::time::timeout(total, self.walk(paths)).await;
            let mut findings = walk.map_err(|_| Error::Timeout {
                store: self.0.store.url().to_owned(),
                after: total,
            })??;
            invalidate_referrers(&mut findings);
            if !self.enter(&findings)? {
                continue;
            }
            let wanted: HashSet<&StorePath> = paths.iter().collect();
            let found = findings.into_iter().filter_map(|(path, finding)| {
                let valid = match finding {
                    Finding::Reported(valid)
                    | Finding::OfRoot(valid)
                    | Finding::OfUpstream(valid) => valid,
                    Finding::Invalid => return None,
                };
                wanted.contains(&path).then_some((path, valid))
            });
            return Ok(found.collect());
        }
        Err(Error::Refused {
            store: self.0.store.url().to_owned(),
            what: "a question of Nix".to_owned(),
            why: format!(
                "roots that it leads to were changed each time they were looked at, {TRIES} times: ask again once \
                 the additions or removals have ended"
            ),
        })
    }

    /// Looks at `paths` and everything that they refer to, without what was reported before.
    async fn walk(&self, paths: &[StorePath]) -> Result<HashMap<StorePath, Finding>, Error> {
        let inner = &*self.0;
        let mut findings = HashMap::new();
        let mut remaining: Vec<StorePath> = paths.to_vec();
        let mut asking = FuturesUnordered::new();
        let mut references = 0;
        loop {
            while asking.len() < inner.limits.requests
                && let Some(path) = remaining.pop()
            {
                if findings.contains_key(&path) {
                    continue;
                }
                let most = inner.limits;
                if findings.len() >= most.paths || references > most.references {
                    return Err(Error::Refused {
                        store: inner.store.url().to_owned(),
                        what: format!("{path} for Nix"),
                        why: format!(
                            "what the question leads to is more than {} paths or {} references: ask for \
                             fewer paths at once",
                            most.paths, most.references
                        ),
                    });
                }
                let before = inner.local.valid_path(path.to_string().as_bytes())?;
                let is_new = before.is_none();
                let finding = before.map_or(Finding::Invalid, Finding::Reported);
                findings.insert(path.clone(), finding);
                if is_new {
                    asking.push(async move {
                        let found = inner.find(&path).await;
                        (path, found)
                    });
                }
            }
            let Some((path, found)) = asking.next().await else {
                return Ok(findings);
            };
            let found = found?;
            if let Some(valid) = found.new_path() {
                references += valid.info.references.len();
                remaining.extend(valid.info.references.iter().cloned());
                findings.insert(path, found);
            }
        }
    }

    /// Enters what is new, before it is reported. False if what was found is not so any more.
    fn enter(&self, findings: &HashMap<StorePath, Finding>) -> Result<bool, Error> {
        let (mut of_roots, mut others) = (Vec::new(), Vec::new());
        for finding in findings.values() {
            match finding {
                Finding::OfRoot(valid) => of_roots.push(valid.clone()),
                Finding::OfUpstream(valid) => others.push(valid.clone()),
                Finding::Reported(_) | Finding::Invalid => {}
            }
        }
        if of_roots.is_empty() && others.is_empty() {
            return Ok(true);
        }
        self.0.local.add_valid_paths(&others, &of_roots)
    }

    /// Enters the paths of all roots of the local store.
    async fn enter_own(&self) -> Result<(), Error> {
        let local = &self.0.local;
        let mut entered = self.0.entered.lock().await;
        let version = local.roots_version()?;
        if *entered == Some(version) {
            return Ok(());
        }
        let roots = local.roots().await?;
        let paths = roots
            .iter()
            .filter_map(|root| StorePath::from_base_name(root.name.as_bytes()).ok());
        // There may be any number of them. What one part has led to is known to the next.
        let together = self.0.limits.paths.div_ceil(TOGETHER).max(1);
        for part in paths.collect::<Vec<_>>().chunks(together) {
            self.check(part).await?;
        }
        *entered = Some(version);
        Ok(())
    }

    /// The valid paths that are known without asking an upstream for more. May block.
    pub async fn all(&self) -> Result<Arc<[StorePath]>, Error> {
        self.enter_own().await?;
        let local = &self.0.local;
        let mut all = self.0.all.lock();
        let version = Some(local.names_version()?);
        if all.version != version {
            let names = local.valid_path_names()?.into_iter();
            let paths = names.filter_map(|name| StorePath::from_base_name(&name).ok());
            *all = OfAllPaths {
                version,
                computed: paths.collect(),
            };
        }
        Ok(all.computed.clone())
    }

    /// The valid path with the hash `hash`, if it is known without asking an upstream. May block.
    pub async fn by_hash(&self, hash: StorePathHash) -> Result<Option<StorePath>, Error> {
        self.enter_own().await?;
        let start = format!("{hash}-");
        let valid = self.0.local.valid_paths(start.as_bytes())?;
        Ok(valid.into_iter().next().map(|valid| valid.info.path))
    }

    /// The paths among [`all`](Self::all) that refer to `path`. May block.
    pub async fn referrers(&self, path: &StorePath) -> Result<Vec<StorePath>, Error> {
        self.enter_own().await?;
        let local = &self.0.local;
        let mut referrers = self.0.referrers.lock();
        let version = Some(local.names_version()?);
        if referrers.version != version {
            let mut of: HashMap<StorePath, Vec<StorePath>> = HashMap::new();
            for valid in local.valid_paths(b"")? {
                for reference in valid.info.references {
                    of.entry(reference)
                        .or_default()
                        .push(valid.info.path.clone());
                }
            }
            *referrers = OfAllPaths {
                version,
                computed: of,
            };
        }
        Ok(referrers.computed.get(path).cloned().unwrap_or_default())
    }

    /// The root of `valid`, whose contents may have to be fetched first. Never nothing.
    pub async fn root(&self, valid: &ValidPath) -> Result<Root, Error> {
        let name = valid.info.path.to_string();
        let found = self.0.store.root(name.as_bytes()).await?;
        found.ok_or_else(|| Error::Refused {
            store: self.0.store.url().to_owned(),
            what: format!("the contents of {name}"),
            why: "the path was reported as valid, and its upstream has it no more".to_owned(),
        })
    }
}

impl Finding {
    /// What is known of a path that was not reported before.
    fn new_path(&self) -> Option<&ValidPath> {
        match self {
            Self::OfRoot(valid) | Self::OfUpstream(valid) => Some(valid),
            Self::Reported(_) | Self::Invalid => None,
        }
    }
}

impl ValidPathsInner {
    /// What is known of `path` that was not reported yet.
    async fn find(&self, path: &StorePath) -> Result<Finding, Error> {
        let name = path.to_string();
        if let Some(record) = self.local.root_record(name.as_bytes())?
            && !record.incomplete
        {
            let info = record.path_info;
            let valid = info.and_then(|info| ValidPath::of_root(info, record.root));
            return Ok(valid.map_or(Finding::Invalid, Finding::OfRoot));
        }
        if matches!(self.upstream, Upstream::Nothing) || self.is_paused() {
            return Ok(Finding::Invalid);
        }
        let patience = self.limits.patience;
        let asked = tokio::time::timeout(patience, self.ask(name.as_bytes())).await;
        let why = match asked {
            Ok(Ok(found)) => return Ok(found.map_or(Finding::Invalid, Finding::OfUpstream)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {patience:?}"),
        };
        *self.pause.lock() = Some(Instant::now() + PAUSE);
        tracing::warn!(
            "whether {path} is valid is not known: {why}; for {PAUSE:?} paths that were never reported to \
             Nix are not valid"
        );
        Ok(Finding::Invalid)
    }

    fn is_paused(&self) -> bool {
        let until = *self.pause.lock();
        until.is_some_and(|until| Instant::now() < until)
    }

    async fn ask(&self, name: &[u8]) -> Result<Option<ValidPath>, Error> {
        match &self.upstream {
            Upstream::Nothing => Ok(None),
            Upstream::Caches(caches) => {
                // What was fetched before is what a mount shows: a cache may have another build by now.
                if let Some(valid) = self.local.cached_path(name)? {
                    return Ok(Some(valid));
                }
                let info = caches.narinfo(name).await?;
                Ok(info.map(|info| ValidPath::new(info, None)))
            }
            Upstream::Store(cache) => {
                let Some(root) = cache.root(name).await? else {
                    return Ok(None);
                };
                let info = cache.path_info(name).await?;
                Ok(info.and_then(|info| ValidPath::of_root(info, root)))
            }
        }
    }
}

/// A path that refers to one that is not valid is not valid.
fn invalidate_referrers(findings: &mut HashMap<StorePath, Finding>) {
    let mut referrers: HashMap<StorePath, Vec<StorePath>> = HashMap::new();
    let mut invalid = Vec::new();
    for (path, finding) in &*findings {
        match finding {
            Finding::OfRoot(valid) | Finding::OfUpstream(valid) => {
                for reference in &valid.info.references {
                    let of = referrers.entry(reference.clone()).or_default();
                    of.push(path.clone());
                }
            }
            Finding::Invalid => invalid.push(path.clone()),
            Finding::Reported(_) => {}
        }
    }
    while let Some(path) = invalid.pop() {
        for referrer in referrers.remove(&path).unwrap_or_default() {
            let finding = findings.get_mut(&referrer);
            if let Some(finding) = finding.filter(|finding| finding.new_path().is_some()) {
                tracing::debug!("{referrer} is not valid here: it refers to {path}, which is not");
                *finding = Finding::Invalid;
                invalid.push(referrer);
            }
        }
    }
}
