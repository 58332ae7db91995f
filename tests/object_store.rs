//! A castore in an object store: the peers' layout, read and written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use castore_fs::castore::{Digest, Directory, Name, Node, NodeRef, Root};
use castore_fs::store::{Error, ObjectStore, Store};
use castore_fs::stores::open;
use kit::double::Double;
use kit::noise::noise;
use serde_json::Value;

fn store_in(dir: &Path) -> ObjectStore {
    ObjectStore::open(&format!("objectstore+file://{}", dir.display())).unwrap()
}

/// The fixture, unpacked, and what it has to hold; nothing where there is no fixture.
fn fixture() -> Option<(tempfile::TempDir, Value)> {
    let packed = kit::fixtures::fixture("snix/object-store.tar.zst")?;
    let expected = kit::fixtures::fixture("snix/expected.json")?;
    let dir = tempfile::tempdir().unwrap();
    let plain = zstd::decode_all(std::fs::File::open(packed).unwrap()).unwrap();
    tar::Archive::new(&plain[..]).unpack(dir.path()).unwrap();
    let expected = std::fs::read(expected).unwrap();
    Some((dir, serde_json::from_slice(&expected).unwrap()))
}

fn digest(value: &Value) -> Digest {
    value["digest"].as_str().unwrap().parse().unwrap()
}

/// Every path below `directory`, with its node, reading each file whole.
async fn walk(store: &ObjectStore, root: Digest) -> BTreeMap<String, (Node, u64)> {
    let mut found = BTreeMap::new();
    let mut stack = vec![(String::new(), root)];
    while let Some((path, digest)) = stack.pop() {
        let directory = store.directory(&digest).await.unwrap().unwrap();
        for entry in directory.iter() {
            let name = entry.name.escape_ascii().to_string();
            let path = match path.is_empty() {
                true => name,
                false => format!("{path}/{name}"),
            };
            if let NodeRef::Directory { digest, .. } = entry.node {
                stack.push((path.clone(), digest));
            }
            let mut size = 0;
            if let NodeRef::File {
                digest,
                size: reported,
                ..
            } = entry.node
            {
                let read = store
                    .read(&digest, reported, 0, usize::MAX >> 1)
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(Digest::of(&read), digest, "{path}");
                size = read.len() as u64;
            }
            found.insert(path, (entry.node.to_owned().unwrap(), size));
        }
    }
    found
}

#[tokio::test]
async fn the_peers_objects_read_as_the_peers_tree() {
    let Some((dir, expected)) = fixture() else {
        return;
    };
    let store = store_in(dir.path());
    let found = walk(&store, digest(&expected["root"])).await;
    let entries = expected["entries"].as_object().unwrap();
    assert!(entries.len() > 100);
    let directories = entries
        .values()
        .filter(|entry| entry["type"] == "directory");
    assert!(directories.count() > 5);
    for (path, entry) in entries {
        if path.is_empty() || path == "." {
            continue;
        }
        let key = found.keys().find(|key| unescaped(key) == unescaped(path));
        let (node, size) = &found[key.unwrap_or_else(|| panic!("{path} is lacking"))];
        match node {
            Node::Directory { digest: own, .. } => {
                assert_eq!(entry["type"], "directory", "{path}");
                assert_eq!(*own, digest(entry), "{path}");
            }
            Node::File {
                digest: own,
                executable,
                ..
            } => {
                assert_eq!(entry["type"], "file", "{path}");
                assert_eq!(*own, digest(entry), "{path}");
                assert_eq!(entry["size"], *size, "{path}");
                assert_eq!(entry["executable"], *executable, "{path}");
            }
            Node::Symlink { target } => {
                let target = target.escape_ascii().to_string();
                assert_eq!(
                    unescaped(entry["target"].as_str().unwrap()),
                    unescaped(&target)
                );
            }
        }
    }
}

