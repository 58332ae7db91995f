use super::*;
use crate::castore::{Name, Node, SymlinkTarget};
use crate::image::ImageTop;

fn kept(parent: u32, index: u32) -> Kept {
    Kept {
        parent,
        index,
        ino: u64::from(index) + 1000,
        claim: u64::from(index) * 10_000,
        digest: Digest::of(&index.to_ne_bytes()),
        size: 17,
    }
}

fn successor(ledger: &Ledger) -> Result<Ledger, LedgerError> {
    Ledger::open(ledger.memory().try_clone_to_owned().unwrap())
}

#[test]
fn the_next_process_finds_the_slots_and_their_counts() {
    let ledger = Ledger::create().unwrap();
    let far = SEGMENT_RECORDS as u32 * 3 + 5;
    for slot in [0, 1, 2, far] {
        let counts = ledger.claim(slot, &kept(0, slot));
        counts
            .lookups()
            .store(u64::from(slot) * 2, Ordering::Relaxed);
        counts.held().store(7, Ordering::Relaxed);
    }
    ledger.release(1);
    let after = successor(&ledger).unwrap();
    drop(ledger);
    let slots = after.slots().unwrap();
    let numbers: Vec<u32> = slots.iter().map(|(slot, ..)| *slot).collect();
    assert_eq!(numbers, [0, 2, far]);
    let (_, last, counts) = slots.last().unwrap();
    assert_eq!(*last, kept(0, far));
    assert_eq!(counts.lookups().load(Ordering::Relaxed), u64::from(far) * 2);
    assert_eq!(counts.held().load(Ordering::Relaxed), 7);
    after.trim(3);
    assert_eq!(successor(&after).unwrap().slots().unwrap().len(), 2);
}

#[test]
fn the_next_process_finds_the_roots_and_the_data_about_the_mount() {
    let ledger = Ledger::create().unwrap();
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
        ledger.append_root(root, *ino);
        let number = number as u64;
        ledger.append_range(number, range(number), 17);
    }
    let name = Name::new(&[b'i'; 255]).unwrap();
    let of_roots = ImageTop::roots(&[roots[1].0.clone()]).unwrap();
    let images = [
        (5, None, ImageTop::Directory(Digest::of(b"tree"))),
        (6, Some(name), of_roots),
    ];
    for (ino, name, top) in &images {
        ledger.append_image(*ino, name.as_ref(), top);
    }
    ledger.set_about(b"a mount").unwrap();
    let after = successor(&ledger).unwrap();
    assert_eq!(after.roots().unwrap(), roots);
    let all = after.numbered().unwrap();
    assert_eq!(all.len(), 10);
    let images = images.map(|(ino, name, top)| Numbered::Image { ino, name, top });
    assert_eq!(all[8..], images);
    let numbered = |number| Numbered::Range {
        ino: number,
        range: range(number),
        length: 17,
    };
    assert_eq!([&all[1], &all[3]], [&numbered(0), &numbered(1)]);
    assert_eq!(after.about().unwrap(), b"a mount");
}

#[test]
fn a_mount_without_open_files_has_the_lower_layout_to_the_byte() {
    let ledger = Ledger::create().unwrap();
    let length = |ledger: &Ledger| rustix::fs::fstat(ledger.memory()).unwrap().st_size;
    assert_eq!(length(&ledger), (1 << 36) + (88 << 32));
    let starts = read_exact(&ledger.memory, 0, 16).unwrap();
    assert_eq!(starts, b"castore\x01\x03\0\0\0\0\0\0\0");
    assert!(!successor(&ledger).unwrap().keeps_open_files());
    let with_more = Ledger::create_with_open_files().unwrap();
    assert!(length(&with_more) > length(&ledger));
    // It is undecided whether the kernel has passthrough.
    let after = successor(&with_more).unwrap();
    assert!(after.keeps_open_files());
    assert!(matches!(after.left_open(), Err(LedgerError::Damaged(_))));
}

#[test]
fn what_is_not_understood_is_refused() {
    let ledger = Ledger::create().unwrap();
    let header = ledger.header.header();
    // The layouts in which files of equal content had one inode.
    for version in [1, 2] {
        header.version.store(version, Ordering::Relaxed);
        let error = successor(&ledger).err().unwrap();
        assert!(matches!(error, LedgerError::Version { found } if found == version));
    }
    header.version.store(OPEN_FILES + 1, Ordering::Relaxed);
    let error = successor(&ledger).err().unwrap();
    assert!(matches!(error, LedgerError::Version { found } if found == OPEN_FILES + 1));
    // The header says that it has open files, and the file has no room for them.
    header.version.store(OPEN_FILES, Ordering::Relaxed);
    assert!(matches!(successor(&ledger), Err(LedgerError::Damaged(_))));
    header.version.store(NODES, Ordering::Relaxed);
    ledger.give_up(&io::ErrorKind::OutOfMemory.into());
    assert!(matches!(successor(&ledger), Err(LedgerError::Damaged(_))));
    let unsealed = rustix::fs::memfd_create(c"x", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, NODES_END).unwrap();
    assert!(matches!(
        Ledger::open(unsealed),
        Err(LedgerError::Damaged(_))
    ));
}
