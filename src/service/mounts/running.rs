//! The running mounts: made, kept and unmounted by the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ConfiguredMount, ServedMount, ServiceContext, StartError};
use crate::service::config::Config;
use crate::service::systemd::{self, PreviousMount};
use crate::service::view::ViewedMount;
use crate::stores::OpenStores;
use crate::transport::fuse::{FuseSession, UnmountOutcome};

/// The mounts at this moment.
#[derive(Default)]
pub(crate) struct RunningMounts {
    served: BTreeMap<String, ServedMount>,
    /// Mounts that are no longer configured, and still in use.
    leaving: Vec<LeavingMount>,
}

/// A mount that is no longer configured.
struct LeavingMount {
    name: String,
    session: Arc<FuseSession>,
    /// Whether to try again to unmount it.
    is_mounted: bool,
}

impl LeavingMount {
    fn out_of_tree(name: &str, session: Arc<FuseSession>) -> Self {
        let name = name.to_owned();
        Self {
            name,
            session,
            is_mounted: false,
        }
    }
}

impl RunningMounts {
    /// The mounts of `config` with `stores`.
    pub(crate) fn wanted(
        config: &Config,
        stores: &OpenStores,
    ) -> BTreeMap<String, ConfiguredMount> {
        let mut all = BTreeMap::new();
        for (name, mount) in &config.mounts {
            let store = config.store_of(mount.store.as_deref());
            // Checked when the configuration was read: a mount's store is there.
            if let Some(opened) = stores.get(&store) {
                let wanted = ConfiguredMount {
                    config: mount.clone(),
                    store,
                    plan: opened.plan.clone(),
                };
                all.insert(name.clone(), wanted);
            }
        }
        all
    }

    /// Makes the mount `name`, or takes over what the previous process handed over of it.
    pub(crate) fn start(
        &mut self,
        name: &str,
        wanted: ConfiguredMount,
        previous: Option<PreviousMount>,
        stores: &OpenStores,
        context: &ServiceContext,
    ) -> Result<(), StartError> {
        let Some(opened) = stores.get(&wanted.store) else {
            return Ok(());
        };
        let store = opened.store.clone();
        let (served, outside) = wanted.start(name, store, previous, context)?;
        let outside = outside.map(|session| LeavingMount::out_of_tree(name, session));
        self.leaving.extend(outside);
        self.served.insert(name.to_owned(), served);
        Ok(())
    }

    /// Unmounts those that differ from `wanted`; returns what is wanted beside those that stay.
    pub(crate) fn stop_others(
        &mut self,
        mut wanted: BTreeMap<String, ConfiguredMount>,
    ) -> BTreeMap<String, ConfiguredMount> {
        for (name, served) in self.take_served() {
            if wanted.get(&name) == Some(&served.wanted) {
                wanted.remove(&name);
                self.served.insert(name, served);
            } else {
                self.take_down(&name, served.session);
            }
        }
        wanted
    }

    /// All that are served, those below others first.
    fn take_served(&mut self) -> Vec<(String, ServedMount)> {
        let mut all: Vec<_> = std::mem::take(&mut self.served).into_iter().collect();
        all.sort_by_key(|(_, served)| std::cmp::Reverse(served.session.current_path()));
        all
    }

    /// Drops mounts that other programs have unmounted or that are no longer in use, and tries
    /// again to unmount the others.
    pub(crate) fn notice_ends(&mut self) {
        for leaving in &mut self.leaving {
            if leaving.is_mounted {
                leaving.is_mounted = is_still_mounted(leaving);
            }
        }
        self.leaving.retain(|leaving| {
            let has_ended = leaving.session.has_ended();
            if has_ended {
                leaving.session.end_use();
            }
            !has_ended
        });
        let gone = |(name, served): (&String, &ServedMount)| {
            (!served.session.is_mounted()).then(|| name.clone())
        };
        let gone: Vec<String> = self.served.iter().filter_map(gone).collect();
        for name in gone {
            if let Some(served) = self.served.remove(&name) {
                tracing::warn!(
                    MOUNT = name,
                    path = %served.session.path().display(),
                    "another program has unmounted it; a reload mounts it again"
                );
                systemd::forget(&name, served.session.tree_numbers());
                served.session.hand_over();
                self.leaving
                    .push(LeavingMount::out_of_tree(&name, served.session));
            }
        }
    }