/// One form for both: the fixture writes bytes that are not UTF-8 as \udcNN, other names as they
/// are; `escape_ascii` writes whatever is not ASCII as \xNN, and escapes quotes.
fn unescaped(text: &str) -> String {
    let text = text.replace("\\udc", "\\x");
    let bytes = text.bytes().map(|byte| match byte.is_ascii() {
        true => char::from(byte).to_string(),
        false => format!("\\x{byte:02x}"),
    });
    let text: String = bytes.collect();
    text.replace("\\'", "'").replace("\\\"", "\"")
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(path) = stack.pop() {
        if path.is_dir() {
            let below = std::fs::read_dir(path).unwrap();
            stack.extend(below.map(|entry| entry.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
        }
    }
    found
}

#[tokio::test]
async fn what_we_write_is_laid_out_as_the_peers_write_it() {
    let Some((theirs, expected)) = fixture() else {
        return;
    };
    let ours = tempfile::tempdir().unwrap();
    let root = expected["root"]["name"].as_str().unwrap();
    let node = Node::Directory {
        digest: digest(&expected["root"]),
        size: expected["root"]["size"].as_u64().unwrap(),
    };
    let name = Name::new(root.as_bytes()).unwrap();
    let root = Root { name, node };
    let (from, to) = (store_in(theirs.path()), store_in(ours.path()));
    let runtime = tokio::runtime::Handle::current();
    let copied = root.clone();
    let added = tokio::task::spawn_blocking(move || {
        use castore_fs::store::Blocking;
        use castore_fs::tree::copy::{CopyProgress, copy};
        use std::sync::Arc;
        // The source has no roots: it is given one, and none is looked for.
        let from = Blocking::new(Arc::new(from), runtime.clone());
        let to = Blocking::new(Arc::new(to), runtime);
        copy(&from, &to, &[copied], &CopyProgress::default()).unwrap()
    });
    assert!(added.await.unwrap().blobs > 50);
    let (theirs, ours) = (files(theirs.path()), files(ours.path()));
    let empty = Digest::empty_blob().to_hex();
    for (path, their_bytes) in &theirs {
        if path.ends_with(&empty) {
            // The empty blob is there without being written.
            continue;
        }
        let our_bytes = ours
            .get(path)
            .unwrap_or_else(|| panic!("{} is lacking", path.display()));
        let plain = |bytes: &[u8]| zstd::decode_all(bytes).unwrap();
        match path.starts_with("blobs") {
            // The same chunks; a castore-fs client adds a table after them.
            true => assert!(our_bytes.starts_with(their_bytes), "{}", path.display()),
            false if path.starts_with("chunks") => assert_eq!(plain(our_bytes), plain(their_bytes)),
            false => assert_eq!(plain(our_bytes).len(), plain(their_bytes).len()),
        }
    }
    let beside = ours.keys().filter(|path| !theirs.contains_key(*path));
    let beside: Vec<_> = beside.collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    assert!(beside[0].starts_with("castore-fs/roots/b3"), "{beside:?}");
}

fn put(store: &dyn Store, blobs: &[Vec<u8>]) -> Root {
    let ingest = store.ingest().unwrap();
    let mut entries = Vec::new();
    for (index, blob) in blobs.iter().enumerate() {
        let digest = Digest::of(blob);
        if index % 2 == 0 {
            ingest.put_blobs(&[(digest, blob)]).unwrap();
        } else {
            let mut writer = ingest.blob_writer().unwrap();
            blob.chunks(100_000)
                .for_each(|part| writer.write(part).unwrap());
            assert_eq!(writer.finish().unwrap(), (digest, blob.len() as u64));
        }
        let size = blob.len() as u64;
        let node = Node::File {
            digest,
            size,
            executable: false,
        };
        entries.push((Name::new(index.to_string().as_bytes()).unwrap(), node));
    }
    let below = Directory::from_entries(entries).unwrap();
    let name = Name::new(b"below").unwrap();
    let mount_root = Directory::from_entries(vec![(name, below.node())]).unwrap();
    ingest.put_directory(&below).unwrap();
    ingest.put_directory(&mount_root).unwrap();
    let name = Name::new(&[0xff; 255]).unwrap();
    let root = Root {
        name,
        node: mount_root.node(),
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    root
}

#[tokio::test]
async fn what_was_written_reads_back_in_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let blobs: Vec<_> = [0, 7, 200_000, 1 << 20, 3 << 20, 9 << 20]
        .map(|len| noise(len as u64, len))
        .into();
    let (path, written) = (dir.path().to_owned(), blobs.clone());
    let root = tokio::task::spawn_blocking(move || put(&store_in(&path), &written));
    let root = root.await.unwrap();
    let store = store_in(dir.path());
    assert_eq!(store.root(&root.name).await.unwrap(), Some(root.clone()));
    assert_eq!(store.roots().await.unwrap(), std::slice::from_ref(&root));
    assert_eq!(store.root(b"missing").await.unwrap(), None);
    assert_eq!(walk(&store, root.node.digest().unwrap()).await.len(), 7);
    let fresh = store_in(dir.path());
    for blob in &blobs {
        let (digest, size) = (Digest::of(blob), blob.len() as u64);
        assert_eq!(fresh.blob_size(&digest).await.unwrap(), Some(size));
        let at = blob.len() / 3;
        let length = 1000.min(blob.len() - at);
        let read = fresh
            .read(&digest, size, at as u64, length)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read, blob[at..at + length]);
        assert!(
            fresh.read(&digest, size + 1, 0, 10).await.is_err(),
            "{size}"
        );
    }
    let missing = Digest::of(b"missing");
    assert_eq!(fresh.read(&missing, 5, 0, 5).await.unwrap(), None);
    assert_eq!(fresh.read(&missing, 5 << 20, 0, 5).await.unwrap(), None);
    assert_eq!(fresh.directory(&missing).await.unwrap(), None);
}

#[tokio::test]
async fn damaged_objects_are_errors_and_spoil_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = vec![noise(1, 3 << 20), noise(2, 1000)];
    let (path, written) = (dir.path().to_owned(), blobs.clone());
    let root = tokio::task::spawn_blocking(move || put(&store_in(&path), &written));
    let root = root.await.unwrap();
    // Another small blob's bytes, packed well, in place of the right ones.
    let small = Digest::of(&blobs[1]);
    let hex = small.to_hex();
    let chunk = dir.path().join(format!("chunks/b3/{}/{hex}", &hex[..4]));
    std::fs::write(&chunk, zstd::encode_all(&noise(3, 1000)[..], 3).unwrap()).unwrap();
    let store = store_in(dir.path());
    let error = store.read(&small, 1000, 0, 10).await.unwrap_err();
    assert!(
        matches!(error, Error::Damaged { digest, .. } if digest == small),
        "{error}"
    );
    std::fs::write(&chunk, b"no zstd").unwrap();
    assert!(store.read(&small, 1000, 0, 10).await.is_err());
    std::fs::remove_file(&chunk).unwrap();
    let error = store
        .read(&small, 1000, 0, 10)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("is missing, but is referred to"), "{error}");
    let large = Digest::of(&blobs[0]);
    let read = store.read(&large, 3 << 20, 5, 10).await.unwrap().unwrap();
    assert_eq!(read, blobs[0][5..15]);
    // A chunk list that names other chunks passes every chunk's check, and not the blob's.
    let hex = large.to_hex();
    let list = dir.path().join(format!("blobs/b3/{}/{hex}", &hex[..4]));
    let stranger = noise(4, 3 << 20);
    let (path, other) = (dir.path().to_owned(), stranger.clone());
    tokio::task::spawn_blocking(move || put(&store_in(&path), &[other]))
        .await
        .unwrap();
    let hex = Digest::of(&stranger).to_hex();
    let other = dir.path().join(format!("blobs/b3/{}/{hex}", &hex[..4]));
    std::fs::copy(other, list).unwrap();
    let store = store_in(dir.path());
    for at in [0, 1 << 20, (3 << 20) - 10] {
        let error = store.read(&large, 3 << 20, at, 10).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    let hex = root.node.digest().unwrap().to_hex();
    let closure = dir.path().join(format!("dirs/b3/{}/{hex}", &hex[..4]));
    std::fs::write(closure, zstd::encode_all(&b"\0\0\0\x01"[..], 3).unwrap()).unwrap();
    assert!(store.directory(&root.node.digest().unwrap()).await.is_err());
}

