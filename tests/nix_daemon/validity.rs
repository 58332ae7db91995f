//! What was reported as valid stays valid.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use castore_fs::castore::Name;
use castore_fs::nix::StorePath;
use castore_fs::store::{Error, LocalStore, RootRecord, Store, ValidPath};
use castore_fs::stores::{NamedStore, StorePlan, cannot_promise};
use tempfile::TempDir;

use crate::bench::{Daemon, Program, add, binary_cache, described, limits, local};
use crate::client::{Bytes, Client};
use kit::manager::Manager;
use kit::model::{Model, directory, file};
use kit::patience::wait_until;
use kit::program::program;
use kit::server::Server;
use kit::web::{Web, WebFaults};
use kit::written::{path, secret_key, write};

/// A binary cache on a server with dep <- middle <- top, and where it is unpacked.
struct Bench {
    written: TempDir,
    dir: TempDir,
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
            dir: tempfile::tempdir().unwrap(),
            written,
            paths,
            nars,
        }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn start(&self) -> Daemon {
        let key = secret_key("test-1", 1).public();
        let address = self.web.address;
        let url = format!("nix+http://{address}?trusted-public-keys={key}");
        let plan = binary_cache(&url, &self.disk());
        Daemon::start(&plan, &self.dir.path().join("socket"), limits())
    }

    /// The service of `castore-fs daemon` with the binary cache behind a listener at `nix.sock`.
    fn service(&self) -> Manager {
        let key = secret_key("test-1", 1).public();
        Manager::new(&format!(
            "[stores.disk]\nurl = 'local:@/disk'\n\
             [stores.nixos.binary-cache]\nurl = 'http://{}'\ninto = 'disk'\n\
             trusted-public-keys = ['{key}']\n\
             [listen.nix]\nstore = 'nixos'\naddress = 'unix:@/nix.sock'\nprotocol = 'nix-daemon'\n",
            self.web.address
        ))
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
    let [dep, _, app] = &bench.paths;
    {
        let daemon = bench.start();
        let mut client = Client::connect(&daemon.socket);
        assert!(client.is_valid(&app.absolute()));
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
    assert!(client.is_valid(&app.absolute()));
    assert_eq!(
        client
            .ask(6, Bytes::default().text(&dep.absolute()))
            .texts(),
        [bench.paths[1].absolute()]
    );
    assert_eq!(
        client
            .ask(26, Bytes::default().text(&app.absolute()))
            .word(),
        1
    );
    assert_eq!(bench.web.take_requests(), [""; 0], "offline");
    // The contents are not there: an error, and no end of validity.
    let mut client = Client::connect(&daemon.socket);
    let refused = client.try_ask(38, Bytes::default().text(&app.absolute()));
    assert!(refused.unwrap_err().contains("reported to Nix as valid"));
    assert!(client.is_valid(&app.absolute()));
}

#[test]
fn a_path_stays_valid_though_the_process_is_killed_right_after_the_answer() {
    let bench = Bench::new();
    let [dep, _, app] = &bench.paths;
    let mut service = bench.service();
    let socket = service.join("nix.sock");
    let ask_info = |client: &mut Client| {
        let wanted = Bytes::default().text(&app.absolute());
        assert_eq!(client.ask(26, wanted).word(), 1);
        let (deriver, hash, references) = (client.text(), client.text(), client.texts());
        let (since, size, ultimate) = (client.word(), client.word(), client.word());
        let signatures = client.texts();
        assert_eq!(client.text(), "", "no content address");
        assert_eq!((&deriver[..], ultimate), ("", 0));
        assert!(!references.is_empty() && !signatures.is_empty());
        (hash, references, since, size, signatures)
    };
    service.start_and_wait();
    let before = ask_info(&mut Client::connect(&socket));
    service.kill();
    bench.break_server();
    service.start_and_wait();
    let mut client = Client::connect(&socket);
    assert!(client.is_valid(&dep.absolute()));
    assert_eq!(ask_info(&mut client), before);
    // The contents, which are written to the disk later, are as they were or are fetched again.
    let nar = || Bytes::default().text(&app.absolute());
    let size = bench.nars[2].len();
    bench.web.set_faults(WebFaults::default());
    assert_eq!(client.ask(38, nar()).bytes(size), bench.nars[2]);
    service.kill();
    service.start_and_wait();
    let mut client = Client::connect(&socket);
    assert_eq!(ask_info(&mut client), before);
    assert_eq!(client.ask(38, nar()).bytes(size), bench.nars[2]);
}

#[test]
fn contents_that_were_evicted_come_again_with_the_same_hash_or_not_at_all() {
    let bench = Bench::new();
    let daemon = bench.start();
    let app = &bench.paths[2];
    let mut client = Client::connect(&daemon.socket);
    let get = || Bytes::default().text(&app.absolute());
    assert_eq!(
        client.ask(38, get()).bytes(bench.nars[2].len()),
        bench.nars[2]
    );
    assert_eq!(bench.nar_requests(), 1);
    let evict = |daemon: &Daemon| daemon.opened.cache.as_ref().unwrap().drop_cache().unwrap();
    evict(&daemon);
    assert!(
        client.is_valid(&app.absolute()),
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
    let (narinfo, nar) = described(app, &file("another"), &[&bench.paths[1]]);
    write(bench.written.path(), &narinfo, &nar);
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&app.absolute()));
    let refused = client.try_ask(38, get()).unwrap_err();
    assert!(refused.contains("NarHash"), "{refused}");
    assert_eq!(bench.nar_requests(), 0);
}

