//! The status of the running service.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rates::StoreRate;
use super::reloads::ReloadStatus;
use super::traffic::TrafficStatus;
use crate::fs::{ImageCount, OpenCount, WarmUpCount};
use crate::quantity::count;
use crate::store::{Cache, CacheStatus, CachedShare, Health};
use crate::stores::OpenedStore;
use crate::transport::fuse::MountView;
use crate::transport::virtiofs::EndpointStatus;

/// The whole service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Stores by name.
    pub stores: BTreeMap<String, StoreStatus>,
    /// Mounts by name.
    pub mounts: BTreeMap<String, MountStatus>,
    /// Devices for virtual machines by name.
    #[serde(default)]
    pub virtiofs: BTreeMap<String, VirtiofsStatus>,
    /// Listeners by name.
    pub listen: BTreeMap<String, ListenStatus>,
    /// Mounts that are detached from the tree and still in use.
    pub leaving: u64,
    /// Running prefetches into caches.
    #[serde(default)]
    pub prefetches: Vec<PrefetchStatus>,
    /// How reloads of the configuration went.
    #[serde(default)]
    pub reloads: ReloadStatus,
}

/// The progress of a prefetch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchStatus {
    /// The name of the cache.
    pub store: String,
    /// The names of the roots.
    pub roots: Vec<String>,
    /// Directories below them that were found so far.
    pub directories: u64,
    /// Blobs that are in the cache.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs below the roots; 0 until all Directories are known.
    pub total_blobs: u64,
    /// Their bytes.
    pub total_bytes: u64,
}

/// A store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Its kind: `url`, or how it is made of others: `cache`, `mirrors`, `filter`, `join`.
    pub kind: String,
    /// Its URL; of a cache, that of the upstream.
    pub url: String,
    /// Its members, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<String>,
    /// The endpoint of an upstream; the members of mirrors.
    #[serde(flatten)]
    pub health: Health,
    /// The state of a cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,
    /// The roots of a cache, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roots: Option<CacheRoots>,
    /// Blobs in it, if known.
    pub blobs: Option<u64>,
    /// Their bytes.
    pub blob_bytes: Option<u64>,
    /// Directories in it.
    pub directories: Option<u64>,
    /// Rates over the last 10 s and over the last minute, of an upstream or a cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<StoreRate>,
}

/// How much of its roots a cache has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRoots {
    /// Of each cached or pinned root, those that were used last first.
    pub shares: Vec<CachedShare>,
    /// Roots that are left out, since there would be too much to look at.
    pub omitted: u64,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Its mount point.
    pub path: PathBuf,
    /// The name of its store.
    pub store: String,
    /// What the kernel mounts: FUSE or an image.
    #[serde(default)]
    pub view: MountView,
    /// Why it is no image, if one was wanted where that is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_no_image: Option<String>,
    /// The digest of the tree that it shows, in hex digits, if it shows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<String>,
    /// Whether it is at its mount point.
    pub mounted: bool,
    /// Whether an earlier process made it.
    pub taken_over: bool,
    /// Its requests.
    #[serde(flatten)]
    pub traffic: TrafficStatus,
    /// Directories that the kernel knows.
    pub cached_directories: u64,
    /// Bytes of Directories in memory.
    pub directory_bytes: u64,
    /// Bytes of the node table.
    pub table_bytes: u64,
    /// Open files, of a mount with passthrough; others get no open requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenStatus>,
    /// The warm-up counters, of a mount with `warmup = "learn"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmUpCount>,
    /// Whether trees are shown as disk images in `.images`.
    #[serde(default)]
    pub images: bool,
    /// The images that were opened since the mount was made, the latest first, 100 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opened_images: Vec<ImageCount>,
}

/// The open files of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStatus {
    /// Open files.
    pub files: u64,
    /// Open files that the kernel reads itself.
    pub backed: u64,
    /// Files of the store that are registered with the kernel, including unused ones.
    pub registered: u64,
}

impl From<OpenCount> for OpenStatus {
    fn from(count: OpenCount) -> Self {
        Self {
            files: count.files as u64,
            backed: count.backed as u64,
            registered: count.registered as u64,
        }
    }
}

/// A device for virtual machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VirtiofsStatus {
    /// Its socket.
    pub socket: PathBuf,
    /// The name of its store.
    pub store: String,
    /// Connections so far.
    pub connections: u64,
    /// Guests that are connected.
    pub guests: u64,
    /// The requests of all guests.
    #[serde(flatten)]
    pub traffic: TrafficStatus,
    /// Directories that the connected guests know.
    #[serde(default)]
    pub cached_directories: u64,
    /// Bytes of Directories in memory.
    #[serde(default)]
    pub directory_bytes: u64,
    /// Bytes of their node tables.
    #[serde(default)]
    pub table_bytes: u64,
    /// The warm-up counters, of a device with `warmup = "learn"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<WarmUpCount>,
}

impl StoreStatus {
    /// Of a store, as far as it is known.
    pub fn of(opened: &OpenedStore) -> Self {
        let store = &opened.store;
        let usage = store.usage().ok().flatten();
        let members = opened.plan.members().into_iter();
        Self {
            kind: opened.plan.kind().to_owned(),
            url: store.url().to_owned(),
            of: members.map(|member| member.name.clone()).collect(),
            health: opened.health(),
            cache: opened.cache.as_ref().map(Cache::status),
            blobs: usage.map(|usage| usage.blobs),
            blob_bytes: usage.map(|usage| usage.blob_bytes),
            directories: usage.map(|usage| usage.directories),
            rates: Vec::new(),
            roots: None,
        }
    }
}

impl VirtiofsStatus {
    /// Of the device at `socket`, which shows `store`.
    pub fn of(socket: PathBuf, store: String, status: &EndpointStatus) -> Self {
        let nodes = || status.guests.iter().map(|guest| &guest.nodes);
        Self {
            socket,
            store,
            connections: status.connections,
            guests: status.guests.len() as u64,
            traffic: status.traffic.clone().into(),
            cached_directories: nodes().map(|nodes| nodes.directories as u64).sum(),
            directory_bytes: nodes().map(|nodes| nodes.directory_bytes as u64).sum(),
            table_bytes: nodes().map(|nodes| nodes.table_bytes as u64).sum(),
            warmup: status.warm_up,
        }
    }
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenStatus {
    /// Its address.
    pub address: String,
    /// The name of its store.
    pub store: String,
    /// Whether clients may add.
    pub writable: bool,
}

impl ServiceStatus {
    /// A summary in one line.
    pub fn line(&self) -> String {
        let up = self.mounts.values().filter(|mount| mount.mounted).count();
        let mounts = count(self.mounts.len() as u64, "mount", "mounts");
        let mut parts = vec![
            match up == self.mounts.len() {
                true => mounts,
                false => format!("{up} of {mounts}"),
            },
            count(self.listen.len() as u64, "listener", "listeners"),
        ];
        if !self.virtiofs.is_empty() {
            parts.push(count(
                self.virtiofs.len() as u64,
                "virtiofs device",
                "virtiofs devices",
            ));
        }
        let live: u64 = self
            .mounts
            .values()
            .map(|mount| mount.cached_directories)
            .sum();
        if !self.mounts.is_empty() {
            parts.push(count(live, "cached Directory", "cached Directories"));
        }
        if self.leaving > 0 {
            let leaving = count(self.leaving, "mount", "mounts");
            parts.push(format!("{leaving} unmounted and still in use"));
        }
        format!("serving {}", parts.join(", "))
    }
}
