//! READDIR and READDIRPLUS.
//!
//! Every entry of a listing has a cookie: 1 for `.`, 2 for `..`, 3 + n for the n-th entry. The
//! cookie is a place in the Directory. So `seekdir` works for any entry, no state is kept between
//! requests, and an entry that does not fit into a reply is the first of the next.

use std::io;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};

use super::attributes;
use super::errno::failure;
use super::mount_root::{MountRoot, SeenRoot};
use super::node_id::{NodeId, NodePlace};
use super::nodes::numbering::ROOT_INO;
use super::readdirplus::OmittedAttributes;
use super::root_lookup::RootListing;
use super::{CastoreFs, FOREVER, NOT_AT_ALL};
use crate::castore::{Directory, NodeRef};

/// The cookie after `.` and `..`: that of the first entry is one more.
const DOTS: u64 = 2;

/// Receives an entry with the attributes that READDIRPLUS adds; returns 0 when the reply is full.
type EntrySink<'a> = dyn FnMut(DirEntry<'_>, Option<Entry>) -> io::Result<usize> + 'a;

impl CastoreFs {
    /// Lists the directory `id` from the cookie `offset` on. Entries are looked up if the thread
    /// may want attributes.
    pub(super) fn list(
        &self,
        id: NodeId,
        offset: u64,
        plus: Option<u32>,
        take: &mut EntrySink<'_>,
    ) -> io::Result<()> {
        let is_images =
            self.list_images(id, offset, &mut |listed| take(listed, Some(no_node())))?;
        if is_images {
            return Ok(());
        }
        let Some(NodePlace::Directory(slot)) = id.place() else {
            return Err(failure(libc::ENOTDIR));
        };
        if slot == 0
            && let MountRoot::Roots { list } = self.options.mount_root
        {
            return match list {
                RootListing::All => self.list_roots(offset, plus.is_some(), take),
                RootListing::Nothing => self.list_dots(offset, [ROOT_INO; 2], take).map(|_| ()),
                RootListing::Refused => Err(failure(libc::EPERM)),
            };
        }
        let entered = self.enter(slot)?;
        let slot = entered.slot;
        let (node, directory, names) = self.directory(slot)?;
        if !self.list_dots(offset, self.inos(slot, node.ino), take)? {
            return Ok(());
        }
        let first = offset.saturating_sub(DOTS) as usize;
        let leave_out = plus.map(|thread| self.left_out_for(thread, slot, first, &directory));
        for index in first..directory.len() {
            let Some(entry) = directory.get(index) else {
                break;
            };
            let ino = names.ino(index as u32);
            let listed = dir_entry(index as u64, entry.name, ino, entry.node);
            let looked_up = leave_out.map(|leave_out| {
                if is_left_out(leave_out, index, entry.node) {
                    return no_node();
                }
                let place = (slot, index as u32);
                let claim = || names.claim(&directory, index as u32);
                self.look_up(place, ino, claim, entry.node, FOREVER)
                    .unwrap_or_else(|_| no_node())
            });
            if !self.take(listed, looked_up, take)? {
                return Ok(());
            }
        }
        if plus.is_some() && first < directory.len() {
            self.page_cache_push.listed(slot);
            self.walk_passes(NodeId::directory(slot));
        }
        Ok(())
    }

    /// What to omit from a listing of `directory`, which is in `slot`, for `thread`.
    fn left_out_for(
        &self,
        thread: u32,
        slot: u32,
        first: usize,
        directory: &Directory,
    ) -> OmittedAttributes {
        // Otherwise a cached listing would lack attributes for ever.
        if !self.page_cache_push.is_served() {
            return OmittedAttributes::Nothing;
        }
        let leave_out = if first > 0 {
            self.readdirplus.continues(thread)
        } else {
            let subdirectories = directory.subdirectories() as usize;
            let leaves = directory.len() - subdirectories;
            self.readdirplus
                .begins(thread, slot, leaves, subdirectories)
        };
        let is_without_attributes = leave_out == OmittedAttributes::Leaves;
        if first == 0 || is_without_attributes {
            self.nodes
                .set_without_attributes(slot, is_without_attributes);
        }
        leave_out
    }

    /// Notes that `thread` looks up a file or symlink in the directory in `slot`.
    pub(super) fn asks(&self, thread: u32, slot: u32) {
        if self.readdirplus.asks(thread, slot) && self.nodes.is_without_attributes(slot) {
            self.page_cache_push.relist(slot);
        }
    }

    fn list_roots(&self, offset: u64, plus: bool, take: &mut EntrySink<'_>) -> io::Result<()> {
        if offset == 0 {
            self.roots.list();
            self.refresh_roots()
                .map_err(|stop| self.stopped(NodeId::ROOT, None, stop))?;
        }
        if !self.list_dots(offset, [ROOT_INO, ROOT_INO], take)? {
            return Ok(());
        }
        let mut next = offset.saturating_sub(DOTS) as u32;
        while let Some(SeenRoot { index, ino, root }) = self.roots.next(next) {
            next = index + 1;
            let node = root.node.borrow();
            let listed = dir_entry(u64::from(index), &root.name, ino, node);
            let timeout = self.options.root_timeout;
            let looked_up = plus.then(|| {
                self.in_use.hold_root(index, &root.node);
                self.look_up((0, index), ino, || 0, node, timeout)
                    .unwrap_or_else(|_| no_node())
            });
            if !self.take(listed, looked_up, take)? {
                break;
            }
        }
        Ok(())
    }

    /// Passes an entry on and returns whether there was room; takes back the lookup of an entry
    /// that was not passed on.
    fn take(
        &self,
        listed: DirEntry<'_>,
        looked_up: Option<Entry>,
        take: &mut EntrySink<'_>,
    ) -> io::Result<bool> {
        let taken = take(listed, looked_up);
        if !matches!(taken, Ok(1..))
            && let Some(entry) = looked_up
        {
            self.nodes.forget(entry.inode.into(), 1);
        }
        Ok(taken? > 0)
    }

    /// Lists `.` and `..`, whose inode numbers are `inos`; returns whether there is room left.
    /// READDIRPLUS gives them no node: the kernel has both already.
    fn list_dots(&self, offset: u64, inos: [u64; 2], take: &mut EntrySink<'_>) -> io::Result<bool> {
        for (index, name) in [b"." as &[u8], b".."].into_iter().enumerate() {
            let ino = inos[index];
            let offset_after = index as u64 + 1;
            if offset >= offset_after {
                continue;
            }
            let listed = DirEntry {
                ino,
                offset: offset_after,
                type_: u32::from(libc::DT_DIR),
                name,
            };
            if take(listed, Some(no_node()))? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// An entry that is listed without a lookup: the kernel sends a LOOKUP when a program wants it.
fn no_node() -> Entry {
    Entry {
        attr_timeout: NOT_AT_ALL,
        entry_timeout: NOT_AT_ALL,
        ..Entry::default()
    }
}

/// Whether `node`, at `index` of its directory, is omitted.
fn is_left_out(leave_out: OmittedAttributes, index: usize, node: NodeRef<'_>) -> bool {
    match leave_out {
        OmittedAttributes::Nothing => false,
        OmittedAttributes::First => index == 0,
        OmittedAttributes::Leaves => !matches!(node, NodeRef::Directory { .. }),
    }
}

fn dir_entry<'a>(index: u64, name: &'a [u8], ino: u64, node: NodeRef<'_>) -> DirEntry<'a> {
    DirEntry {
        ino,
        offset: index + DOTS + 1,
        type_: u32::from(attributes::file_type(node)),
        name,
    }
}
