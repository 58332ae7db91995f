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

/// A table that knows only the top.
fn table(mount_root: &[u8], limit: usize) -> Nodes {
    let numbering = Arc::new(InodeNumbering::new(false, None));
    Nodes::new(Digest::of(mount_root), 0, limit, numbering, None)
}

/// Looks up the directory of `digest` at `index` of that in `slot`.
fn child(nodes: &Nodes, slot: u32, index: u32, digest: &[u8]) -> DirectoryNode {
    let ino = u64::from(index) + 2;
    nodes
        .child((slot, index), ino, || 0, &Digest::of(digest), 0)
        .unwrap()
}

/// Looks up `directory` as the `index`-th child of the top, and all files in it.
fn look_up(nodes: &Nodes, index: u32, directory: &Directory) -> (NodeId, Vec<NodeId>) {
    let (digest, size) = (directory.digest(), directory.size());
    let ino = u64::from(index) + 2;
    let child = nodes
        .child((MOUNT_ROOT, index), ino, || 0, &digest, size)
        .unwrap();
    nodes.keep(child.slot, directory.clone());
    let files = (0..directory.len() as u32).map(|at| nodes.leaf(child.slot, at));
    (NodeId::directory(child.slot), files.collect())
}

#[test]
fn a_million_files_cost_less_than_4_bytes_each_and_nothing_when_forgotten() {
    const DIRECTORIES: u64 = 10_000;
    const FILES: u64 = 100;
    let nodes = table(b"", usize::MAX);
    let mut known = Vec::new();
    for index in 0..DIRECTORIES {
        let directory = directory_of(index * FILES..(index + 1) * FILES);
        known.push(look_up(&nodes, index as u32, &directory));
    }
    let count = nodes.count();
    let each = count.table_bytes as f64 / (DIRECTORIES * (FILES + 1)) as f64;
    println!("{each:.1} bytes a node, Directories aside");
    assert!(each < 4.0, "{each} bytes a node");

    for (directory, files) in known {
        nodes.forget_all(files.into_iter().map(|id| (id, 1)));
        nodes.forget(directory, 1);
    }
    let count = nodes.count();
    assert_eq!(count.directories, 1);
    assert_eq!(count.directory_bytes, 0);
    assert!(count.table_bytes < 256 << 10, "{count:?}");
}

#[test]
fn a_directory_stays_while_one_of_its_files_is_known() {
    let nodes = table(b"", usize::MAX);
    let (directory, files) = look_up(&nodes, 0, &directory_of(0..3));
    nodes.forget(directory, 1);
    nodes.forget(files[0], 1);
    nodes.forget(files[1], 1);
    assert_eq!(nodes.count().directories, 2);
    nodes.forget(files[2], 1);
    assert_eq!(nodes.count().directories, 1);
}