#[test]
fn a_path_whose_references_are_not_all_there_is_not_valid() {
    let bench = Bench::new();
    let [dep, middle, app] = &bench.paths;
    std::fs::remove_file(bench.written.path().join(format!("{}.narinfo", dep.hash()))).unwrap();
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    for path in [app, middle, dep] {
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
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (dep, app) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &app, &file("top"), &[&dep]);
    let daemon = Daemon::start(&local(&store), &dir.path().join("socket"), limits());
    let local = LocalStore::open(&store).unwrap();
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&app.absolute()));
    // The one that was asked for, and the one that it refers to.
    for path in [&app, &dep] {
        let refused = remove(&local, path).unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        assert!(refused.to_string().contains("rm --reported"), "{refused}");
    }
    let ingest = local.ingest().unwrap();
    let node = file("another").put(&*ingest);
    ingest.put_root(&app.root(node), None).unwrap();
    assert!(matches!(ingest.commit(), Err(Error::Refused { .. })));
    assert!(client.is_valid(&app.absolute()));
    local
        .forget_valid_paths(&[app.to_string().as_bytes()])
        .unwrap();
    remove(&local, &app).unwrap();
    assert!(!client.is_valid(&app.absolute()));
}

#[test]
fn a_path_that_was_fetched_before_is_reported_as_it_is_cached() {
    let bench = Bench::new();
    let dep = &bench.paths[0];
    {
        // A reader, and no client of Nix.
        let daemon = bench.start();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let found = runtime.block_on(daemon.opened.store.root(dep.to_string().as_bytes()));
        assert!(found.unwrap().is_some());
        daemon.opened.cache.as_ref().unwrap().flush();
    }
    let before = described(dep, &trees()[0], &[]).0.nar;
    let (narinfo, nar) = described(dep, &file("another build"), &[]);
    write(bench.written.path(), &narinfo, &nar);
    let daemon = bench.start();
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&dep.absolute()));
    let known = reported(&LocalStore::open(&bench.disk()).unwrap(), dep).unwrap();
    assert_eq!(known.info.nar, before);
}

#[test]
fn contents_that_are_gone_from_a_cache_do_not_hide_those_of_other_paths() {
    let bench = Bench::new();
    let [dep, middle, _] = &bench.paths;
    let daemon = bench.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = daemon.opened.store.clone();
    let look_up = |path: &StorePath| runtime.block_on(store.root(path.to_string().as_bytes()));
    let mut client = Client::connect(&daemon.socket);
    for path in [middle, dep] {
        assert!(client.is_valid(&path.absolute()));
        look_up(path).unwrap().unwrap();
    }
    daemon.opened.cache.as_ref().unwrap().drop_cache().unwrap();
    // The last that was used is gone.
    bench.web.set_faults(WebFaults {
        status: Some(("00000", 404)),
        ..WebFaults::default()
    });
    let root = look_up(middle).unwrap().unwrap();
    let digest = root.node.borrow().digest().unwrap();
    let found = runtime.block_on(store.directory(&digest)).unwrap();
    assert!(found.is_some());
}

