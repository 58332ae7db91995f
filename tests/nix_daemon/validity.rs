//! What was reported as valid stays valid.

use std::path::PathBuf;

use castore_fs::castore::Name;
use castore_fs::nix::StorePath;
use castore_fs::store::{Error, LocalStore, Store};
use castore_fs::stores::{Named, Plan, cannot_promise};
use tempfile::TempDir;

use crate::bench::{Daemon, add, binary_cache, described, limits, local};
use crate::client::{Bytes, Client};
use crate::written::{path, secret_key, write};
use kit::model::{Model, directory, file};
use kit::web::{Web, WebFaults};

/// A binary cache on a server with dep <- middle <- top, and where it is unpacked.
struct Bench {
    written: TempDir,
    folder: TempDir,
    web: Web,
    paths: [StorePath; 3],
    nars: Vec<Vec<u8>>,
}

fn trees() -> [Model; 3] {
    [
        file("dep"),
        directory([("a", file("x".repeat(5000)))]),
        directory([("b", file("y".repeat(5000)))]),
    ]
}

impl Bench {
    fn new() -> Self {
        let written = tempfile::tempdir().unwrap();
        let paths = [path('0', "dep"), path('1', "middle"), path('2', "top")];
        let mut nars = Vec::new();
        for (index, tree) in trees().iter().enumerate() {
            let refs: Vec<_> = index
                .checked_sub(1)
                .map(|at| &paths[at])
                .into_iter()
                .collect();
            let (narinfo, nar) = described(&paths[index], tree, &refs);
            write(written.path(), &narinfo, &nar);
            nars.push(nar);
        }
        Self {
            web: Web::serve(written.path()),
            folder: tempfile::tempdir().unwrap(),
            written,
            paths,
            nars,
        }
    }

    fn into(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn start(&self) -> Daemon {
        let key = secret_key("test-1", 1).public();
        let address = self.web.address;
        let url = format!("nix+http://{address}?trusted-public-keys={key}");
        let plan = binary_cache(&url, &self.into());
        Daemon::start(&plan, &self.folder.path().join("socket"), limits())
    }

    fn break_server(&self) {
        self.web.set_faults(WebFaults {
            status: Some(("", 404)),
            ..WebFaults::default()
        });
    }

    fn nar_requests(&self) -> usize {
        let requests = self.web.take_requests();
        requests
            .iter()
            .filter(|request| request.contains("/nar/"))
            .count()
    }
}

#[test]
fn a_path_of_a_binary_cache_is_valid_by_its_narinfos_and_stays_so_without_the_cache() {
    let bench = Bench::new();
    let [dep, _, top] = &bench.paths;
    {
        let daemon = bench.start();
        let mut client = Client::connect(&daemon.socket);
        assert!(client.is_valid(&top.absolute()));
        let requests = bench.web.take_requests();
        let narinfos = requests
            .iter()
            .filter(|one| one.ends_with(".narinfo"))
            .count();
        assert_eq!((narinfos, requests.len()), (3, 4), "{requests:?}");
        // Everything below is known by now.
        assert!(client.is_valid(&dep.absolute()));
        let all: Vec<_> = bench.paths.iter().map(StorePath::absolute).collect();
        assert_eq!(client.ask(23, Bytes::default()).texts(), all);
        assert_eq!(bench.web.take_requests(), [""; 0]);
    }
    bench.break_server();
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&top.absolute()));
    assert_eq!(
        client
            .ask(6, Bytes::default().text(&dep.absolute()))
            .texts(),
        [bench.paths[1].absolute()]
    );
    assert_eq!(
        client
            .ask(26, Bytes::default().text(&top.absolute()))
            .word(),
        1
    );
    assert_eq!(bench.web.take_requests(), [""; 0], "offline");
    // The contents are not there: an error, and no end of validity.
    let mut client = Client::connect(&daemon.socket);
    let refused = client.try_ask(38, Bytes::default().text(&top.absolute()));
    assert!(refused.unwrap_err().contains("reported to Nix as valid"));
    assert!(client.is_valid(&top.absolute()));
}

