//! Closures of Nix store paths, by the program as users run it.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use castore_fs::castore::Name;
use castore_fs::nar::NarWriter;
use castore_fs::nix::NixHash;
use castore_fs::store::{LocalStore, RootCondition, Store};
use kit::manager::Manager;
use kit::program::WorkingDirectory;
use sha2::Digest;

/// `app` refers to `lib` and itself, `lib` to `data`; `other` refers to `data`.
const APP: &str = "00000000000000000000000000000000-app";
const LIB: &str = "11111111111111111111111111111111-lib";
const DATA: &str = "22222222222222222222222222222222-data";
const OTHER: &str = "33333333333333333333333333333333-other";
const PATHS: [(&str, &[&str]); 4] = [
    (APP, &[APP, LIB]),
    (LIB, &[DATA]),
    (DATA, &[]),
    (OTHER, &[DATA]),
];

/// A directory whose machine's Nix daemon would listen at `nix.sock`.
struct Place(WorkingDirectory);

impl Deref for Place {
    type Target = WorkingDirectory;

    fn deref(&self) -> &WorkingDirectory {
        &self.0
    }
}

impl Place {
    /// With a directory `paths` of four store paths and their graph.
    fn new() -> Self {
        let place = Self(WorkingDirectory::new(&[(
            "NIX_DAEMON_SOCKET_PATH",
            "nix.sock",
        )]));
        fs::create_dir(place.path("paths")).unwrap();
        let described: Vec<String> = PATHS
            .iter()
            .map(|(name, references)| {
                let text = format!("contents of {name}");
                fs::write(place.path("paths").join(name), &text).unwrap();
                let mut writer = NarWriter::new(Vec::new());
                writer.file(None, false, text.len() as u64).unwrap();
                writer.contents(text.as_bytes()).unwrap();
                let nar = writer.finish().unwrap();
                let references: Vec<String> = references
                    .iter()
                    .map(|name| format!("\"/nix/store/{name}\""))
                    .collect();
                format!(
                    r#"{{"path": "/nix/store/{name}", "narHash": "{}", "narSize": {}, "references": [{}],
                    "deriver": "/nix/store/99999999999999999999999999999999-x.drv"}}"#,
                    NixHash::Sha256(sha2::Sha256::digest(&nar).into()),
                    nar.len(),
                    references.join(",")
                )
            })
            .collect();
        fs::write(
            place.path("graph.json"),
            format!("[{}]", described.join(",")),
        )
        .unwrap();
        place
    }

    /// The same, with all of it in `local:store`.
    fn with_store() -> Self {
        let place = Self::new();
        let graph = ["copy", "--graph", "graph.json", "--paths-in", "paths"];
        place.good(&[&graph[..], &["--to", "local:store"]].concat());
        place
    }

    fn names(&self, store: &str) -> Vec<String> {
        let listed = self.good(&["ls", "--store", store]);
        listed.lines().map(str::to_owned).collect()
    }

    /// A listener of Nix's daemon protocol on `nix.sock`, which knows all paths.
    fn daemon(&self) -> Daemon {
        self.serve("--nix-daemon", "", "nix.sock")
    }

    /// `castore-fs serve` with `option` and a socket.
    fn serve(&self, option: &str, scheme: &str, socket: &str) -> Daemon {
        let address = format!("{scheme}{}", self.path(socket).display());
        let serve = ["serve", "--store", "local:store", option, &address];
        let child = self.command(&serve).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Daemon(child);
        let since = Instant::now();
        while !self.path(socket).exists() {
            assert!(since.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn absolute(name: &str) -> String {
    format!("/nix/store/{name}")
}

#[test]
fn a_closure_is_imported_as_the_daemon_knows_it_with_references_first() {
    let place = Place::with_store();
    let _daemon = place.daemon();
    let import = ["import", "--closure", "--paths-in", "paths", "--store"];
    let imported = place.good(&[&import[..], &["local:new", &absolute(APP)]].concat());
    let expected = [DATA, LIB, APP].map(|name| absolute(name) + "\n").concat();
    assert_eq!(imported, expected);
    assert_eq!(place.names("local:new"), [APP, LIB, DATA]);
    let known = place.good(&["stat", "--store", "local:new", APP]);
    assert!(known.contains(LIB), "{known}");
    // Another time nothing is read; the names are printed all the same.
    fs::remove_dir_all(place.path("paths")).unwrap();
    let again = place.good(&[&import[..], &["local:new", &absolute(APP)]].concat());
    assert_eq!(again, expected);
}

#[test]
fn a_closure_that_is_not_the_one_that_the_daemon_knows_is_refused() {
    let place = Place::with_store();
    let _daemon = place.daemon();
    fs::write(place.path("paths").join(LIB), "something else").unwrap();
    let import = [
        "import",
        "--closure",
        "--paths-in",
        "paths",
        "--store",
        "local:new",
    ];
    let refused = place.bad(&[&import[..], &[&absolute(APP)]].concat());
    assert!(refused.contains(LIB), "{refused}");
    // What it refers to came before it, whole.
    assert_eq!(place.names("local:new"), [DATA]);
    for (path, why) in [
        (
            absolute("44444444444444444444444444444444-absent"),
            "is not valid in the Nix store",
        ),
        ("paths".to_owned(), "--closure takes paths of the Nix store"),
    ] {
        let refused = place.bad(&[&import[..], &[&path]].concat());
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_daemon_that_is_absent_is_named_with_what_to_do() {
    let place = Place::new();
    let refused = place.bad(&[
        "import",
        "--closure",
        "--store",
        "local:new",
        &absolute(APP),
    ]);
    for part in ["nix.sock", "NIX_DAEMON_SOCKET_PATH", "copy --graph -"] {
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn copy_takes_what_the_named_paths_refer_to() {
    let place = Place::with_store();
    let copy = ["copy", "--from", "local:store", "--to", "local:new"];
    place.good(&[&copy[..], &["--closure", &absolute(LIB)]].concat());
    assert_eq!(place.names("local:new"), [LIB, DATA]);
    place.good(&[&copy[..], &[APP]].concat());
    assert_eq!(place.names("local:new"), [APP, LIB, DATA]);
}

#[test]
fn a_path_that_another_refers_to_is_not_removed() {
    let place = Place::with_store();
    fn remove<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
        [&["rm", "--store", "local:store"][..], arguments].concat()
    }
    for verb in [remove(&[DATA]), remove(&["--dry-run", DATA])] {
        let refused = place.bad(&verb);
        assert!(refused.contains(LIB) && refused.contains(DATA), "{refused}");
    }
    let refused = place.bad(&["mv", "--store", "local:store", DATA, "data"]);
    assert!(refused.contains(LIB), "{refused}");
    assert_eq!(place.names("local:store").len(), 4);

    // With all that refer to it, or alone where that is requested.
    place.good(&remove(&[OTHER, LIB, APP, DATA]));
    assert_eq!(place.names("local:store"), [""; 0]);
    let place = Place::with_store();
    place.good(&remove(&["--referred", DATA]));
    let refused = place.bad(&[
        "copy",
        "--from",
        "local:store",
        "--to",
        "local:new",
        "--closure",
        LIB,
    ]);
    assert!(
        refused.contains(&format!("{LIB} refers to {DATA}")),
        "{refused}"
    );
}

#[test]
fn a_path_that_another_refers_to_does_not_become_another_tree() {
    let place = Place::with_store();
    fs::write(place.path("other"), "another tree").unwrap();
    let import = ["import", "--store", "local:store", "--name", LIB, "other"];
    let refused = place.bad(&import);
    assert!(
        refused.contains(APP) && refused.contains("refers to"),
        "{refused}"
    );
    let tag = ["tag", "--store", "local:store", "--replace", LIB, OTHER];
    let refused = place.bad(&tag);
    assert!(
        refused.contains(APP) && refused.contains("refers to"),
        "{refused}"
    );
    // What none refers to does, and what is as before does too.
    place.good(&["tag", "--store", "local:store", "--replace", OTHER, DATA]);
    place.good(&["tag", "--store", "local:store", LIB, LIB]);
}

#[test]
fn what_a_check_found_has_to_hold_at_the_commit() {
    let place = Place::with_store();
    let store = LocalStore::open(&place.path("store")).unwrap();
    let name = |name: &str| Name::new(name.as_bytes()).unwrap();
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&name(DATA)).unwrap();
    ingest.only_if(RootCondition::NotReferred(name(DATA)));
    let refused = ingest.commit().unwrap_err().to_string();
    assert!(refused.contains("refers to it"), "{refused}");
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&name(OTHER)).unwrap();
    ingest.only_if(RootCondition::NotReferred(name(OTHER)));
    ingest.only_if(RootCondition::Present(name("absent")));
    let refused = ingest.commit().unwrap_err().to_string();
    assert!(
        refused.contains("\"absent\", which was removed"),
        "{refused}"
    );
    assert_eq!(place.names("local:store").len(), 4);
    let ingest = store.ingest().unwrap();
    ingest.remove_root(&name(OTHER)).unwrap();
    ingest.only_if(RootCondition::NotReferred(name(OTHER)));
    ingest.only_if(RootCondition::Present(name(DATA)));
    ingest.commit().unwrap();
    assert_eq!(place.names("local:store").len(), 3);
}

#[test]
fn a_path_that_is_imported_again_keeps_what_is_known_of_it() {
    let place = Place::with_store();
    let refuses_lib = || {
        let refused = place.bad(&["rm", "--store", "local:store", LIB]);
        assert!(
            refused.contains(&format!("{APP} refers to {LIB}")),
            "{refused}"
        );
        let dry = place.bad(&["rm", "--store", "local:store", "--dry-run", LIB]);
        assert_eq!(dry, refused);
    };
    refuses_lib();
    // Without a Nix daemon nothing is known of the same tree.
    let path = place.path("paths").join(APP);
    let path = path.to_str().unwrap();
    place.good(&["import", "--store", "local:store", "--name", APP, path]);
    refuses_lib();
}

#[test]
fn a_path_without_references_and_deriver_is_known_to_have_none() {
    let place = Place::new();
    let graph = fs::read_to_string(place.path("graph.json")).unwrap();
    let graph = graph.replace("\"deriver\"", "\"registrationTime\": 1, \"formerly\"");
    fs::write(place.path("graph.json"), graph).unwrap();
    let copied = ["copy", "--graph", "graph.json", "--paths-in", "paths"];
    place.good(&[&copied[..], &["--to", "local:store"]].concat());
    let closure = [
        "copy",
        "--closure",
        "--from",
        "local:store",
        "--to",
        "local:copy",
        APP,
    ];
    place.good(&closure);
    assert_eq!(place.names("local:copy"), [APP, LIB, DATA]);
}

#[test]
fn a_closure_is_removed_but_for_what_others_refer_to() {
    let place = Place::with_store();
    let remove = ["rm", "--store", "local:store", "--closure"];
    let refused = place.bad(&[&remove[..], &[LIB]].concat());
    assert!(
        refused.contains(&format!("{APP} refers to {LIB}")),
        "{refused}"
    );
    let dry = place.good(&[&remove[..], &["--dry-run", &absolute(APP)]].concat());
    assert_eq!(dry, format!("{APP}\n{LIB}\n"));
    assert_eq!(place.names("local:store").len(), 4);
    place.good(&[&remove[..], &[APP]].concat());
    assert_eq!(place.names("local:store"), [DATA, OTHER]);
    place.good(&[&remove[..], &[OTHER]].concat());
    assert_eq!(place.names("local:store"), [""; 0]);
    // Of a closure that is not complete, what there is.
    let place = Place::with_store();
    place.good(&["rm", "--store", "local:store", "--referred", LIB]);
    place.good(&[&remove[..], &[APP]].concat());
    assert_eq!(place.names("local:store"), [DATA, OTHER]);
}

#[test]
fn a_closure_is_exported_with_each_path_under_its_name() {
    let place = Place::with_store();
    let export = ["export", "--store", "local:store", "--closure"];
    place.good(&[&export[..], &[LIB, "out"]].concat());
    let mut listed: Vec<_> = fs::read_dir(place.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    listed.sort();
    assert_eq!(listed, [LIB, DATA]);
    let contents = fs::read_to_string(place.path("out").join(DATA)).unwrap();
    assert_eq!(contents, format!("contents of {DATA}"));

    place.good(&[&export[..], &["--format", "tar", LIB, "out.tar"]].concat());
    let mut archive = tar_names(&place.path("out.tar"));
    archive.sort();
    assert_eq!(
        archive,
        ["./".to_owned(), format!("./{LIB}"), format!("./{DATA}")]
    );

    // The image is the one of a mount that shows these roots.
    place.good(&[&export[..], &["--format", "erofs", LIB, "out.erofs"]].concat());
    let check = Command::new("fsck.erofs")
        .arg(place.path("out.erofs"))
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    let listing = Command::new("dump.erofs")
        .args(["--ls", "--path=/"])
        .arg(place.path("out.erofs"))
        .output()
        .unwrap();
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    assert!(listing.contains(LIB) && listing.contains(DATA), "{listing}");

    let refused = place.bad(&[&export[..], &["--format", "nar", LIB, "out.nar"]].concat());
    assert!(refused.contains("one store path"), "{refused}");
}

fn tar_names(archive: &Path) -> Vec<String> {
    let listed = Command::new("tar")
        .arg("-tf")
        .arg(archive)
        .output()
        .unwrap();
    assert!(listed.status.success());
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn a_service_fetches_and_pins_what_a_path_refers_to() {
    let place = Place::with_store();
    let upstream = place.serve("--listen", "unix:", "far.sock");
    let mut manager = Manager::new(&format!(
        "[stores.near]\nurl = 'local:@/near'\n[stores.far]\nurl = 'grpc+unix:{}'\n\
         [stores.main]\ncache = {{ near = 'near', far = ['far'] }}\n\
         [listen.l]\nstore = 'main'\naddress = 'unix:@/castore.sock'\n",
        place.path("far.sock").display()
    ));
    manager.start_and_wait();
    let control = manager.join("control").display().to_string();
    let ask = |words: &[&str]| place.good(&[words, &["--socket", &control]].concat());
    let fetched = ask(&["prefetch", "--json", LIB]);
    assert!(fetched.contains("\"blobs\":1,"), "{fetched}");
    let fetched = ask(&["prefetch", "--json", "--closure", &absolute(LIB)]);
    assert!(fetched.contains("\"blobs\":2,"), "{fetched}");
    assert_eq!(ask(&["pin", &absolute(OTHER)]), format!("{OTHER}\n"));
    let pinned = format!("{APP}\n{LIB}\n{DATA}\n{OTHER}\n");
    assert_eq!(ask(&["pin", "--closure", APP]), pinned);
    let refused = place.bad(&["pin", "--closure", "absent", "--socket", &control]);
    assert!(refused.contains("no root named absent"), "{refused}");
    assert_eq!(ask(&["unpin", "--closure", APP]), format!("{OTHER}\n"));
    drop(upstream);
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
}

#[test]
fn references_that_are_not_known_are_named_and_other_roots_have_none() {
    let place = Place::with_store();
    // Without a daemon the path comes without what is known of it, and a line reports that.
    let import = ["import", "--store", "local:plain", "--name", APP];
    let path = place.path("paths").join(APP);
    place.good(&[&import[..], &[path.to_str().unwrap()]].concat());
    let copy = [
        "copy",
        "--from",
        "local:plain",
        "--to",
        "local:new",
        "--closure",
    ];
    let refused = place.bad(&[&copy[..], &[APP]].concat());
    assert!(
        refused.contains("does not know what") && refused.contains("import --closure"),
        "{refused}"
    );
    fs::create_dir(place.path("tree")).unwrap();
    symlink("x", place.path("tree/link")).unwrap();
    place.good(&["import", "--store", "local:plain", "tree"]);
    place.good(&[&copy[..], &["tree"]].concat());
    assert_eq!(place.names("local:new"), ["tree"]);
    // A plain tree is removed beside paths whose references are not known.
    place.good(&["rm", "--store", "local:plain", "tree"]);
}
