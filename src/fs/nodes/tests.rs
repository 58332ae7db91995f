use super::*;
use crate::castore::{Name, Node};

fn directory_of(files: impl Iterator<Item = u64>) -> Directory {
    let entries = files.map(|number| {
        let node = Node::File {
            digest: Digest::of(&number.to_le_bytes()),
            size: number,
            executable: false,
        };
        (Name::new(number.to_string().as_bytes()).unwrap(), node)
    });
    Directory::from_entries(entries.collect()).unwrap()
}

/// Looks up `directory` as the `index`-th child of the top, and all files in it.
fn look_up(nodes: &Nodes, index: u32, directory: &Directory) -> (NodeId, Vec<NodeId>) {
    let (digest, size) = (directory.digest(), directory.size());
    let child = nodes
        .child(TOP, index, u64::from(index) + 2, &digest, size)
        .unwrap();
    nodes.keep(child.slot, directory.clone());
    let files = directory.iter().enumerate().map(|(at, entry)| {
        let content = Content::of(entry.node).unwrap();
        nodes.file(child.slot, at as u32, content)
    });
    (NodeId::directory(child.slot), files.collect())
}

#[test]
fn a_million_files_cost_less_than_64_bytes_each_and_nothing_when_forgotten() {
    const DIRECTORIES: u64 = 10_000;
    const FILES: u64 = 100;
    let nodes = Nodes::new(Digest::of(b""), 0, usize::MAX, None);
    let mut known = Vec::new();
    for index in 0..DIRECTORIES {
        let directory = directory_of(index * FILES..(index + 1) * FILES);
        known.push(look_up(&nodes, index as u32, &directory));
    }
    let count = nodes.count();
    assert_eq!(count.files as u64, DIRECTORIES * FILES);
    let each = count.table_bytes as f64 / (DIRECTORIES * (FILES + 1)) as f64;
    println!("{each:.1} bytes a node, Directories aside");
    assert!(each < 64.0, "{each} bytes a node");

    for (directory, files) in known {
        nodes.forget_all(files.into_iter().map(|id| (id, 1)));
        nodes.forget(directory, 1);
    }
    let count = nodes.count();
    assert_eq!((count.directories, count.files), (1, 0));
    assert_eq!(count.directory_bytes, 0);
    assert!(count.table_bytes < 256 << 10, "{count:?}");
}

#[test]
fn a_directory_stays_while_one_of_its_files_is_known() {
    let nodes = Nodes::new(Digest::of(b""), 0, usize::MAX, None);
    let (directory, files) = look_up(&nodes, 0, &directory_of(0..3));
    nodes.forget(directory, 1);
    nodes.forget(files[0], 1);
    nodes.forget(files[1], 1);
    assert_eq!(nodes.count().directories, 2);
    nodes.forget(files[2], 1);
    assert_eq!(nodes.count().directories, 1);
}

#[test]
fn a_file_keeps_its_id_although_the_place_that_gave_it_is_looked_up_no_more() {
    let nodes = Nodes::new(Digest::of(b""), 0, usize::MAX, None);
    let (first, files) = look_up(&nodes, 0, &directory_of(0..3));
    let (second, again) = look_up(&nodes, 1, &directory_of(0..3));
    assert_eq!(files, again);
    assert_ne!(first, second);
    nodes.forget(first, 1);
    nodes.forget_all(files.iter().map(|&id| (id, 1)));
    // The second directory's lookups are of the ids that the first one gave.
    assert_eq!(nodes.count().directories, 3);
    let Some(Place::Directory(slot)) = second.place() else {
        panic!("{second:?}");
    };
    let content = Content::of(directory_of(0..3).get(1).unwrap().node).unwrap();
    assert_eq!(nodes.file(slot, 1, content), files[1]);
    nodes.forget(files[1], 1);
    nodes.forget_all(again.into_iter().map(|id| (id, 1)));
    assert_eq!(nodes.count().directories, 2);
}

