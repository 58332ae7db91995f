//! The `castore-fs` program itself, run as users run it, on a `local:` store of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_castore-fs");

/// A directory with a store in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    /// A store that has the tree of [`make_tree`] as `tree`.
    fn with_tree() -> Self {
        let place = Self::new();
        make_tree(&place.path("tree"));
        place.good(&["import", "tree"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("CASTORE_FS_STORE", "local:store")
            .env_remove("RUST_LOG");
        command
    }

    fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that has to succeed without other output.
    fn good<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Vec<u8> {
        let run = self.run(arguments);
        assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
        run.stdout
    }

    fn text<A: AsRef<OsStr>>(&self, arguments: &[A]) -> String {
        String::from_utf8(self.good(arguments)).unwrap()
    }

    /// The one line, without its start, of a command that has to fail with `status`.
    fn bad<A: AsRef<OsStr>>(&self, status: i32, arguments: &[A]) -> String {
        let run = self.run(arguments);
        assert_eq!(run.status.code(), Some(status), "{run:?}");
        one_line(run.stderr)
    }

    fn json<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Vec<Value> {
        json_lines(&self.text(arguments))
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn one_line(stderr: Vec<u8>) -> String {
    let text = String::from_utf8(stderr).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{text}");
    line.strip_prefix("castore-fs: ").unwrap().to_owned()
}

fn make_tree(path: &Path) {
    fs::create_dir_all(path.join("bin/deep")).unwrap();
    fs::create_dir(path.join("empty")).unwrap();
    fs::write(path.join("bin/sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path.join("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path.join("bin/copy"), "#!/bin/sh\n").unwrap();
    fs::write(path.join("bin/deep/text"), "some text\n").unwrap();
    fs::write(path.join("large"), large()).unwrap();
    fs::write(path.join("nothing"), "").unwrap();
    symlink("bin/sh", path.join("link")).unwrap();
}

/// 3 MiB in which no two 16 KiB are alike: stored as a file of its own.
fn large() -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(3 << 20)
    .collect()
}

/// Every path below `path`, with type, executable bit and contents or target.
fn listing(path: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(below) = dirs.pop() {
        for entry in fs::read_dir(path.join(&below)).unwrap() {
            let below = below.join(entry.unwrap().file_name());
            let full = path.join(&below);
            let found = full.symlink_metadata().unwrap();
            let (kind, bytes) = if found.is_dir() {
                dirs.push(below.clone());
                ("directory", Vec::new())
            } else if found.is_symlink() {
                let target = fs::read_link(&full).unwrap().into_os_string();
                ("symlink", target.into_vec())
            } else if found.mode() & 0o111 != 0 {
                ("program", fs::read(&full).unwrap())
            } else {
                ("file", fs::read(&full).unwrap())
            };
            all.push((below, kind.to_owned(), bytes));
        }
    }
    all.sort();
    all
}

/// Runs a shell line in which `$CASTORE` is the program.
fn shell(place: &Place, line: &str) -> Output {
    Command::new("bash")
        .args(["-c", line])
        .current_dir(place.dir.path())
        .env("CASTORE_FS_STORE", "local:store")
        .env("CASTORE", PROGRAM)
        .output()
        .unwrap()
}

#[test]
fn what_is_imported_can_be_listed_read_and_exported() {
    let place = Place::new();
    make_tree(&place.path("tree"));
    assert_eq!(place.text(&["import", "tree"]), "tree\n");
    assert_eq!(place.text(&["ls"]), "tree\n");
    assert_eq!(
        place.text(&["ls", "tree"]),
        "bin\nempty\nlarge\nlink\nnothing\n"
    );
    assert_eq!(
        place.text(&["ls", "-R", "tree/bin"]),
        "copy\ndeep\ndeep/text\nsh\n"
    );
    assert_eq!(
        place.text(&["ls", "tree/bin", "tree/link"]),
        "tree/bin/copy\ntree/bin/deep\ntree/bin/sh\ntree/link\n"
    );
    assert_eq!(
        place.text(&["ls", "-R"]).lines().count(),
        1 + listing(&place.path("tree")).len()
    );
    let roots = place.text(&["ls", "-l"]);
    let fields: Vec<_> = roots.split_whitespace().collect();
    // Mode, size, date, time, digest, name.
    assert_eq!(
        (fields[0], fields[1], fields[5]),
        ("dr-xr-xr-x", "9n", "tree")
    );
    let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let json: serde_json::Value = serde_json::from_str(&place.text(&["ls", "--json"])).unwrap();
    let added = json["added"].as_u64().unwrap();
    assert!(today.unwrap().as_secs() - added < 3600, "{json}");
    assert!(
        fields[2].starts_with("20") && fields[2].len() == 10,
        "{roots}"
    );
    let long = place.text(&["ls", "-l", "tree"]);
    let lines: Vec<Vec<_>> = long
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..2], ["dr-xr-xr-x", "4n"]);
    assert_eq!(lines[2][..2], ["-r--r--r--", "3145728"]);
    assert_eq!(lines[3], ["lrwxrwxrwx", "-", "-", "link", "->", "bin/sh"]);
    assert_eq!(place.good(&["cat", "tree/bin/sh"]), b"#!/bin/sh\n");
    assert!(place.good(&["cat", "tree/large"]) == large());
    assert_eq!(
        place.good(&["cat", "tree/nothing", "tree/bin/deep/text", "tree/bin/sh"]),
        b"some text\n#!/bin/sh\n"
    );
    place.good(&["export", "tree", "out"]);
    assert_eq!(listing(&place.path("out")), listing(&place.path("tree")));
    let sh = place.path("out/bin/sh").metadata().unwrap();
    assert_eq!((sh.mode() & 0o7777, sh.mtime()), (0o755, 1));
    place.good(&["export", "tree/bin/deep/text", "text"]);
    assert_eq!(fs::read(place.path("text")).unwrap(), b"some text\n");
    let verdict = place.text(&["verify"]);
    assert_eq!(
        verdict,
        "4 directories, 4 blobs, 3.00 MiB: nothing is damaged\n"
    );
}

#[test]
fn importing_the_same_again_adds_nothing() {
    let place = Place::with_tree();
    let again = &place.json(&["import", "--json", "tree"])[0];
    for count in ["blobs", "blob_bytes", "directories"] {
        assert_eq!(again["added"][count], 0, "{again}");
    }
    let other = &place.json(&["import", "--json", "--name", "other", "tree/bin"])[0];
    assert_eq!(other["added"]["blobs"], 0);
    assert_eq!(place.text(&["ls"]), "other\ntree\n");
}

#[test]
fn json_has_every_field() {
    let place = Place::new();
    make_tree(&place.path("tree"));
    let imported = &place.json(&["import", "--json", "tree"])[0];
    assert_eq!(imported["name"], "tree");
    assert_eq!(imported["type"], "directory");
    // 5 entries, 3 in bin, 1 in bin/deep, each counted twice.
    assert_eq!(imported["size"], 18);
    let read = &imported["read"];
    assert_eq!(
        (
            &read["files"],
            &read["directories"],
            &read["symlinks"],
            &read["bytes"]
        ),
        (&5.into(), &4.into(), &1.into(), &(3_145_728 + 30).into())
    );
    assert_eq!(imported["added"]["directories"], 4);
    let digest = imported["digest"].as_str().unwrap();
    assert!(digest.starts_with("blake3-"), "{digest}");

    let listed = place.json(&["ls", "-R", "--json", "tree"]);
    let find = |path: &str| listed.iter().find(|line| line["path"] == path).unwrap();
    assert_eq!(find("tree/bin/sh")["executable"], true);
    assert_eq!(find("tree/bin/copy")["executable"], false);
    assert_eq!(
        find("tree/bin/copy")["digest"],
        find("tree/bin/sh")["digest"]
    );
    assert_eq!(find("tree/large")["size"], 3 << 20);
    assert_eq!(find("tree/link")["target"], "bin/sh");
    assert_eq!(find("tree/link").get("digest"), None);

    let stat = &place.json(&["stat", "--json", "tree"])[0];
    assert_eq!(stat["digest"], digest);
    assert_eq!(stat["entries"], 5);
    let verified = &place.json(&["verify", "--json"])[0];
    assert_eq!(verified["faults"], 0);
    assert_eq!(verified["blobs"], 4);
}

#[test]
fn digests_work_as_names_do() {
    let place = Place::with_tree();
    let stat = &place.json(&["stat", "--json", "tree"])[0];
    let digest = stat["digest"].as_str().unwrap();
    assert_eq!(place.text(&["ls", digest]), place.text(&["ls", "tree"]));
    assert_eq!(
        place.good(&["cat", &format!("{digest}/bin/sh")]),
        b"#!/bin/sh\n"
    );
    let hex = blake3::hash(b"some text\n").to_hex();
    assert_eq!(place.good(&["cat", hex.as_str()]), b"some text\n");
    assert_eq!(place.good(&["cat", &format!("b3:{hex}")]), b"some text\n");
    place.good(&["export", digest, "out"]);
    assert_eq!(listing(&place.path("out")), listing(&place.path("tree")));
}

#[test]
fn an_image_goes_out_the_same_to_a_file_and_to_a_pipe() {
    let place = Place::with_tree();
    place.good(&["export", "--format", "erofs", "tree", "tree.erofs"]);
    let image = fs::read(place.path("tree.erofs")).unwrap();
    let piped = place.good(&["export", "--format", "erofs", "tree"]);
    assert!(image == piped);
    assert_eq!(image.len() % (2 << 20), 0);
    // Zeros take no room.
    let stat = fs::metadata(place.path("tree.erofs")).unwrap();
    assert!(stat.blocks() * 512 + (64 << 10) < stat.len(), "{stat:?}");
    // A file is in a directory, by its name.
    let one = place.good(&["export", "--format", "erofs", "tree/bin/sh"]);
    let has = |text: &[u8]| one.windows(text.len()).any(|window| window == text);
    assert!(has(b"...sh") && has(b"#!/bin/sh"));
}

#[test]
fn archives_go_out_and_in_again_to_the_same_digest() {
    let place = Place::with_tree();
    let digest = place.json(&["stat", "--json", "tree"])[0]["digest"].clone();
    for format in ["tar", "nar"] {
        let file = format!("again.{format}");
        place.good(&["export", "--format", format, "tree", &file]);
        let piped = place.good(&["export", "--format", format, "tree"]);
        assert!(fs::read(place.path(&file)).unwrap() == piped);
        let line = format!("$CASTORE import --json --format {format} --name piped - <{file}");
        let run = shell(&place, &line);
        assert!(run.status.success(), "{run:?}");
        let imported = &json_lines(&String::from_utf8(run.stdout).unwrap())[0];
        assert_eq!(imported["digest"], digest);
        assert_eq!(imported["added"]["blobs"], 0);
        // By its path, the archive's name is that of the file without the ending.
        assert_eq!(
            place.text(&["import", "--format", format, &file]),
            "again\n"
        );
    }
    let run = shell(
        &place,
        "$CASTORE export --format tar tree | tar -x --one-top-level=out",
    );
    assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    assert_eq!(listing(&place.path("out")), listing(&place.path("tree")));
}

#[test]
fn the_fixture_tree_comes_out_as_it_went_in() {
    let Some(fixture) = kit::fixtures::fixture("snix") else {
        return;
    };
    let expected = fs::read(fixture.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let place = Place::new();
    let packed = fs::File::open(fixture.join("tree.tar.zst")).unwrap();
    let unpacked = zstd::decode_all(packed).unwrap();
    fs::write(place.path("tree.tar"), unpacked).unwrap();
    let run = shell(&place, "mkdir in && tar -xf tree.tar -C in");
    assert!(run.status.success(), "{run:?}");

    let imported = &place.json(&["import", "--nix", "--json", "in/tree"])[0];
    let text = expected.to_string();
    let store_path = imported["nix"]["store_path"].as_str().unwrap();
    assert!(text.contains(store_path), "{store_path}");
    assert_eq!(imported["nix"]["nar_size"], 3_338_520);
    assert_eq!(imported["size"], 588);
    let stat = &place.json(&["stat", "--json", store_path])[0];
    assert_eq!(stat["nix"]["nar_hash"], imported["nix"]["nar_hash"]);

    place.good(&["export", store_path, "out"]);
    assert_eq!(listing(&place.path("out")), listing(&place.path("in/tree")));
    let sum = &place.json(&["verify", "--json"])[0];
    assert_eq!(sum["faults"], 0);
}

#[test]
fn names_of_any_bytes_go_through_pipes_and_are_escaped_on_terminals() {
    let place = Place::new();
    let odd = OsString::from_vec(b"\xff\n\x1b[31m".to_vec());
    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(&odd), "odd").unwrap();
    place.good(&["import", "tree"]);
    assert_eq!(place.good(&["ls", "tree"]), b"\xff\n\x1b[31m\n");
    assert_eq!(place.good(&["ls", "-0", "tree"]), b"\xff\n\x1b[31m\0");
    let path = Path::new("tree").join(&odd);
    assert_eq!(place.good(&[OsStr::new("cat"), path.as_os_str()]), b"odd");
    let line = &place.json(&["ls", "--json", "tree"])[0];
    assert_eq!(line["path"], "tree/\u{fffd}\n\u{1b}[31m");
    assert_eq!(line["path_base64"], "dHJlZS//ChtbMzFt");

    // A root can have such a name too.
    let arguments = [
        OsStr::new("import"),
        OsStr::new("--name"),
        &odd,
        OsStr::new("tree"),
    ];
    assert_eq!(place.good(&arguments), b"\xff\n\x1b[31m\n");
    place.good(&[OsStr::new("export"), &odd, OsStr::new("out")]);
    assert_eq!(listing(&place.path("out")), listing(&tree));
    let wrong = Path::new("tree/no\n\x1b[31m");
    assert_eq!(
        place.bad(1, &[OsStr::new("stat"), wrong.as_os_str()]),
        r"tree/no\n\x1b[31m does not exist"
    );

    // `script` gives the command a terminal.
    let line = r#"script -qec "$CASTORE ls tree" /dev/null </dev/null"#;
    let run = shell(&place, line);
    if run.status.code() == Some(127) {
        kit::skip::skip("there is no `script` to make a terminal with");
        return;
    }
    assert_eq!(
        String::from_utf8_lossy(&run.stdout).trim_end(),
        r"\xff\n\x1b[31m"
    );
}

#[test]
fn what_is_wrong_is_one_line_with_what_to_do() {
    let place = Place::new();
    assert_eq!(
        place.bad(1, &["ls"]),
        "local:store: there is no store yet; `castore-fs import` makes one"
    );
    assert!(!place.path("store").exists(), "looking makes no store");
    make_tree(&place.path("tree"));
    place.good(&["import", "tree"]);
    fs::write(place.path("file"), "").unwrap();
    for (arguments, message) in [
        (
            &["ls", "--store", "store"][..],
            "\"store\" is no store URL: it starts with no scheme; for a directory write local:PATH, for a store \
             of the configuration file store:NAME. The schemes are local:, memory:, grpc+",
        ),
        (
            &["ls", "--store", "ftp:/store"],
            "\"ftp:/store\" is no store URL: its scheme \"ftp\" is none of local:, memory:, grpc+",
        ),
        (
            &["ls", "--store", "grpc+https://host?token-file=nope"],
            "cannot open grpc+https://host: its token-file nope cannot be read: No such file or directory (os \
             error 2); write the absolute path of a file that this user may read",
        ),
        (
            &["ls", "--store", "grpc+https://host?tls-ca-cert-path=/no/pe"],
            "cannot open grpc+https://host: its tls-ca-cert-path /no/pe cannot be read: No such file or \
             directory (os error 2); name a file that this user may read",
        ),
        (
            &[
                "ls",
                "--store",
                "objectstore+s3://b/x?credentials-file=nope",
            ],
            "cannot open objectstore+s3://b/x: its credentials-file nope cannot be read: ",
        ),
        (
            &["ls", "--store", "objectstore+file:///no/where?foo=1"],
            "\"objectstore+file:///no/where\" is no store URL: there is no parameter \"foo\" for file; there are \
             only verify and spool",
        ),
        (
            &["ls", "--store", "objectstore+az://box/x"],
            "cannot open objectstore+az://box/x: it does not name the storage account: add account_name=NAME",
        ),
        (
            &[
                "copy",
                "--from",
                "local:store",
                "--to",
                "local:other",
                "three",
            ],
            "local:store has no root named three; `castore-fs ls --store local:store` lists the names it has",
        ),
        (
            &["mount", "--root", "three", "mnt"],
            "--root three: local:store has no root named three; `castore-fs ls` lists the names it has",
        ),
        (
            &["ls", "three"],
            "local:store has no root named three; `castore-fs ls` lists the names it has",
        ),
        (&["cat", "tree/no"], "tree/no does not exist"),
        (
            &["cat", "tree/bin"],
            "tree/bin is a directory: ls lists it, export writes it out",
        ),
        (
            &["cat", "tree/link"],
            "tree/link is a symbolic link to bin/sh and is not followed: name the file that it \
             points to",
        ),
        (
            &["ls", "tree/link/x"],
            "tree/link is a symbolic link, nothing is below it and it is not followed; it points \
             to bin/sh",
        ),
        (
            &["export", "tree", "file"],
            "file exists already; export writes only to a path where there is nothing",
        ),
        (
            &["export", "--format", "nar", "tree", "file"],
            "file exists already; export writes only to a path where there is nothing",
        ),
        (
            &["export", "tree", "no/where"],
            "the directory no does not exist; make it first",
        ),
        (
            &["export", "--format", "tar", "tree", "no/where"],
            "the directory no does not exist; make it first",
        ),
        (
            &["ls", "--store", "local:~/store"],
            "\"local:~/store\" is no store URL: local: does not know ~: write local:$HOME/",
        ),
        (
            &[
                "ls",
                "--store",
                "objectstore+s3://bucket/x?endpont=https://host",
            ],
            "\"objectstore+s3://bucket/x\" is no store URL: there is no parameter \"endpont\"",
        ),
        (
            &["status", "--socket", "no.sock"],
            "no service answers on no.sock: No such file or directory (os error 2); is castore-fs daemon running, and is this its control.socket",
        ),
        (
            &["import", "nowhere"],
            "cannot find nowhere: No such file or directory",
        ),
        (&["import", "/"], "/ has no name: give --name NAME"),
        (
            &["import", "--name", "a/b", "tree"],
            "a/b: a root's name has no /",
        ),
        (
            &["import", "--nix", "--name", "a b", "tree"],
            "\"a b\" cannot be the name of a Nix store path",
        ),
        (
            &[
                "import",
                "--nix",
                "nix/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-x",
            ],
            "nix/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-x is a Nix store path already: import it under its \
             own name with `castore-fs import nix/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-x`",
        ),
        (&["import", "--format", "nar", "file"], ""),
        (
            &["verify", "b3:00"],
            "\"b3:00\" is no NAME[/PATH] and no digest: ",
        ),
    ] {
        let line = place.bad(1, arguments);
        assert!(line.starts_with(message), "{arguments:?}: {line}");
    }
    // What failed left nothing.
    assert_eq!(place.text(&["ls"]), "tree\n");
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    let place = Place::new();
    for (arguments, message) in [
        (
            &["import"][..],
            "the following required arguments were not provided: <PATH>...; try --help",
        ),
        (
            &["import", "-", "--name", "x"],
            "- needs --format tar or --format nar, to know what standard input is; try --help",
        ),
        (
            &["import", "-", "--format", "tar"],
            "- needs --name NAME, since standard input has no name; try --help",
        ),
        (
            &["import", "--name", "x", "a", "b"],
            "--name names one tree: give one PATH with it; try --help",
        ),
        (
            &["export", "tree"],
            "files need a DESTINATION: castore-fs export TARGET DESTINATION; an archive (--format tar) goes to \
             standard output without one; try --help",
        ),
        (
            &["export", "tree", "-"],
            "files need a DESTINATION: castore-fs export TARGET DESTINATION; ",
        ),
        (
            &["serve", "--listen", "unix:s", "--drain", "soon"],
            "invalid value 'soon' for '--drain <TIME>': write a length of time, as in 500ms, 20s or 1min; a number \
             alone is seconds; try --help",
        ),
        (
            &["export", "--format", "zip", "x"],
            "invalid value 'zip' for '--format <FORMAT>'",
        ),
        (
            &["lsx"],
            "unrecognized subcommand 'lsx'; tip: a similar subcommand exists: 'ls'",
        ),
    ] {
        let line = place.bad(2, arguments);
        assert!(line.starts_with(message), "{arguments:?}: {line}");
    }
}

#[test]
fn one_bad_path_does_not_stop_the_others() {
    let place = Place::new();
    make_tree(&place.path("tree"));
    fs::write(place.path("file"), "x").unwrap();
    let run = place.run(&["import", "tree", "nowhere", "file"]);
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(run.stdout, b"tree\nfile\n");
    assert!(one_line(run.stderr).starts_with("cannot find nowhere"));
}

#[test]
fn one_missing_target_does_not_stop_the_others() {
    let place = Place::with_tree();
    for (arguments, stdout) in [
        (
            &["ls", "tree/bin", "tree/no", "tree/empty", "tree/link"][..],
            "tree/bin/copy\ntree/bin/deep\ntree/bin/sh\ntree/link\n",
        ),
        (&["ls", "tree/no", "b3:00", "tree/link"], "tree/link\n"),
        (
            &[
                "cat",
                "tree/bin/deep/text",
                "tree/no",
                "tree/bin",
                "tree/bin/sh",
            ],
            "some text\n#!/bin/sh\n",
        ),
    ] {
        let run = place.run(arguments);
        assert_eq!(run.status.code(), Some(1), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&run.stdout), stdout);
        let stderr = String::from_utf8(run.stderr).unwrap();
        assert!(stderr.contains("tree/no does not exist\n"), "{stderr}");
    }
    for arguments in [
        &["stat", "tree/no", "tree/link", "no"][..],
        &["stat", "--json", "no", "tree/link", "no"],
    ] {
        let run = place.run(arguments);
        assert_eq!(run.status.code(), Some(1), "{arguments:?}");
        let stdout = String::from_utf8(run.stdout).unwrap();
        assert!(
            !stdout.starts_with('\n') && stdout.contains("tree/link"),
            "{stdout}"
        );
        assert_eq!(String::from_utf8(run.stderr).unwrap().lines().count(), 2);
    }
    let run = place.run(&["verify", "no", "tree/bin"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(run.stdout.ends_with(b"nothing is damaged\n"), "{run:?}");
    assert_eq!(
        place.bad(1, &["verify", "no"]),
        "local:store has no root named no; `castore-fs ls` lists the names it has"
    );
}

/// Cron and daemons start programs so. What could not be written must not count as written.
#[test]
fn a_closed_or_full_standard_output_is_an_error() {
    let place = Place::with_tree();
    for (redirection, why) in [
        (">&-", "it is closed"),
        (">/dev/full", "No space left on device"),
    ] {
        for verb in [
            "cat tree/bin/sh",
            "export --format tar tree",
            "export --format nar tree",
            "ls",
            "ls tree",
            "ls --json tree",
            "stat tree",
            "verify",
            "import tree",
            "gc --dry-run",
            "generate reference",
            "profile list --directory .",
            "help",
            "--version",
            "import --help",
        ] {
            let run = shell(&place, &format!("$CASTORE {verb} {redirection}"));
            let nothing = verb.starts_with("profile") && redirection != ">&-";
            if nothing {
                continue;
            }
            assert_eq!(run.status.code(), Some(1), "{verb} {redirection}");
            let line = one_line(run.stderr);
            assert!(
                line.starts_with("cannot write") && line.contains(why),
                "{verb}: {line}"
            );
        }
    }
    // To throw the output away is another thing.
    for redirection in [">/dev/null", "<>/dev/null >&0"] {
        let run = shell(&place, &format!("$CASTORE ls tree {redirection}"));
        assert!(run.status.success(), "{redirection} {run:?}");
    }
}

#[test]
fn a_log_level_that_is_none_is_reported_and_silences_nothing() {
    let place = Place::new();
    fs::create_dir(place.path("tree")).unwrap();
    let fifo = place.path("tree/pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    for (level, lines) in [
        ("verbose", 2),
        ("inof", 2),
        ("error", 0),
        ("castore_fs=info", 1),
        ("", 1),
    ] {
        let mut command = place.command(&["import", "--skip-special", "tree"]);
        let run = command.env("RUST_LOG", level).output().unwrap();
        let stderr = String::from_utf8(run.stderr).unwrap();
        assert_eq!(stderr.lines().count(), lines, "{level}: {stderr}");
    }
    fs::write(place.path("c.toml"), "[log]\nlevel = 'verbose'\n").unwrap();
    let line = place.bad(1, &["check-config", "c.toml"]);
    assert!(
        line.contains("\"verbose\" is no level: write off, error, warn"),
        "{line}"
    );
}

/// A castore has files, directories and symbolic links.
#[test]
fn a_special_file_is_named_with_the_option_that_leaves_it_out() {
    let place = Place::new();
    fs::create_dir(place.path("tree")).unwrap();
    let fifo = place.path("tree/pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(
        place.bad(1, &["import", "tree"]),
        "tree/pipe is a named pipe, which a castore cannot hold; leave it out, or all such files with \
         --skip-special"
    );
}

#[test]
fn a_path_of_the_nix_store_names_its_root_in_every_verb() {
    let place = Place::with_tree();
    let at = "/nix/store/tree";
    assert_eq!(place.text(&["ls", &format!("{at}/bin/deep")]), "text\n");
    assert_eq!(
        place.text(&["cat", &format!("{at}/bin/deep/text")]),
        "some text\n"
    );
    for verb in ["stat", "verify", "du"] {
        place.good(&[verb, at]);
    }
    place.good(&["export", at, "out"]);
    place.good(&["copy", "--from", "local:store", "--to", "local:other", at]);
    place.good(&["tag", "/nix/store/tagged", &format!("{at}/bin")]);
    place.good(&["mv", "/nix/store/tagged", "/nix/store/moved"]);
    assert_eq!(place.text(&["ls"]), "moved\ntree\n");
    // What frees the space is on standard error.
    let removed = place.run(&["rm", "/nix/store/moved"]);
    assert_eq!(
        (removed.status.code(), removed.stdout.as_slice()),
        (Some(0), &b"moved\n"[..])
    );
    fs::create_dir(place.path("profiles")).unwrap();
    let reported = place.bad(1, &["profile", "rm", "--directory", "profiles", at]);
    assert!(
        reported.contains("tree") && !reported.contains("/nix/store"),
        "{reported}"
    );
}

#[test]
fn what_a_copy_did_and_what_is_wrong_with_a_configuration_can_be_json() {
    let place = Place::with_tree();
    let copy = [
        "copy",
        "--json",
        "--from",
        "local:store",
        "--to",
        "local:other",
        "--all",
    ];
    let copied = &place.json(&copy)[0];
    assert_eq!(copied["roots"], 1);
    assert_eq!(copied["directories"], 4, "{copied}");
    assert_eq!(
        copied["blob_bytes"].as_u64(),
        Some((3 << 20) + 20),
        "{copied}"
    );
    let again = &place.json(&copy)[0];
    assert_eq!(
        (&again["blobs"], &again["blobs_there"]),
        (&0.into(), &4.into())
    );

    fs::write(place.path("c.toml"), "[log]\nlevel = 'loud'\nx = 1\n").unwrap();
    let run = place.run(&["check-config", "--json", "c.toml"]);
    assert_eq!((run.status.code(), run.stderr.len()), (Some(1), 0));
    let mistakes = json_lines(&String::from_utf8(run.stdout).unwrap());
    assert_eq!(mistakes[0]["path"], "c.toml");
    let place_of = |mistake: &Value| format!("{} {}", mistake["line"], mistake["key"]);
    let places: Vec<_> = mistakes.iter().map(place_of).collect();
    assert_eq!(places, [r#"2 "log.level""#, r#"3 "log.x""#]);
}

/// One object for each change, and the hint of `rm` only without --quiet.
#[test]
fn what_changes_roots_can_be_json_and_quiet() {
    let place = Place::with_tree();
    let tagged = &place.json(&["tag", "--json", "share", "tree/bin"])[0];
    assert_eq!(
        (&tagged["name"], &tagged["type"]),
        (&"share".into(), &"directory".into())
    );
    let moved = &place.json(&["mv", "--json", "share", "bin"])[0];
    assert_eq!(
        (&moved["name"], &moved["digest"]),
        (&"bin".into(), &tagged["digest"])
    );
    let exported = &place.json(&["export", "--json", "bin", "out"])[0];
    assert_eq!(
        (&exported["path"], &exported["digest"]),
        (&"bin".into(), &tagged["digest"])
    );
    assert_eq!(exported["destination"]["path"], "out");
    assert!(exported["written"].as_u64() > Some(0), "{exported}");
    let reported = place.bad(2, &["export", "--json", "--format", "tar", "bin"]);
    assert!(reported.contains("DESTINATION"), "{reported}");
    let dry = &place.json(&["rm", "--json", "--dry-run", "bin"])[0];
    assert_eq!(
        (&dry["roots"][0]["name"], &dry["dry_run"]),
        (&"bin".into(), &true.into())
    );
    let removed = &place.json(&["rm", "--json", "--quiet", "bin"])[0];
    assert_eq!(removed["dry_run"], false);
    assert_eq!(place.text(&["gc", "--quiet"]).lines().count(), 1);
    let reported = place.bad(2, &["rm", "--jsn", "tree"]);
    assert!(!reported.contains("as a value"), "{reported}");
    // Names of roots, which have no slash.
    place.good(&["import", "--name", "/nix/store/again", "tree/bin"]);
    assert_eq!(place.text(&["ls"]), "again\ntree\n");
    for (arguments, reported) in [
        (
            &["rm", "tree/bin"][..],
            "tree/bin is a path below a root; rm takes names of roots",
        ),
        (&["tag", "a/b", "tree"], "a/b: a root's name has no /"),
    ] {
        assert_eq!(place.bad(1, arguments), reported);
    }
}

/// Progress is for people at a terminal, who can do without it.
#[test]
fn progress_is_shown_on_a_terminal_only_and_not_with_quiet() {
    let place = Place::with_tree();
    // Its standard error is the terminal that `script` makes.
    let terminal = |arguments: &str| {
        let line = format!(r#"script -qec "$CASTORE {arguments} >stdout" /dev/null </dev/null"#);
        let run = shell(&place, &line);
        (run.status.code(), String::from_utf8(run.stdout).unwrap())
    };
    let (status, shown) = terminal("import tree");
    if status == Some(127) {
        kit::skip::skip("there is no `script` to make a terminal with");
        return;
    }
    assert!(shown.contains("5 files, 3.00 MiB; new: 0 blobs"), "{shown}");
    for (verb, words) in [
        ("du", "measuring in "),
        ("gc", "looking for what stays in "),
        ("verify", "verifying "),
    ] {
        let (status, shown) = terminal(verb);
        assert!(
            status == Some(0) && shown.contains(words),
            "{verb}: {shown}"
        );
    }
    for quiet in [
        "import --quiet tree",
        "export -q tree out",
        "verify -q",
        "du -q",
        "gc -q",
        "copy -q --from local:store --to local:other tree",
    ] {
        let (status, shown) = terminal(quiet);
        assert_eq!((status, shown.as_str()), (Some(0), ""), "{quiet}");
    }
}

/// Common mistakes in a connection: one line, with advice.
#[test]
fn a_connection_that_fails_is_one_line_with_what_to_do() {
    let place = Place::with_tree();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "authority");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    for (name, text) in [
        ("ca.pem", ca_pem),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
        ("token", "right".to_owned()),
        ("wrong", "wrong".to_owned()),
    ] {
        fs::write(place.path(name), text).unwrap();
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    /// Ended with the test.
    struct Server(Child);
    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let serve = |more: &[&str]| {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap().port();
        let listen = format!("localhost:{port}");
        let arguments = [&["serve", "--no-sandbox", "--listen", &listen][..], more].concat();
        let server = Server(
            place
                .command(&arguments)
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(&listen).is_err() {
            assert!(Instant::now() < deadline, "the server does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        (server, listen)
    };
    let (_tls, tls) = serve(&[
        "--tls-cert",
        "cert.pem",
        "--tls-key",
        "key.pem",
        "--token-file",
        "token",
    ]);
    let (_clear, clear) = serve(&[]);
    let ca = "tls-ca-cert-path=ca.pem";
    let port = tls.trim_start_matches("localhost:");
    for (url, what) in [
        (
            format!("grpc+http://{tls}"),
            "if the server has TLS, write grpc+https://",
        ),
        (
            format!("grpc+https://{clear}?{ca}"),
            "does not speak TLS on this port",
        ),
        (
            format!("grpc+https://{tls}"),
            "name its authority with tls-ca-cert-path=FILE",
        ),
        (
            format!("grpc+https://127.0.0.1:{port}?{ca}"),
            "use a name that",
        ),
        (
            format!("grpc+https://{tls}?{ca}"),
            "requires a token: give its file in the URL",
        ),
        (
            format!("grpc+https://{tls}?{ca}&token-file=wrong"),
            "the token of this call is not valid",
        ),
        (
            "grpc+http://localhost:1".to_owned(),
            "is the server running, and is the port right?",
        ),
        (
            "grpc+unix:/nowhere/sock".to_owned(),
            "there is no such socket",
        ),
    ] {
        // Authorities that the system trusts, whether it has any or not.
        let mut command = place.command(&["ls", "--store", &url]);
        let run = command.env("SSL_CERT_FILE", "cert.pem").output().unwrap();
        assert_eq!(run.status.code(), Some(1), "{url}");
        let line = one_line(run.stderr);
        assert!(line.contains(what), "{url}: {line}");
    }
    let right = format!("grpc+https://{tls}?{ca}&token-file=token");
    assert_eq!(place.text(&["ls", "--store", &right]), "tree\n");
}

/// The author of a tree chooses its names. They reach no terminal and forge no line: neither in a
/// warning nor in an error nor in what `verify` and `stat` print.
#[test]
fn names_cannot_forge_lines_or_move_a_cursor() {
    let place = Place::new();
    let evil = "pipe\n ERROR castore_fs: forged \x1b[31m\u{202e}\u{9b}";
    let shown = r"pipe\n ERROR castore_fs: forged \x1b[31m\u{202e}\u{9b}";
    fs::create_dir(place.path("tree")).unwrap();
    let fifo = place.path("tree").join(evil);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let run = place.run(&["import", "--skip-special", "tree"]);
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(&format!("path=tree/{shown}")), "{stderr}");
    let line = place.bad(1, &["import", "tree"]);
    assert_eq!(line.matches(shown).count(), 1, "{line}");
    // In an archive.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Fifo);
    header.set_size(0);
    header.set_mode(0o644);
    builder.append_data(&mut header, evil, &[][..]).unwrap();
    fs::write(place.path("evil.tar"), builder.into_inner().unwrap()).unwrap();
    let arguments = ["import", "--format", "tar", "--skip-special", "evil.tar"];
    let stderr = String::from_utf8(place.run(&arguments).stderr).unwrap();
    assert!(
        stderr.lines().count() == 1 && stderr.contains(shown),
        "{stderr}"
    );
    // In the store.
    fs::remove_file(&fifo).unwrap();
    fs::write(&fifo, large()).unwrap();
    place.good(&["import", "tree"]);
    let path = format!("tree/{evil}");
    assert!(place.text(&["stat", &path]).contains(shown));
    let json = place.text(&["ls", "--json", "tree"]);
    assert!(!json.trim_end().chars().any(char::is_control) && !json.contains('\u{202e}'));
    assert_eq!(json_lines(&json)[0]["path"], path);
    assert!(spoil(&place.path("store"), &large()[..64]) > 0);
    let run = place.run(&["verify"]);
    let stdout = String::from_utf8(run.stdout).unwrap();
    assert!(stdout.lines().next().unwrap().contains(shown), "{stdout}");
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
}

#[test]
fn compressed_archives_are_imported_under_their_names() {
    let place = Place::with_tree();
    let mut digests = Vec::new();
    for (format, ending, command) in [
        ("tar", "tar.gz", "gzip"),
        ("tar", "tgz", "gzip"),
        ("tar", "tar.xz", "xz"),
        ("tar", "tar.zst", "zstd -q"),
        ("tar", "tar.bz2", "bzip2"),
        ("nar", "nar.xz", "xz"),
        ("nar", "nar.zst", "zstd -q"),
    ] {
        let name = format!("out.{ending}");
        let line = format!("$CASTORE export --format {format} tree | {command} > {name}");
        assert!(
            shell(&place, &line).status.success(),
            "the tests need {command}"
        );
        assert_eq!(place.text(&["import", "--format", format, &name]), "out\n");
        digests.push(place.json(&["stat", "--json", "out"])[0]["digest"].clone());
        let piped = format!(
            "cat {name} {name} | head -c $(stat -c %s {name}) | $CASTORE import --format {format} --name piped -"
        );
        assert!(shell(&place, &piped).status.success());
        digests.push(place.json(&["stat", "--json", "piped"])[0]["digest"].clone());
    }
    let tree = place.json(&["stat", "--json", "tree"])[0]["digest"].clone();
    assert!(digests.iter().all(|digest| *digest == tree));
    let line = "$CASTORE export --format tar tree | zstd -q > out.tar.zst; \
                $CASTORE import --format tar --max-size 1MiB out.tar.zst";
    let run = shell(&place, line);
    assert_eq!(run.status.code(), Some(1));
    let line = one_line(run.stderr);
    assert!(line.ends_with("allow more with --max-size SIZE"), "{line}");
}

#[test]
fn absolute_names_in_an_archive_are_warned_of_once() {
    let place = Place::with_tree();
    let run = shell(
        &place,
        "tar -P --transform 's,^,/top/,' -cf abs.tar -C tree bin link && \
         $CASTORE import --format tar abs.tar",
    );
    assert!(run.status.success(), "{run:?}");
    let stderr = String::from_utf8(run.stderr).unwrap();
    let warnings = stderr
        .lines()
        .filter(|line| line.contains("leading /"))
        .count();
    assert_eq!((warnings, stderr.lines().count()), (1, 1), "{stderr}");
    assert_eq!(place.good(&["cat", "abs/top/bin/sh"]), b"#!/bin/sh\n");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::with_tree();
    for line in [
        "$CASTORE cat tree/large | head -c 10 | wc -c; echo ${PIPESTATUS[0]}",
        "$CASTORE export --format tar tree | head -c 10 | wc -c; echo ${PIPESTATUS[0]}",
        "$CASTORE export --format nar tree | head -c 10 | wc -c; echo ${PIPESTATUS[0]}",
    ] {
        let run = shell(&place, line);
        assert_eq!(run.stdout, b"10\n141\n", "{run:?}");
        assert!(run.stderr.is_empty(), "{run:?}");
    }
    let run = shell(&place, "$CASTORE ls tree >/dev/full");
    assert_eq!(run.status.code(), Some(1));
    assert!(one_line(run.stderr).contains("No space left"));
}

/// Changes every occurrence of `bytes` in the files below `dir`; gives how many there were.
fn spoil(dir: &Path, bytes: &[u8]) -> usize {
    let mut count = 0;
    for (path, _, mut contents) in listing(dir) {
        let found: Vec<_> = contents
            .windows(bytes.len())
            .enumerate()
            .filter(|(_, window)| *window == bytes)
            .map(|(at, _)| at)
            .collect();
        if found.is_empty() {
            continue;
        }
        count += found.len();
        for at in found {
            contents[at] ^= 0x20;
        }
        let path = dir.join(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, contents).unwrap();
    }
    count
}

#[test]
fn verify_names_exactly_the_paths_that_are_damaged() {
    let place = Place::with_tree();
    fs::create_dir(place.path("more")).unwrap();
    fs::write(place.path("more/same"), "#!/bin/sh\n").unwrap();
    fs::write(place.path("more/other"), "sound\n").unwrap();
    place.good(&["import", "more"]);

    assert_eq!(spoil(&place.path("store/packs"), b"#!/bin/sh\n"), 1);
    let run = place.run(&["verify"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(run.stderr.is_empty(), "{run:?}");
    let text = String::from_utf8(run.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let paths = ["more/same", "tree/bin/copy", "tree/bin/sh"];
    assert_eq!(lines.len(), paths.len() + 1, "{text}");
    for (line, path) in lines.iter().zip(paths) {
        assert!(
            line.starts_with(&format!("damaged: {path}: blob blake3-")),
            "{line}"
        );
    }
    assert!(
        lines[3].ends_with(": 1 object is damaged or missing"),
        "{text}"
    );
    // Only what can be reached from a target counts.
    place.good(&["verify", "tree/empty", "tree/large", "more/other"]);
    let line = place.bad(1, &["cat", "tree/bin/sh"]);
    assert!(
        line.starts_with("tree/bin/sh: local:store: blob blake3-"),
        "{line}"
    );
    assert_eq!(place.good(&["cat", "more/other"]), b"sound\n");

    // A large blob, in a file of its own: gone.
    let blobs = place.path("store/blobs");
    let (large, ..) = listing(&blobs)
        .into_iter()
        .find(|(_, _, bytes)| bytes.len() == 3 << 20)
        .expect("the large blob is a file");
    fs::remove_file(blobs.join(large)).unwrap();
    let faults = place.run(&["verify", "--json", "tree"]);
    assert_eq!(faults.status.code(), Some(1));
    let faults = json_lines(&String::from_utf8(faults.stdout).unwrap());
    assert_eq!(faults.len(), 3);
    assert_eq!(faults[0]["paths"][0]["path"], "tree/bin/copy");
    assert_eq!(faults[0]["paths"][1]["path"], "tree/bin/sh");
    assert_eq!(faults[1]["paths"][0]["path"], "tree/large");
    assert_eq!(faults[1]["paths"].as_array().unwrap().len(), 1);
    assert_eq!(faults[2]["faults"], 2);

    // What is damaged is not exported in part.
    let line = place.bad(1, &["export", "tree", "out"]);
    assert!(line.contains("blake3-"), "{line}");
    place.bad(1, &["export", "--format", "tar", "tree", "out"]);
    assert!(!place.path("out").exists());
}

#[test]
fn verify_names_a_damaged_directory() {
    let place = Place::with_tree();
    // The Directory tree/bin/deep, which alone has this name in it.
    assert_eq!(spoil(&place.path("store/packs"), b"\x0a\x04text"), 1);
    let run = place.run(&["verify"]);
    assert_eq!(run.status.code(), Some(1));
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(
        text.starts_with("damaged: tree/bin/deep: directory blake3-"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2, "{text}");
    // A listing continues after it, and reports it.
    let run = place.run(&["ls", "-R", "tree"]);
    assert_eq!(run.status.code(), Some(1));
    let listed = String::from_utf8(run.stdout).unwrap();
    assert!(
        listed.ends_with("bin/deep\nbin/sh\nempty\nlarge\nlink\nnothing\n"),
        "{listed}"
    );
    assert!(one_line(run.stderr).starts_with("tree/bin/deep: "));
}

fn signal(name: &str, child: &Child) {
    let kill = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
}

/// A mount that ends with its test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            signal("INT", &self.0);
            wait(&mut self.0);
        }
    }
}

fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    None
}

#[test]
fn an_import_that_is_interrupted_leaves_nothing() {
    let place = Place::with_tree();
    let archive = place.good(&["export", "--format", "tar", "tree"]);
    let before = listing(&place.path("store"));
    for signal in ["INT", "TERM"] {
        let mut child = place
            .command(&["import", "--format", "tar", "--name", "half", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Half of the archive, and then nothing: the import waits for more.
        let mut input = child.stdin.take().unwrap();
        input.write_all(&archive[..archive.len() / 2]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        crate::signal(signal, &child);
        let status = wait(&mut child).expect("the import ends though its input does not");
        assert_eq!((status.code(), status.signal()), (Some(130), None));
        let mut reported = Vec::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_end(&mut reported)
            .unwrap();
        assert_eq!(one_line(reported), "interrupted");
    }
    assert_eq!(place.text(&["ls"]), "tree\n");
    place.good(&["verify"]);
    let names = |listing: Vec<(PathBuf, String, Vec<u8>)>| -> Vec<_> {
        listing.into_iter().map(|(path, ..)| path).collect()
    };
    assert_eq!(names(listing(&place.path("store"))), names(before));
}

/// A store with a tree of so many files that an export can be stopped in the middle.
fn place_with_many_files() -> Place {
    let place = Place::new();
    for dir in 0..60 {
        let dir = place.path(&format!("tree/{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..60 {
            fs::write(dir.join(file.to_string()), file.to_string()).unwrap();
        }
    }
    place.good(&["import", "tree"]);
    place
}

/// The hidden directories in which exports to `copy` are.
fn unfinished(place: &Place) -> Vec<PathBuf> {
    let all = fs::read_dir(place.dir.path()).unwrap();
    let all = all.map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(".copy.castore-fs-")
    };
    all.filter(is_one).collect()
}

/// Starts an export to `copy`, and stops its process once it has written a few files.
fn stopped_export(place: &Place) -> Running {
    let before = unfinished(place);
    let mut command = place.command(&["export", "tree", "copy"]);
    command.stderr(Stdio::null());
    let export = Running(command.spawn().unwrap());
    let start = Instant::now();
    let has_begun = || {
        let hidden = unfinished(place);
        let hidden = hidden.iter().find(|path| !before.contains(path));
        hidden.is_some_and(|path| path.join("copy/0/9").exists())
    };
    while !has_begun() {
        assert!(start.elapsed() < Duration::from_secs(20), "no export");
    }
    signal("STOP", &export.0);
    assert!(!place.path("copy").exists(), "the export was too fast");
    export
}

#[test]
fn an_export_that_is_interrupted_twice_leaves_nothing() {
    let place = place_with_many_files();
    let mut export = stopped_export(&place);
    // It hears both at once.
    signal("INT", &export.0);
    signal("TERM", &export.0);
    signal("CONT", &export.0);
    let status = wait(&mut export.0).expect("the export ends");
    assert_eq!(status.code(), Some(130));
    assert!(unfinished(&place).is_empty(), "{:?}", unfinished(&place));
    assert!(!place.path("copy").exists());
}

#[test]
fn an_export_removes_what_a_killed_one_has_left_and_not_what_another_makes() {
    let place = place_with_many_files();
    let mut killed = stopped_export(&place);
    signal("KILL", &killed.0);
    wait(&mut killed.0).unwrap();
    let remaining = unfinished(&place);
    assert_eq!(remaining.len(), 1);
    let mut other = stopped_export(&place);
    let of_other = unfinished(&place);
    assert!(of_other.len() == 1 && of_other != remaining, "{of_other:?}");
    let run = place.run(&["export", "tree", "copy"]);
    assert!(run.status.success(), "{run:?}");
    assert_eq!(listing(&place.path("copy")), listing(&place.path("tree")));
    assert_eq!(unfinished(&place), of_other);
    signal("CONT", &other.0);
    assert_eq!(wait(&mut other.0).unwrap().code(), Some(1));
    assert!(unfinished(&place).is_empty());
}

#[test]
fn the_default_store_is_in_the_data_directory() {
    let place = Place::new();
    let root = rustix::process::geteuid().is_root();
    let run = |variable: &str, value: &Path| {
        // As root, with an empty directory in the place of the machine's own.
        let mut command = Command::new(if root { "unshare" } else { "env" });
        if root {
            let script = "mount -t tmpfs none /var/lib && exec \"$@\"";
            command.args(["--mount", "sh", "-c", script, "sh"]);
        }
        command.args([PROGRAM, "ls"]);
        command.env_remove("CASTORE_FS_STORE").env_remove("HOME");
        command.env_remove("XDG_DATA_HOME").env(variable, value);
        one_line(command.output().unwrap().stderr)
    };
    let home = place.path("home");
    for (variable, dir) in [
        ("XDG_DATA_HOME", home.clone()),
        ("HOME", home.join(".local/share")),
    ] {
        let dir = if root { PathBuf::from("/var/lib") } else { dir };
        assert_eq!(
            run(variable, &home),
            format!(
                "local:{}/castore-fs: there is no store yet; `castore-fs import` makes one",
                dir.display()
            )
        );
    }
}

#[test]
fn completions_and_manual_pages_are_written() {
    let place = Place::new();
    place.good(&["generate", "completions", "completions"]);
    place.good(&["generate", "man", "man"]);
    for file in [
        "completions/castore-fs.bash",
        "completions/_castore-fs",
        "man/castore-fs.1",
        "man/castore-fs-import.1",
        "man/castore-fs.toml.5",
        "man/mount.castore-fs.8",
    ] {
        assert!(
            fs::metadata(place.path(file)).unwrap().size() > 500,
            "{file}"
        );
    }
    for (file, line) in [
        ("castore-fs.toml.5", ".SH [mounts.NAME]"),
        ("castore-fs.toml.5", "\\fBwhen\\-unreachable\\fR"),
        ("mount.castore-fs.8", ".SH \"EXIT STATUS\""),
        ("mount.castore-fs.8", ".SH FILES"),
        ("mount.castore-fs.8", ".SH ENVIRONMENT"),
    ] {
        let text = fs::read_to_string(place.path("man").join(file)).unwrap();
        assert!(text.lines().any(|it| it == line), "{file}: {line}: {text}");
    }
}

#[test]
fn a_directory_is_imported_and_mounted() {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        kit::skip::skip(&format!("/dev/fuse cannot be opened: {error}"));
        return;
    }
    let place = Place::new();
    make_tree(&place.path("tree"));
    fs::create_dir(place.path("mount")).unwrap();
    let child = place
        .command(&["mount", "--import", "tree", "mount"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let reported = std::io::BufReader::new(child.0.stderr.take().unwrap());
    let mut reported = reported.lines();
    let up = reported.next().unwrap().unwrap();
    assert!(up.starts_with("castore-fs: local:store is on "), "{up}");
    let mounted = place.path("mount/tree");
    assert_eq!(listing(&mounted), listing(&place.path("tree")));
    let sh = mounted.join("bin/sh").metadata().unwrap();
    assert_eq!((sh.mode() & 0o7777, sh.mtime()), (0o555, 1));

    // Other processes read and add meanwhile, and the mount shows what they add.
    assert_eq!(place.text(&["ls"]), "tree\n");
    place.good(&["verify"]);
    assert_eq!(
        place.text(&["import", "--name", "more", "tree/bin"]),
        "more\n"
    );
    assert_eq!(
        fs::read(place.path("mount/more/sh")).unwrap(),
        b"#!/bin/sh\n"
    );

    signal("INT", &child.0);
    let status = wait(&mut child.0).expect("an interrupt ends the mount");
    assert!(status.success(), "{status}");
    assert_eq!(fs::read_dir(place.path("mount")).unwrap().count(), 0);
    assert!(reported.next().is_none());

    // A place where nothing can be mounted.
    let line = place.bad(1, &["mount", "nowhere"]);
    assert!(line.contains("nowhere"), "{line}");
    let line = place.bad(1, &["mount", "--root", "tree/link", "mount"]);
    assert!(line.contains("tree/link is not a directory"), "{line}");
}

#[test]
fn a_tree_deeper_than_any_path_goes_in_and_out() {
    let place = Place::new();
    // The path to the bottom has 6000 bytes, and the system takes 4095 in one piece.
    let depth = 1200;
    let mut nar = castore_fs::nar::NarWriter::new(Vec::new());
    nar.directory(None).unwrap();
    for _ in 1..depth {
        nar.directory(Some(b"down")).unwrap();
    }
    nar.file(Some(b"bottom"), false, 4).unwrap();
    nar.contents(b"here").unwrap();
    for _ in 0..depth {
        nar.end_directory().unwrap();
    }
    fs::write(place.path("deep.nar"), nar.finish().unwrap()).unwrap();
    place.good(&["import", "--format", "nar", "deep.nar"]);
    assert_eq!(place.text(&["ls", "-R", "deep"]).lines().count(), depth);
    let path = "down/".repeat(depth - 1) + "bottom";
    assert_eq!(place.good(&["cat", &format!("deep/{path}")]), b"here");
    assert!(place.text(&["verify"]).ends_with("nothing is damaged\n"));
    place.good(&["export", "deep", "out"]);
    let digest = |name| place.json(&["stat", "--json", name])[0]["digest"].clone();
    place.good(&["import", "out"]);
    assert_eq!(digest("out"), digest("deep"));
    for format in ["tar", "nar"] {
        let piped = place.good(&["export", "--format", format, "deep"]);
        fs::write(place.path("again"), piped).unwrap();
        place.good(&["import", "--format", format, "again"]);
        assert_eq!(digest("again"), digest("deep"));
    }
}

/// With as few descriptors as that, every way into a store and out of it has to close directories that
/// it will come back to.
#[test]
fn a_tree_deeper_than_the_limit_of_descriptors_goes_in_and_out() {
    /// What `TempDir` cannot remove: it opens a directory for each level.
    struct Removed(PathBuf);
    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = Command::new("rm").arg("-rf").arg(&self.0).status();
        }
    }
    let place = Place::new();
    let _removed = Removed(place.dir.path().to_owned());
    fs::create_dir(place.path("deep")).unwrap();
    let depth = 5000;
    let directory = rustix::fs::OFlags::DIRECTORY;
    let mode = rustix::fs::Mode::RWXU;
    let mut at = rustix::fs::open(place.path("deep"), directory, mode).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "d", mode).unwrap();
        rustix::fs::symlinkat("target", &at, "z").unwrap();
        at = rustix::fs::openat(&at, "d", directory, mode).unwrap();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&at, "bottom", flags, mode).unwrap();
    fs::File::from(file).write_all(&large()).unwrap();
    let limited = |line: &str| shell(&place, &format!("ulimit -n 64; $CASTORE {line}"));
    for line in [
        "import deep",
        "export deep out",
        "import out",
        "export --format nar deep out.nar",
    ] {
        let run = limited(line);
        assert!(
            run.status.success() && run.stderr.is_empty(),
            "{line}: {run:?}"
        );
    }
    let digest = |name| place.json(&["stat", "--json", name])[0]["digest"].clone();
    assert_eq!(digest("out"), digest("deep"));
    place.good(&["import", "--format", "nar", "--name", "again", "out.nar"]);
    assert_eq!(digest("again"), digest("deep"));

    // One that fails at the bottom takes everything back.
    let there = |place: &Place| {
        let entries = fs::read_dir(place.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = there(&place);
    assert!(spoil(&place.path("store"), &large()[..64]) > 0);
    let run = limited("export deep failed");
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert_eq!(one_line(run.stderr).matches("/d").count(), depth);
    assert_eq!(there(&place), before);
}

#[test]
fn an_export_that_fails_leaves_nothing_in_any_format() {
    let place = Place::with_tree();
    let before = fs::read_dir(place.dir.path()).unwrap().count();
    for format in ["dir", "tar", "nar"] {
        let line = format!("ulimit -f 1000; $CASTORE export --format {format} tree out");
        let run = shell(&place, &line);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        let line = one_line(run.stderr);
        assert!(line.contains("File too large"), "{line}");
        assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), before);
    }
}

#[test]
fn gc_removes_what_no_root_reaches_and_prints_how_much() {
    let place = Place::with_tree();
    let text = |arguments: &[&str]| String::from_utf8(place.good(arguments)).unwrap();
    fs::write(place.path("other"), vec![7; 3 << 20]).unwrap();
    place.good(&["import", "other", "--name", "again"]);
    fs::write(place.path("other"), "short").unwrap();
    place.good(&["import", "other", "--name", "again"]);
    let spared = text(&["gc"]);
    assert!(spared.starts_with("removed 0 blobs (0 B), 0 directories; "));
    let until =
        spared.split("\nspared 1 blob (3.00 MiB), 0 directories: within the grace period, until ");
    let until = until.last().unwrap().strip_suffix(" UTC\n").unwrap();
    let json: Value = serde_json::from_slice(&place.good(&["gc", "--json"])).unwrap();
    let grace = &json["spared"]["grace"];
    assert_eq!(grace["blob_bytes"], 3 << 20);
    assert_eq!(grace["until"], until.replace(' ', "T") + "Z");
    assert_eq!(json["spared"]["in_use"]["blobs"], 0);
    let dry = text(&["gc", "--dry-run", "--grace", "0s"]);
    assert!(
        dry.starts_with("would remove 1 blob (3.00 MiB), 0 directories: about "),
        "{dry}"
    );
    let done = text(&["gc", "--grace=0s", "--json"]);
    // A script that looks for the last of them finds what was removed.
    let (_, last) = done.rsplit_once("\"blobs\":").unwrap();
    assert!(last.starts_with("1,"), "{done}");
    let done: Value = serde_json::from_str(&done).unwrap();
    assert_eq!(
        (&done["blobs"], &done["blob_bytes"]),
        (&1.into(), &(3 << 20).into())
    );
    assert!(done["freed"].as_u64().unwrap() >= 3 << 20, "{done}");
    assert!(text(&["gc", "--grace=0s"]).starts_with("removed 0 blobs"));
    place.good(&["verify"]);
    let upstream = place.run(&["gc", "--store", "memory:"]);
    let error = String::from_utf8(upstream.stderr).unwrap();
    assert!(
        error.contains("gc works only on local stores (local:PATH) and object stores"),
        "{error}"
    );
    let long = place.run(&["gc", "--grace", "2d"]);
    assert_eq!(long.status.code(), Some(2));
}

/// As in a container made of nothing.
#[test]
fn a_machine_without_certificates_of_authorities_gets_an_error_that_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = dir.path().join("nothing");
    for url in [
        "grpc+https://store.example.org",
        "objectstore+s3://bucket/path?region=us-east-1",
        "objectstore+https://store.example.org/path",
    ] {
        let output = Command::new(PROGRAM)
            .args(["ls", "--store", url])
            .env("SSL_CERT_FILE", &nothing)
            .env("SSL_CERT_DIR", &nothing)
            .env("AWS_ACCESS_KEY_ID", "id")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .output()
            .unwrap();
        assert!(!output.status.success(), "{url}");
        let reported = String::from_utf8_lossy(&output.stderr);
        for part in [
            url.split('?').next().unwrap(),
            "ca-certificates",
            "SSL_CERT_FILE",
        ] {
            assert!(reported.contains(part), "{part} in {reported}");
        }
    }
}

#[test]
fn rm_removes_names_and_gc_what_they_led_to() {
    let place = Place::with_tree();
    place.good(&["import", "--name", "other", "tree/bin"]);
    assert_eq!(place.text(&["rm", "--dry-run", "tree"]), "tree\n");
    assert_eq!(place.text(&["ls"]), "other\ntree\n");
    assert_eq!(
        place.bad(1, &["rm", "tree", "none"]),
        "local:store has no root named none; `castore-fs ls` lists the names it has"
    );
    assert_eq!(place.text(&["ls"]), "other\ntree\n");
    // What would be refused is refused.
    fs::write(
        place.path("config.toml"),
        format!(
            "[stores.disk]\nurl = 'local:{}'\n[stores.all]\njoin = ['disk']\n",
            place.path("store").display()
        ),
    )
    .unwrap();
    for options in [&[][..], &["--dry-run"]] {
        let rm = [
            "rm",
            "--config",
            "config.toml",
            "--store",
            "store:all",
            "tree",
        ];
        assert_eq!(
            place.bad(1, &[&rm[..], options].concat()),
            "store:all cannot be written to: a join store is read-only; write to one of disk"
        );
    }
    let removed = place.run(&["rm", "tree"]);
    assert_eq!(removed.stdout, b"tree\n");
    // The time that `rm` announces is the one at which the collection frees it, or later.
    let hint = String::from_utf8(removed.stderr).unwrap();
    let announced = hint
        .split("`castore-fs gc --store local:store` frees the space from ")
        .last();
    let announced = announced.unwrap().split(" on ").next().unwrap();
    let spared = place.text(&["gc"]);
    let until = spared
        .split("directories: within the grace period, until ")
        .last();
    assert!(until.unwrap().trim_end() >= announced, "{hint} {spared}");
    assert_eq!(place.text(&["ls"]), "other\n");
    let collected = place.text(&["gc", "--grace", "0s"]);
    assert!(!collected.contains("spared"), "{collected}");
    assert!(collected.starts_with("removed "), "{collected}");
    place.good(&["verify"]);
}

#[test]
fn verify_repairs_what_is_damaged_from_another_store() {
    let place = Place::with_tree();
    place.good(&["import", "--store", "local:good", "tree"]);
    let pack = place.path("store/packs/00000000.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let end = bytes.len() - 20;
    bytes[65] ^= 1;
    bytes[end] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    assert_eq!(place.run(&["verify"]).status.code(), Some(1));
    let error = place.bad(2, &["verify", "--from", "local:good"]);
    assert!(error.contains("--repair"), "{error}");
    // Without another store there is nothing to repair them from.
    assert_eq!(place.run(&["verify", "--repair"]).status.code(), Some(1));
    let reported = place.text(&["verify", "--repair", "--from", "local:good"]);
    assert!(reported.contains("repaired: fetched "), "{reported}");
    assert!(reported.ends_with("nothing is damaged\n"), "{reported}");
    place.good(&["verify"]);
    // The same for an index that is lost.
    std::fs::remove_file(place.path("store/index.redb")).unwrap();
    let error = place.bad(1, &["ls"]);
    assert!(
        error.contains("castore-fs verify --repair --store local:store"),
        "{error}"
    );
    let reported = place.text(&["verify", "--repair"]);
    assert!(
        reported.contains("repaired: made a new index of "),
        "{reported}"
    );
    assert_eq!(place.text(&["ls"]), "tree\n");
}

#[test]
fn roots_are_tagged_renamed_and_measured() {
    let place = Place::with_tree();
    assert_eq!(place.text(&["tag", "shell", "tree/bin/sh"]), "");
    place.good(&["tag", "share", "/nix/store/tree/bin"]);
    assert_eq!(place.text(&["ls"]), "share\nshell\ntree\n");
    assert_eq!(place.text(&["cat", "shell"]), "#!/bin/sh\n");
    // The same again is no change; another tree is one.
    place.good(&["tag", "share", "tree/bin"]);
    for taken in [["tag", "share", "tree"], ["mv", "tree", "share"]] {
        let error = place.bad(1, &taken);
        assert!(
            error.starts_with("local:store has a root share already, blake3-")
                && error.ends_with("; --replace replaces it"),
            "{error}"
        );
    }
    place.good(&["tag", "--replace", "share", "tree/bin/deep"]);
    assert_eq!(place.text(&["ls", "share"]), "text\n");

    assert_eq!(
        place.bad(1, &["mv", "none", "new"]),
        "local:store has no root named none; `castore-fs ls` lists the names it has"
    );
    place.good(&["mv", "shell", "sh"]);
    place.good(&["mv", "sh", "sh"]);
    place.good(&["mv", "--replace", "sh", "share"]);
    assert_eq!(place.text(&["ls"]), "share\ntree\n");
    assert_eq!(place.text(&["cat", "share"]), "#!/bin/sh\n");

    // 3 MiB, two copies of one script, and a text; the script is the other root as well.
    let (file, script, text) = (3 << 20, 10, 10);
    let lines = place.json(&["du", "--json"]);
    assert_eq!(lines[0]["path"], "share");
    assert_eq!(lines[0]["size"], script);
    assert_eq!(lines[0]["stored"], script);
    assert_eq!(lines[0]["unshared"], 0);
    assert_eq!(lines[1]["path"], "tree");
    assert_eq!(lines[1]["size"], file + 2 * script + text);
    let stored = lines[1]["stored"].as_u64().unwrap();
    let directories = stored - (file + script + text);
    assert!((1..1000).contains(&directories), "{lines:?}");
    assert_eq!(lines[1]["unshared"], stored - script);
    assert_eq!(lines[2]["stored"], stored);
    let text = place.text(&["du", "tree/large"]);
    assert_eq!(
        text,
        "        size       stored       shared     unshared path\n    \
         3.00 MiB     3.00 MiB          0 B     3.00 MiB tree/large\n3.00 MiB in distinct objects\n"
    );
    let run = place.run(&["du", "none", "tree/large"]);
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(run.stdout, text.as_bytes());
}

#[test]
fn all_units_are_taken_where_an_error_suggests_them() {
    let place = Place::with_tree();
    for parameters in [
        "connect-timeout=500ms&first-byte-timeout=1min&stall-timeout=1d&cache=64MiB&spool=20GiB",
        "connect-timeout=0.5&first-byte-timeout=5&stall-timeout=5&cache=64&spool=64",
    ] {
        let url = format!("grpc+unix:/nowhere/sock?{parameters}");
        let error = place.bad(1, &["ls", "--store", &url]);
        assert!(error.contains("there is no such socket"), "{error}");
    }
    let bucket = place.path("bucket");
    let bucket = format!("objectstore+file://{}?spool=20GiB", bucket.display());
    place.good(&["import", "--store", &bucket, "tree"]);
    for grace in ["1d", "24h", "1440min", "1440m", "86400s", "0ms"] {
        place.good(&["gc", "--grace", grace]);
    }
    let error = place.bad(2, &["gc", "--grace", "2d"]);
    assert!(error.contains("write 1d or less"), "{error}");
}

#[test]
fn a_remote_store_is_mounted_with_a_cache_and_without_a_configuration() {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        kit::skip::skip(&format!("/dev/fuse cannot be opened: {error}"));
        return;
    }
    let place = Place::with_tree();
    fs::create_dir(place.path("mount")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        let child = command.env_remove("CASTORE_FS_STORE");
        Running(child.stderr(Stdio::piped()).spawn().unwrap())
    };
    let start = |arguments: &[&str]| {
        let mut child = run(arguments);
        let mut reported = std::io::BufReader::new(child.0.stderr.take().unwrap()).lines();
        let up = reported.next().unwrap().unwrap();
        assert!(up.contains(" is on "), "{up}");
        (child, reported)
    };
    let socket = place.path("socket").to_str().unwrap().to_owned();
    let url = format!("grpc+unix:{socket}");
    let serve = ["serve", "--store", "local:store", "--listen"];
    let mut server = run(&[&serve[..], &[&format!("unix:{socket}")]].concat());
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Path::new(&socket).exists() {
        assert!(Instant::now() < deadline, "the server did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mount = ["mount", "--store", &url, "--cache", "cache"];
    let mount = [&mount[..], &["--cache-size", "1GiB", "mount"]].concat();
    let original = listing(&place.path("tree"));
    let (mut mounted, _output) = start(&mount);
    assert_eq!(listing(&place.path("mount/tree")), original);
    signal("INT", &mounted.0);
    assert!(wait(&mut mounted.0).unwrap().success());

    // What was read is in the cache, over a restart and without the server.
    signal("KILL", &server.0);
    wait(&mut server.0);
    let (mut mounted, _output) = start(&mount);
    assert_eq!(listing(&place.path("mount/tree")), original);
    signal("INT", &mounted.0);
    assert!(wait(&mut mounted.0).unwrap().success());

    let local_store = place.bad(1, &["mount", "--cache", "cache", "mount"]);
    assert_eq!(
        local_store,
        "store is on this machine already: --cache is for stores that are not"
    );
    let alone = place.bad(2, &["mount", "--cache-size", "1GiB", "mount"]);
    assert!(alone.contains("--cache <DIR>"), "{alone}");
}

#[test]
fn the_store_of_a_configuration_file_is_used_where_none_is_named() {
    let place = Place::with_tree();
    let config = |stores: &str| fs::write(place.path("config.toml"), stores).unwrap();
    let disk = format!(
        "[stores.disk]\nurl = 'local:{}'\n",
        place.path("store").display()
    );
    let ls = || {
        let mut command = place.command(&["ls", "--config", "config.toml"]);
        command.env_remove("CASTORE_FS_STORE");
        let run = command.env("HOME", place.dir.path()).output().unwrap();
        // An import uses the same.
        let mut import = place.command(&["import", "--config", "config.toml", "tree"]);
        import
            .env_remove("CASTORE_FS_STORE")
            .env("HOME", place.dir.path());
        if fs::read_to_string(place.path("config.toml")).unwrap() == disk {
            let imported = import.output().unwrap();
            assert_eq!(imported.stderr, run.stderr);
            import.arg("--quiet");
            assert!(import.output().unwrap().stderr.is_empty());
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(run.stdout), text(run.stderr))
    };
    config(&disk);
    let (listed, reported) = ls();
    assert_eq!(listed, "tree\n");
    assert_eq!(reported, "castore-fs: using store:disk of config.toml\n");

    // A filter of it is the one that is no part of another.
    config(&format!(
        "{disk}[stores.seen]\nfilter = {{ store = 'disk', roots = ['x*'] }}\n"
    ));
    let (listed, reported) = ls();
    assert_eq!(
        (listed.as_str(), reported.as_str()),
        ("", "castore-fs: using store:seen of config.toml\n")
    );

    config(&format!("{disk}[stores.other]\nurl = 'memory:'\n"));
    let (_, reported) = ls();
    assert!(
        reported.contains(": config.toml describes several stores, which --store store:NAME"),
        "{reported}"
    );
}
