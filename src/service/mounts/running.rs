//! The mounts that run: which are made, go on and are taken down, as the configuration has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Host, Served, StartError, Wanted};
use crate::service::config::Config;
use crate::service::systemd::{self, KeptPair};
use crate::service::view::ViewedMount;
use crate::store::OpenStores;
use crate::transport::fuse::{Session, Unmounted};

/// What is mounted at this moment.
#[derive(Default)]
pub struct Mounts {
    served: BTreeMap<String, Served>,
    /// Out of the tree and still used.
    leaving: Vec<Arc<Session>>,
}

impl Mounts {
    /// The mounts that `config` with `stores` wants.
    pub fn wanted(config: &Config, stores: &OpenStores) -> BTreeMap<String, Wanted> {
        let mut all = BTreeMap::new();
        for (name, mount) in &config.mounts {
            let store = config.store_of(mount.store.as_deref());
            // Checked when the configuration was read: a mount's store is there.
            if let Some(opened) = stores.get(&store) {
                let wanted = Wanted {
                    config: mount.clone(),
                    store,
                    plan: opened.plan.clone(),
                };
                all.insert(name.clone(), wanted);
            }
        }
        all
    }

    /// Makes the mount `name`, or goes on with what a predecessor `left` of it.
    pub fn start(
        &mut self,
        name: &str,
        wanted: Wanted,
        left: Option<KeptPair>,
        stores: &OpenStores,
        host: &Host,
    ) -> Result<(), StartError> {
        let Some(opened) = stores.get(&wanted.store) else {
            return Ok(());
        };
        let store = opened.store.clone();
        let (served, outside) = wanted.start(name, store, left, host)?;
        self.leaving.extend(outside);
        self.served.insert(name.to_owned(), served);
        Ok(())
    }

    /// Takes down those that are not as they are `wanted`; gives what is wanted beside those that
    /// stay.
    pub fn stop_others(
        &mut self,
        mut wanted: BTreeMap<String, Wanted>,
    ) -> BTreeMap<String, Wanted> {
        for (name, served) in std::mem::take(&mut self.served) {
            if wanted.get(&name) == Some(&served.wanted) {
                wanted.remove(&name);
                self.served.insert(name, served);
            } else {
                self.take_down(&name, served.session);
            }
        }
        wanted
    }

    /// Lets go of what others have unmounted, and of what nobody uses any more.
    pub fn notice_ends(&mut self) {
        self.leaving.retain(|session| !session.has_ended());
        let gone = |(name, served): (&String, &Served)| {
            (!served.session.is_in_place()).then(|| name.clone())
        };
        let gone: Vec<String> = self.served.iter().filter_map(gone).collect();
        for name in gone {
            if let Some(served) = self.served.remove(&name) {
                tracing::warn!(
                    MOUNT = name,
                    path = %served.session.path().display(),
                    "somebody else has unmounted it; a reload mounts it again"
                );
                systemd::forget(&name);
                served.session.leave();
                self.leaving.push(served.session);
            }
        }
    }

    /// Takes all of them down; if there will be a `successor`, those that it can go on with stay.
    pub fn end(&mut self, successor: bool) {
        for (name, served) in std::mem::take(&mut self.served) {
            if successor && served.session.kept().is_some() {
                served.session.leave();
                tracing::info!(MOUNT = name, "left to a successor");
            } else {
                self.take_down(&name, served.session);
            }
        }
    }

    /// Takes a mount out of the tree; while it is used it is served on.
    fn take_down(&mut self, name: &str, session: Arc<Session>) {
        let path = session.path().display().to_string();
        match session.unmount() {
            Ok(Unmounted::Lazily) => {
                tracing::info!(
                    MOUNT = name,
                    path,
                    "unmounted, and served until its last user has finished"
                );
                self.leaving.push(session.clone());
            }
            Ok(Unmounted::Cleanly | Unmounted::Already) => {
                tracing::info!(MOUNT = name, path, "unmounted");
            }
            Ok(Unmounted::NotOurs) => tracing::info!(
                MOUNT = name,
                path,
                "mounted by others, who have to unmount it; nobody serves it now"
            ),
            Err(error) => tracing::error!(MOUNT = name, path, %error, "cannot unmount"),
        }
        systemd::forget(name);
    }

    /// What a predecessor left stays for the next try; what was made goes.
    pub fn give_up(&self) {
        for (name, served) in &self.served {
            if served.adopted {
                served.session.leave();
            } else {
                systemd::forget(name);
            }
        }
    }

    /// How many are out of the tree and still used.
    pub fn leaving(&self) -> usize {
        self.leaving.len()
    }

    /// Serves those no longer that are out of the tree.
    pub fn cut_off(&self) {
        for session in &self.leaving {
            let path = session.path().display();
            tracing::warn!(%path, "still in use; what is open on it ends now");
            session.leave();
        }
    }

    /// The mounts, for others to look at.
    pub fn viewed(&self) -> BTreeMap<String, ViewedMount> {
        let viewed = |served: &Served| ViewedMount {
            path: served.wanted.config.path.clone(),
            store: served.wanted.store.clone(),
            session: served.session.clone(),
            adopted: served.adopted,
            images: served.wanted.config.images,
        };
        let mounts = self.served.iter();
        mounts
            .map(|(name, served)| (name.clone(), viewed(served)))
            .collect()
    }
}
