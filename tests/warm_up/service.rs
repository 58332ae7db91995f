//! The service that records profiles, and the commands that ship them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use castore_fs::profile::Profiles;
use castore_fs::store::MemoryStore;

use super::{STARTS_WITH, profile_key_of, start, tree};
use kit::manager::Manager;
use kit::mounted::can_mount;
use kit::patience::wait_until;
use kit::server::Server;

fn castore_fs(words: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_castore-fs");
    Command::new(program).args(words).output().unwrap()
}

fn succeeds(words: &[&str]) -> Vec<u8> {
    let output = castore_fs(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    output.stdout
}

/// A machine with an empty cache in front of `server`, which records or not.
fn machine(server: &Server, warmup: &str) -> Manager {
    Manager::new(&format!(
        "state-dir = '@/state'\nmetrics.address = 'unix:@/metrics'\n\
         [stores.near]\nurl = 'local:@/near'\n[stores.far]\nurl = '{}'\n\
         [stores.main]\ncache = {{ near = 'near', far = ['far'] }}\n\
         [mounts.tree]\nstore = 'main'\npath = '@/mnt'\nwarmup = '{warmup}'\n",
        server.url
    ))
}

fn profiles(at: &Manager) -> Profiles {
    Profiles::new(at.join("state/profiles"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn metrics(at: &Manager) -> String {
    let mut stream = UnixStream::connect(at.join("metrics")).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_profile_is_recorded_shipped_and_used_without_an_upstream() {
    if !can_mount() {
        return;
    }
    let memory = MemoryStore::new();
    tree(1).put_root(&memory, "tree");
    let server = Server::read_only(Arc::new(memory));
    let mut first = machine(&server, "learn");
    first.start_and_wait();
    start(&first.join("mnt/tree"), 1);
    // It is written without a request: a sudden death loses only the last seconds.
    let known = profiles(&first);
    let known = || known.load(&profile_key_of("tree")).unwrap();
    wait_until("the profile is written", || {
        known().is_some_and(|profile| profile.files().len() == STARTS_WITH.len())
    });
    first.kill();
    let before = known();
    // The next process takes over the mount, and not the recording.
    first.start_and_wait();
    fs::read(first.join("mnt/tree/dir-5/other")).unwrap();
    let control = first.join("control");
    let control = ["--socket", text(&control)];
    let listed = succeeds(&[&["profile", "list"], &control[..]].concat());
    let listed = String::from_utf8(listed).unwrap();
    assert_eq!(listed, "tree: 6 files, 6 extents\n");
    let exported = succeeds(&[&["profile", "export", "tree"], &control[..]].concat());
    assert_eq!(known(), before);
    assert_eq!(exported, before.unwrap().encode());
    first.signal(libc::SIGTERM);
    assert!(first.wait(), "{}", first.log());

    let mut second = machine(&server, "learn");
    let file = second.join("tree.profile");
    fs::write(&file, exported).unwrap();
    let dir = second.join("state/profiles");
    let dir = ["--directory", text(&dir)];
    succeeds(&[&["profile", "import", text(&file)], &dir[..]].concat());
    second.start_and_wait();
    let tree = second.join("mnt/tree");
    fs::metadata(&tree).unwrap();
    let logged = "fetched 6 extents";
    wait_until("all is fetched", || second.log().contains(logged));
    let status = || second.status()["mounts"]["tree"]["warmup"].clone();
    wait_until("the status has it", || status()["fetching"] == 0);
    let warmup = status();
    for (key, value) in [("recording", 1), ("own", 1), ("fetches", 1), ("extents", 6)] {
        assert_eq!(warmup[key], value, "{key} of {warmup}");
    }
    let shown = succeeds(&["status", "--socket", text(&second.join("control"))]);
    let shown = String::from_utf8(shown).unwrap();
    let reports = "warm-up: 1 root recorded, 0 profiles in progress, 11.82 KiB prefetched";
    assert!(shown.contains(reports), "{shown}");
    let reports = "profiles: 1 of their own, 0 of similar roots, 0 without; 6 extents fetched, 0 of them \
                read, 0 recorded";
    assert!(shown.contains(reports), "{shown}");
    drop(server);
    start(&tree, 1);
    wait_until("the touches are counted", || status()["hits"] == 6);
    let metrics = metrics(&second);
    for line in [
        "castore_fs_warmup_roots_total{transport=\"fuse\",name=\"tree\",profile=\"own\"} 1",
        "castore_fs_warmup_roots_total{transport=\"fuse\",name=\"tree\",profile=\"none\"} 0",
        "castore_fs_warmup_fetched_extents_total{transport=\"fuse\",name=\"tree\"} 6",
        "castore_fs_warmup_hits_total{transport=\"fuse\",name=\"tree\"} 6",
        "castore_fs_warmup_failures_total{transport=\"fuse\",name=\"tree\",step=\"fetch\"} 0",
    ] {
        assert!(
            metrics.lines().any(|text| text == line),
            "{line}\n{metrics}"
        );
    }
    assert!(fs::read(tree.join("dir-5/file")).is_err());
    // What was recorded meanwhile is in what is exported.
    let socket = second.join("control");
    let control = ["--socket", text(&socket)];
    let exported = succeeds(&[&["profile", "export", "tree"], &control[..]].concat());
    fs::write(&file, exported).unwrap();
    let import = ["profile", "import", "--as", "bush", text(&file)];
    succeeds(&[&import[..], &control[..]].concat());
    succeeds(&[&["profile", "rm", "bush", "tree"], &control[..]].concat());
    let none = castore_fs(&[&["profile", "rm", "tree"], &control[..]].concat());
    let reported = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!(none.status.code(), Some(1));
    assert!(
        reported.contains("there is no profile of \"tree\" in"),
        "{reported}"
    );
    second.signal(libc::SIGTERM);
    assert!(second.wait(), "{}", second.log());
}

#[test]
fn a_stop_writes_what_was_recorded_and_off_records_nothing() {
    if !can_mount() {
        return;
    }
    let memory = MemoryStore::new();
    tree(1).put_root(&memory, "tree");
    let server = Server::read_only(Arc::new(memory));
    for (warmup, files) in [("learn", Some(STARTS_WITH.len())), ("off", None)] {
        let mut machine = machine(&server, warmup);
        machine.start_and_wait();
        start(&machine.join("mnt/tree"), 1);
        machine.signal(libc::SIGTERM);
        assert!(machine.wait(), "{}", machine.log());
        let profile = profiles(&machine).load(&profile_key_of("tree")).unwrap();
        let known = profile.map(|profile| profile.files().len());
        assert_eq!(known, files, "{warmup}");
    }
}

#[test]
fn a_damaged_profile_is_named_and_ignored() {
    if !can_mount() {
        return;
    }
    let memory = MemoryStore::new();
    tree(1).put_root(&memory, "tree");
    let server = Server::read_only(Arc::new(memory));
    let mut machine = machine(&server, "learn");
    let dir = machine.join("state/profiles");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("tree.profile");
    fs::write(&file, "something else").unwrap();
    let place = ["--directory", text(&dir)];
    for words in [
        vec!["profile", "list"],
        vec!["profile", "export", "tree"],
        vec!["profile", "import", text(&file)],
    ] {
        let output = castore_fs(&[&words[..], &place[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let reported = String::from_utf8_lossy(&output.stderr).into_owned();
        let reports = format!(
            "castore-fs: the profile {}: it does not begin",
            file.display()
        );
        assert!(reported.starts_with(&reports), "{words:?}: {reported}");
    }
    machine.start_and_wait();
    start(&machine.join("mnt/tree"), 1);
    let log = machine.log();
    let reports = format!("the profile {}: it does not begin", file.display());
    wait_until("it is logged", || machine.log().contains(&reports));
    assert!(
        log.contains("WARN") || machine.log().contains("WARN"),
        "{log}"
    );
    // The next one takes its place.
    machine.signal(libc::SIGTERM);
    assert!(machine.wait(), "{}", machine.log());
    let profile = profiles(&machine).load(&profile_key_of("tree")).unwrap();
    assert_eq!(profile.unwrap().files().len(), STARTS_WITH.len());
}