#[test]
fn a_path_that_was_reported_without_its_root_becomes_no_other_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (source, name) = (dir.path().join("source"), path('0', "dep"));
    add(&source, &name, &file("dep"), &[]);
    let reported = found(&LocalStore::open(&source).unwrap(), &name);
    let local = LocalStore::open(&store).unwrap();
    let of_upstream = ValidPath::new(reported.info.clone(), None);
    assert!(local.add_valid_paths(&[of_upstream], &[]).unwrap());
    for add_root in [true, false] {
        let ingest = local.ingest().unwrap();
        let root = name.root(file("another").put(&*ingest));
        match add_root {
            true => ingest.add_root(&root, None).unwrap(),
            false => ingest.put_root(&root, None).unwrap(),
        }
        let refused = ingest.commit().unwrap_err().to_string();
        assert!(refused.contains("with another NAR"), "{refused}");
    }
    let ingest = local.ingest().unwrap();
    let node = file("dep").put(&*ingest);
    let info = reported.info.path_info(node.clone());
    ingest.put_root(&name.root(node), Some(&info)).unwrap();
    ingest.commit().unwrap();
}

#[test]
fn a_root_that_an_upstream_replaces_stays_what_was_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (source, name) = (dir.path().join("source"), path('0', "dep"));
    let nar = add(&source, &name, &file("dep"), &[]);
    let upstream = LocalStore::open(&source).unwrap();
    let server = Server::tcp(Arc::new(upstream.clone()));
    let plan = StorePlan::Cache {
        local_store: Box::new(NamedStore {
            name: "near".to_owned(),
            plan: local(&dir.path().join("near")),
        }),
        upstream: Box::new(NamedStore {
            name: "far".to_owned(),
            plan: StorePlan::Url(server.url.clone()),
        }),
        options: Default::default(),
    };
    let socket = dir.path().join("socket");
    let daemon = Daemon::start(&plan, &socket, limits());
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&name.absolute()));
    let store = daemon.opened.store.clone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root_now = || runtime.block_on(store.root(name.to_string().as_bytes()));
    let before = root_now().unwrap().unwrap();
    let seen = store.roots_version().unwrap();
    let ingest = upstream.ingest().unwrap();
    let other = name.root(file("another build").put(&*ingest));
    ingest.put_root(&other, None).unwrap();
    ingest.commit().unwrap();
    wait_until("the replacement is reported", || {
        store.roots_version().unwrap() != seen
    });
    assert_eq!(root_now().unwrap().unwrap(), before);
    assert_eq!(runtime.block_on(store.roots()).unwrap(), [before]);
    let get = Bytes::default().text(&name.absolute());
    assert_eq!(client.ask(38, get).bytes(nar.len()), nar);
    assert!(client.is_valid(&name.absolute()));
}

#[test]
fn rm_forgets_reported_paths_whose_contents_are_not_there() {
    let bench = Bench::new();
    let [dep, middle, app] = &bench.paths;
    let daemon = bench.start();
    assert!(Client::connect(&daemon.socket).is_valid(&app.absolute()));
    drop(daemon);
    let rm = |arguments: &[&str], paths: &[&StorePath]| {
        let removed = Command::new(program())
            .args(["rm", "--store"])
            .arg(format!("local:{}", bench.disk().display()))
            .args(arguments)
            .args(paths.iter().map(|path| path.to_string()))
            .output()
            .unwrap();
        let errors = String::from_utf8(removed.stderr).unwrap();
        match removed.status.success() {
            true => Ok(String::from_utf8(removed.stdout).unwrap()),
            false => Err(errors),
        }
    };
    let is_reported = |path| reported(&LocalStore::open(&bench.disk()).unwrap(), path).is_some();
    let refused = rm(&[], &[app]).unwrap_err();
    assert!(refused.contains("which --reported forgets"), "{refused}");
    for arguments in [&["--reported"][..], &["--reported", "--dry-run"]] {
        let refused = rm(arguments, &[dep]).unwrap_err();
        assert!(refused.contains("refers to it"), "{refused}");
    }
    assert_eq!(
        rm(&["--reported", "--dry-run"], &[app]).unwrap(),
        format!("{app}\n")
    );
    assert!(is_reported(app));
    rm(&["--reported"], &[app, middle, dep]).unwrap();
    assert!(![app, middle, dep].into_iter().any(is_reported));
}

