//! [`CastoreFs`] as the FUSE server needs it: one method a request.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};

use super::errno::failure;
use super::node_id::{NodeId, NodePlace};
use super::{CastoreFs, FOREVER};
use crate::castore::NodeRef;

/// The unit of `statfs`, in bytes.
const STATFS_BLOCK: u64 = 4096;
/// The longest name, in bytes.
const NAME_MAX: u64 = 255;

fn read_only<T>() -> io::Result<T> {
    Err(failure(libc::EROFS))
}

/// The answer to a request that would make or remove `name`: as on a disk that is mounted
/// read-only, an impossible name is refused first.
fn refused<T>(name: &CStr) -> io::Result<T> {
    check_length(name)?;
    read_only()
}

fn check_length(name: &CStr) -> io::Result<()> {
    match name.count_bytes() as u64 > NAME_MAX {
        true => Err(failure(libc::ENAMETOOLONG)),
        false => Ok(()),
    }
}

/// The thread that sent the request.
fn thread(context: &Context) -> u32 {
    context.pid.cast_unsigned()
}

/// "Not implemented": the kernel remembers it and does not send such a request again.
fn never_ask_again<T>() -> io::Result<T> {
    Err(failure(libc::ENOSYS))
}

impl FileSystem for CastoreFs {
    type Inode = NodeId;
    type Handle = u64;