#[test]
fn equal_files_have_ids_and_numbers_of_their_own() {
    let nodes = table(b"", usize::MAX);
    let (first, files) = look_up(&nodes, 0, &directory_of(0..3));
    let (second, others) = look_up(&nodes, 1, &directory_of(0..3));
    let mut ids: Vec<u64> = files.iter().chain(&others).map(|&id| id.into()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    let names = |id: NodeId| {
        let Some(NodePlace::Directory(slot)) = id.place() else {
            panic!("{id:?}");
        };
        nodes.directory(slot).unwrap().names.unwrap()
    };
    assert_eq!(names(first).first + 3, names(second).first);
}

/// A directory's numbers stay when its Directory is dropped from memory, and when it is forgotten.
#[test]
fn numbers_outlive_the_bytes_and_the_slot() {
    let inode_table = Arc::new(InodeTable::create().unwrap());
    let numbering = Arc::new(InodeNumbering::new(false, Some(inode_table.clone())));
    let mount_root = Digest::of(b"");
    let nodes = Nodes::new(mount_root, 0, 0, numbering, Some(inode_table.clone()));
    let directories = [directory_of(0..5), directory_of(0..7)];
    let names = |nodes: &Nodes, index: u32| {
        let directory = &directories[index as usize];
        let (digest, ino) = (directory.digest(), u64::from(index) + 2);
        let child = nodes
            .child((MOUNT_ROOT, index), ino, || 0, &digest, 0)
            .unwrap();
        let known = nodes.keep(child.slot, directory.clone()).unwrap();
        (child.slot, known.names.unwrap())
    };
    let (slot, first) = names(&nodes, 0);
    let (_, second) = names(&nodes, 1);
    let node = nodes.directory(slot).unwrap();
    assert_eq!((node.directory, node.names), (None, Some(first)));
    nodes.forget(NodeId::directory(slot), 1);
    assert!(nodes.directory(slot).is_none());
    let numbering = Arc::new(InodeNumbering::take_over(false, inode_table.clone()).unwrap());
    let next = Nodes::take_over(mount_root, usize::MAX, numbering.clone(), inode_table).unwrap();
    assert_eq!(names(&next, 1).1, second);
    assert_eq!(names(&next, 0).1, first);
    assert_eq!(
        numbering.root(),
        second.first + 7,
        "what was given is not given again"
    );
}

#[test]
fn forgetting_more_than_was_looked_up_does_no_harm() {
    let nodes = table(b"", usize::MAX);
    let (directory, files) = look_up(&nodes, 0, &directory_of(0..1));
    nodes.forget(files[0], u64::MAX);
    nodes.forget(directory, 77);
    nodes.forget(directory, 1);
    nodes.forget(NodeId::ROOT, 9);
    nodes.forget(NodeId::entry(4_000_000, 3), 9);
    assert_eq!(nodes.count().directories, 1);
    assert!(nodes.directory(MOUNT_ROOT).is_some());
}

#[test]
fn directories_that_were_not_used_go_first() {
    let directories: Vec<Directory> = (0..10)
        .map(|number| directory_of(number * 100..number * 100 + 50))
        .collect();
    let limit = directories[0].resident_bytes() * 4;
    let nodes = table(b"", limit);
    let mut slots = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        let (id, _) = look_up(&nodes, index as u32, directory);
        let Some(NodePlace::Directory(slot)) = id.place() else {
            panic!("{id:?}");
        };
        slots.push(slot);
        // The first one is used all the time.
        assert!(nodes.directory(slots[0]).unwrap().directory.is_some());
    }
    let count = nodes.count();
    assert!(count.directory_bytes <= limit, "{count:?}");
    let content = |slot: &u32| nodes.directory(*slot).unwrap().directory.is_some();
    assert!(content(slots.last().unwrap()));
    assert!(slots.iter().filter(|slot| content(slot)).count() <= 4);
}

/// Forgetting entries that were never looked up must not count against the child slots: the
/// parent's slot would be freed under its children, and given to another directory.
#[test]
fn a_guest_that_forgets_too_much_frees_no_parent_of_a_child() {
    let nodes = table(b"top", usize::MAX);
    let parent = child(&nodes, MOUNT_ROOT, 0, b"parent");
    let child = child(&nodes, parent.slot, 0, b"child");
    nodes.forget(NodeId::entry(parent.slot, 7), u64::MAX);
    nodes.forget(NodeId::directory(parent.slot), u64::MAX);
    assert!(nodes.directory(parent.slot).is_some());
    let other = self::child(&nodes, child.slot, 0, b"other");
    assert_eq!(nodes.trail(NodeId::directory(other.slot)).len(), 3);
    // Once the children go, so does the parent.
    nodes.forget(NodeId::directory(other.slot), 1);
    nodes.forget(NodeId::directory(child.slot), u64::MAX);
    assert_eq!(nodes.count().directories, 1);
}

