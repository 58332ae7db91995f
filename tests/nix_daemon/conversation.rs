//! Operations and their answers.

use castore_fs::nix::StorePath;
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::bench::{Daemon, add, limits, local};
use crate::client::{Bytes, Client};
use kit::model::{Model, directory, file, program};
use kit::written::path;

fn tree() -> Model {
    directory([
        ("bin", directory([("run", program("#!/bin/sh\n"))])),
        ("data", file("x".repeat(100_000))),
    ])
}

struct Bench {
    _dir: TempDir,
    daemon: Daemon,
    dep: StorePath,
    app: StorePath,
    nar: Vec<u8>,
}

/// dep <- top, in a local store; and a root of which nothing is known.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (dep, app) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    let nar = add(&store, &app, &tree(), &[&dep, &app]);
    let empty = castore_fs::store::LocalStore::open(&store).unwrap();
    file("bare").put_root(&empty, &path('2', "bare").to_string());
    let daemon = Daemon::start(&local(&store), &dir.path().join("socket"), limits());
    Bench {
        _dir: dir,
        daemon,
        dep,
        app,
        nar,
    }
}

fn one(path: &StorePath) -> Bytes {
    Bytes::default().text(&path.absolute())
}

#[test]
fn every_version_from_1_35_on_is_spoken() {
    let bench = bench();
    for version in [0x123, 0x124, 0x125, 0x126, 0x127, 0x203] {
        let mut client = Client::with_version(&bench.daemon.socket, version);
        // Settings come first.
        let settings = (0..12).fold(Bytes::default(), Bytes::word);
        let settings = settings.word(1).text("cores").text("4");
        client.ask(19, settings);
        assert!(client.is_valid(&bench.app.absolute()), "{version:x}");
        assert!(!client.is_valid(&path('3', "absent").absolute()));
    }
}

#[test]
fn an_older_client_is_refused_with_a_sentence() {
    let bench = bench();
    let mut client = Client::with_version(&bench.daemon.socket, 0x122);
    let message = client.result().unwrap_err();
    assert!(
        message.contains("1.34") && message.contains("2.15"),
        "{message}"
    );
    assert!(client.is_closed());
    let mut client = Client::silent(&bench.daemon.socket);
    client.send(Bytes::default().word(0x4745_5420));
    assert!(client.is_closed());
}

#[test]
fn what_is_known_of_a_path_is_sent_as_nix_reads_it() {
    let bench = bench();
    let mut client = Client::connect(&bench.daemon.socket);
    assert_eq!(client.ask(26, one(&bench.app)).word(), 1);
    assert_eq!(client.text(), "", "no deriver");
    assert_eq!(client.text(), HEXLOWER.encode(&Sha256::digest(&bench.nar)));
    assert_eq!(client.texts(), [bench.dep.absolute(), bench.app.absolute()]);
    assert!(client.word() > 1_600_000_000, "when it was first reported");
    assert_eq!(client.word(), bench.nar.len() as u64);
    assert_eq!(client.word(), 0, "not built here");
    let signatures = client.texts();
    assert!(signatures[0].starts_with("test-1:"), "{signatures:?}");
    assert_eq!(client.text(), "", "no content address");
    // What a path refers to has to be known: nothing is known of this one.
    for absent in [path('2', "bare"), path('3', "absent")] {
        assert_eq!(client.ask(26, one(&absent)).word(), 0);
    }
}

