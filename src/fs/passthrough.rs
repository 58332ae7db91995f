//! Passthrough: files that the kernel reads without us.
//!
//! A large blob lies as a plain file in the local store. Where kernel (6.9 and later) and privilege
//! allow, OPEN hands that file to the kernel, and reads, maps and readahead of the mount's file
//! then go to it directly: as fast as the disk's own file system, sharing its page cache, and
//! without a request. The price is an OPEN and a RELEASE for every open file of the mount, large
//! or small, because a mount that answers OPEN cannot tell the kernel not to ask; and that the
//! bytes are those that the disk has, verified when they were stored and not again when they are
//! read. So it is the mount's choice.
//!
//! The kernel has two rules: an inode that is open has one backing file (another, or an open
//! without any, gives EIO), and a registered file stays open in the kernel until it is released.
//! Registrations are therefore kept by digest, counted while open, and up to [`MOST_IDLE`] of them
//! beyond their last close, since registering costs as much as everything else in an OPEN.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::castore::Digest;

/// Registrations that are kept although nobody has the file open.
const MOST_IDLE: usize = 512;

/// How the bytes of files come to their readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// READ requests fill the mount's page cache; every byte is verified on its way there.
    #[default]
    PageCache,
    /// The kernel reads the store's plain files itself, where there is one.
    Passthrough,
}

/// Where backing files are registered: the kernel's side of a mount.
pub trait BackingDevice: Send + Sync {
    /// Registers a file; gives the number for OPEN's answer.
    fn register(&self, file: &OwnedFd) -> io::Result<u32>;
    /// Ends a registration.
    fn release(&self, id: u32);
}

/// The registrations of a mount.
pub struct Passthrough {
    device: Box<dyn BackingDevice>,
    /// Whether there is passthrough; unset until the kernel and we have agreed.
    enabled: OnceLock<bool>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    registered: HashMap<Digest, Registered>,
    /// Digests whose last user closed, the longest ago first. One that was opened again since
    /// stands here in vain and is skipped.
    idle: VecDeque<Digest>,
}

struct Registered {
    id: u32,
    opens: u32,
    /// How often it stands in the queue of idle ones.
    queued: u32,
}

impl Passthrough {
    /// No registrations yet, on `device`.
    pub fn new(device: Box<dyn BackingDevice>) -> Self {
        Self {
            device,
            enabled: OnceLock::new(),
            table: Mutex::default(),
        }
    }

    /// Finds out whether files can be registered, and uses passthrough if so; says why if not.
    pub fn enable(&self, probe: &OwnedFd) -> io::Result<()> {
        let id = self.device.register(probe)?;
        self.device.release(id);
        let _ = self.enabled.set(true);
        Ok(())
    }

    /// Uses no passthrough, for good.
    pub fn disable(&self) {
        let _ = self.enabled.set(false);
    }

    /// Whether files are registered at all. An OPEN that comes before that is settled waits: the
    /// kernel would take "not implemented" for the answer to every later OPEN.
    pub fn is_enabled(&self) -> bool {
        *self.enabled.wait()
    }

    /// Counts an open of the blob `digest`, whose file `open` finds if it is not registered; gives
    /// the number for OPEN's answer, or nothing if the blob has no file of its own.
    pub fn open<E: From<io::Error>>(
        &self,
        digest: &Digest,
        open: impl FnOnce() -> Result<Option<Arc<OwnedFd>>, E>,
    ) -> Result<Option<u32>, E> {
        if let Some(registered) = self.table.lock().registered.get_mut(digest) {
            registered.opens += 1;
            return Ok(Some(registered.id));
        }
        let Some(file) = open()? else {
            return Ok(None);
        };
        let id = self.device.register(&file)?;
        let mut table = self.table.lock();
        // Another thread may have registered it meanwhile; an inode has one number.
        if let Some(registered) = table.registered.get_mut(digest) {
            registered.opens += 1;
            let first = registered.id;
            drop(table);
            self.device.release(id);
            return Ok(Some(first));
        }
        let registered = Registered {
            id,
            opens: 1,
            queued: 0,
        };
        table.registered.insert(*digest, registered);
        Ok(Some(id))
    }

    /// Counts a close of the blob `digest`, if it is registered.
    pub fn close(&self, digest: &Digest) {
        let mut release = Vec::new();
        {
            let mut guard = self.table.lock();
            let Table { registered, idle } = &mut *guard;
            let Some(closed) = registered.get_mut(digest) else {
                return;
            };
            closed.opens = closed.opens.saturating_sub(1);
            if closed.opens == 0 {
                closed.queued += 1;
                idle.push_back(*digest);
            }
            while idle.len() > MOST_IDLE {
                let Some(oldest) = idle.pop_front() else {
                    break;
                };
                if let Some(candidate) = registered.get_mut(&oldest) {
                    candidate.queued -= 1;
                    if candidate.opens == 0 && candidate.queued == 0 {
                        release.push(candidate.id);
                        registered.remove(&oldest);
                    }
                }
            }
        }
        release.into_iter().for_each(|id| self.device.release(id));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Device {
        registered: AtomicU32,
        released: AtomicU32,
    }

    impl BackingDevice for Arc<Device> {
        fn register(&self, _: &OwnedFd) -> io::Result<u32> {
            Ok(self.registered.fetch_add(1, Ordering::Relaxed))
        }
        fn release(&self, _: u32) {
            self.released.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn some_file() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn a_blob_keeps_its_number_while_it_is_open_and_a_while_after() {
        let device = Arc::new(Device::default());
        let passthrough = Passthrough::new(Box::new(device.clone()));
        let open = |content: u32| {
            let digest = Digest::of(&content.to_le_bytes());
            let found = passthrough.open(&digest, || Ok::<_, io::Error>(Some(some_file())));
            (digest, found.unwrap().unwrap())
        };
        let (first, number) = open(0);
        assert_eq!(open(0), (first, number));
        for other in 1..=2 * MOST_IDLE as u32 {
            let (digest, _) = open(other);
            passthrough.close(&digest);
        }
        // Still open, whatever came and went.
        assert_eq!(open(0), (first, number));
        assert_eq!(device.released.load(Ordering::Relaxed), MOST_IDLE as u32);
        for _ in 0..3 {
            passthrough.close(&first);
        }
        assert_eq!(open(0), (first, number));
        passthrough.close(&first);
        for other in 5000..5000 + 2 * MOST_IDLE as u32 {
            let (digest, _) = open(other);
            passthrough.close(&digest);
        }
        assert_ne!(open(0).1, number);
    }

    #[test]
    fn a_blob_without_a_file_is_not_registered() {
        let device = Arc::new(Device::default());
        let passthrough = Passthrough::new(Box::new(device));
        let digest = Digest::of(b"in a pack");
        let opened = passthrough.open(&digest, || Ok::<_, io::Error>(None));
        assert_eq!(opened.unwrap(), None);
        passthrough.close(&digest);
    }
}
