//! Writing an image out as a file.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ImageFile;
use crate::image::BLOCK;
use crate::store::Blocking;
use crate::tree::TreeError;
use crate::tree::export::ExportProgress;

/// Bytes that are read at once.
const READ: usize = 1 << 20;
/// Bytes after them whose blobs are prefetched meanwhile.
const AHEAD: u64 = 16 << 20;

/// Writes `image`, of a tree in `store`, to `out`, every byte of it.
pub fn write_image(
    image: &ImageFile,
    store: &Blocking,
    out: &mut dyn Write,
    progress: &ExportProgress,
) -> Result<(), TreeError> {
    copy(image, store, progress, |_, bytes| {
        out.write_all(bytes).map_err(TreeError::Output)
    })?;
    out.flush().map_err(TreeError::Output)
}

/// Writes `image`, of a tree in `store`, to `file`, which is new and at `path`. Blocks of zeros become
/// holes.
pub fn image_to_file(
    image: &ImageFile,
    store: &Blocking,
    file: &File,
    path: &Path,
    progress: &ExportProgress,
) -> Result<(), TreeError> {
    let failed = |source| TreeError::Io {
        action: "write",
        path: path.to_owned(),
        source,
    };
    file.set_len(image.size()).map_err(failed)?;
    copy(image, store, progress, |offset, bytes| {
        let blocks = bytes.chunks(BLOCK as usize).enumerate();
        let mut from = 0;
        for (index, block) in blocks {
            if block.iter().all(|byte| *byte == 0) {
                let to = index * BLOCK as usize;
                let run = &bytes[from..to];
                file.write_all_at(run, offset + from as u64)
                    .map_err(failed)?;
                from = to + block.len();
            }
        }
        let run = &bytes[from..];
        file.write_all_at(run, offset + from as u64).map_err(failed)
    })
}

/// Passes the whole image to `sink`, in order, each part with its offset.
fn copy(
    image: &ImageFile,
    store: &Blocking,
    progress: &ExportProgress,
    mut sink: impl FnMut(u64, &[u8]) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let mut buffer = vec![0; READ];
    let mut offset = 0;
    while offset < image.size() {
        if offset.is_multiple_of(AHEAD / 2) {
            image.will_need(offset, AHEAD, store.runtime())?;
        }
        let length = image.read_at(offset, &mut buffer, store.runtime())?;
        progress.take(length)?;
        sink(offset, &buffer[..length])?;
        offset += length as u64;
    }
    Ok(())
}