#[test]
fn a_size_that_is_a_lie_makes_another_inode() {
    let nodes = Nodes::new(Digest::of(b""), 0, usize::MAX, None);
    let (_, files) = look_up(&nodes, 0, &directory_of(5..6));
    let lie = Node::File {
        digest: Digest::of(&5u64.to_le_bytes()),
        size: 6,
        executable: false,
    };
    let name = Name::new(b"5").unwrap();
    let liar = Directory::from_entries(vec![(name, lie)]).unwrap();
    assert_ne!(look_up(&nodes, 1, &liar).1, files);
}

#[test]
fn forgetting_more_than_was_looked_up_does_no_harm() {
    let nodes = Nodes::new(Digest::of(b""), 0, usize::MAX, None);
    let (directory, files) = look_up(&nodes, 0, &directory_of(0..1));
    nodes.forget(files[0], u64::MAX);
    nodes.forget(directory, 77);
    nodes.forget(directory, 1);
    nodes.forget(NodeId::ROOT, 9);
    nodes.forget(NodeId::entry(4_000_000, 3), 9);
    assert_eq!(nodes.count().directories, 1);
    assert!(nodes.directory(TOP).is_some());
}

#[test]
fn directories_that_were_not_used_go_first() {
    let directories: Vec<Directory> = (0..10)
        .map(|number| directory_of(number * 100..number * 100 + 50))
        .collect();
    let limit = directories[0].resident_bytes() * 4;
    let nodes = Nodes::new(Digest::of(b""), 0, limit, None);
    let mut slots = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        let (id, _) = look_up(&nodes, index as u32, directory);
        let Some(Place::Directory(slot)) = id.place() else {
            panic!("{id:?}");
        };
        slots.push(slot);
        // The first one is used all the time.
        assert!(nodes.directory(slots[0]).unwrap().directory.is_some());
    }
    let count = nodes.count();
    assert!(count.directory_bytes <= limit, "{count:?}");
    let kept = |slot: &u32| nodes.directory(*slot).unwrap().directory.is_some();
    assert!(kept(slots.last().unwrap()));
    assert!(slots.iter().filter(|slot| kept(slot)).count() <= 4);
}

/// Forgetting entries that were never looked up used to count against the child slots too: the
/// parent's slot was freed under its children, and given to another directory.
#[test]
fn a_guest_that_forgets_too_much_sets_no_child_adrift() {
    let nodes = Nodes::new(Digest::of(b"top"), 0, usize::MAX, None);
    let parent = nodes.child(TOP, 0, 2, &Digest::of(b"parent"), 0).unwrap();
    let child = nodes
        .child(parent.slot, 0, 3, &Digest::of(b"child"), 0)
        .unwrap();
    nodes.forget(NodeId::entry(parent.slot, 7), u64::MAX);
    nodes.forget(NodeId::directory(parent.slot), u64::MAX);
    assert!(nodes.directory(parent.slot).is_some());
    let other = nodes
        .child(child.slot, 0, 4, &Digest::of(b"other"), 0)
        .unwrap();
    assert_eq!(nodes.trail(NodeId::directory(other.slot)).len(), 3);
    // Once the children go, so does the parent.
    nodes.forget(NodeId::directory(other.slot), 1);
    nodes.forget(NodeId::directory(child.slot), u64::MAX);
    assert_eq!(nodes.count().directories, 1);
}

/// Walking ahead used to look a slot up and use it later: forgotten in between and given to another
/// directory, that one's files got the first one's bytes.
#[test]
fn a_slot_that_is_held_goes_to_no_other_directory() {
    let nodes = Nodes::new(Digest::of(b"top"), 0, usize::MAX, None);
    let first = nodes.child(TOP, 0, 2, &Digest::of(b"first"), 0).unwrap();
    assert_eq!(nodes.hold(first.slot).unwrap().digest, first.digest);
    nodes.forget(NodeId::directory(first.slot), 1);
    let second = nodes.child(TOP, 1, 3, &Digest::of(b"second"), 0).unwrap();
    assert_ne!(second.slot, first.slot);
    nodes.forget(NodeId::entry(first.slot, 0), 1);
    let third = nodes.child(TOP, 2, 4, &Digest::of(b"third"), 0).unwrap();
    assert_eq!(third.slot, first.slot);
}

