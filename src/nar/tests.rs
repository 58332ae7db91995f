use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::castore::Name;
use crate::fixtures::{Tree, any_tree};

/// Reads a whole archive into a tree.
fn read(input: impl Read) -> Result<Tree, NarError> {
    let mut reader = NarReader::new(input);
    let mut open: Vec<(Option<Name>, BTreeMap<Name, Tree>)> = Vec::new();
    let mut root = None;
    while let Some(event) = reader.next()? {
        let (name, tree) = match event {
            NarEvent::Directory { name } => {
                open.push((name, BTreeMap::new()));
                continue;
            }
            NarEvent::EndDirectory => {
                let (name, entries) = open.pop().unwrap();
                (name, Tree::Directory(entries))
            }
            NarEvent::File {
                name,
                executable,
                mut contents,
            } => {
                let mut bytes = Vec::new();
                let mut part = [0; 5];
                loop {
                    let length = contents.read(&mut part)?;
                    if length == 0 {
                        break;
                    }
                    bytes.extend_from_slice(&part[..length]);
                }
                assert_eq!(bytes.len() as u64, contents.size());
                (name, Tree::File { executable, bytes })
            }
            NarEvent::Symlink { name, target } => (name, Tree::Symlink(target)),
        };
        match (name, open.last_mut()) {
            (None, None) => root = Some(tree),
            (Some(name), Some((_, entries))) => {
                assert!(entries.insert(name, tree).is_none());
            }
            (name, _) => panic!("{name:?} is in the wrong place"),
        }
    }
    Ok(root.expect("next() gives the root before it gives nothing"))
}

/// Writes again what a reader gives.
fn rewrite(input: &[u8]) -> Result<Vec<u8>, NarError> {
    read(input).map(|tree| tree.nar())
}

/// Hands out one byte at a time.
struct OneByteReader<'a>(&'a [u8]);

impl Read for OneByteReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

proptest! {
    #[test]
    fn every_tree_reads_back(tree in any_tree()) {
        let nar = tree.nar();
        prop_assert_eq!(&read(&nar[..]).unwrap(), &tree);
        prop_assert_eq!(&read(OneByteReader(&nar)).unwrap(), &tree);
    }

    #[test]
    fn what_is_accepted_is_what_the_writer_writes(
        tree in any_tree(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut nar = tree.nar();
        let at = at.index(nar.len());
        nar[at] = value;
        if let Ok(again) = rewrite(&nar) {
            prop_assert_eq!(again, nar);
        }
    }
}

proptest! {
    // Every case reads its archive once for each byte.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_archive_cut_short_anywhere_is_an_error(tree in any_tree()) {
        let nar = tree.nar();
        for end in 0..nar.len() {
            let error = read(&nar[..end]).unwrap_err();
            prop_assert!(
                matches!(error, NarError::Truncated { offset, .. } if offset == end as u64),
                "{} of {}: {}", end, nar.len(), error
            );
        }
    }
}

/// The strings of `parts` one after the other, as the format has them.
fn strings(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

/// An archive whose root's strings, after `( type`, are `rest`.
fn archive(rest: &[&[u8]]) -> Vec<u8> {
    strings(&[&[MAGIC, b"(", b"type"], rest].concat())
}

fn link(name: &[u8]) -> [&[u8]; 11] {
    [
        b"entry", b"(", b"name", name, b"node", b"(", b"type", b"symlink", b"target", b"t", b")",
    ]
}

fn directory_of_links(names: &[&[u8]]) -> Vec<u8> {
    let mut rest: Vec<&[u8]> = vec![b"directory"];
    for name in names {
        rest.extend(link(name));
        rest.push(b")");
    }
    rest.push(b")");
    archive(&rest)
}

#[test]
fn names_must_be_legal_sorted_and_unique() {
    assert!(read(&directory_of_links(&[b"a", b"b", b"\xff"])[..]).is_ok());
    for names in [[&b"b"[..], b"a"], [b"a", b"a"], [b"ab", b"a"]] {
        let error = read(&directory_of_links(&names)[..]).unwrap_err();
        assert!(matches!(error, NarError::Unsorted { .. }), "{error}");
    }
    let long = [b'x'; 256];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &long] {
        let error = read(&directory_of_links(&[name])[..]).unwrap_err();
        assert!(matches!(error, NarError::Name { .. }), "{error}");
    }
}

