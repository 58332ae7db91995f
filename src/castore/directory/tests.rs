use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::castore::SymlinkTarget;
use crate::proto::castore::v1 as proto;

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

fn file(content: &[u8], executable: bool) -> Node {
    Node::File {
        digest: Digest::of(content),
        size: content.len() as u64,
        executable,
    }
}

fn any_node() -> impl Strategy<Value = Node> {
    prop_oneof![
        (any::<[u8; 32]>(), any::<u32>()).prop_map(|(digest, size)| Node::Directory {
            digest: digest.into(),
            size: size.into()
        }),
        (any::<[u8; 32]>(), any::<u64>(), any::<bool>()).prop_map(|(digest, size, executable)| {
            Node::File {
                digest: digest.into(),
                size,
                executable,
            }
        }),
        vec(1..=255u8, 1..40).prop_map(|target| Node::Symlink {
            target: SymlinkTarget::new(&target).unwrap()
        }),
    ]
}

fn any_name() -> impl Strategy<Value = Name> {
    vec(any::<u8>(), 1..20).prop_filter_map("a legal name", |bytes| Name::new(&bytes).ok())
}

/// The same entries as prost would write them.
fn encoded_by_prost(entries: &[(Name, Node)]) -> Vec<u8> {
    let mut message = proto::Directory::default();
    for (name, node) in entries {
        let root = crate::castore::Root {
            name: name.clone(),
            node: node.clone(),
        };
        match proto::Entry::from(&root).entry.unwrap() {
            proto::entry::Entry::Directory(entry) => message.directories.push(entry),
            proto::entry::Entry::File(entry) => message.files.push(entry),
            proto::entry::Entry::Symlink(entry) => message.symlinks.push(entry),
        }
    }
    message.encode_to_vec()
}

proptest! {
    #[test]
    fn agrees_with_prost_on_every_directory(
        entries in btree_map(any_name(), any_node(), 0..12)
    ) {
        let entries: Vec<_> = entries.into_iter().collect();
        let directory = Directory::from_entries(entries.clone()).unwrap();
        prop_assert_eq!(directory.as_bytes(), encoded_by_prost(&entries));
        prop_assert_eq!(directory.len(), entries.len());
        for (index, (name, node)) in entries.iter().enumerate() {
            let entry = directory.get(index).unwrap();
            prop_assert_eq!(entry.name, name.as_bytes());
            prop_assert_eq!(entry.node, node.borrow());
            prop_assert_eq!(directory.lookup(name), Some(node.borrow()));
        }
        prop_assert_eq!(directory.lookup(b"no such name, too long for the generator"), None);
    }

    /// Whatever is accepted is canonical: prost reads it and writes the same bytes.
    #[test]
    fn accepts_nothing_that_prost_would_write_otherwise(
        entries in btree_map(any_name(), any_node(), 1..4),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let directory = Directory::from_entries(entries.into_iter().collect()).unwrap();
        let mut bytes = directory.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if Directory::decode(bytes.clone()).is_ok() {
            let message = proto::Directory::decode(&bytes[..]).unwrap();
            prop_assert_eq!(message.encode_to_vec(), bytes);
        }
    }
}

#[test]
fn the_size_counts_entries_twice_and_adds_the_children() {
    let leaf = Directory::from_entries(vec![(name(b"a"), file(b"a", false))]).unwrap();
    assert_eq!(leaf.size(), 2);
    let top = Directory::from_entries(vec![
        (name(b"leaf"), leaf.node()),
        (name(b"z"), file(b"z", true)),
    ])
    .unwrap();
    assert_eq!(top.size(), 2 * 2 + 2);
    assert_eq!(top.subdirectories(), 1);
}

#[test]
fn the_empty_directory_is_the_empty_message() {
    let made = Directory::from_entries(Vec::new()).unwrap();
    let read = Directory::decode(Vec::new()).unwrap();
    for empty in [Directory::empty(), made, read] {
        assert_eq!(empty.as_bytes(), b"");
        assert_eq!(empty.digest(), Digest::of(b""));
        assert!(empty.is_empty());
        assert_eq!((empty.size(), empty.subdirectories()), (0, 0));
    }
}