/// Walking ahead looks a slot up and uses it later. If the slot were forgotten in between and given
/// to another directory, that directory's files would get the first one's bytes.
#[test]
fn a_slot_that_is_held_goes_to_no_other_directory() {
    let nodes = table(b"top", usize::MAX);
    let first = child(&nodes, MOUNT_ROOT, 0, b"first");
    assert_eq!(nodes.hold(first.slot).unwrap().digest, first.digest);
    nodes.forget(NodeId::directory(first.slot), 1);
    let second = child(&nodes, MOUNT_ROOT, 1, b"second");
    assert_ne!(second.slot, first.slot);
    nodes.forget(NodeId::entry(first.slot, 0), 1);
    let third = child(&nodes, MOUNT_ROOT, 2, b"third");
    assert_eq!(third.slot, first.slot);
}

/// The next process needs slots, their counts and their places, and none that the kernel does not
/// know.
#[test]
fn the_next_process_takes_the_table_over() {
    let inode_table = Arc::new(InodeTable::create().unwrap());
    let mount_root = Digest::of(b"top");
    let numbering = Arc::new(InodeNumbering::new(false, Some(inode_table.clone())));
    let nodes = Nodes::new(
        mount_root,
        0,
        usize::MAX,
        numbering,
        Some(inode_table.clone()),
    );
    let parent = child(&nodes, MOUNT_ROOT, 0, b"parent");
    let child = nodes
        .child((parent.slot, 5), 3, || 44, &Digest::of(b"child"), 14)
        .unwrap();
    let gone = self::child(&nodes, MOUNT_ROOT, 1, b"gone");
    nodes.leaf(child.slot, 9);
    nodes.forget(NodeId::directory(gone.slot), 1);
    nodes.forget(NodeId::directory(parent.slot), 1);
    drop(nodes);
    let numbering = Arc::new(InodeNumbering::take_over(false, inode_table.clone()).unwrap());
    let next_process = Nodes::take_over(
        mount_root,
        usize::MAX,
        numbering.clone(),
        inode_table.clone(),
    )
    .unwrap();
    assert_eq!(next_process.count().directories, 3);
    let again = next_process
        .child((parent.slot, 5), 99, || 99, &Digest::of(b"child"), 14)
        .unwrap();
    assert_eq!((again.slot, again.ino), (child.slot, 3));
    let content = next_process.keep(child.slot, directory_of(0..7)).unwrap();
    assert_eq!(content.names.unwrap().first, 44, "as it was claimed");
    // A free slot is used again, and what is forgotten goes with its ancestors.
    let new = self::child(&next_process, MOUNT_ROOT, 2, b"new");
    assert_eq!(new.slot, gone.slot);
    next_process.forget(NodeId::directory(new.slot), 1);
    next_process.forget(NodeId::directory(child.slot), 2);
    assert_eq!(next_process.count().directories, 3);
    next_process.forget(NodeId::entry(child.slot, 9), 1);
    assert_eq!(next_process.count().directories, 1);
    let other = Digest::of(b"other");
    assert!(Nodes::take_over(other, usize::MAX, numbering, inode_table).is_err());
}

/// A walk whose kernel forgets what it saw a while ago.
#[test]
fn a_walk_over_a_million_files_stays_within_its_limit() {
    const DIRECTORIES: u64 = 10_000;
    const FILES: u64 = 100;
    /// Directories that the kernel still knows.
    const KNOWN: usize = 2000;
    const LIMIT: usize = 4 << 20;
    let nodes = table(b"", LIMIT);
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
    // The table has 512 bytes a directory that the kernel knows, and the limit holds the rest.
    assert!(most < LIMIT + KNOWN * 512, "{most}");
    assert!(seen > 8 * LIMIT, "{seen}");
}

/// Equal directories never share a node, so a few can make more places than memory has room for.
#[test]
fn no_more_directories_are_known_than_may_be() {
    let nodes = table(b"", 1 << 20).bounded(3);
    let child = |index| nodes.child((MOUNT_ROOT, index), 7, || 0, &Digest::of(b"child"), 0);
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
