//! Listings of peers, which report no new roots, and of peers that list nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use castore_fs::fs::{FsOptions, MountRoot, RootListing};
use castore_fs::store::{Cache, CacheOptions, Error, Store};

use super::peer::Peer;
use super::{put_file, put_root};
use kit::mounted::{Mounted, can_mount};
use kit::server::Server;

const FIRST: &str = "yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree";
const SECOND: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-second";
const MAX_AGE: Duration = Duration::from_secs(1);
/// Longer than anything here takes on a busy machine.
const HANGS: Duration = Duration::from_secs(60);

fn add(store: &dyn Store, root_name: &str) {
    put_root(store, root_name, |ingest| {
        put_file(ingest, root_name.as_bytes())
    });
}

fn names(store: &dyn Store, runtime: &tokio::runtime::Runtime) -> Vec<String> {
    let roots = runtime.block_on(store.roots()).unwrap();
    roots.iter().map(|root| root.name.to_string()).collect()
}

fn mount(store: Arc<dyn Store>) -> Mounted {
    let list = RootListing::All;
    let options = FsOptions {
        mount_root: MountRoot::Roots { list },
        ..FsOptions::default()
    };
    Mounted::new(store, options)
}

/// The names that a directory lists, without a look-up of any.
fn listed(mount: &Mounted) -> std::io::Result<Vec<String>> {
    let entries = std::fs::read_dir(mount.path())?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap()));
    let mut names: Vec<_> = names.collect::<std::io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

#[test]
fn a_new_root_changes_the_version_without_a_look_up() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let peer = Peer::default();
    let store = peer.store.clone();
    let server = peer.serve(false);
    add(&store, FIRST);
    let local_store = tempfile::tempdir().unwrap();
    let cached = |upstream: Arc<dyn Store>| -> Arc<dyn Store> {
        let options = CacheOptions {
            roots_max_age: MAX_AGE,
            ..CacheOptions::default()
        };
        let local_store = format!("local:{}", local_store.path().display());
        Arc::new(Cache::open(&local_store, upstream, options).unwrap())
    };
    let plain: Arc<dyn Store> = Arc::new(server.client());
    plain.keep_listings_fresh(MAX_AGE);
    for client in [plain, cached(Arc::new(server.client()))] {
        assert_eq!(names(&*client, &runtime), [FIRST]);
        let seen = client.roots_version().unwrap();
        let same = client.wait_for_roots(seen, MAX_AGE * 3).unwrap();
        assert_eq!(same, seen, "nothing has changed");
        add(&store, SECOND);
        let now = client.wait_for_roots(seen, HANGS).unwrap();
        assert_ne!(now, seen, "the change was not noticed");
        assert_eq!(names(&*client, &runtime), [SECOND, FIRST]);
        let ingest = store.ingest().unwrap();
        ingest.remove_root(&super::name(SECOND)).unwrap();
        ingest.commit().unwrap();
    }
}

#[test]
fn a_running_mount_of_a_peer_lists_new_roots() {
    if !can_mount() {
        return;
    }
    let peer = Peer::default();
    let store = peer.store.clone();
    add(&store, FIRST);
    let server = peer.serve(false);
    // As it is seen through a server of ours, too.
    let client = server.client();
    client.keep_listings_fresh(MAX_AGE);
    let between = Server::read_only(Arc::new(client.clone()));
    let mounts = [mount(Arc::new(client)), mount(Arc::new(between.client()))];
    let deadline = Instant::now() + HANGS;
    for mount in &mounts {
        // The kernel keeps the listing: it sends no request for the next one.
        while {
            let (requests, names) = mount.requests_of(|| listed(mount).unwrap());
            assert_eq!(names, [FIRST]);
            requests.of("READDIR") + requests.of("READDIRPLUS") > 0
        } {
            assert!(Instant::now() < deadline, "the kernel keeps no listing");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    add(&store, SECOND);
    for mount in &mounts {
        while listed(mount).unwrap() != [SECOND, FIRST] {
            assert!(Instant::now() < deadline, "it is not listed");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_peer_that_cannot_list_answers_for_names_and_refuses_listings() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let peer = Peer {
        cannot_list: true,
        ..Peer::default()
    };
    add(&peer.store, FIRST);
    let listings = peer.listings.clone();
    let server = peer.serve(false);
    let client = server.client();
    let found = runtime.block_on(client.root(FIRST.as_bytes())).unwrap();
    assert!(found.is_some());
    let local_store = tempfile::tempdir().unwrap();
    let local_store = format!("local:{}", local_store.path().display());
    let cache = Cache::open(
        &local_store,
        Arc::new(client.clone()),
        CacheOptions::default(),
    )
    .unwrap();
    runtime.block_on(cache.root(FIRST.as_bytes())).unwrap();
    let between = Server::read_only(Arc::new(client.clone()));
    let stores: [&dyn Store; 3] = [&client, &cache, &between.client()];
    for store in stores {
        let refused = runtime.block_on(store.roots()).unwrap_err();
        assert!(matches!(refused, Error::Unlisted { .. }), "{refused}");
        let refused = refused.to_string();
        assert!(
            refused.contains("unimplemented") && refused.contains("name those"),
            "{refused}"
        );
    }
    if !can_mount() {
        return;
    }
    let mount = mount(Arc::new(client));
    let refused = listed(&mount).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP), "{refused}");
    assert_eq!(std::fs::read(mount.join(FIRST)).unwrap(), FIRST.as_bytes());
    assert!(listings.load(Ordering::Relaxed) > 0);
}