#[test]
fn secrets_and_nonsense_in_urls_are_refused() {
    for (url, why) in [
        (
            "objectstore+s3://bucket/path?aws_secret_access_key=x",
            "environment",
        ),
        ("objectstore+https://user:password@host/path", "environment"),
        ("objectstore+nonsense://bucket", "nonsense"),
    ] {
        let error = open(url).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains("=x") && !error.contains(":pass"), "{error}");
    }
    open("objectstore+s3://bucket/path?region=x&endpoint=https://s3.example").unwrap();
}

#[test]
fn the_command_line_imports_into_and_reads_from_a_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), noise(1, 700_000)).unwrap();
    let url = format!("objectstore+file://{}", dir.path().join("bucket").display());
    let run = |arguments: &[&str]| {
        let command = &mut Command::new(env!("CARGO_BIN_EXE_castore-fs"));
        let run = command.args(arguments).output().unwrap();
        assert!(run.status.success(), "{run:?}");
        run.stdout
    };
    run(&["import", "--store", &url, tree.to_str().unwrap()]);
    assert_eq!(
        run(&["cat", "--store", &url, "tree/file"]),
        noise(1, 700_000)
    );
    run(&["verify", "--store", &url]);
}

#[test]
fn gc_of_a_bucket_needs_no_other_writers_and_frees_the_space() {
    let dir = tempfile::tempdir().unwrap();
    two_levels(dir.path());
    let bucket = dir.path().join("bucket");
    let url = format!("objectstore+file://{}", bucket.display());
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(arguments)
            .env_remove("CASTORE_FS_STORE")
            .output()
            .unwrap()
    };
    let refused = |arguments: &[&str], why: &str| {
        let run = run(arguments);
        let reported = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{reported}");
        assert!(reported.contains(why), "{reported}");
    };
    refused(
        &["gc", "--store", &url],
        "needs --no-other-writers, as an object store cannot keep writers out",
    );
    refused(
        &["gc", "--store", "local:somewhere", "--no-other-writers"],
        "--no-other-writers is for object stores",
    );
    let removed = run(&["rm", "--store", &url, "tree"]);
    let hint = String::from_utf8(removed.stderr).unwrap();
    assert!(
        hint.contains("`castore-fs gc --no-other-writers`"),
        "{hint}"
    );
    let before = files(&bucket);
    let gc = |options: &[&str]| {
        let run = run(&[&["gc", "--store", &url][..], options].concat());
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let dry = gc(&["--dry-run", "--grace", "0ms"]);
    // Without a grace one call does both phases.
    assert!(dry.starts_with("would delete 3 objects"), "{dry}");
    assert!(!dry.contains("would become candidates: "), "{dry}");
    assert_eq!(files(&bucket), before);
    // A grace may be longer than that of a local store.
    let spared = gc(&["--no-other-writers", "--grace", "30d"]);
    assert!(spared.contains("\nspared "), "{spared}");
    let json: Value =
        serde_json::from_str(&gc(&["--no-other-writers", "--grace", "0s", "--json"])).unwrap();
    assert_eq!(json["deleted"]["closures"], 1, "{json}");
    assert!(json["deleted"]["bytes"].as_u64() > Some(0), "{json}");
    assert_eq!(json["candidates"]["chunks"], 0, "{json}");
    assert_eq!(json["candidates"]["waiting"], false, "{json}");
    let left = files(&bucket).into_keys();
    let left: Vec<_> = left
        .filter(|path| !path.starts_with("castore-fs"))
        .collect();
    assert_eq!(left.len(), 1, "only the empty blob: {left:?}");
}

