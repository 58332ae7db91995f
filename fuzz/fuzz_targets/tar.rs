//! Any input either imports to a tree that is whole in the store, or is refused.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use castore_fs::castore::{Digest, Directory, Name, Root};
use castore_fs::import::{self, ImportOptions, ImportProgress, ImportSource, SpecialFiles};
use castore_fs::nix::PathInfo;
use castore_fs::store::{AddedTotals, BlobWriter, Blocking, Error, Ingest, MemoryStore, Store};
use castore_fs::tree::nar::write_nar;
use castore_fs::tree::{TreePath, export};
use libfuzzer_sys::fuzz_target;

/// A few bytes can claim that a file has 2^63 zeros: right, but not worth the fuzzer's time.
const LIMIT: usize = 8 << 20;

fuzz_target!(|data: &[u8]| {
    let mut data = data.to_vec();
    fix_checksums(&mut data);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without drivers");
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let store = Blocking::new(memory, runtime.handle().clone());
    let ingest = Limited {
        inner: store.ingest().expect("memory takes everything"),
        remaining: Arc::new(AtomicUsize::new(LIMIT)),
    };
    let options = ImportOptions {
        special_files: SpecialFiles::Skip,
        strip_components: data.first().map_or(0, |byte| usize::from(byte % 2)),
        max_size: Some(LIMIT as u64),
    };
    let source = ImportSource::Tar(&mut &data[..]);
    if let Ok(node) = import::add(&ingest, source, &options, &ImportProgress::new()) {
        ingest.inner.commit().expect("memory takes everything");
        let (path, progress) = (TreePath::default(), export::ExportProgress::default());
        write_nar(&store, &path, &node, std::io::sink(), &progress)
            .expect("what was imported is whole");
    }
});

/// No fuzzer finds the checksum of a header, so it is put in.
fn fix_checksums(data: &mut [u8]) {
    for block in data.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Takes so many bytes and then fails.
struct Limited {
    inner: Box<dyn Ingest>,
    remaining: Arc<AtomicUsize>,
}

struct LimitedWriter {
    inner: Box<dyn BlobWriter>,
    remaining: Arc<AtomicUsize>,
}

fn take(remaining: &AtomicUsize, bytes: usize) -> Result<(), Error> {
    remaining
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |remaining| {
            remaining.checked_sub(bytes)
        })
        .map(drop)
        .map_err(|_| Error::ReadOnly {
            store: "memory:".to_owned(),
            why: "enough for today".to_owned(),
        })
}

impl BlobWriter for LimitedWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        take(&self.remaining, bytes.len())?;
        self.inner.write(bytes)
    }
    fn finish(self: Box<Self>) -> Result<(Digest, u64), Error> {
        self.inner.finish()
    }
}

impl Ingest for Limited {
    fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        self.inner.has_blob(digest)
    }
    fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<usize>, Error> {
        self.inner.missing_blobs(digests)
    }
    fn put_blobs(&self, blobs: &[(Digest, &[u8])]) -> Result<(), Error> {
        take(
            &self.remaining,
            blobs.iter().map(|(_, bytes)| bytes.len()).sum(),
        )?;
        self.inner.put_blobs(blobs)
    }
    fn blob_writer(&self) -> Result<Box<dyn BlobWriter>, Error> {
        Ok(Box::new(LimitedWriter {
            inner: self.inner.blob_writer()?,
            remaining: self.remaining.clone(),
        }))
    }
    fn put_directory(&self, directory: &Directory) -> Result<(), Error> {
        self.inner.put_directory(directory)
    }
    fn check_root_name(&self, name: &Name) -> Result<(), Error> {
        self.inner.check_root_name(name)
    }
    fn remove_root(&self, name: &Name) -> Result<(), Error> {
        self.inner.remove_root(name)
    }
    fn put_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.inner.put_root(root, path_info)
    }
    fn add_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.inner.add_root(root, path_info)
    }
    fn put_incomplete_root(&self, root: &Root, path_info: Option<&PathInfo>) -> Result<(), Error> {
        self.inner.put_incomplete_root(root, path_info)
    }

    fn release(&self) {
        self.inner.release();
    }

    fn commit(self: Box<Self>) -> Result<AddedTotals, Error> {
        self.inner.commit()
    }
}