/// Removes the root `path`.
fn remove(store: &LocalStore, path: &StorePath) -> Result<(), Error> {
    let ingest = store.ingest().unwrap();
    let name = path.to_string();
    ingest
        .remove_root(&Name::new(name.as_bytes()).unwrap())
        .unwrap();
    ingest.commit().map(drop)
}

/// What is known of `path`, which is a root.
fn found(store: &LocalStore, path: &StorePath) -> ValidPath {
    let record: Option<RootRecord> = store.root_record(path.to_string().as_bytes()).unwrap();
    let record = record.unwrap();
    ValidPath::of_root(record.path_info.unwrap(), record.root).unwrap()
}

fn reported(store: &LocalStore, path: &StorePath) -> Option<ValidPath> {
    store.valid_path(path.to_string().as_bytes()).unwrap()
}

#[test]
fn a_root_that_changed_since_it_was_found_is_not_entered() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("store");
    let (dep, outer, other) = (path('0', "dep"), path('1', "top"), path('2', "other"));
    add(&directory, &dep, &file("dep"), &[]);
    add(&directory, &outer, &file("top"), &[&dep]);
    add(&directory, &other, &file("other"), &[]);
    let store = LocalStore::open(&directory).unwrap();
    let of_roots = [&dep, &outer, &other].map(|path| found(&store, path));
    // Removed; then replaced by another tree; then as it was, with other references.
    remove(&store, &dep).unwrap();
    assert!(!store.add_valid_paths(&[], &of_roots).unwrap());
    add(&directory, &dep, &file("changed"), &[]);
    assert!(!store.add_valid_paths(&[], &of_roots).unwrap());
    add(&directory, &dep, &file("dep"), &[&other]);
    assert!(!store.add_valid_paths(&[], &of_roots).unwrap());
    // One that refers to a path that is not entered any more.
    assert!(!store.add_valid_paths(&[], &of_roots[1..]).unwrap());
    assert!(!store.add_valid_paths(&of_roots[1..], &[]).unwrap());
    assert_eq!(store.valid_paths(b"").unwrap(), []);
    add(&directory, &dep, &file("dep"), &[]);
    assert!(store.add_valid_paths(&[], &of_roots).unwrap());
    assert_eq!(store.valid_paths(b"").unwrap().len(), 3);
}

#[test]
fn a_root_is_reported_or_removed_and_never_both() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("store");
    let pairs: Vec<[StorePath; 2]> = "0123456789abcdfg"
        .chars()
        .map(|hash| [path(hash, "dep"), path(hash, "top")])
        .collect();
    for [dep, outer] in &pairs {
        add(&directory, dep, &file("dep"), &[]);
        add(&directory, outer, &file("top"), &[dep]);
    }
    let daemon = Daemon::start(&local(&directory), &dir.path().join("socket"), limits());
    let mut client = Client::connect(&daemon.socket);
    let store = LocalStore::open(&directory).unwrap();
    for [dep, outer] in &pairs {
        let start = Barrier::new(2);
        let (is_valid, removed) = std::thread::scope(|scope| {
            let removed = scope.spawn(|| {
                start.wait();
                remove(&store, dep)
            });
            start.wait();
            // While the removal is being committed.
            std::thread::sleep(Duration::from_millis(1));
            (client.is_valid(&outer.absolute()), removed.join().unwrap())
        });
        assert_eq!(is_valid, removed.is_err(), "{removed:?}");
        assert_eq!(client.is_valid(&outer.absolute()), is_valid);
        let dep = dep.to_string();
        let root = store.root_record(dep.as_bytes()).unwrap();
        assert_eq!(root.is_some(), is_valid);
    }
}

