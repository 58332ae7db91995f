//! A redb storage backend that never writes to its file: the changes of a repair after an unclean
//! shutdown stay in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;

/// Bytes that are written together.
const PAGE: u64 = 4096;
/// Bytes that may be written: to repair a database takes about a thousandth of its size.
const MOST_WRITTEN: usize = 256 << 20;

/// The file, and what was written since.
#[derive(Debug)]
pub(super) struct RedbBackend {
    file: File,
    written: Mutex<WrittenPages>,
}

#[derive(Debug)]
struct WrittenPages {
    /// Bytes of the database, and of those the file's that are still its own: all below that are not in
    /// `pages`.
    length: u64,
    own: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

impl RedbBackend {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self {
            file,
            written: Mutex::new(WrittenPages {
                length,
                own: length,
                pages: BTreeMap::new(),
            }),
        })
    }

    fn length(&self) -> u64 {
        self.written.lock().length
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written.lock();
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if written.pages.is_empty() && end.is_some_and(|end| end <= written.own) {
            drop(written);
            return self.file.read_exact_at(out, offset);
        }
        for (at, part) in parts(offset, out.len()) {
            let out = &mut out[part];
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            match written.pages.get(&page) {
                Some(page) => out.copy_from_slice(&page[within..within + out.len()]),
                None => self.read_own(written.own, at, out)?,
            }
        }
        Ok(())
    }

    /// Reads what the file has below `own`; zeros beyond.
    fn read_own(&self, own: u64, at: u64, out: &mut [u8]) -> io::Result<()> {
        let there = own.saturating_sub(at).min(out.len() as u64) as usize;
        let (there, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        self.file.read_exact_at(there, at)
    }

    fn resize(&self, length: u64) {
        let mut written = self.written.lock();
        if length < written.length {
            written.own = written.own.min(length);
            written.pages.split_off(&length.div_ceil(PAGE));
            let last = (length % PAGE) as usize;
            if let Some(page) = written.pages.get_mut(&(length / PAGE)) {
                page[last..].fill(0);
            }
        }
        written.length = length;
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock();
        let written = &mut *written;
        if (offset.checked_add(data.len() as u64)).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (at, part) in parts(offset, data.len()) {
            let data = &data[part];
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            if !written.pages.contains_key(&page) {
                if written.pages.len() >= MOST_WRITTEN / PAGE as usize {
                    return Err(io::Error::other(format!(
                        "to repair it takes more than {} MiB of memory",
                        MOST_WRITTEN >> 20
                    )));
                }
                let mut bytes = Box::new([0; PAGE as usize]);
                self.read_own(written.own, page * PAGE, &mut bytes[..])?;
                written.pages.insert(page, bytes);
            }
            if let Some(bytes) = written.pages.get_mut(&page) {
                bytes[within..within + data.len()].copy_from_slice(data);
            }
        }
        Ok(())
    }
}

/// The parts of a range that each lie in one page: where it starts, and which of the range's bytes it is.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let part = ((PAGE - at % PAGE) as usize).min(length - done);
        let range = done..done + part;
        done += part;
        (part > 0).then_some((at, range))
    })
}

impl redb::StorageBackend for RedbBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.resize(length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }
}

impl redb2::StorageBackend for RedbBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; length];
        self.read_at(offset, &mut out)?;
        Ok(out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.resize(length);
        Ok(())
    }

    fn sync_data(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_repair_writes_has_an_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let backend = RedbBackend::new(File::open(file.path()).unwrap()).unwrap();
        backend.resize(1 << 40);
        let pages = MOST_WRITTEN as u64 / PAGE;
        for page in 0..pages {
            backend.write_at(page * PAGE, b"x").unwrap();
        }
        // What is there already can be written again.
        backend.write_at(0, b"y").unwrap();
        let error = backend.write_at(pages * PAGE, b"x").unwrap_err();
        assert!(error.to_string().contains("256 MiB"), "{error}");
    }

    #[test]
    fn what_is_written_is_read_back_and_the_file_stays_as_it_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let before: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
        std::fs::write(file.path(), &before).unwrap();
        let backend = RedbBackend::new(File::open(file.path()).unwrap()).unwrap();
        let mut model = before.clone();
        let check = |model: &[u8]| {
            let mut all = vec![1; model.len()];
            backend.read_at(0, &mut all).unwrap();
            assert!(all == model);
            let mut part = vec![1; 300];
            backend.read_at(4000, &mut part).unwrap();
            assert_eq!(part, model[4000..4300]);
        };
        check(&model);
        backend.write_at(4090, &[7; 20]).unwrap();
        model[4090..4110].fill(7);
        check(&model);
        backend.resize(9000);
        backend.resize(20_000);
        model.truncate(9000);
        model.resize(20_000, 0);
        check(&model);
        backend.write_at(19_990, &[9; 10]).unwrap();
        model[19_990..].fill(9);
        check(&model);
        backend.resize(19_995);
        backend.resize(20_000);
        model[19_995..].fill(0);
        check(&model);
        assert!(backend.write_at(19_999, &[1; 2]).is_err());
        assert!(backend.read_at(u64::MAX, &mut [0]).is_err());
        assert_eq!(std::fs::read(file.path()).unwrap(), before);
    }
}
