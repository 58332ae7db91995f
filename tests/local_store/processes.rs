//! Several processes at one store.
//!
//! A child process is this test binary, instructed by the environment to run [`child`] as something
//! else than a test.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use castore_fs::castore::Root;
use castore_fs::store::{Error, Store};
use castore_fs::stores::open as open_url;

use crate::garbage::{now, remove};
use crate::tree::*;

const ROLE: &str = "CASTORE_FS_TEST_ROLE";
const STORE: &str = "CASTORE_FS_TEST_STORE";

/// Starts a process that plays `role` at a store.
pub(crate) fn start(role: &str, store: &Path) -> Child {
    command(role, store).spawn().unwrap()
}

pub(crate) fn command(role: &str, store: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "processes::child", "--nocapture"])
        .env(ROLE, role)
        .env(STORE, store)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// What child processes run; as a test it has nothing to show.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let path = std::env::var(STORE).unwrap();
    let store = open_url(&format!("local:{path}")).unwrap();
    let (verb, number) = role.split_once(' ').unwrap_or((&role, "0"));
    let number: u64 = number.parse().unwrap();
    match verb {
        // Adds a hundred roots of the same names as others do, each with a node of its own, and prints which
        // it could add.
        "claim" => {
            let store = open(std::path::Path::new(&path));
            for at in 0..100 {
                let bytes = format!("{number} {at}");
                let ingest = store.ingest().unwrap();
                let node = file(bytes.as_bytes());
                let blob = (node.digest().unwrap(), bytes.as_bytes());
                ingest.put_blobs(&[blob]).unwrap();
                let root = Root {
                    name: name(&format!("name{at}")),
                    node,
                };
                ingest.add_root(&root, None).unwrap();
                match ingest.commit() {
                    Ok(_) => println!("\nclaimed {at}"),
                    Err(Error::NameTaken { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        // Has a tree in use until it is killed.
        "lease" => {
            let store = open(std::path::Path::new(&path));
            let root = block_on(store.root(b"tree")).unwrap().unwrap();
            let lease = store.lease(None).unwrap();
            lease.hold(&root.node);
            println!("\nheld");
            loop {
                std::thread::park();
            }
        }
        // Adds twenty trees.
        "add" => {
            for at in 0..20 {
                let seed = number + at;
                add_tree(&*store, &format!("tree{seed}"), seed).unwrap();
            }
        }
        // Adds trees until it is killed, and prints those that are committed.
        "add-for-ever" => {
            for seed in number.. {
                add_tree(&*store, &format!("tree{seed}"), seed).unwrap();
                println!("\ndone tree{seed}");
            }
        }
        // Prints what it finds, and the outcome of a write.
        "look" => {
            let (names, _) = verify_whole(&*store);
            println!("\nfound {}", names.join(" "));
            match add_tree(&*store, "new", 77) {
                Ok(_) => println!("written"),
                Err(error) => println!("error {error}"),
            }
        }
        // Adds trees and removes most of them again.
        "churn" => {
            for seed in number..number + 20 {
                add_tree(&*store, &format!("tree{seed}"), seed).unwrap();
                if seed % 5 != 0 {
                    remove(&*store, &format!("tree{seed}"));
                }
            }
        }
        "collect" => {
            let store = open(path.as_ref());
            for _ in 0..number {
                store.collect_garbage(&now()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        // Adds, removes and collects until it is killed.
        "churn-for-ever" => {
            let store = open(path.as_ref());
            for seed in number.. {
                add_tree(&store, &format!("tree{seed}"), seed).unwrap();
                if seed > number {
                    remove(&store, &format!("tree{}", seed - 1));
                }
                store.collect_garbage(&now()).unwrap();
            }
        }
        // Keeps the index open for writing until it is killed.
        "hold" => {
            add_tree(&*store, "held", number).unwrap();
            println!("\nholding");
            std::thread::sleep(std::time::Duration::from_secs(600));
        }
        other => panic!("no role {other}"),
    }
}

/// A name is given once, whichever processes want it at once.
#[test]
fn of_processes_that_add_a_root_of_one_name_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let claimants: Vec<_> = (1..=3)
        .map(|number| start(&format!("claim {number}"), dir.path()))
        .collect();
    let mut claims = std::collections::BTreeMap::new();
    for (number, claimant) in (1..).zip(claimants) {
        let output = claimant.wait_with_output().unwrap();
        assert!(output.status.success());
        let reported = String::from_utf8(output.stdout).unwrap();
        for line in reported
            .lines()
            .filter_map(|line| line.strip_prefix("claimed "))
        {
            let at: u64 = line.parse().unwrap();
            assert_eq!(claims.insert(at, number), None, "name{at} was given twice");
        }
    }
    assert_eq!(claims.len(), 100);
    for (at, number) in claims {
        let root = block_on(store.root(format!("name{at}").as_bytes())).unwrap();
        let node = file(format!("{number} {at}").as_bytes());
        assert_eq!(root.unwrap().node, node, "name{at} was replaced");
    }
}

#[test]
fn processes_read_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Ten of each one's trees are the other's too.
    let writers = [start("add 0", dir.path()), start("add 10", dir.path())];
    let mut waiting = writers.map(Some);
    let mut seen = 0;
    let mut version = store.roots_version().unwrap();
    while waiting.iter().any(Option::is_some) {
        version = store
            .wait_for_roots(version, std::time::Duration::from_millis(200))
            .unwrap();
        let (names, _) = verify_whole(&store);
        assert!(names.len() >= seen, "a root went away");
        seen = names.len();
        for slot in &mut waiting {
            if let Some(child) = slot
                && let Some(status) = child.try_wait().unwrap()
            {
                assert!(status.success());
                *slot = None;
            }
        }
    }
    let (names, reached) = verify_whole(&store);
    assert_eq!(names.len(), 30);
    let usage = store.usage().unwrap().unwrap();
    assert_eq!(usage.blobs, reached.blobs.len() as u64 - 1);
    assert_eq!(usage.directories, reached.directories.len() as u64);
    assert_eq!(open(dir.path()).usage().unwrap(), Some(usage));
}

#[test]
fn two_stores_made_at_once_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/store");
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let path = &path;
            scope.spawn(move || {
                add_tree(&open(path), &format!("tree{seed}"), seed).unwrap();
            });
        }
    });
    assert_eq!(verify_whole(&open(&path)).0.len(), 4);
}