#[test]
fn what_the_format_does_not_have_is_refused() {
    let refused: [(&str, Vec<u8>); 10] = [
        ("other magic", strings(&[b"nix-archive-2"])),
        ("unknown type", archive(&[b"fifo", b")"])),
        ("no contents", archive(&[b"regular", b")"])),
        (
            "executable with a value",
            archive(&[b"regular", b"executable", b"x", b"contents", b"", b")"]),
        ),
        (
            "executable after contents",
            archive(&[b"regular", b"contents", b"", b"executable", b"", b")"]),
        ),
        ("no target", archive(&[b"symlink", b")"])),
        ("empty target", archive(&[b"symlink", b"target", b"", b")"])),
        (
            "long target",
            archive(&[b"symlink", b"target", &[b'x'; 4097], b")"]),
        ),
        ("unknown in a directory", archive(&[b"directory", b"exit"])),
        ("bytes after the end", archive(&[b"directory", b")", b""])),
    ];
    for (what, bytes) in refused {
        let error = read(&bytes[..]).expect_err(what);
        assert!(
            !matches!(error, NarError::Truncated { .. }),
            "{what}: {error}"
        );
    }
}

#[test]
fn padding_must_be_zero() {
    let mut nar = Tree::File {
        executable: false,
        bytes: b"x".to_vec(),
    }
    .nar();
    let at = nar.iter().position(|&byte| byte == b'x').unwrap();
    assert!(read(&nar[..]).is_ok());
    let last = nar.len() - 17;
    assert!(last > at);
    nar[last] = 1;
    let error = read(&nar[..]).unwrap_err();
    assert!(matches!(error, NarError::Padding { .. }), "{error}");
}

#[test]
fn an_announced_length_is_not_believed() {
    let mut name = strings(&[MAGIC]);
    name.extend_from_slice(&u64::MAX.to_le_bytes());
    let error = read(&name[..]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a NAR: byte 24 should start \"(\", but it announces 18446744073709551615 bytes"
    );
    let mut file = archive(&[b"regular", b"contents"]);
    file.extend_from_slice(&u64::MAX.to_le_bytes());
    let error = read(&file[..]).unwrap_err();
    assert!(matches!(error, NarError::Truncated { .. }), "{error}");
}

/// A million directories inside one another must end in an error, and not in a stack overflow.
#[test]
fn depth_is_bounded() {
    let mut nar = archive(&[b"directory"]);
    let level = strings(&[
        b"entry",
        b"(",
        b"name",
        b"d",
        b"node",
        b"(",
        b"type",
        b"directory",
    ]);
    for _ in 0..MAX_DEPTH {
        nar.extend_from_slice(&level);
    }
    let error = read(&nar[..]).unwrap_err();
    assert!(matches!(error, NarError::TooDeep { .. }), "{error}");
}

#[test]
fn contents_left_unread_are_skipped() {
    let file = |byte| Tree::File {
        executable: true,
        bytes: vec![byte; 100_001],
    };
    let name = |name: &[u8]| Name::new(name).unwrap();
    let tree = Tree::Directory([(name(b"a"), file(1)), (name(b"b"), file(2))].into());
    let nar = tree.nar();
    let mut reader = NarReader::new(&nar[..]);
    let mut events = 0;
    while let Some(event) = reader.next().unwrap() {
        if let NarEvent::File { mut contents, .. } = event {
            contents.read(&mut [0; 10]).unwrap();
        }
        events += 1;
    }
    assert_eq!(events, 4);
}

#[test]
fn the_writer_refuses_what_would_be_no_archive() {
    let writer = || NarWriter::new(Vec::new());
    assert!(writer().finish().is_err(), "nothing at all");
    assert!(writer().symlink(Some(b"a"), b"t").is_err(), "a named root");
    assert!(writer().symlink(None, b"").is_err(), "an empty target");

    let mut two = writer();
    two.symlink(None, b"t").unwrap();
    assert!(two.symlink(None, b"t").is_err(), "two roots");

    let mut open = writer();
    open.directory(None).unwrap();
    assert!(open.symlink(None, b"t").is_err(), "an entry without a name");
    open.symlink(Some(b"b"), b"t").unwrap();
    assert!(open.symlink(Some(b"a"), b"t").is_err(), "unsorted");
    assert!(open.symlink(Some(b".."), b"t").is_err(), "illegal name");
    assert!(open.finish().is_err(), "an open directory");

    let mut file = writer();
    file.file(None, false, 2).unwrap();
    assert!(file.contents(b"abc").is_err(), "too many bytes");
    file.contents(b"a").unwrap();
    assert!(file.finish().is_err(), "too few bytes");
}