    /// Unmounts all of them; with a `has_next_process`, those that it can take over stay.
    pub(crate) fn end(&mut self, has_next_process: bool) {
        for (name, served) in self.take_served() {
            if has_next_process && served.session.hand_over_state().is_some() {
                served.session.hand_over();
                tracing::info!(MOUNT = name, "handed over to the next process");
            } else {
                self.take_down(&name, served.session);
            }
        }
    }

    /// Unmounts it; while it is in use, or cannot be unmounted, it is still served.
    fn take_down(&mut self, name: &str, session: Arc<FuseSession>) {
        let path = session.current_path().display().to_string();
        let leaving = |is_mounted| LeavingMount {
            name: name.to_owned(),
            session: session.clone(),
            is_mounted,
        };
        match session.unmount() {
            Ok(UnmountOutcome::Cleanly) => {
                session.end_use();
                tracing::info!(MOUNT = name, path, "unmounted");
            }
            Ok(UnmountOutcome::InUse(users)) => {
                tracing::info!(
                    MOUNT = name,
                    path,
                    "unmounted, and served for as long as it is used, by {users}"
                );
                self.leaving.push(leaving(false));
            }
            Ok(UnmountOutcome::Blocked(obstacles)) => {
                tracing::warn!(
                    MOUNT = name,
                    path,
                    "cannot be unmounted before {obstacles}; served until then"
                );
                self.leaving.push(leaving(true));
            }
            Ok(UnmountOutcome::NotOurs) => tracing::info!(
                MOUNT = name,
                path,
                "mounted by another program, which has to unmount it; no process serves it now"
            ),
            Err(error) => {
                tracing::error!(MOUNT = name, path, %error, "cannot unmount; will try again");
                self.leaving.push(leaving(true));
            }
        }
        systemd::forget(name, session.tree_numbers());
    }

    /// Mounts of the previous process stay for the next try; new ones are removed.
    pub(crate) fn give_up(&self) {
        for (name, served) in &self.served {
            if served.taken_over {
                served.session.hand_over();
            } else {
                systemd::forget(name, served.session.tree_numbers());
            }
        }
    }

    /// How many are no longer configured and still in use.
    pub(crate) fn leaving(&self) -> usize {
        self.leaving.len()
    }

    /// Ends the service of those that are no longer configured.
    pub(crate) fn drop_connections(&self) {
        for LeavingMount {
            name,
            session,
            is_mounted,
        } in &self.leaving
        {
            let path = session.current_path();
            let path = path.display();
            match is_mounted {
                true => tracing::error!(
                    MOUNT = name, %path,
                    "still mounted, and no process serves it now: remove it with umount"
                ),
                false => {
                    tracing::warn!(MOUNT = name, %path, "still in use; its open files fail from now on");
                }
            }
            session.hand_over();
        }
    }

    /// The mounts, for the status.
    pub(crate) fn viewed(&self) -> BTreeMap<String, ViewedMount> {
        let viewed = |served: &ServedMount| ViewedMount {
            path: served.wanted.config.path.clone(),
            store: served.wanted.store.clone(),
            session: served.session.clone(),
            taken_over: served.taken_over,
            images: served.wanted.config.images,
        };
        let mounts = self.served.iter();
        mounts
            .map(|(name, served)| (name.clone(), viewed(served)))
            .collect()
    }
}

/// Tries again to unmount it; returns whether it is still there.
fn is_still_mounted(leaving: &LeavingMount) -> bool {
    let name = &leaving.name;
    match leaving.session.unmount() {
        Ok(UnmountOutcome::Blocked(_)) | Err(_) => true,
        Ok(UnmountOutcome::InUse(users)) => {
            tracing::info!(
                MOUNT = name,
                "unmounted now, and served for as long as it is used, by {users}"
            );
            false
        }
        Ok(UnmountOutcome::Cleanly | UnmountOutcome::NotOurs) => {
            tracing::info!(MOUNT = name, "unmounted now");
            false
        }
    }
}
