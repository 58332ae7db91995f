//! The files of a store are those in `docs/store-format.md`.

use std::fs;
use std::path::{Path, PathBuf};

use castore_fs::castore::{BlobHasher, Digest, Directory, GroupTable};

/// An object in a pack.
#[derive(Debug)]
pub(crate) struct Record {
    pub tag: [u8; 4],
    pub digest: Digest,
    pub pack: PathBuf,
    /// Of the object in the pack.
    pub offset: usize,
    /// Of the object.
    pub len: usize,
}

/// Every file below a directory.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Reads every pack from its first byte to its last, without the index.
pub(crate) fn records(store: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    for pack in files(&store.join("packs")) {
        let bytes = fs::read(&pack).unwrap();
        assert_eq!(&bytes[..14], b"castore pack\x01\x00", "{pack:?}");
        let kind = bytes[14];
        let mut at = 16;
        while at < bytes.len() {
            let tag: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            let len = u64::from_le_bytes(bytes[at + 4..at + 12].try_into().unwrap());
            let digest = Digest::try_from(&bytes[at + 12..at + 44]).unwrap();
            let offset = at + 44;
            if &tag == b"gone" {
                assert_eq!(digest, Digest::from([0; 32]), "{pack:?}");
                at = offset + len as usize;
                continue;
            }
            let table = GroupTable::byte_len(len) as usize;
            let len = len as usize;
            at = match &tag {
                b"blob" => {
                    let blob = &bytes[offset..offset + len];
                    let mut hasher = BlobHasher::new();
                    hasher.update(blob);
                    let (actual, hashes) = hasher.finish();
                    assert_eq!(actual, digest);
                    let end = offset + len + table;
                    assert_eq!(&bytes[offset + len..end], hashes.as_bytes());
                    end
                }
                b"tabl" => {
                    let hashes = &bytes[offset..offset + table];
                    GroupTable::decode(hashes, &digest, len as u64).unwrap();
                    offset + table
                }
                b"dir " => {
                    let directory = &bytes[offset..offset + len];
                    Directory::decode_verified(directory, &digest).unwrap();
                    offset + len
                }
                other => panic!("{pack:?} holds a {other:?} at {at}"),
            };
            assert_eq!(kind, u8::from(&tag == b"dir "), "{pack:?}");
            let pack = pack.clone();
            records.push(Record {
                tag,
                digest,
                pack,
                offset,
                len,
            });
        }
    }
    records
}

/// The digests of the large blobs' files.
pub(crate) fn large(store: &Path) -> Vec<Digest> {
    files(&store.join("blobs"))
        .iter()
        .map(|path| {
            let rest = path.file_name().unwrap().to_str().unwrap();
            let first = path.parent().unwrap().file_name().unwrap();
            format!("{}{rest}", first.to_str().unwrap())
                .parse()
                .unwrap()
        })
        .collect()
}

pub(crate) fn large_path(store: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.to_hex();
    store.join("blobs").join(&hex[..2]).join(&hex[2..])
}
