//! Stores that are served as a Nix daemon.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use castore_fs::binary_cache::{CacheAddress, ClosureMode};
use castore_fs::nix::{NarinfoFile, StorePath};
use castore_fs::server::{
    HandOver, Listener, NixDaemonOptions, ServerLimits, ServerOptions, serve,
};
use castore_fs::store::{CacheOptions, LocalStore, Store};
use castore_fs::stores::{
    NamedStore, OpenedStore, QuestionLimits, StorePlan, ValidPaths, open_all,
};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use kit::model::Model;
use kit::patience::wait_until;
use kit::program::program;
use kit::written;

/// A daemon; stops when dropped.
pub(crate) struct Daemon {
    pub socket: PathBuf,
    pub opened: OpenedStore,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn start(plan: &StorePlan, socket: &Path, limits: ServerLimits) -> Self {
        Self::with_connections(plan, socket, limits, HandOver::default())
    }

    /// With limits of what a question may lead to.
    pub(crate) fn with_questions(
        plan: &StorePlan,
        socket: &Path,
        questions: QuestionLimits,
    ) -> Self {
        Self::with(plan, socket, limits(), HandOver::default(), questions)
    }

    /// With the connections of the one before.
    pub(crate) fn with_connections(
        plan: &StorePlan,
        socket: &Path,
        limits: ServerLimits,
        hand_over: HandOver,
    ) -> Self {
        let questions = QuestionLimits::default();
        Self::with(plan, socket, limits, hand_over, questions)
    }

    fn with(
        plan: &StorePlan,
        socket: &Path,
        limits: ServerLimits,
        hand_over: HandOver,
        questions: QuestionLimits,
    ) -> Self {
        let named = NamedStore {
            name: "served".to_owned(),
            plan: plan.clone(),
        };
        let runtime = Runtime::new().unwrap();
        let opened = {
            let _inside = runtime.enter();
            open_all(&[named], &BTreeMap::new()).unwrap()["served"].clone()
        };
        let options = ServerOptions {
            nix_daemon: Some(NixDaemonOptions {
                paths: ValidPaths::with_limits(&opened, questions).unwrap(),
                hand_over,
            }),
            limits,
            drain: Duration::from_secs(5),
            ..ServerOptions::default()
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

/// `castore-fs serve --nix-daemon`, with all rights given up; killed when dropped.
pub(crate) struct Program(Child);

impl Program {
    /// Serves the local store in `directory` on `socket`, with more arguments.
    pub(crate) fn start(directory: &Path, socket: &Path, arguments: &[&str]) -> Self {
        Self::of(&format!("local:{}", directory.display()), socket, arguments)
    }

    /// Serves the store at a URL on `socket`, with more arguments.
    pub(crate) fn of(store: &str, socket: &Path, arguments: &[&str]) -> Self {
        let child = Command::new(program())
            .args(["serve", "--store", store, "--nix-daemon"])
            .arg(socket)
            .args(arguments)
            .spawn();
        let started = Self(child.unwrap());
        wait_until("the server listens", || UnixStream::connect(socket).is_ok());
        started
    }
}

impl Program {
    /// The most memory that it has had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The limits of a Nix daemon.
pub(crate) fn limits() -> ServerLimits {
    ServerLimits::of_nix_daemon()
}

/// The plan of the local store in `directory`.
pub(crate) fn local(directory: &Path) -> StorePlan {
    StorePlan::Url(format!("local:{}", directory.display()))
}

/// The plan of the binary cache at `url`, unpacked into the local store in `directory`.
pub(crate) fn binary_cache(url: &str, directory: &Path) -> StorePlan {
    StorePlan::BinaryCache {
        caches: vec![CacheAddress::parse(url).unwrap()],
        into: Box::new(NamedStore {
            name: "disk".to_owned(),
            plan: local(directory),
        }),
        closure: ClosureMode::Off,
        options: CacheOptions::default(),
    }
}

/// What is known of `tree` as `path` with these references; and its NAR.
pub(crate) fn described(
    path: &StorePath,
    tree: &Model,
    refs: &[&StorePath],
) -> (NarinfoFile, Vec<u8>) {
    let nar = written::nar(tree, &Runtime::new().unwrap());
    let mut narinfo = written::narinfo(path, &nar, "none");
    narinfo.references = refs.iter().map(|path| (*path).clone()).collect();
    narinfo.references.sort_by_key(StorePath::to_string);
    narinfo.signatures = vec![written::secret_key("test-1", 1).sign(&narinfo.fingerprint())];
    (narinfo, nar)
}

/// Adds `tree` as `path` with these references to the local store in `directory`; returns its NAR.
pub(crate) fn add(
    directory: &Path,
    path: &StorePath,
    tree: &Model,
    refs: &[&StorePath],
) -> Vec<u8> {
    let store = LocalStore::open(directory).unwrap();
    let (narinfo, nar) = described(path, tree, refs);
    let ingest = store.ingest().unwrap();
    let node = tree.put(&*ingest);
    let info = narinfo.path_info(node.clone());
    ingest.put_root(&path.root(node), Some(&info)).unwrap();
    ingest.commit().unwrap();
    nar
}
