use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;

use tar::{Builder, EntryType, Header};

use super::*;
use crate::castore::Digest;
use crate::import::ImportSource;
use crate::import::tests::FreshStore;
use crate::store::Blocking;

/// Appends an entry with any path, also those that the crate does not want to write.
fn append(
    builder: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &[u8],
    link: &[u8],
    contents: &[u8],
) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(contents.len() as u64);
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    builder.append(&header, contents).unwrap();
}

/// An archive of entries `(kind, path, link, contents)`.
fn archive(entries: &[(EntryType, &str, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, link, contents) in entries {
        append(
            &mut builder,
            *kind,
            path.as_bytes(),
            link.as_bytes(),
            contents.as_bytes(),
        );
    }
    builder.into_inner().unwrap()
}

fn import(tar: &[u8], options: &ImportOptions) -> Result<(FreshStore, Node), String> {
    let fresh = FreshStore::new();
    match fresh.import_with(ImportSource::Tar(&mut &tar[..]), options) {
        Ok(imported) => Ok((fresh, imported.root.node)),
        Err(error) => {
            fresh.assert_empty();
            Err(error.to_string())
        }
    }
}

/// Every path in the tree, and what is there: the contents of a file, `-> target`, or `/`.
fn listing(tar: &[u8]) -> Vec<String> {
    let (fresh, node) = import(tar, &ImportOptions::default()).unwrap();
    let mut lines = Vec::new();
    list(&fresh.store, &node, String::new(), &mut lines);
    lines
}

fn list(store: &Blocking, node: &Node, path: String, lines: &mut Vec<String>) {
    match node {
        Node::Directory { digest, .. } => {
            if !path.is_empty() {
                lines.push(format!("{path}/"));
            }
            let directory = store.directory(digest).unwrap().unwrap();
            for entry in directory.iter() {
                let separator = if path.is_empty() { "" } else { "/" };
                let path = format!("{path}{separator}{}", entry.name.escape_ascii());
                list(store, &entry.node.to_owned().unwrap(), path, lines);
            }
        }
        Node::File { digest, size, .. } => {
            let mut bytes = vec![0; *size as usize];
            store.read(digest, *size, 0, &mut bytes).unwrap().unwrap();
            lines.push(format!("{path}={}", bytes.escape_ascii()));
        }
        Node::Symlink { target } => lines.push(format!("{path} -> {target}")),
    }
}

use EntryType as E;

#[test]
fn directories_may_be_implied_and_come_late() {
    let tar = archive(&[
        (E::Regular, "./a//b/./c", "", "1"),
        (E::Directory, "./", "", ""),
        (E::Directory, "a/b/", "", ""),
        (E::Regular, "old/", "", ""),
        (E::Continuous, "a/d", "", "2"),
    ]);
    assert_eq!(listing(&tar), ["a/", "a/b/", "a/b/c=1", "a/d=2", "old/"]);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let tar = archive(&[
        (E::Regular, "file", "", "1"),
        (E::Regular, "file", "", "2"),
        (E::Regular, "becomes-directory", "", "1"),
        (E::Directory, "becomes-directory", "", ""),
        (E::Regular, "becomes-directory/x", "", "3"),
        (E::Directory, "becomes-directory", "", ""),
        (E::Regular, "becomes-link/x", "", "1"),
        (E::Symlink, "becomes-link", "target", ""),
    ]);
    assert_eq!(
        listing(&tar),
        [
            "becomes-directory/",
            "becomes-directory/x=3",
            "becomes-link -> target",
            "file=2"
        ]
    );
}

#[test]
fn hard_links_are_what_they_link_to() {
    let tar = archive(&[
        (E::Regular, "d/file", "", "1"),
        (E::Symlink, "symlink", "x", ""),
        (E::Link, "same", "./d/file", ""),
        (E::Link, "same-symlink", "symlink", ""),
        (E::Regular, "d/file", "", "2"),
    ]);
    assert_eq!(
        listing(&tar),
        [
            "d/",
            "d/file=2",
            "same=1",
            "same-symlink -> x",
            "symlink -> x"
        ]
    );
    for target in ["nothing", "d", "d/nothing", "d/file/d/file"] {
        let tar = archive(&[
            (E::Regular, "d/file", "", "1"),
            (E::Link, "link", target, ""),
        ]);
        let error = import(&tar, &ImportOptions::default()).err().unwrap();
        assert!(
            error.contains(&format!("is a hard link to \"{target}\"")),
            "{error}"
        );
    }
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    for path in ["../x", "a/../../x", "a/..", "/../x"] {
        let error = import(
            &archive(&[(E::Regular, path, "", "1")]),
            &ImportOptions::default(),
        );
        let error = error.err().unwrap();
        assert!(
            error.starts_with(&format!("the tar entry \"{path}\" leads out of the tree")),
            "{error}"
        );
    }
    let outside = archive(&[(E::Link, "link", "../etc/passwd", "")]);
    assert!(import(&outside, &ImportOptions::default()).is_err());
    let through = archive(&[
        (E::Symlink, "link", "/etc", ""),
        (E::Regular, "link/passwd", "", "1"),
    ]);
    let error = import(&through, &ImportOptions::default()).err().unwrap();
    assert_eq!(
        error,
        "the tar entry \"link/passwd\" is inside \"link\", which is no directory"
    );
}

/// As GNU tar and Docker take them; `kaniko` writes them so.
#[test]
fn absolute_names_and_hard_link_targets_lead_from_the_root_of_the_tree() {
    let tar = archive(&[
        (E::Directory, "/", "", ""),
        (E::Regular, "/usr/bin/a", "", "1"),
        (E::Link, "usr/bin/b", "/usr/bin/a", ""),
        (E::Link, "//usr/bin/c", "usr/bin/a", ""),
        (E::Symlink, "/d", "/usr/bin/a", ""),
    ]);
    let expected = [
        "d -> /usr/bin/a",
        "usr/",
        "usr/bin/",
        "usr/bin/a=1",
        "usr/bin/b=1",
        "usr/bin/c=1",
    ];
    assert_eq!(listing(&tar), expected);
    let dangling = archive(&[(E::Link, "link", "/etc/passwd", "")]);
    assert!(import(&dangling, &ImportOptions::default()).is_err());
    // The slash is no component to strip.
    let options = ImportOptions {
        strip_components: 1,
        ..ImportOptions::default()
    };
    let (fresh, node) = import(&tar, &options).unwrap();
    let mut lines = Vec::new();
    list(&fresh.store, &node, String::new(), &mut lines);
    assert_eq!(lines, ["bin/", "bin/a=1", "bin/b=1", "bin/c=1"]);
}

#[test]
fn a_pax_header_can_have_absolute_names_too() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("path", &b"/a/long"[..])])
        .unwrap();
    append(&mut builder, E::Regular, b"short", b"", b"1");
    builder
        .append_pax_extensions([("linkpath", &b"/a/long"[..])])
        .unwrap();
    append(&mut builder, E::Link, b"link", b"short", b"");
    let tar = builder.into_inner().unwrap();
    assert_eq!(listing(&tar), ["a/", "a/long=1", "link=1"]);
}