#[test]
fn questions_about_many_paths_are_answered() {
    let bench = bench();
    let (dep, app) = (bench.dep.absolute(), bench.app.absolute());
    let absent = path('3', "absent").absolute();
    let mut client = Client::connect(&bench.daemon.socket);
    let some = [&absent[..], &app, &dep];
    let valid = client
        .ask(31, Bytes::default().texts(&some).word(1))
        .texts();
    assert_eq!(valid, [&app[..], &dep]);
    assert_eq!(client.ask(23, Bytes::default()).texts(), [&dep[..], &app]);
    assert_eq!(client.ask(6, one(&bench.dep)).texts(), [&app[..]]);
    assert_eq!(client.ask(5, one(&bench.app)).texts(), [&dep[..], &app]);
    let hash = Bytes::default().text(&"1".repeat(32));
    assert_eq!(client.ask(29, hash).text(), app);
    let hash = Bytes::default().text(&"3".repeat(32));
    assert_eq!(client.ask(29, hash).text(), "");
    assert_eq!(client.ask(33, one(&bench.app)).texts(), [""; 0]);
    // What would be built, what substituted, what is unknown, and the sizes.
    client.ask(40, Bytes::default().texts(&some));
    assert_eq!(client.texts(), [""; 0]);
    assert_eq!(client.texts(), [""; 0]);
    assert_eq!(client.texts(), [&absent[..]]);
    assert_eq!((client.word(), client.word()), (0, 0));
    // Nothing to substitute, no roots, no realisations.
    assert_eq!(
        client.ask(32, Bytes::default().texts(&some)).texts(),
        [""; 0]
    );
    assert_eq!(
        client
            .ask(30, Bytes::default().word(1).text(&app).text(""))
            .word(),
        0
    );
    assert_eq!(client.ask(14, Bytes::default()).word(), 0);
    assert_eq!(
        client
            .ask(43, Bytes::default().text("sha256:00!out"))
            .word(),
        0
    );
    for done in [11, 10] {
        assert_eq!(client.ask(done, one(&bench.app)).word(), 1);
    }
    for done in [13, 34] {
        assert_eq!(client.ask(done, Bytes::default()).word(), 1);
    }
}

#[test]
fn what_is_to_be_built_is_there_or_is_refused_path_by_path() {
    let bench = bench();
    let (app, absent) = (bench.app.absolute(), path('3', "absent").absolute());
    for (version, times) in [(0x124, 0), (0x126, 2)] {
        let mut client = Client::with_version(&bench.daemon.socket, version);
        client.ask(46, Bytes::default().texts(&[&app, &absent]).word(0));
        assert_eq!(client.word(), 2);
        for (path, status) in [(&app, 2), (&absent, 14)] {
            assert_eq!(&client.text(), path);
            assert_eq!(client.word(), status);
            assert_eq!(client.text().is_empty(), status == 2);
            for _ in 0..4 + times {
                assert_eq!(client.word(), 0);
            }
            assert_eq!(client.word(), 0, "no outputs of derivations");
        }
        assert_eq!(
            client
                .ask(9, Bytes::default().texts(&[&app]).word(0))
                .word(),
            1
        );
        let refused = client.try_ask(9, Bytes::default().texts(&[&absent]).word(0));
        assert!(
            refused
                .unwrap_err()
                .contains("builds and substitutes nothing")
        );
        // The derivation may be in the store: what is not there are its outputs.
        let outputs = format!("{app}!out,dev");
        for code in [9, 46] {
            let wanted = Bytes::default().texts(&[&outputs]).word(0);
            let refused = client.try_ask(code, wanted).unwrap_err();
            assert!(
                refused.starts_with(&format!(
                    "outputs of the derivation '{app}' are requested (out,dev), and"
                )),
                "{refused}"
            );
            assert!(!refused.contains("is not in this store"), "{refused}");
        }
    }
}

#[test]
fn contents_are_sent_as_a_nar() {
    let bench = bench();
    let mut client = Client::connect(&bench.daemon.socket);
    let nar = client.ask(38, one(&bench.app)).bytes(bench.nar.len());
    assert!(nar == bench.nar);
    let refused = client.try_ask(38, one(&path('3', "absent")));
    assert!(refused.unwrap_err().contains("is not valid"));
    assert!(client.is_valid(&bench.app.absolute()));
}

