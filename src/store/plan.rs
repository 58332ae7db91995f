//! From a description to a store: URLs, and stores made of other stores.
//!
//! A [`Plan`] is the whole tree, down to URLs; two that are equal make the same store. So who opens
//! the stores of a changed description ([`open_all`]) keeps those whose plan is what it was, and
//! opens the others; a store that several are made of is opened once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::measured::Measured;
use super::needs::{Needs, needs};
use super::{Error, Filter, Join, Mirrors, Order, Pattern, Store, url};

/// A store under the name that it has in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// What it is made of.
    pub plan: Plan,
}

/// What a store is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// What [`open`](super::open) opens.
    Url(String),
    /// Several that hold the same.
    Mirrors {
        /// Which, best first.
        members: Vec<Named>,
        /// Who is asked first.
        order: Order,
    },
    /// Some of a store's root nodes.
    Filter {
        /// Of which store.
        of: Box<Named>,
        /// With which names.
        roots: Vec<Pattern>,
    },
    /// Several as one.
    Join {
        /// Which; of root nodes of the same name the first's is seen.
        members: Vec<Named>,
    },
}

impl Plan {
    /// The stores that it is made of itself.
    pub fn members(&self) -> Vec<&Named> {
        match self {
            Plan::Url(_) => Vec::new(),
            Plan::Mirrors { members, .. } | Plan::Join { members } => members.iter().collect(),
            Plan::Filter { of, .. } => vec![of],
        }
    }

    /// What it needs of the system to be read.
    pub fn needs(&self) -> Needs {
        if let Plan::Url(url) = self {
            return needs(url);
        }
        let mut all = Needs::default();
        for member in self.members() {
            let needs = member.plan.needs();
            all.network |= needs.network;
            all.read.extend(needs.read);
        }
        all.read.sort();
        all.read.dedup();
        all
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

/// What is shown by it, without how: two with the same text show the same.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |members: &[Named]| {
            let plans: Vec<_> = members.iter().map(|named| named.plan.to_string()).collect();
            plans.join(", ")
        };
        match self {
            // The query says how to get there.
            Plan::Url(url) => f.write_str(url.split_once('?').map_or(url, |(url, _)| url)),
            Plan::Mirrors { members, .. } => write!(f, "mirrors({})", list(members)),
            Plan::Filter { of, roots } => write!(f, "filter({}, {roots:?})", of.plan),
            Plan::Join { members } => write!(f, "join({})", list(members)),
        }
    }
}

/// A store that is open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// What it is made of.
    pub plan: Plan,
    /// The store.
    pub store: Arc<dyn Store>,
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

/// Opens the stores of `wanted` and those that they are made of. Those that are open in `before` with
/// the same plan are taken from there.
pub fn open_all(wanted: &[Named], before: &OpenStores) -> Result<OpenStores, OpenError> {
    let mut now = OpenStores::new();
    for named in wanted {
        open_named(named, before, &mut now)?;
    }
    Ok(now)
}

fn open_named(
    named: &Named,
    before: &OpenStores,
    now: &mut OpenStores,
) -> Result<Arc<dyn Store>, OpenError> {
    let Named { name, plan } = named;
    if let Some(opened) = now.get(name) {
        return Ok(opened.store.clone());
    }
    // Its members as well, though it has them already: they are stores of their own.
    let mut members = Vec::new();
    for member in plan.members() {
        members.push((member.name.clone(), open_named(member, before, now)?));
    }
    let opened = match before.get(name) {
        Some(opened) if opened.plan == *plan => opened.clone(),
        _ => Opened {
            plan: plan.clone(),
            store: make(name, plan, members)?,
        },
    };
    now.insert(name.clone(), opened.clone());
    Ok(opened.store)
}

fn make(
    name: &str,
    plan: &Plan,
    mut members: Vec<(String, Arc<dyn Store>)>,
) -> Result<Arc<dyn Store>, OpenError> {
    let failed = |source| OpenError {
        name: name.to_owned(),
        source: Box::new(source),
    };
    // As the command line calls it.
    let called = format!("store:{name}");
    Ok(match plan {
        Plan::Url(url) => {
            let store = url::open(url).map_err(failed)?;
            match needs(url).network {
                true => Arc::new(Measured::new(store)),
                false => store,
            }
        }
        Plan::Mirrors { order, .. } => Arc::new(Mirrors::new(called, members, *order)),
        Plan::Filter { roots, .. } => match members.pop() {
            Some((_, of)) => Arc::new(Filter::new(called, of, roots.clone())),
            None => Arc::new(Join::new(called, members)),
        },
        Plan::Join { .. } => Arc::new(Join::new(called, members)),
    })
}