#[test]
fn contents_that_were_evicted_come_again_with_the_same_hash_or_not_at_all() {
    let bench = Bench::new();
    let daemon = bench.start();
    let top = &bench.paths[2];
    let mut client = Client::connect(&daemon.socket);
    let get = || Bytes::default().text(&top.absolute());
    assert_eq!(
        client.ask(38, get()).bytes(bench.nars[2].len()),
        bench.nars[2]
    );
    assert_eq!(bench.nar_requests(), 1);
    let evict = |daemon: &Daemon| daemon.opened.cache.as_ref().unwrap().drop_cache().unwrap();
    evict(&daemon);
    assert!(
        client.is_valid(&top.absolute()),
        "what is known of it is not evicted"
    );
    assert_eq!(
        client.ask(38, get()).bytes(bench.nars[2].len()),
        bench.nars[2]
    );
    assert_eq!(bench.nar_requests(), 1);
    // Another build of the same path takes its place in the cache.
    evict(&daemon);
    drop(client);
    drop(daemon);
    let (narinfo, nar) = described(top, &file("another"), &[&bench.paths[1]]);
    write(bench.written.path(), &narinfo, &nar);
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&top.absolute()));
    let refused = client.try_ask(38, get()).unwrap_err();
    assert!(refused.contains("NarHash"), "{refused}");
    assert_eq!(bench.nar_requests(), 0);
}

#[test]
fn a_path_whose_references_are_not_all_there_is_not_valid() {
    let bench = Bench::new();
    let [dep, middle, top] = &bench.paths;
    std::fs::remove_file(bench.written.path().join(format!("{}.narinfo", dep.hash()))).unwrap();
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    for path in [top, middle, dep] {
        assert!(!client.is_valid(&path.absolute()), "{path}");
    }
}

#[test]
fn without_the_server_what_was_never_reported_is_not_valid() {
    let bench = Bench::new();
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&bench.paths[0].absolute()));
    bench.web.set_faults(WebFaults {
        status: Some(("", 403)),
        ..WebFaults::default()
    });
    assert!(!client.is_valid(&bench.paths[2].absolute()));
    assert!(client.is_valid(&bench.paths[0].absolute()));
}

#[test]
fn a_root_that_was_reported_is_neither_removed_nor_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let (dep, top) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &top, &file("top"), &[&dep]);
    let daemon = Daemon::start(&local(&store), &folder.path().join("socket"), limits());
    let local = LocalStore::open(&store).unwrap();
    let remove = |path: &StorePath| {
        let ingest = local.ingest().unwrap();
        let name = path.to_string();
        ingest
            .remove_root(&Name::new(name.as_bytes()).unwrap())
            .unwrap();
        ingest.commit().map(drop)
    };
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&top.absolute()));
    // The one that was asked for, and the one that it refers to.
    for path in [&top, &dep] {
        let refused = remove(path).unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains("rm --reported"), "{refused}");
    }
    let ingest = local.ingest().unwrap();
    let node = file("another").put(&*ingest);
    ingest.put_root(&top.root(node), None).unwrap();
    assert!(matches!(ingest.commit(), Err(Error::Refused { .. })));
    assert!(client.is_valid(&top.absolute()));
    local
        .forget_valid_paths(&[top.to_string().as_bytes()])
        .unwrap();
    remove(&top).unwrap();
    assert!(!client.is_valid(&top.absolute()));
}

#[test]
fn stores_that_cannot_promise_it_are_refused() {
    let named = |plan| {
        Box::new(Named {
            name: "x".to_owned(),
            plan,
        })
    };
    let url = |url: &str| Plan::Url(url.to_owned());
    let cache = |far: &str| Plan::Cache {
        near: named(url("local:/srv/near")),
        far: named(url(far)),
        options: Default::default(),
    };
    for plan in [
        url("memory:"),
        url("grpc+unix:/run/s"),
        url("objectstore+file:///srv/x"),
        cache("memory:"),
        Plan::Filter {
            of: named(url("local:/srv/x")),
            roots: Vec::new(),
        },
    ] {
        let why = cannot_promise(&plan).unwrap().to_string();
        assert!(why.contains("cannot promise"), "{why}");
    }
    for plan in [url("local:/srv/x"), cache("grpc+unix:/run/s")] {
        assert_eq!(cannot_promise(&plan), None);
    }
}