#[test]
fn labels_and_incremental_archives_of_gnu_tar_are_read_as_tar_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("src/inner")).unwrap();
    fs::write(dir.path().join("src/file"), "x").unwrap();
    fs::write(dir.path().join("src/inner/other"), "y").unwrap();
    let fresh = FreshStore::new();
    let on_disk = fresh.import(ImportSource::Path(dir.path())).unwrap();
    let list = tempfile::tempdir().unwrap();
    let incremental =
        |name: &str| format!("--listed-incremental={}", list.path().join(name).display());
    for arguments in [
        &["--format=gnu", "--label=backup"][..],
        &["--format=pax", "--label=backup"],
        &["--format=gnu", &incremental("gnu")],
        &["--format=pax", &incremental("pax")],
        &["--format=gnu", "--label=both", &incremental("both")],
    ] {
        let tar = gnu_tar(dir.path(), arguments);
        let (_, node) = import(&tar, &ImportOptions::default()).unwrap();
        assert_eq!(node, on_disk.root.node, "{arguments:?}");
    }
}

/// A directory of an incremental archive names every file in it, in one header.
#[test]
fn a_pax_header_may_have_several_mebibytes() {
    let mut builder = Builder::new(Vec::new());
    let names = vec![b'n'; 3 << 20];
    builder
        .append_pax_extensions([("GNU.dumpdir", &names[..])])
        .unwrap();
    append(&mut builder, E::Directory, b"d", b"", b"");
    assert_eq!(listing(&builder.into_inner().unwrap()), ["d/"]);
}

