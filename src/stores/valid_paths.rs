//! Which store paths of a store are valid for Nix, and stay so.
//!
//! Nix keeps for good what it learns of a path below its own store. So a path is entered in a local store
//! ([`LocalStore::add_valid_paths`]) before it is reported as valid, together with everything that it refers
//! to, and is answered from there for ever: over restarts, and with every server out of reach. Of a binary
//! cache this takes the narinfos and no contents.
//!
//! **A path that is not valid may become so; one that is valid stays.** While the upstream cannot be
//! reached, a path that was never reported is not valid, as for Nix itself without its substituters.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use thiserror::Error;

use super::{Opened, Plan};
use crate::binary_cache::{self, BinaryCaches};
use crate::castore::Root;
use crate::nix::{NarinfoFile, PathInfo, StorePath, StorePathHash};
use crate::store::{Cache, Error, LocalStore, Store, ValidPath};

/// Paths whose metadata are requested at once.
const AT_ONCE: usize = 32;
/// Paths that are looked at for one question, at most, and references of all of them.
const MOST_PATHS: usize = 200_000;
const MOST_REFERENCES: usize = 4_000_000;
/// How long the upstream may take for the metadata of one path.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing is requested after the upstream failed.
const PAUSE: Duration = Duration::from_secs(10);
/// The address of a NAR in an entry whose store has none.
const NO_URL: &str = "-";

/// A store that cannot promise that a path stays valid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct CannotPromise(pub String);

/// Why the store that `plan` describes cannot promise that a path stays valid; nothing if it can.
pub fn cannot_promise(plan: &Plan) -> Option<CannotPromise> {
    let why = match plan {
        Plan::BinaryCache { .. } => return None,
        Plan::Url(url) if url.starts_with("local:") => return None,
        Plan::Url(url) if binary_cache::is_url(url) => return None,
        Plan::Cache { far, .. } => {
            let forgets = |url: &&&str| url.starts_with("memory:");
            match far.plan.urls().iter().find(forgets) {
                None => return None,
                Some(url) => {
                    format!("its upstream {url} forgets everything when this process ends")
                }
            }
        }
        Plan::Url(url) if url.starts_with("memory:") => {
            "it forgets everything when this process ends".to_owned()
        }
        _ => "nothing of it is kept on this machine: put a cache in front of it".to_owned(),
    };
    Some(CannotPromise(format!(
        "what is reported to Nix as valid has to stay valid, and this store cannot promise that: {why} (a \
         store for this is local:, a binary-cache, or a cache)"
    )))
}

/// The valid paths of a store. Clones share everything.
#[derive(Clone, Debug)]
pub struct ValidPaths(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Where reported paths are entered; its own roots are paths too.
    local: LocalStore,
    upstream: Upstream,
    store: Arc<dyn Store>,
    /// Until when nothing is requested of the upstream.
    pause: Mutex<Option<Instant>>,
    referrers: Mutex<Referrers>,
    /// The version of the roots of `local` whose paths were all entered.
    entered: Mutex<Option<u64>>,
}

/// Where paths are from that `local` does not have as roots.
#[derive(Debug)]
enum Upstream {
    Nothing,
    Store(Cache),
    Caches(BinaryCaches),
}

/// The paths that refer to a path, as of some number of valid paths.
#[derive(Debug, Default)]
struct Referrers {
    count: u64,
    of: HashMap<StorePath, Vec<StorePath>>,
}

/// What is known of a path during a check.
enum Finding {
    /// It was reported before.
    Reported(ValidPath),
    New(ValidPath),
    /// It is being asked for, or it is not valid.
    Invalid,
}