#[test]
fn the_outputs_of_a_derivation_are_read_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (drv, source) = (path('4', "x.drv"), path('0', "source"));
    add(&store, &source, &file("s"), &[]);
    let text =
        r#"Derive([("dev","","r:sha256",""),("out","/nix/store/5-x","","")],[],[],"","",[],[])"#;
    add(&store, &drv, &file(text), &[&source]);
    let daemon = Daemon::start(&local(&store), &dir.path().join("socket"), limits());
    let mut client = Client::connect(&daemon.socket);
    client.ask(41, one(&drv));
    assert_eq!(client.word(), 2);
    let read: Vec<_> = (0..4).map(|_| client.text()).collect();
    assert_eq!(read, ["dev", "", "out", "/nix/store/5-x"]);
    assert_eq!(client.ask(22, one(&drv)).texts(), ["/nix/store/5-x"]);
    assert_eq!(client.ask(28, one(&drv)).texts(), ["dev", "out"]);
    for not in [&source, &path('3', "absent")] {
        assert!(client.try_ask(41, one(not)).is_err());
    }
    assert!(client.is_valid(&drv.absolute()));
}

#[test]
fn what_this_store_does_not_do_is_refused_and_the_connection_continues() {
    let bench = bench();
    let mut client = Client::connect(&bench.daemon.socket);
    let bytes = Bytes::default;
    let strings = |count| (0..count).fold(bytes(), |bytes, _| bytes.text("x"));
    let info = |bytes: Bytes| {
        bytes
            .texts(&["r"])
            .word(0)
            .word(1)
            .word(0)
            .texts(&[])
            .text("")
    };
    let framed = |mut bytes: Bytes| {
        bytes.0.extend(bytes_of_frames(&[b"some", b"data"]).0);
        bytes
    };
    let derivation = strings(1)
        .word(1)
        .text("out")
        .text("p")
        .text("")
        .text("")
        .texts(&["s"]);
    let derivation = derivation.text("linux").text("sh").texts(&["-c"]);
    let derivation = derivation.word(1).text("key").text("value").word(0);
    let requests = [
        (7, framed(strings(2).texts(&["r"]).word(0))),
        (8, strings(2).texts(&["r"])),
        (12, strings(1)),
        (16, strings(1).word(0)),
        (
            20,
            bytes()
                .word(0)
                .texts(&["p"])
                .word(0)
                .word(0)
                .word(0)
                .word(0)
                .word(0),
        ),
        (27, bytes()),
        (35, bytes().word(1).word(0)),
        (36, derivation),
        (37, strings(1).texts(&["s"])),
        (39, framed(info(strings(3)).word(0).word(0))),
        (42, strings(1)),
        (44, framed(bytes().word(0).word(0))),
        (45, framed(strings(1))),
        (47, strings(2)),
    ];
    for (code, fields) in requests {
        let refused = client.try_ask(code, fields).unwrap_err();
        assert!(
            refused.starts_with("this store of castore-fs "),
            "{code}: {refused}"
        );
        assert!(client.is_valid(&bench.app.absolute()), "after {code}");
    }
    for wrong in ["", "nix", "/nix/store", "/nix/store/x", "/gnu/store/x"] {
        let refused = client.try_ask(1, bytes().text(wrong)).unwrap_err();
        assert!(refused.contains("is no path of the Nix store"), "{refused}");
    }
    assert!(client.is_valid(&bench.app.absolute()));
    // Where the next request begins is not known after one that is not known.
    let refused = client.try_ask(99, bytes()).unwrap_err();
    assert!(refused.contains("99"), "{refused}");
    assert!(client.is_closed());
}

fn bytes_of_frames(frames: &[&[u8]]) -> Bytes {
    let mut bytes = Bytes::default();
    for frame in frames {
        bytes = bytes.word(frame.len() as u64);
        bytes.0.extend(*frame);
    }
    bytes.word(0)
}