#[test]
fn the_second_volume_of_an_archive_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("large"), vec![7; 100 << 10]).unwrap();
    let volume = |number: u32| dir.path().join(format!("volume{number}"));
    let output = Command::new("tar")
        .args(["--format=gnu", "--multi-volume", "--tape-length=40"])
        .arg("-C")
        .arg(dir.path())
        .args((1..=4).map(|number| format!("--file={}", volume(number).display())))
        .args(["-c", "large"])
        .output()
        .expect("the tests need GNU tar");
    assert!(output.status.success(), "{output:?}");
    let refused = |number| {
        let tar = fs::read(volume(number)).unwrap();
        import(&tar, &ImportOptions::default()).err().unwrap()
    };
    assert!(refused(1).contains("continues in another volume"));
    let error = refused(2);
    assert!(
        error.starts_with("the tar archive begins with the rest of \"large\""),
        "{error}"
    );
}

#[test]
fn compressed_archives_are_recognised() {
    let tar = archive(&[(E::Regular, "file", "", "contents")]);
    let compressed = zstd::encode_all(&tar[..], 3).unwrap();
    assert_eq!(listing(&compressed), ["file=contents"]);
    let cut = &compressed[..compressed.len() - 1];
    let error = import(cut, &ImportOptions::default()).err().unwrap();
    assert!(error.contains("zstd data end early"), "{error}");
    let options = ImportOptions {
        max_size: Some(1000),
        ..ImportOptions::default()
    };
    let error = import(&compressed, &options).err().unwrap();
    assert!(
        error.contains("decompress to more than 1000 bytes"),
        "{error}"
    );
}

#[test]
fn special_files_are_refused_by_name_or_left_out() {
    let tar = archive(&[(E::Char, "dev/null", "", ""), (E::Regular, "file", "", "1")]);
    let error = import(&tar, &ImportOptions::default()).err().unwrap();
    assert!(
        error.starts_with("the tar entry \"dev/null\" is a character device"),
        "{error}"
    );
    let options = ImportOptions {
        special_files: SpecialFiles::Skip,
        ..ImportOptions::default()
    };
    assert!(import(&tar, &options).is_ok());
}

#[test]
fn leading_components_can_be_taken_off() {
    let tar = archive(&[
        (E::Directory, "top", "", ""),
        (E::Regular, "stray", "", "0"),
        (E::Regular, "top/file", "", "1"),
        (E::Link, "top/link", "top/file", ""),
    ]);
    let options = ImportOptions {
        strip_components: 1,
        ..ImportOptions::default()
    };
    let (fresh, node) = import(&tar, &options).unwrap();
    let mut lines = Vec::new();
    list(&fresh.store, &node, String::new(), &mut lines);
    assert_eq!(lines, ["file=1", "link=1"]);
}