impl ValidPaths {
    /// The valid paths of `opened`.
    pub fn of(opened: &Opened) -> Result<Self, CannotPromise> {
        if let Some(why) = cannot_promise(&opened.plan) {
            return Err(why);
        }
        let (local, upstream) = match (&opened.local, &opened.cache, &opened.binary_caches) {
            (Some(local), ..) => (local.clone(), Upstream::Nothing),
            (None, Some(cache), Some(caches)) => {
                (cache.near().clone(), Upstream::Caches(caches.clone()))
            }
            (None, Some(cache), None) => (cache.near().clone(), Upstream::Store(cache.clone())),
            (None, None, _) => {
                let why = "its local store cannot be opened, so that nothing would be kept";
                return Err(CannotPromise(why.to_owned()));
            }
        };
        Ok(Self(Arc::new(Inner {
            local,
            upstream,
            store: opened.store.clone(),
            pause: Mutex::default(),
            referrers: Mutex::default(),
            entered: Mutex::default(),
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
        let mut findings = self.walk(paths).await?;
        invalidate_referrers(&mut findings);
        self.enter(&mut findings)?;
        let wanted: HashSet<&StorePath> = paths.iter().collect();
        let found = findings.into_iter().filter_map(|(path, finding)| {
            let valid = match finding {
                Finding::Reported(valid) | Finding::New(valid) => valid,
                Finding::Invalid => return None,
            };
            wanted.contains(&path).then_some((path, valid))
        });
        Ok(found.collect())
    }

    /// Looks at `paths` and everything that they refer to, without what was reported before.
    async fn walk(&self, paths: &[StorePath]) -> Result<HashMap<StorePath, Finding>, Error> {
        let inner = &*self.0;
        let mut findings = HashMap::new();
        let mut left: Vec<StorePath> = paths.to_vec();
        let mut asking = FuturesUnordered::new();
        let mut references = 0;
        loop {
            while asking.len() < AT_ONCE
                && let Some(path) = left.pop()
            {
                if findings.contains_key(&path) {
                    continue;
                }
                if findings.len() >= MOST_PATHS || references > MOST_REFERENCES {
                    return Err(Error::Refused {
                        store: inner.store.url().to_owned(),
                        what: format!("{path} for Nix"),
                        why: format!("what it refers to is more than {MOST_PATHS} paths"),
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
            if let Some(valid) = found? {
                references += valid.info.references.len();
                left.extend(valid.info.references.iter().cloned());
                findings.insert(path, Finding::New(valid));
            }
        }
    }

    /// Enters what is new, before it is reported.
    fn enter(&self, findings: &mut HashMap<StorePath, Finding>) -> Result<(), Error> {
        let local = &self.0.local;
        let new = findings.values().filter_map(|finding| match finding {
            Finding::New(valid) => Some(valid.clone()),
            _ => None,
        });
        let new: Vec<ValidPath> = new.collect();
        if new.is_empty() {
            return Ok(());
        }
        local.add_valid_paths(&new)?;
        if let Upstream::Nothing = self.0.upstream {
            // A root that was removed before it was entered; from then on none is.
            let mut gone = Vec::new();
            for valid in new {
                let name = valid.info.path.to_string();
                if local.root_record(name.as_bytes())?.is_none() {
                    gone.push(valid.info.path);
                }
            }
            if !gone.is_empty() {
                let names: Vec<String> = gone.iter().map(StorePath::to_string).collect();
                let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
                local.forget_valid_paths(&names)?;
                for path in gone {
                    findings.insert(path, Finding::Invalid);
                }
                invalidate_referrers(findings);
            }
        }
        Ok(())
    }

    /// Enters the paths of all roots of the local store.
    async fn enter_own(&self) -> Result<(), Error> {
        let local = &self.0.local;
        let version = local.roots_version()?;
        if *self.0.entered.lock() == Some(version) {
            return Ok(());
        }
        let roots = local.roots().await?;
        let paths = roots
            .iter()
            .filter_map(|root| StorePath::from_base_name(root.name.as_bytes()).ok());
        self.check(&paths.collect::<Vec<_>>()).await?;
        *self.0.entered.lock() = Some(version);
        Ok(())
    }

    /// The valid paths that are known without asking an upstream for more. May block.
    pub async fn all(&self) -> Result<Vec<StorePath>, Error> {
        self.enter_own().await?;
        let valid = self.0.local.valid_paths(b"")?.into_iter();
        Ok(valid.map(|valid| valid.info.path).collect())
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
        let count = local.valid_path_count()?;
        if referrers.count != count {
            let mut of: HashMap<StorePath, Vec<StorePath>> = HashMap::new();
            for valid in local.valid_paths(b"")? {
                for reference in valid.info.references {
                    of.entry(reference)
                        .or_default()
                        .push(valid.info.path.clone());
                }
            }
            *referrers = Referrers { count, of };
        }
        Ok(referrers.of.get(path).cloned().unwrap_or_default())
    }

    /// The root of `valid`, whose contents may have to be fetched first. Never nothing.
    pub async fn root(&self, valid: &ValidPath) -> Result<Root, Error> {
        let name = valid.info.path.to_string();
        match self.0.store.root(name.as_bytes()).await? {
            Some(root) => Ok(root),
            None => valid.root.clone().ok_or_else(|| Error::Refused {
                store: self.0.store.url().to_owned(),
                what: format!("the contents of {name}"),
                why: "the path was reported as valid, and its upstream has it no more".to_owned(),
            }),
        }
    }
}

impl Inner {
    /// What is known of `path` that was not reported yet.
    async fn find(&self, path: &StorePath) -> Result<Option<ValidPath>, Error> {
        let name = path.to_string();
        if let Some(record) = self.local.root_record(name.as_bytes())?
            && !record.incomplete
        {
            return Ok(record
                .path_info
                .and_then(|info| described(info, record.root)));
        }
        if matches!(self.upstream, Upstream::Nothing) || self.is_paused() {
            return Ok(None);
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(name.as_bytes())).await;
        let why = match asked {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        *self.pause.lock() = Some(Instant::now() + PAUSE);
        tracing::warn!(
            "whether {path} is valid is not known: {why}; for {PAUSE:?} paths that were never reported to \
             Nix are not valid"
        );
        Ok(None)
    }

    fn is_paused(&self) -> bool {
        let until = *self.pause.lock();
        until.is_some_and(|until| Instant::now() < until)
    }

    async fn ask(&self, name: &[u8]) -> Result<Option<ValidPath>, Error> {
        match &self.upstream {
            Upstream::Nothing => Ok(None),
            Upstream::Caches(caches) => {
                let info = caches.narinfo(name).await?;
                Ok(info.map(|info| ValidPath::new(info, None)))
            }
            Upstream::Store(cache) => {
                let Some(root) = cache.root(name).await? else {
                    return Ok(None);
                };
                let info = cache.path_info(name).await?;
                Ok(info.and_then(|info| described(info, root)))
            }
        }
    }
}

/// The path of `root`, if enough is known of it.
fn described(mut info: PathInfo, root: Root) -> Option<ValidPath> {
    info.entry = Some((&root).into());
    let info = NarinfoFile::of_path_info(&info, NO_URL.to_owned())?;
    let described = info.knows_references();
    described.then(|| ValidPath::new(info, Some(root)))
}

/// A path that refers to one that is not valid is not valid.
fn invalidate_referrers(findings: &mut HashMap<StorePath, Finding>) {
    let mut referrers: HashMap<StorePath, Vec<StorePath>> = HashMap::new();
    let mut invalid = Vec::new();
    for (path, finding) in &*findings {
        match finding {
            Finding::New(valid) => {
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
            if let Some(finding @ Finding::New(_)) = findings.get_mut(&referrer) {
                tracing::debug!("{referrer} is not valid here: it refers to {path}, which is not");
                *finding = Finding::Invalid;
                invalid.push(referrer);
            }
        }
    }
}