#[test]
fn a_path_that_a_reported_one_refers_to_is_not_forgotten_alone() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("store");
    let paths = [path('0', "dep"), path('1', "middle"), path('2', "top")];
    let [dep, middle, outer] = &paths;
    add(&directory, dep, &file("dep"), &[]);
    add(&directory, middle, &file("middle"), &[dep, middle]);
    add(&directory, outer, &file("top"), &[middle]);
    let daemon = Daemon::start(&local(&directory), &dir.path().join("socket"), limits());
    let mut client = Client::connect(&daemon.socket);
    assert!(client.is_valid(&outer.absolute()));
    let referrers_of_dep = |client: &mut Client| {
        let dep = Bytes::default().text(&dep.absolute());
        client.ask(6, dep).texts()
    };
    assert_eq!(referrers_of_dep(&mut client), [middle.absolute()]);
    let store = LocalStore::open(&directory).unwrap();
    let forget = |paths: &[&StorePath]| {
        let names: Vec<String> = paths.iter().map(|path| path.to_string()).collect();
        let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
        store.forget_valid_paths(&names)
    };
    // The command takes all that refer to it, and those that refer to them.
    let refused = forget(&[dep]).unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    let refused = refused.to_string();
    assert!(refused.contains(&format!("\"{middle}\"")), "{refused}");
    let command = format!("castore-fs rm --reported {dep} {middle} {outer}`");
    assert!(refused.contains(&command), "{refused}");
    let refused = forget(&[dep, middle]).unwrap_err().to_string();
    assert!(refused.contains(&command), "{refused}");
    assert!(paths.iter().all(|path| reported(&store, path).is_some()));
    forget(&[middle, outer]).unwrap();
    remove(&store, middle).unwrap();
    // As many paths as before: what refers to it is not answered from memory.
    let other = path('3', "other");
    add(&directory, &other, &file("other"), &[dep]);
    add(&directory, &path('4', "more"), &file("more"), &[]);
    assert_eq!(referrers_of_dep(&mut client), [other.absolute()]);
    forget(&[dep, &other]).unwrap();
    assert_eq!(reported(&store, dep), None);
}

#[test]
fn a_server_that_has_given_up_its_rights_reports_paths() {
    let dir = tempfile::tempdir().unwrap();
    let (store, socket) = (dir.path().join("store"), dir.path().join("socket"));
    let (dep, outer) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &outer, &file("top"), &[&dep]);
    let _server = Program::start(&store, &socket, &[]);
    let mut client = Client::connect(&socket);
    assert!(client.is_valid(&outer.absolute()));
    let store = LocalStore::open(&store).unwrap();
    assert!(reported(&store, &dep).is_some());
}

#[test]
fn a_binary_cache_in_a_directory_is_read_by_a_server_without_rights_and_missed_when_it_is_gone() {
    let bench = Bench::new();
    let key = secret_key("test-1", 1).public();
    let url = format!(
        "nix+file://{}?trusted-public-keys={key}&into={}",
        bench.written.path().display(),
        bench.disk().display()
    );
    let app = &bench.paths[2];
    let hidden = bench.dir.path().join("hidden");
    let look_up = || {
        let listed = Command::new(program())
            .args(["ls", "-l", "--store", &url, &app.to_string()])
            .output()
            .unwrap();
        let errors = String::from_utf8(listed.stderr).unwrap();
        listed.status.success().then_some(()).ok_or(errors)
    };
    // A disk that is not mounted.
    std::fs::rename(bench.written.path(), &hidden).unwrap();
    let why = look_up().unwrap_err();
    assert!(why.contains("does not exist"), "{why}");
    std::fs::rename(&hidden, bench.written.path()).unwrap();
    look_up().unwrap();
    let socket = bench.dir.path().join("socket");
    let _server = Program::of(&url, &socket, &[]);
    assert!(Client::connect(&socket).is_valid(&bench.paths[1].absolute()));
    let served = Command::new(program())
        .args(["serve", "--store", &url, "--binary-cache", "127.0.0.1:0"])
        .output()
        .unwrap();
    let why = String::from_utf8(served.stderr).unwrap();
    assert!(
        !served.status.success() && why.contains("lists its paths"),
        "{why}"
    );
}