    /// The transport negotiates; everything that it offers is accepted.
    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(capable)
    }

    fn lookup(&self, context: &Context, parent: NodeId, name: &CStr) -> io::Result<Entry> {
        let Some(NodePlace::Directory(slot)) = parent.place() else {
            return Err(failure(libc::ENOTDIR));
        };
        check_length(name)?;
        let name = name.to_bytes();
        if let Some(image) = self.look_up_image(parent, name)? {
            return Ok(image);
        }
        if slot == 0 && self.shows_roots() {
            // A root of this name can appear at any moment, so the answer has no time to live.
            let Some(root) = self.find_root(name)? else {
                return self.look_up_images(name)?.ok_or(failure(libc::ENOENT));
            };
            let (index, ino) = self.roots.index(&root);
            if self.in_use.hold_root(index, &root.node)
                && self.find_root(name)?.as_ref() != Some(&root)
            {
                // The root was removed before it was held, and may have been collected.
                return Err(failure(libc::ENOENT));
            }
            self.record_root_access(index);
            let timeout = self.options.root_timeout;
            return self.look_up((slot, index), ino, || 0, root.node.borrow(), timeout);
        }
        let entered = self.enter(slot)?;
        let (_, directory, names) = self.directory(entered.slot)?;
        let found = directory
            .find(name)
            .and_then(|index| Some((index, directory.get(index)?)));
        let Some((index, entry)) = found else {
            if slot == 0
                && let Some(images) = self.look_up_images(name)?
            {
                return Ok(images);
            }
            // Node 0 means "does not exist" and lets the kernel cache that.
            return Ok(Entry {
                entry_timeout: FOREVER,
                ..Entry::default()
            });
        };
        let (slot, index) = (entered.slot, index as u32);
        if !matches!(entry.node, NodeRef::Directory { .. }) {
            self.asks(thread(context), slot);
        }
        let claim = || names.claim(&directory, index);
        self.look_up((slot, index), names.ino(index), claim, entry.node, FOREVER)
    }

    fn forget(&self, _: &Context, id: NodeId, count: u64) {
        self.nodes.forget(id, count);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(NodeId, u64)>) {
        self.nodes.forget_all(requests);
    }

    fn getattr(&self, _: &Context, id: NodeId, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.stat(id)
    }

    fn readlink(&self, _: &Context, id: NodeId) -> io::Result<Vec<u8>> {
        let Some(NodePlace::Entry { slot, index }) = id.place() else {
            return Err(failure(libc::EINVAL));
        };
        match self.entry(slot, index)?.node {
            crate::castore::Node::Symlink { target } => Ok(target.to_vec()),
            _ => Err(failure(libc::EINVAL)),
        }
    }

    /// A transport that has passthrough opens files by [`open_file`](CastoreFs::open_file).
    fn open(
        &self,
        _: &Context,
        _: NodeId,
        flags: u32,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        if flags as i32 & libc::O_ACCMODE != libc::O_RDONLY {
            return read_only();
        }
        never_ask_again()
    }

    fn opendir(&self, _: &Context, _: NodeId, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        never_ask_again()
    }

    fn read(
        &self,
        _: &Context,
        id: NodeId,
        _: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        self.read_file(id, offset, size, w)
    }

    fn readdir(
        &self,
        _: &Context,
        id: NodeId,
        _: u64,
        _: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(id, offset, None, &mut |listed, _| add_entry(listed))
    }

    fn readdirplus(
        &self,
        context: &Context,
        id: NodeId,
        _: u64,
        _: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let thread = Some(thread(context));
        self.list(id, offset, thread, &mut |listed, looked_up| {
            add_entry(listed, looked_up.unwrap_or_default())
        })
    }

    fn statfs(&self, _: &Context, _: NodeId) -> io::Result<statvfs64> {
        let usage = self
            .store
            .usage()
            .map_err(|error| self.failed(NodeId::ROOT, None, &error))?
            .unwrap_or_default();
        // SAFETY: statvfs64 is plain integers, for which all zeros is a value.
        let mut stat: statvfs64 = unsafe { std::mem::zeroed() };
        stat.f_bsize = STATFS_BLOCK as _;
        stat.f_frsize = STATFS_BLOCK as _;
        stat.f_blocks = usage.blob_bytes.div_ceil(STATFS_BLOCK);
        stat.f_files = usage.blobs + usage.directories;
        stat.f_namemax = NAME_MAX as _;
        Ok(stat)
    }

    fn getxattr(
        &self,
        _: &Context,
        id: NodeId,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let value = self.xattr(id, name.to_bytes())?;
        match size {
            0 => Ok(GetxattrReply::Count(value.len() as u32)),
            size if (size as usize) < value.len() => Err(failure(libc::ERANGE)),
            _ => Ok(GetxattrReply::Value(value)),
        }
    }

    fn listxattr(&self, _: &Context, id: NodeId, size: u32) -> io::Result<ListxattrReply> {
        let names = self.xattr_names(id)?;
        match size {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            size if (size as usize) < names.len() => Err(failure(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn access(&self, _: &Context, _: NodeId, mask: u32) -> io::Result<()> {
        if mask as i32 & libc::W_OK != 0 {
            return read_only();
        }
        never_ask_again()
    }

    fn flush(&self, _: &Context, _: NodeId, _: u64, _: u64) -> io::Result<()> {
        never_ask_again()
    }

    fn release(
        &self,
        _: &Context,
        _: NodeId,
        _: u32,
        _: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn releasedir(&self, _: &Context, _: NodeId, _: u32, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn fsync(&self, _: &Context, _: NodeId, _: bool, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn fsyncdir(&self, _: &Context, _: NodeId, _: bool, _: u64) -> io::Result<()> {
        Ok(())
    }

    // Requests that would change something.

    fn setattr(
        &self,
        _: &Context,
        _: NodeId,
        _: stat64,
        _: Option<u64>,
        _: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        read_only()
    }

    fn symlink(&self, _: &Context, _: &CStr, _: NodeId, name: &CStr) -> io::Result<Entry> {
        refused(name)
    }

    fn mknod(
        &self,
        _: &Context,
        _: NodeId,
        name: &CStr,
        _: u32,
        _: u32,
        _: u32,
    ) -> io::Result<Entry> {
        refused(name)
    }

    fn mkdir(&self, _: &Context, _: NodeId, name: &CStr, _: u32, _: u32) -> io::Result<Entry> {
        refused(name)
    }

    fn unlink(&self, _: &Context, _: NodeId, name: &CStr) -> io::Result<()> {
        refused(name)
    }

    fn rmdir(&self, _: &Context, _: NodeId, name: &CStr) -> io::Result<()> {
        refused(name)
    }

    fn rename(
        &self,
        _: &Context,
        _: NodeId,
        name: &CStr,
        _: NodeId,
        new_name: &CStr,
        _: u32,
    ) -> io::Result<()> {
        check_length(name)?;
        refused(new_name)
    }

    fn link(&self, _: &Context, _: NodeId, _: NodeId, name: &CStr) -> io::Result<Entry> {
        refused(name)
    }

    fn create(
        &self,
        _: &Context,
        _: NodeId,
        name: &CStr,
        _: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        refused(name)
    }

    fn write(
        &self,
        _: &Context,
        _: NodeId,
        _: u64,
        _: &mut dyn ZeroCopyReader,
        _: u32,
        _: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        read_only()
    }

    fn fallocate(&self, _: &Context, _: NodeId, _: u64, _: u32, _: u64, _: u64) -> io::Result<()> {
        read_only()
    }

    fn setxattr(&self, _: &Context, _: NodeId, _: &CStr, _: &[u8], _: u32) -> io::Result<()> {
        read_only()
    }

    fn removexattr(&self, _: &Context, _: NodeId, _: &CStr) -> io::Result<()> {
        read_only()
    }
}