/// A bucket with a tree of two levels; gives its root node.
fn two_levels(dir: &Path) -> Root {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("below/further")).unwrap();
    std::fs::write(tree.join("below/further/file"), "content").unwrap();
    for other in ["a", "b", "c", "d"] {
        std::fs::create_dir_all(tree.join(other).join(format!("in {other}"))).unwrap();
    }
    let url = format!("objectstore+file://{}", dir.join("bucket").display());
    let imported = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["import", "--store", &url, tree.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(imported.status.success(), "{imported:?}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = store_in(&dir.join("bucket"));
    runtime.block_on(store.root(b"tree")).unwrap().unwrap()
}

#[test]
fn a_directory_inside_a_tree_is_found_by_path_and_the_error_explains_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = two_levels(dir.path());
    let url = format!("objectstore+file://{}", dir.path().join("bucket").display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = store_in(&dir.path().join("bucket"));
    let mount_root = runtime.block_on(store.directory(&root.node.digest().unwrap()));
    let below = mount_root
        .unwrap()
        .unwrap()
        .lookup(b"below")
        .unwrap()
        .to_owned();
    let below = below.unwrap().digest().unwrap();
    let list = |target: &str| {
        Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(["ls", "--store", &url, target])
            .output()
            .unwrap()
    };
    let by_path = list("tree/below");
    assert_eq!(by_path.stdout, b"further\n", "{by_path:?}");
    let by_root = list(&root.node.digest().unwrap().to_string());
    assert_eq!(by_root.stdout, b"a\nb\nbelow\nc\nd\n", "{by_root:?}");
    let by_digest = list(&below.to_string());
    let reported = String::from_utf8_lossy(&by_digest.stderr);
    assert!(!by_digest.status.success());
    assert!(reported.contains("NAME/PATH only"), "{reported}");
}

/// Only the top of a closure is found by its digest.
#[test]
fn a_root_that_is_a_part_of_another_tree_has_a_closure_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    two_levels(dir.path());
    let url = |name: &str| format!("objectstore+file://{}", dir.path().join(name).display());
    let run = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(run.status.success(), "{arguments:?}: {run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let bucket = url("bucket");
    // A part of what is there.
    run(&["tag", "--store", &bucket, "part", "tree/below"]);
    assert_eq!(run(&["ls", "--store", &bucket, "part"]), "further\n");
    run(&["mv", "--store", &bucket, "part", "moved"]);
    run(&["rm", "--store", &bucket, "tree"]);
    assert_eq!(
        run(&["cat", "--store", &bucket, "moved/further/file"]),
        "content"
    );
    let collect = [
        "gc",
        "--store",
        &bucket,
        "--no-other-writers",
        "--grace",
        "0s",
    ];
    run(&collect);
    run(&collect);
    assert_eq!(
        run(&["cat", "--store", &bucket, "moved/further/file"]),
        "content"
    );
    // A part of what comes in the same addition.
    let local = format!("local:{}", dir.path().join("local").display());
    run(&[
        "import",
        "--store",
        &local,
        dir.path().join("tree").to_str().unwrap(),
    ]);
    run(&["tag", "--store", &local, "part", "tree/below"]);
    let other = url("other");
    run(&["copy", "--from", &local, "--to", &other, "--all"]);
    assert_eq!(run(&["ls", "--store", &other, "part"]), "further\n");
    run(&["rm", "--store", &other, "tree"]);
    assert_eq!(
        run(&["cat", "--store", &other, "part/further/file"]),
        "content"
    );
}

#[test]
fn a_mount_finds_its_directories_after_the_store_has_forgotten_their_closure() {
    if !kit::mounted::can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = two_levels(dir.path());
    let bucket = || store_in(&dir.path().join("bucket"));
    // Nothing is available in place, so that the file system caches nothing that was not requested.
    let store = std::sync::Arc::new(Double::upstream("forgetful:", bucket()));
    let options = castore_fs::fs::FsOptions {
        mount_root: kit::mounted::mount_root_of(&root.node),
        // The file system, too, forgets what it has not just used.
        directory_limit: 1,
        ..Default::default()
    };
    let mount = kit::mounted::Mounted::new(store.clone(), options);
    // The kernel has seen the directory, and not yet what is in it.
    let seen = std::fs::metadata(mount.join("below/further")).unwrap();
    assert!(seen.is_dir());
    for other in ["a", "b", "c", "d"] {
        assert_eq!(std::fs::read_dir(mount.join(other)).unwrap().count(), 1);
    }
    store.becomes(bucket());
    let listed = std::fs::read_dir(mount.join("below/further")).unwrap();
    assert_eq!(listed.count(), 1);
    let read = std::fs::read(mount.join("below/further/file")).unwrap();
    assert_eq!(read, b"content");
}

#[test]
fn the_empty_blob_is_there_for_other_programs() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_in(dir.path());
    let hex = Digest::empty_blob().to_hex();
    let path = dir.path().join("blobs/b3").join(&hex[..4]).join(&hex);
    let put = |blobs: &[(Digest, &[u8])]| {
        let ingest = store.ingest().unwrap();
        ingest.put_blobs(blobs).unwrap();
        let node = Node::File {
            digest: Digest::of(b"x"),
            size: 1,
            executable: false,
        };
        let name = Name::new(b"root").unwrap();
        ingest.put_root(&Root { name, node }, None).unwrap();
        ingest.commit().unwrap();
    };
    put(&[(Digest::of(b"x"), b"x"), (Digest::empty_blob(), b"")]);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    // One that an older version did not put comes with the next root.
    std::fs::remove_file(&path).unwrap();
    put(&[(Digest::of(b"x"), b"x")]);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
}