#[test]
fn options_that_have_no_effect_on_a_nix_daemon_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    add(&store, &path('0', "dep"), &file("dep"), &[]);
    let refused = |arguments: &[&str]| {
        let served = Command::new(program())
            .args(["serve", "--store", &format!("local:{}", store.display())])
            .args(arguments)
            .output()
            .unwrap();
        assert!(!served.status.success());
        String::from_utf8(served.stderr).unwrap()
    };
    let socket = dir.path().join("socket");
    let socket = socket.to_str().unwrap();
    for option in [&["--writable"][..], &["--token-file", "/tokens"]] {
        let why = refused(&[&["--nix-daemon", socket], option].concat());
        assert!(why.contains("has no effect on --nix-daemon"), "{why}");
    }
    let why = refused(&["--nix-daemon", "[::1]:5000"]);
    assert!(why.contains("on a Unix socket: write its path"), "{why}");
    std::fs::write(socket, "no socket").unwrap();
    for address in [socket, &format!("unix://{socket}")] {
        let why = refused(&["--nix-daemon", address]);
        assert!(why.contains("no socket has this path"), "{why}");
    }
}

#[test]
fn a_lost_index_loses_no_path_that_was_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (dep, app, gone) = (path('0', "dep"), path('1', "top"), path('2', "gone"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &app, &file("top"), &[&dep]);
    add(&store, &gone, &file("gone"), &[]);
    let daemon = Daemon::start(&local(&store), &dir.path().join("socket"), limits());
    let mut client = Client::connect(&daemon.socket);
    for path in [&app, &gone] {
        assert!(client.is_valid(&path.absolute()));
    }
    drop((client, daemon));
    let opened = LocalStore::open(&store).unwrap();
    let before = [&app, &dep].map(|path| reported(&opened, path));
    assert!(before.iter().all(Option::is_some));
    opened
        .forget_valid_paths(&[gone.to_string().as_bytes()])
        .unwrap();
    drop(opened);
    std::fs::remove_file(store.join("index.redb")).unwrap();
    for _ in 0..2 {
        let (repaired, _) = LocalStore::repair(&store).unwrap();
        let after = [&app, &dep].map(|path| reported(&repaired, path));
        assert_eq!(after, before);
        assert_eq!(reported(&repaired, &gone), None);
        drop(repaired);
        // The journal that the repair wrote has them too.
        std::fs::remove_file(store.join("index.redb")).unwrap();
    }
}

#[test]
fn a_repair_without_index_and_journal_reports_that_valid_paths_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dep) = (dir.path().join("store"), path('0', "dep"));
    add(&store, &dep, &file("dep"), &[]);
    let socket = dir.path().join("socket");
    let is_valid = || {
        let daemon = Daemon::start(&local(&store), &socket, limits());
        Client::connect(&daemon.socket).is_valid(&dep.absolute())
    };
    assert!(is_valid());
    let repair = || {
        let repaired = Command::new(program())
            .args(["verify", "--repair", "--store"])
            .arg(format!("local:{}", store.display()))
            .output()
            .unwrap();
        assert!(repaired.status.success(), "{repaired:?}");
        String::from_utf8(repaired.stdout).unwrap()
    };
    let lost = "the paths that were reported as valid are lost too";
    std::fs::remove_file(store.join("index.redb")).unwrap();
    assert!(!repair().contains(lost));
    assert!(is_valid());
    for name in ["index.redb", "journal"] {
        std::fs::remove_file(store.join(name)).unwrap();
    }
    let reported = repair();
    assert!(
        reported.contains(lost) && reported.contains("--print-invalid"),
        "{reported}"
    );
    assert!(!is_valid());
    // What the message suggests.
    add(&store, &dep, &file("dep"), &[]);
    assert!(is_valid());
}

#[test]
fn stores_that_cannot_promise_it_are_refused() {
    let named = |plan| {
        Box::new(NamedStore {
            name: "x".to_owned(),
            plan,
        })
    };
    let url = |url: &str| StorePlan::Url(url.to_owned());
    let cache = |upstream: &str| StorePlan::Cache {
        local_store: named(url("local:/srv/near")),
        upstream: named(url(upstream)),
        options: Default::default(),
    };
    for plan in [
        url("memory:"),
        url("grpc+unix:/run/s"),
        url("objectstore+file:///srv/x"),
        cache("memory:"),
        StorePlan::Filter {
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
