//! The state of the service, as published by the one thread that owns its stores and mounts: for
//! the status, and for other threads that use them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::status::{
    ListenStatus, MountStatus, PrefetchStatus, ServiceStatus, StoreStatus, VirtiofsStatus,
};
use crate::stores::OpenStores;
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

    /// The status of the service, which has been up since `started`.
    pub(super) fn status(
        &self,
        started: Instant,
        prefetches: Vec<PrefetchStatus>,
    ) -> ServiceStatus {
        let of_store = StoreStatus::of;
        let of_mount = |viewed: &ViewedMount| {
            let nodes = viewed.session.nodes();
            let requests = viewed.session.requests().0.into_iter();
            let latencies = viewed.session.request_times().into_iter();
            MountStatus {
                path: viewed.path.clone(),
                store: viewed.store.clone(),
                view: viewed.session.view(),
                why_no_image: viewed.session.why_no_image().map(str::to_owned),
                tree: viewed.session.shown_digest().map(|digest| digest.to_hex()),
                mounted: viewed.session.is_mounted(),
                taken_over: viewed.taken_over,
                requests: requests
                    .map(|(kind, count)| (kind.to_owned(), count))
                    .collect(),
                latencies: latencies
                    .map(|(kind, times)| (kind.to_owned(), times.into()))
                    .collect(),
                cached_directories: nodes.directories as u64,
                directory_bytes: nodes.directory_bytes as u64,
                table_bytes: nodes.table_bytes as u64,
                open: viewed.session.open_files().map(Into::into),
                warmup: viewed.session.warm_up_count(),
                images: viewed.images,
                opened_images: viewed.session.images(),
            }
        };
        let of_device = |viewed: &ViewedDevice| {
            let status = viewed.endpoint.status();
            VirtiofsStatus::of(viewed.socket.clone(), viewed.store.clone(), &status)
        };
        let (stores, mounts) = (self.stores.iter(), self.mounts.iter());
        let devices = self.devices.iter();
        ServiceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: started.elapsed().as_secs(),
            stores: stores
                .map(|(name, store)| (name.clone(), of_store(store)))
                .collect(),
            mounts: mounts
                .map(|(name, mount)| (name.clone(), of_mount(mount)))
                .collect(),
            virtiofs: devices
                .map(|(name, device)| (name.clone(), of_device(device)))
                .collect(),
            listen: self.listen.clone(),
            leaving: self.leaving,
            prefetches,
        }
    }
}
