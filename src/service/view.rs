//! The state of the service, as published by the one thread that owns its stores and mounts: for
//! the status, and for other threads that use them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::rates::{CounterSample, RateHistory, StoreCounts, TrafficCounts};
use super::reloads::ReloadStatus;
use super::status::{
    ListenStatus, MountStatus, PrefetchStatus, ServiceStatus, StoreStatus, VirtiofsStatus,
};
use super::traffic::TrafficStatus;
use crate::stores::{OpenStores, OpenedStore};
use crate::transport::fuse::FuseSession;
use crate::transport::virtiofs::VirtiofsEndpoint;

/// The published state.
#[derive(Clone, Default)]
pub(super) struct PublishedState {
    pub(super) stores: OpenStores,
    pub(super) mounts: BTreeMap<String, ViewedMount>,
    pub(super) devices: BTreeMap<String, ViewedDevice>,
    pub(super) listen: BTreeMap<String, ListenStatus>,
    pub(super) leaving: u64,
}

#[derive(Clone)]
pub(super) struct ViewedDevice {
    pub(super) socket: PathBuf,
    pub(super) store: String,
    pub(super) endpoint: Arc<VirtiofsEndpoint>,
}

#[derive(Clone)]
pub(super) struct ViewedMount {
    pub(super) path: PathBuf,
    pub(super) store: String,
    pub(super) session: Arc<FuseSession>,
    pub(super) taken_over: bool,
    pub(super) images: bool,
}

impl PublishedState {
    /// Makes the recorders write their recordings.
    pub(super) fn remember(&self) {
        let mounts = self.mounts.values();
        mounts.for_each(|viewed| viewed.session.remember());
        let devices = self.devices.values();
        devices.for_each(|viewed| viewed.endpoint.remember());
    }

    /// The counters that rates are computed from.
    pub(super) fn sample(&self) -> CounterSample {
        let (stores, mounts) = (self.stores.iter(), self.mounts.iter());
        let devices = self.devices.iter();
        CounterSample {
            at: Instant::now(),
            mounts: mounts
                .map(|(name, viewed)| (name.clone(), (&viewed.session.traffic()).into()))
                .collect(),
            devices: devices
                .map(|(name, viewed)| (name.clone(), (&viewed.endpoint.status().traffic).into()))
                .collect(),
            stores: stores
                .map(|(name, opened)| (name.clone(), opened.into()))
                .collect(),
        }
    }

    /// The status of the service, which has been up since `started`.
    pub(super) fn status(
        &self,
        started: Instant,
        prefetches: Vec<PrefetchStatus>,
        rates: &RateHistory,
        reloads: ReloadStatus,
    ) -> ServiceStatus {
        let now = Instant::now();
        let of_store = |name: &String, opened: &OpenedStore| StoreStatus {
            rates: rates.of_store(name, StoreCounts::from(opened), now),
            ..StoreStatus::of(opened)
        };
        let of_mount = |name: &String, viewed: &ViewedMount| {
            let nodes = viewed.session.nodes();
            let traffic = viewed.session.traffic();
            let rates = rates.of_mount(name, TrafficCounts::from(&traffic), now);
            MountStatus {
                path: viewed.path.clone(),
                store: viewed.store.clone(),
                view: viewed.session.view(),
                why_no_image: viewed.session.why_no_image().map(str::to_owned),
                tree: viewed.session.shown_digest().map(|digest| digest.to_hex()),
                mounted: viewed.session.is_mounted(),
                taken_over: viewed.taken_over,
                traffic: TrafficStatus::new(traffic, rates),
                cached_directories: nodes.directories as u64,
                directory_bytes: nodes.directory_bytes as u64,
                table_bytes: nodes.table_bytes as u64,
                open: viewed.session.open_files().map(Into::into),
                warmup: viewed.session.warm_up_count(),
                images: viewed.images,
                opened_images: viewed.session.images(),
            }
        };
        let of_device = |name: &String, viewed: &ViewedDevice| {
            let status = viewed.endpoint.status();
            let rates = rates.of_device(name, TrafficCounts::from(&status.traffic), now);
            let traffic = TrafficStatus::new(status.traffic.clone(), rates);
            VirtiofsStatus {
                traffic,
                ..VirtiofsStatus::of(viewed.socket.clone(), viewed.store.clone(), &status)
            }
        };
        let (stores, mounts) = (self.stores.iter(), self.mounts.iter());
        let devices = self.devices.iter();
        ServiceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: started.elapsed().as_secs(),
            stores: stores
                .map(|(name, store)| (name.clone(), of_store(name, store)))
                .collect(),
            mounts: mounts
                .map(|(name, mount)| (name.clone(), of_mount(name, mount)))
                .collect(),
            virtiofs: devices
                .map(|(name, device)| (name.clone(), of_device(name, device)))
                .collect(),
            listen: self.listen.clone(),
            leaving: self.leaving,
            prefetches,
            reloads,
        }
    }
}