/// What a successor needs: slots, their counts and their places, and nothing that nobody knows.
#[test]
fn a_successor_goes_on_with_the_table() {
    let ledger = Arc::new(Ledger::create().unwrap());
    let top = Digest::of(b"top");
    let nodes = Nodes::new(top, 0, usize::MAX, Some(ledger.clone()));
    let parent = nodes.child(TOP, 0, 2, &Digest::of(b"parent"), 0).unwrap();
    let child = nodes
        .child(parent.slot, 5, 3, &Digest::of(b"child"), 7)
        .unwrap();
    let gone = nodes.child(TOP, 1, 4, &Digest::of(b"gone"), 0).unwrap();
    nodes.symlink(child.slot, 9);
    nodes.forget(NodeId::directory(gone.slot), 1);
    nodes.forget(NodeId::directory(parent.slot), 1);
    drop(nodes);
    let successor = Nodes::adopt(top, usize::MAX, ledger.clone(), &[]).unwrap();
    assert_eq!(successor.count().directories, 3);
    let again = successor
        .child(parent.slot, 5, 3, &Digest::of(b"child"), 7)
        .unwrap();
    assert_eq!((again.slot, again.ino), (child.slot, 3));
    // A free slot is used again, and what is forgotten goes with its ancestors.
    let new = successor.child(TOP, 2, 5, &Digest::of(b"new"), 0).unwrap();
    assert_eq!(new.slot, gone.slot);
    successor.forget(NodeId::directory(new.slot), 1);
    successor.forget(NodeId::directory(child.slot), 2);
    assert_eq!(successor.count().directories, 3);
    successor.forget(NodeId::entry(child.slot, 9), 1);
    assert_eq!(successor.count().directories, 1);
    assert!(Nodes::adopt(Digest::of(b"other"), usize::MAX, ledger, &[]).is_err());
}

/// As a walk goes, whose kernel forgets what it saw a while ago.
#[test]
fn a_walk_over_a_million_files_stays_within_its_limit() {
    const DIRECTORIES: u64 = 10_000;
    const FILES: u64 = 100;
    /// Directories that the kernel still knows.
    const KNOWN: usize = 2000;
    const LIMIT: usize = 4 << 20;
    let nodes = Nodes::new(Digest::of(b""), 0, LIMIT, None);
    let mut known = std::collections::VecDeque::new();
    let (mut most, mut seen) = (0, 0);
    for index in 0..DIRECTORIES {
        let directory = directory_of(index * FILES..(index + 1) * FILES);
        known.push_back(look_up(&nodes, index as u32, &directory));
        seen += directory.resident_bytes();
        if known.len() > KNOWN {
            let (directory, files) = known.pop_front().unwrap();
            nodes.forget_all(files.into_iter().map(|id| (id, 1)));
            nodes.forget(directory, 1);
        }
        let count = nodes.count();
        assert!(count.directory_bytes <= LIMIT, "{count:?}");
        most = most.max(count.directory_bytes + count.table_bytes);
    }
    println!("at most {most} bytes, of {seen} bytes of Directories seen");
    // The table has 64 bytes a node for what the kernel knows, and the limit holds the rest.
    assert!(most < LIMIT + KNOWN * FILES as usize * 64, "{most}");
    assert!(seen > 8 * LIMIT, "{seen}");
}

/// Equal directories never share: a few make more places than any memory has room for.
#[test]
fn no_more_directories_are_known_than_may_be() {
    let nodes = Nodes::new(Digest::of(b""), 0, 1 << 20, None).bounded(3);
    let child = |index| nodes.child(TOP, index, 7, &Digest::of(b"child"), 0);
    let first = child(0).unwrap();
    child(1).unwrap();
    assert!(child(2).is_none());
    assert_eq!(
        child(0).unwrap().slot,
        first.slot,
        "what is known stays known"
    );
    nodes.forget(NodeId::directory(first.slot), 2);
    child(2).unwrap();
}
