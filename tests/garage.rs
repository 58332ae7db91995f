//! Object stores as users have them: a real S3 service of three nodes, one of which dies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use castore_fs::castore::Root;
use castore_fs::store::{ObjectStore, Store};

use kit::garage::{Cluster, SECRET};
use kit::mounted::Mounted;

/// The node that reads go through, the one that was written through, and the third.
const READ_AT: usize = 1;
const WRITTEN_AT: usize = 0;
const THIRD: usize = 2;
/// How long a read of what cannot be had may take to fail.
const PATIENCE: Duration = Duration::from_secs(20);

fn command(arguments: &[&str]) -> Output {
    let command = &mut Command::new(env!("CARGO_BIN_EXE_castore-fs"));
    command
        .args(arguments)
        .env("RUST_LOG", "trace")
        .output()
        .unwrap()
}

/// Runs castore-fs, which has to succeed and not to print the key.
fn run(arguments: &[&str]) -> String {
    let run = command(arguments);
    let reported = format!(
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(run.status.success(), "{arguments:?}: {reported}");
    assert!(!reported.contains(SECRET), "the key was printed");
    reported
}

/// A real tree: the sources of this program, with a large file and some hundred small ones beside
/// them.
fn make_tree(dir: &Path) {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let copied = Command::new("cp").arg("-r").arg(sources).arg(dir).status();
    assert!(copied.unwrap().success());
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut large = vec![0; 24 << 20];
    noise.fill(&mut large);
    fs::write(dir.join("large"), &large).unwrap();
    fs::create_dir(dir.join("small")).unwrap();
    for index in 0..200 {
        let small = &large[index * 1000..index * 2000 + 1];
        fs::write(dir.join(format!("small/{index}")), small).unwrap();
    }
}

/// Every file below `dir`, by its path there.
fn files(dir: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let mut found = BTreeMap::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            stack.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            found.insert(path.strip_prefix(dir).unwrap().to_owned(), path);
        }
    }
    found
}

/// A mount with an empty cache, through the node that serves reads.
fn cold_mount(cluster: &Cluster, root: &Root) -> Mounted {
    let store = ObjectStore::open(&cluster.url(READ_AT, "store")).unwrap();
    Mounted::mount_root(Arc::new(store), &root.node)
}

#[test]
fn a_cluster_of_three_loses_a_node_and_reads_continue() {
    if !kit::mounted::can_mount() {
        return;
    }
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let expected = files(&tree);
    assert!(expected.len() > 300);

    let step = steps();
    let written = cluster.url(WRITTEN_AT, "store");
    run(&["import", "--store", &written, tree.to_str().unwrap()]);
    let again = run(&["import", "--store", &written, tree.to_str().unwrap()]);
    assert!(!again.contains("panicked"));

    step("imported twice");

    // What was written through one node is read through another, and the third dies meanwhile.
    let store = ObjectStore::open(&cluster.url(READ_AT, "store")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = runtime.block_on(store.root(b"tree")).unwrap().unwrap();
    let mount = cold_mount(&cluster, &root);
    for (index, (path, original)) in expected.iter().enumerate() {
        if index == expected.len() / 2 {
            cluster.kill(THIRD);
        }
        let read = fs::read(mount.join(path)).unwrap();
        assert!(read == fs::read(original).unwrap(), "{path:?} differs");
    }
    assert_eq!(files(mount.path()).len(), expected.len());
    drop(mount);
    step("read while the third node died");
    cluster.revive(THIRD);

    // The endpoint's node dies: what was read stays, the rest fails, and soon.
    let mount = cold_mount(&cluster, &root);
    let known = Path::new("large");
    let length = fs::read(mount.join(known)).unwrap().len();
    cluster.kill(READ_AT);
    let started = Instant::now();
    let error = fs::read(mount.join("small/7")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let again = Instant::now();
    fs::read(mount.join("small/8")).unwrap_err();
    assert!(again.elapsed() < Duration::from_secs(2), "a second wait");
    assert_eq!(fs::read(mount.join(known)).unwrap().len(), length);
    cluster.revive(READ_AT);
    let started = Instant::now();
    let read = loop {
        match fs::read(mount.join("small/7")) {
            Ok(read) => break read,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(60), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(read, fs::read(tree.join("small/7")).unwrap());
    drop(mount);
    step("lost the node that is asked, and found it again");

    // Whole closures go from it and to it.
    let local_store = format!("local:{}", dir.path().join("near").display());
    let upstream = cluster.url(READ_AT, "copied");
    let from = cluster.url(READ_AT, "store");
    let reported = run(&["copy", "--from", &from, "--to", &local_store, "tree"]);
    assert!(
        reported.contains("copied") || reported.contains("blobs"),
        "{reported}"
    );
    run(&["verify", "--store", &local_store]);
    run(&["copy", "--from", &local_store, "--to", &upstream, "tree"]);
    run(&["verify", "--store", &upstream]);
    let again = run(&["copy", "--from", &local_store, "--to", &upstream, "tree"]);
    assert!(again.contains(" 0 blobs"), "{again}");
    step("copied from and to it");

    run(&["rm", "--store", &upstream, "tree"]);
    // Dates of objects have whole seconds.
    std::thread::sleep(Duration::from_secs(1));
    let options = ["--no-other-writers", "--grace", "0s"];
    let collected = run(&[&["gc", "--store", &upstream][..], &options].concat());
    assert!(collected.contains("(1 closure, "), "{collected}");
    run(&["verify", "--store", &from]);
    step("collected its garbage");
}

/// Prints what was done, and how long it took.
fn steps() -> impl Fn(&str) {
    let since = std::cell::Cell::new(Instant::now());
    move |done| println!("{done}: {:?}", since.replace(Instant::now()).elapsed())
}

#[test]
fn a_wrong_key_is_refused_by_name_and_not_printed() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let wrong = SECRET.replace('5', "6");
    let text = fs::read_to_string(cluster.credentials()).unwrap();
    fs::write(cluster.credentials(), text.replace(SECRET, &wrong)).unwrap();
    let run = command(&["ls", "--store", &cluster.url(0, "store")]);
    let reported = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success());
    assert!(
        reported.contains("objectstore+s3://castore/store"),
        "{reported}"
    );
    assert!(!reported.contains(&wrong), "the key was printed");
}