/// An entry of `list` holding `fields`, length prefix included.
fn raw(list: u8, fields: &[u8]) -> Vec<u8> {
    let mut bytes = vec![list, fields.len() as u8];
    bytes.extend_from_slice(fields);
    bytes
}

fn symlink(name: &str) -> Vec<u8> {
    let mut fields = vec![0x0a, name.len() as u8];
    fields.extend_from_slice(name.as_bytes());
    fields.extend_from_slice(b"\x12\x01t");
    raw(0x1a, &fields)
}

#[test]
fn what_no_canonical_encoder_writes_is_refused() {
    let digest = [7u8; 32];
    let file = |tail: &[u8]| {
        let mut fields = b"\x0a\x01f\x12\x20".to_vec();
        fields.extend_from_slice(&digest);
        fields.extend_from_slice(tail);
        raw(0x12, &fields)
    };
    assert!(Directory::decode(file(b"\x18\x01\x20\x01")).is_ok());
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("unknown field in the message", raw(0x22, b"")),
        ("unknown field in an entry", file(b"\x28\x01")),
        ("fields out of order", file(b"\x20\x01\x18\x01")),
        ("size zero written out", file(b"\x18\x00")),
        ("flag zero written out", file(b"\x20\x00")),
        ("flag two", file(b"\x20\x02")),
        ("varint not shortest", file(b"\x18\x81\x00")),
        (
            "varint beyond 64 bits",
            file(b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
        ),
        ("field twice", file(b"\x18\x01\x18\x01")),
        ("no name", raw(0x1a, b"\x12\x01t")),
        ("no target", raw(0x1a, b"\x0a\x01n")),
        ("empty target", raw(0x1a, b"\x0a\x01n\x12\x00")),
        ("digest too short", raw(0x12, b"\x0a\x01f\x12\x01x")),
        ("lists out of order", [symlink("a"), file(b"")].concat()),
        ("names out of order", [symlink("b"), symlink("a")].concat()),
        (
            "name twice in a list",
            [symlink("a"), symlink("a")].concat(),
        ),
        (
            "name twice in two lists",
            [file(b""), symlink("f")].concat(),
        ),
        ("bad name", symlink("a/b")),
        ("dot dot", symlink("..")),
        ("truncated", file(b"")[..20].to_vec()),
        (
            "length beyond the end",
            b"\x0a\xff\xff\xff\xff\x0f".to_vec(),
        ),
    ];
    for (what, bytes) in refused {
        assert!(Directory::decode(bytes).is_err(), "{what} was accepted");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let huge = |digest: u8| Node::Directory {
        digest: [digest; 32].into(),
        size: u64::MAX / 2,
    };
    let entries = vec![
        (name(b"a"), huge(1)),
        (name(b"b"), huge(2)),
        (name(b"c"), huge(3)),
    ];
    assert_eq!(
        Directory::from_entries(entries),
        Err(DirectoryError::SizeOverflow)
    );
}

#[test]
fn bytes_of_another_directory_are_refused() {
    let expected = Digest::of(b"something else");
    assert!(matches!(
        Directory::decode_verified(symlink("a"), &expected),
        Err(DirectoryError::WrongDigest { .. })
    ));
}

#[test]
fn the_names_below_are_summed_up_to_every_entry() {
    let claims = (0..100u64).map(|at| (format!("d{at:03}"), at * 7 % 50));
    let child = |size| Node::Directory {
        digest: Directory::empty().digest(),
        size,
    };
    let mut entries: Vec<(Name, Node)> = claims
        .map(|(at, size)| (name(at.as_bytes()), child(size)))
        .collect();
    entries.extend((0..100).map(|at| (name(format!("d{at:03}f").as_bytes()), file(b"", false))));
    entries.push((name(b"a"), file(b"a", false)));
    entries.push((name(b"z"), file(b"z", false)));
    let directory = Directory::from_entries(entries).unwrap();
    let mut below = 0;
    for (index, entry) in directory.iter().enumerate() {
        assert_eq!(directory.names_below_those_before(index), below, "{index}");
        if let NodeRef::Directory { size, .. } = entry.node {
            below += size / 2;
        }
    }
    assert!(directory.len() as u64 + below <= directory.names_below());
    assert_eq!(Directory::empty().names_below_those_before(0), 0);
}
