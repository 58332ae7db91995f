use super::*;
use crate::castore::{Name, Node, SymlinkTarget};
use crate::image::ImageRoot;

fn content(parent: u32, index: u32) -> SlotContent {
    SlotContent {
        parent,
        index,
        ino: u64::from(index) + 1000,
        claim: u64::from(index) * 10_000,
        digest: Digest::of(&index.to_ne_bytes()),
        size: 17,
    }
}

fn next_process(inode_table: &InodeTable) -> Result<InodeTable, InodeTableError> {
    InodeTable::open(inode_table.memory().try_clone_to_owned().unwrap())
}

#[test]
fn the_next_process_finds_the_slots_and_their_counts() {
    let inode_table = InodeTable::create().unwrap();
    let distant = BLOCK_RECORDS as u32 * 3 + 5;
    for slot in [0, 1, 2, distant] {
        let counts = inode_table.claim(slot, &content(0, slot));
        counts
            .lookups()
            .store(u64::from(slot) * 2, Ordering::Relaxed);
        counts.held().store(7, Ordering::Relaxed);
    }
    inode_table.release(1);
    let after = next_process(&inode_table).unwrap();
    drop(inode_table);
    let slots = after.slots().unwrap();
    let numbers: Vec<u32> = slots.iter().map(|(slot, ..)| *slot).collect();
    assert_eq!(numbers, [0, 2, distant]);
    let (_, last, counts) = slots.last().unwrap();
    assert_eq!(*last, content(0, distant));
    assert_eq!(
        counts.lookups().load(Ordering::Relaxed),
        u64::from(distant) * 2
    );
    assert_eq!(counts.held().load(Ordering::Relaxed), 7);
    after.trim(3);
    assert_eq!(next_process(&after).unwrap().slots().unwrap().len(), 2);
}

#[test]
fn the_next_process_finds_the_roots_and_the_data_about_the_mount() {
    let inode_table = InodeTable::create().unwrap();
    let node = |kind| match kind {
        0 => Node::Directory {
            digest: Digest::of(b"d"),
            size: 3,
        },
        1 | 2 => Node::File {
            digest: Digest::of(b"f"),
            size: 1,
            executable: kind == 2,
        },
        _ => Node::Symlink {
            target: SymlinkTarget::new(b"/some/where").unwrap(),
        },
    };
    let roots: Vec<(Root, u64)> = (0..4)
        .map(|kind| {
            let name = Name::new(&[b'n', kind + 1]).unwrap();
            let node = node(kind);
            (Root { name, node }, u64::from(kind) + 70)
        })
        .collect();
    let range = |number: u64| NameRange {
        first: number * 1000,
        nested: number == 1,
    };
    for (number, (root, ino)) in roots.iter().enumerate() {
        inode_table.append_root(root, *ino);
        let number = number as u64;
        inode_table.append_range(number, range(number), 17);
    }
    let name = Name::new(&[b'i'; 255]).unwrap();
    let of_roots = ImageRoot::roots(&[roots[1].0.clone()]).unwrap();
    let images = [
        (5, None, ImageRoot::Directory(Digest::of(b"tree"))),
        (6, Some(name), of_roots),
    ];
    for (ino, name, mount_root) in &images {
        inode_table.append_image(*ino, name.as_ref(), mount_root);
    }
    inode_table.set_about(b"a mount").unwrap();
    let after = next_process(&inode_table).unwrap();
    assert_eq!(after.roots().unwrap(), roots);
    let all = after.numbered().unwrap();
    assert_eq!(all.len(), 10);
    let images = images.map(|(ino, name, mount_root)| AssignedNumber::Image {
        ino,
        name,
        mount_root,
    });
    assert_eq!(all[8..], images);
    let numbered = |number| AssignedNumber::Range {
        ino: number,
        range: range(number),
        length: 17,
    };
    assert_eq!([&all[1], &all[3]], [&numbered(0), &numbered(1)]);
    assert_eq!(after.about().unwrap(), b"a mount");
}

#[test]
fn a_mount_without_open_files_has_the_lower_layout_to_the_byte() {
    let inode_table = InodeTable::create().unwrap();
    let length =
        |inode_table: &InodeTable| rustix::fs::fstat(inode_table.memory()).unwrap().st_size;
    assert_eq!(length(&inode_table), (1 << 36) + (88 << 32));
    let starts = read_exact(&inode_table.memory, 0, 16).unwrap();
    assert_eq!(starts, b"castore\x01\x03\0\0\0\0\0\0\0");
    assert!(!next_process(&inode_table).unwrap().keeps_open_files());
    let with_more = InodeTable::create_with_open_files().unwrap();
    assert!(length(&with_more) > length(&inode_table));
    // It is undecided whether the kernel has passthrough.
    let after = next_process(&with_more).unwrap();
    assert!(after.keeps_open_files());
    assert!(matches!(
        after.previous_open_files(),
        Err(InodeTableError::Damaged(_))
    ));
}

#[test]
fn what_is_not_understood_is_refused() {
    let inode_table = InodeTable::create().unwrap();
    let header = inode_table.header.header();
    // The layouts in which files of equal content had one inode.
    for version in [1, 2] {
        header.version.store(version, Ordering::Relaxed);
        let error = next_process(&inode_table).err().unwrap();
        assert!(matches!(error, InodeTableError::Version { found } if found == version));
    }
    header.version.store(OPEN_FILES + 1, Ordering::Relaxed);
    let error = next_process(&inode_table).err().unwrap();
    assert!(matches!(error, InodeTableError::Version { found } if found == OPEN_FILES + 1));
    // The header claims open files, and the file has no room for them.
    header.version.store(OPEN_FILES, Ordering::Relaxed);
    assert!(matches!(
        next_process(&inode_table),
        Err(InodeTableError::Damaged(_))
    ));
    header.version.store(NODES, Ordering::Relaxed);
    inode_table.give_up(&io::ErrorKind::OutOfMemory.into());
    assert!(matches!(
        next_process(&inode_table),
        Err(InodeTableError::Damaged(_))
    ));
    let unsealed = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, NODES_END).unwrap();
    assert!(matches!(
        InodeTable::open(unsealed),
        Err(InodeTableError::Damaged(_))
    ));
}
