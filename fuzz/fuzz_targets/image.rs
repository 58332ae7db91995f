//! Whatever tree there is, its image shows it: names, types, sizes, targets, and each file's data from
//! its own blob. A range of the metadata is the same however it is read.
#![no_main]

use std::collections::HashMap;
use std::convert::Infallible;

use castore_fs::castore::{Digest, Directory, Name, Node, NodeRef, SymlinkTarget};
use castore_fs::image::{
    DirectorySource, ErofsKind, ErofsReader, ImageExtent, ImageLayout, ImageRoot, ImageVersion,
};
use libfuzzer_sys::fuzz_target;

/// Blocks of metadata that are compared.
const MOST_METADATA: u64 = 8 << 20;

#[derive(Default)]
struct Trees(HashMap<Digest, Directory>);

impl DirectorySource for Trees {
    type Error = Infallible;

    fn directory(&self, digest: &Digest) -> Result<Directory, Infallible> {
        Ok(self.0[digest].clone())
    }

    fn directories(&self, digests: &[Digest]) -> Result<Vec<Directory>, Infallible> {
        digests
            .iter()
            .map(|digest| self.directory(digest))
            .collect()
    }
}

/// Makes Directories of `data`, each four bytes an entry: the later ones name earlier ones.
fn tree(data: &[u8], trees: &mut Trees) -> Digest {
    let mut nodes = vec![Directory::empty().node()];
    trees.0.insert(Digest::of(b""), Directory::empty());
    let mut entries: Vec<(Name, Node)> = Vec::new();
    for part in data.chunks_exact(4) {
        let number = usize::from(u16::from_le_bytes([part[1], part[2]]));
        let mut name = vec![part[3].max(b'0'); usize::from(part[3]) % 9 + 1];
        name.extend_from_slice(format!("{number}").as_bytes());
        let node = match part[0] % 8 {
            0 | 1 => nodes[number % nodes.len()].clone(),
            2 => Node::Symlink {
                target: SymlinkTarget::new(&vec![b't'; number % 4095 + 1]).expect("legal"),
            },
            3 => {
                let Ok(directory) = Directory::from_entries(std::mem::take(&mut entries)) else {
                    continue;
                };
                nodes.push(directory.node());
                trees.0.insert(directory.digest(), directory);
                continue;
            }
            4 => Node::File {
                digest: Digest::of(&part[1..]),
                size: (number as u64) << (part[3] % 32),
                executable: false,
            },
            _ => Node::File {
                digest: Digest::of(&part[1..2]),
                size: u64::from(part[2]) * 100,
                executable: part[0] > 100,
            },
        };
        entries.push((Name::new(&name).expect("legal"), node));
    }
    entries.push((
        Name::new(b"last").expect("legal"),
        nodes[nodes.len() - 1].clone(),
    ));
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries.dedup_by(|(a, _), (b, _)| a == b);
    let Ok(image_root) = Directory::from_entries(entries) else {
        return Digest::of(b"");
    };
    trees.0.insert(image_root.digest(), image_root.clone());
    image_root.digest()
}

fuzz_target!(|data: &[u8]| {
    let mut trees = Trees::default();
    let image_root = tree(data, &mut trees);
    let Ok(layout) = ImageLayout::new(ImageRoot::Directory(image_root), ImageVersion::V1, &trees)
    else {
        return;
    };
    if layout.metadata_size() > MOST_METADATA {
        return;
    }
    let mut metadata = vec![0; layout.metadata_size() as usize];
    let Ok(()) = layout.read_metadata(0, &mut metadata, &trees);
    let mut parts = vec![0; metadata.len()];
    let part = data.len() * 7 % 5000 + 4096;
    for (index, buffer) in parts.chunks_mut(part).enumerate() {
        let Ok(()) = layout.read_metadata((index * part) as u64, buffer, &trees);
    }
    assert!(metadata == parts);

    let read = |at: u64, buffer: &mut [u8]| {
        let at = usize::try_from(at).map_err(|error| error.to_string())?;
        let to = at.checked_add(buffer.len()).ok_or("too far")?;
        buffer.copy_from_slice(metadata.get(at..to).ok_or("beyond the metadata")?);
        Ok(())
    };
    let reader = ErofsReader::new(read).expect("a superblock");
    let mut next = vec![(reader.root().expect("a root"), image_root)];
    let mut seen = 1;
    while let Some((inode, digest)) = next.pop() {
        let directory = &trees.0[&digest];
        let listed = reader.list(&inode).expect("a listing");
        assert_eq!(listed.len(), directory.len() + 2);
        let listed = listed
            .iter()
            .filter(|entry| ![b"." as &[u8], b".."].contains(&&entry.name[..]));
        for (listed, entry) in listed.zip(directory.iter()) {
            seen += 1;
            assert_eq!(listed.name, entry.name);
            let inode = reader.inode(listed.nid).expect("an inode");
            match entry.node {
                NodeRef::Directory { digest, .. } => next.push((inode, digest)),
                NodeRef::Symlink { target } => {
                    let mut actual = vec![0; 5000];
                    let length = reader.read(&inode, 0, &mut actual).expect("a target");
                    assert_eq!(&actual[..length], target);
                }
                NodeRef::File { digest, size, .. } => {
                    assert_eq!((inode.kind, inode.size), (ErofsKind::File, size));
                    if size == 0 {
                        continue;
                    }
                    let at = u64::from(inode.block) * 4096;
                    let Ok(extent) = layout.extent_at(at + size - 1, &trees);
                    let expected = ImageExtent::Blob {
                        digest,
                        size,
                        offset: size - 1,
                        length: 1,
                    };
                    assert_eq!(extent, Some(expected));
                }
            }
        }
    }
    assert_eq!(seen, layout.paths());
});
