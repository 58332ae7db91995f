//! Stores that are served as a Nix daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use castore_fs::binary_cache::{CacheAddress, ClosureMode};
use castore_fs::nix::{NarinfoFile, StorePath};
use castore_fs::server::{HandOver, Limits, Listener, NixDaemonOptions, Options, serve};
use castore_fs::store::{CacheOptions, LocalStore, Store};
use castore_fs::stores::{Named, Opened, Plan, ValidPaths, open_all};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::written;
use kit::model::Model;

/// A daemon; stops when dropped.
pub struct Daemon {
    pub socket: PathBuf,
    pub opened: Opened,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub fn start(plan: &Plan, socket: &Path, limits: Limits) -> Self {
        Self::with_connections(plan, socket, limits, HandOver::default())
    }

    /// With the connections of the one before.
    pub fn with_connections(
        plan: &Plan,
        socket: &Path,
        limits: Limits,
        hand_over: HandOver,
    ) -> Self {
        let named = Named {
            name: "served".to_owned(),
            plan: plan.clone(),
        };
        let runtime = Runtime::new().unwrap();
        let opened = {
            let _inside = runtime.enter();
            open_all(&[named], &BTreeMap::new()).unwrap()["served"].clone()
        };
        let options = Options {
            nix_daemon: Some(NixDaemonOptions {
                paths: ValidPaths::of(&opened).unwrap(),
                hand_over,
            }),
            limits,
            drain: Duration::from_secs(5),
            ..Options::default()
        };
        let listeners = Listener::bind(&format!("unix:{}", socket.display())).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let store = opened.store.clone();
        let thread = std::thread::spawn(move || {
            let stopped = async {
                let _ = stopped.await;
            };
            let served = serve(store, listeners, options, stopped);
            runtime.block_on(served).unwrap();
            runtime.shutdown_timeout(Duration::from_millis(100));
        });
        Self {
            socket: socket.to_owned(),
            opened,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The limits of a Nix daemon.
pub fn limits() -> Limits {
    Limits::of_nix_daemon()
}

/// The plan of the local store in `directory`.
pub fn local(directory: &Path) -> Plan {
    Plan::Url(format!("local:{}", directory.display()))
}

/// The plan of the binary cache at `url`, unpacked into the local store in `directory`.
pub fn binary_cache(url: &str, directory: &Path) -> Plan {
    Plan::BinaryCache {
        caches: vec![CacheAddress::parse(url).unwrap()],
        into: Box::new(Named {
            name: "disk".to_owned(),
            plan: local(directory),
        }),
        closure: ClosureMode::Off,
        options: CacheOptions::default(),
    }
}

/// What is known of `tree` as `path` with these references; and its NAR.
pub fn described(path: &StorePath, tree: &Model, refs: &[&StorePath]) -> (NarinfoFile, Vec<u8>) {
    let nar = written::nar(tree, &Runtime::new().unwrap());
    let mut narinfo = written::narinfo(path, &nar, "none");
    narinfo.references = refs.iter().map(|path| (*path).clone()).collect();
    narinfo.references.sort_by_key(StorePath::to_string);
    narinfo.signatures = vec![written::secret_key("test-1", 1).sign(&narinfo.fingerprint())];
    (narinfo, nar)
}

/// Adds `tree` as `path` with these references to the local store in `directory`; returns its NAR.
pub fn add(directory: &Path, path: &StorePath, tree: &Model, refs: &[&StorePath]) -> Vec<u8> {
    let store = LocalStore::open(directory).unwrap();
    let node = tree.put_root(&store, &path.to_string());
    let (narinfo, nar) = described(path, tree, refs);
    let ingest = store.ingest().unwrap();
    let info = narinfo.path_info(node.clone());
    ingest.put_root(&path.root(node), Some(&info)).unwrap();
    ingest.commit().unwrap();
    nar
}
