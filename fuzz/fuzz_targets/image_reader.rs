//! Whatever bytes an image has, the reader gives an error or an answer, in bounded time.
#![no_main]

use castore_fs::image::{ErofsKind, ErofsReader};
use libfuzzer_sys::fuzz_target;

/// Inodes that one input is followed to.
const MOST_INODES: usize = 1000;
/// Bytes of a file, or blocks of a directory, that are read.
const MOST: u64 = 16;

fuzz_target!(|data: &[u8]| {
    let read = |at: u64, buffer: &mut [u8]| {
        // Beyond the end are zeros, so that short inputs reach far.
        buffer.fill(0);
        let rest = usize::try_from(at).ok().and_then(|at| data.get(at..));
        let rest = rest.unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(())
    };
    let Ok(reader) = ErofsReader::new(read) else {
        return;
    };
    let mut next: Vec<_> = reader.root().into_iter().collect();
    for _ in 0..MOST_INODES {
        let Some(inode) = next.pop() else {
            return;
        };
        if inode.kind != ErofsKind::Directory {
            let mut buffer = [0; MOST as usize];
            let _ = reader.read(&inode, inode.size.saturating_sub(MOST / 2), &mut buffer);
            continue;
        }
        let _ = reader.find(&inode, b"name");
        for block in 0..MOST {
            for entry in reader.entries(&inode, block).into_iter().flatten() {
                if next.len() < MOST_INODES {
                    next.extend(reader.inode(entry.nid));
                }
            }
        }
    }
});