#[test]
fn damaged_archives_are_refused() {
    let tar = archive(&[(E::Regular, "file", "", "contents")]);
    let refused = |tar: &[u8]| import(tar, &ImportOptions::default()).err().unwrap();
    for end in [0, 1, 511, 512, 700, 1024, 1500] {
        let error = refused(&tar[..end]);
        assert!(error.contains("cut short"), "{end}: {error}");
    }
    let mut flipped = tar.clone();
    flipped[0] ^= 1;
    assert!(refused(&flipped).contains("checksum"));
    let mut trailing = tar.clone();
    trailing.extend_from_slice(&tar);
    assert!(refused(&trailing).contains("more bytes follow"));
    let unknown = archive(&[(E::new(b'?'), "file", "", "")]);
    assert!(refused(&unknown).contains("unknown kind '?'"));
}

/// An entry with a size of 2^60 sparse zeros, or a header of as many bytes, must cost nothing.
#[test]
fn announced_sizes_are_not_believed() {
    let mut header = Header::new_gnu();
    header.set_entry_type(E::GNULongName);
    header.set_size(1 << 60);
    header.set_cksum();
    let error = import(header.as_bytes(), &ImportOptions::default())
        .err()
        .unwrap();
    assert!(error.contains("more than 1 MiB"), "{error}");
    header.set_entry_type(E::XHeader);
    header.set_size(64 << 20);
    header.set_cksum();
    let error = import(header.as_bytes(), &ImportOptions::default())
        .err()
        .unwrap();
    assert!(error.contains("cut short"), "{error}");
    // A hole of 2^50 bytes.
    let mut sparse = Header::new_gnu();
    sparse.set_entry_type(E::GNUSparse);
    sparse.set_path("hole").unwrap();
    sparse.set_mode(0o644);
    sparse.set_size(0);
    sparse.as_gnu_mut().unwrap().set_real_size(1 << 50);
    sparse.set_cksum();
    let error = import(sparse.as_bytes(), &ImportOptions::default())
        .err()
        .unwrap();
    assert!(
        error.contains("more than 274877906944 bytes of zeros"),
        "{error}"
    );
    header.set_entry_type(E::Regular);
    header.set_size(u64::MAX);
    header.set_cksum();
    let error = import(header.as_bytes(), &ImportOptions::default())
        .err()
        .unwrap();
    assert!(error.contains("beyond 64 bits"), "{error}");
}

/// Makes an archive of what is in `dir` with GNU tar, which the tests need installed.
fn gnu_tar(dir: &std::path::Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["-c", "-f", "-"])
        .args(arguments)
        .arg(".")
        .output()
        .expect("the tests need GNU tar");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn archives_of_gnu_tar_in_every_format_give_the_tree_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("a name\nwith a line feed").as_path(), "1").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), deep.join("link")).unwrap();
    fs::hard_link(
        deep.join("a name\nwith a line feed"),
        dir.path().join("hard link"),
    )
    .unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(deep.join(std::ffi::OsStr::from_bytes(b"\xff\n=\xfe")), "2").unwrap();
    // Enough segments that the older format needs more headers than one.
    let mut sparse = File::create(dir.path().join("sparse")).unwrap();
    for segment in 0..60u64 {
        sparse.seek(SeekFrom::Start(segment * 100_000)).unwrap();
        sparse.write_all(&[segment as u8; 700]).unwrap();
    }
    sparse.set_len(7_000_000).unwrap();
    drop(sparse);

    let fresh = FreshStore::new();
    let on_disk = fresh.import(ImportSource::Path(dir.path())).unwrap();
    for arguments in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ] {
        let tar = gnu_tar(dir.path(), arguments);
        if arguments.contains(&"--sparse") {
            assert!(tar.len() < 500_000, "{arguments:?}: no sparse archive");
        }
        let (_, node) = import(&tar, &ImportOptions::default()).unwrap();
        assert_eq!(node, on_disk.root.node, "{arguments:?}");
    }
    assert_eq!(on_disk.totals.files, 4);
    assert_ne!(on_disk.root.node.digest(), Some(Digest::of(b"")));
}
