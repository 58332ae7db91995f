//! Writing a tree out as a tar archive.
//!
//! The archive is a function of the tree: pre-order in the byte order of names, owner 0:0 without
//! names, time 1, modes 0755 and 0644. The tree's root is `./` and its entries `./NAME…`, so that
//! unpacking it into a directory gives the tree there; an archive of a file or a symbolic link has
//! one entry with its name.
//!
//! The format is POSIX.1-1988 (ustar), with a POSIX.1-2001 (pax) extended header in front of the
//! entries that ustar cannot represent: paths and link targets of more than 100 bytes, or that are
//! UTF-8 beyond ASCII, and files of 8 GiB and more. Names that are not UTF-8 are written byte for
//! byte, as by GNU tar: the record that would declare it (`hdrcharset`) makes GNU tar warn about
//! every entry. ustar's `prefix` field is not used, since readers differ on it.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::export::{ExportProgress, MTIME};
use super::walk::files;
use super::{TreeError, TreePath, TreeWalk, copy_blob};
use crate::castore::{Node, NodeRef};
use crate::store::{Blocking, ReadAhead};

/// Bytes in a tar block.
const BLOCK: usize = 512;
/// The first size that a ustar header cannot hold: 11 octal digits.
const LARGE: u64 = 1 << 33;
/// Bytes of a path or link target that a ustar header holds.
const FIELD: usize = 100;

/// Writes `node`, which is at `path` in `store`, as a tar archive. `name` is the name of the entry
/// if the archive is of one file or symbolic link.
pub fn write_tar(
    store: &Blocking,
    path: &TreePath,
    node: &Node,
    name: &[u8],
    out: &mut dyn Write,
    progress: &ExportProgress,
) -> Result<(), TreeError> {
    let base = path.as_bytes().len();
    let mut walk = TreeWalk::new(store, path.clone(), node.clone());
    let mut ahead = ReadAhead::new(files(store, node));
    while let Some(step) = walk.step()? {
        progress.take(0)?;
        let below = step.path.as_bytes().get(base..).unwrap_or_default();
        let is_directory = matches!(step.node, NodeRef::Directory { .. });
        let mut member = match (step.depth, is_directory) {
            (0, false) => name.to_vec(),
            _ => [b".", below].concat(),
        };
        if is_directory {
            member.push(b'/');
        }
        let (kind, mode, size, link): (_, _, _, &[u8]) = match step.node {
            NodeRef::Directory { .. } => (b'5', 0o755, 0, b""),
            NodeRef::Symlink { target } => (b'2', 0o777, 0, target),
            NodeRef::File {
                size,
                executable: true,
                ..
            } => (b'0', 0o755, size, b""),
            NodeRef::File { size, .. } => (b'0', 0o644, size, b""),
        };
        write_headers(out, &member, kind, mode, size, link).map_err(TreeError::Output)?;
        if let NodeRef::File { digest, size, .. } = step.node {
            ahead.pass(|blobs| store.store().will_need(blobs));
            copy_blob(store, &digest, size, step.path, |_, bytes| {
                progress.take(bytes.len())?;
                out.write_all(bytes).map_err(TreeError::Output)
            })?;
            pad(out, size).map_err(TreeError::Output)?;
        }
        progress.nodes.fetch_add(1, Ordering::Relaxed);
    }
    // The end: two empty blocks.
    out.write_all(&[0; 2 * BLOCK]).map_err(TreeError::Output)?;
    out.flush().map_err(TreeError::Output)
}

fn write_headers(
    out: &mut dyn Write,
    member: &[u8],
    kind: u8,
    mode: u32,
    size: u64,
    link: &[u8],
) -> std::io::Result<()> {
    let mut records = Vec::new();
    for (key, field) in [("linkpath", link), ("path", member)] {
        let text = std::str::from_utf8(field).is_ok();
        if field.len() > FIELD || (text && !field.is_ascii()) {
            record(&mut records, key, field);
        }
    }
    if size >= LARGE {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    if !records.is_empty() {
        let length = records.len() as u64;
        out.write_all(&header(b"./PaxHeaders/entry", b'x', 0o644, length, b""))?;
        out.write_all(&records)?;
        pad(out, length)?;
    }
    // A reader without pax support sees the start of the name. Every reader of large files has pax,
    // so their size is left out here.
    let size = if size < LARGE { size } else { 0 };
    out.write_all(&header(member, kind, mode, size, link))
}

/// A pax record: its own length, key and value.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    // " " and "=" and the newline.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A ustar header; fields too long for it are cut, since a pax header has them.
fn header(member: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let length = bytes.len().min(room);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, FIELD, member);
    put(100, 8, format!("{mode:07o}\0").as_bytes());
    put(108, 8, b"0000000\0");
    put(116, 8, b"0000000\0");
    put(124, 12, format!("{size:011o}\0").as_bytes());
    put(136, 12, format!("{MTIME:011o}\0").as_bytes());
    // The sum is taken with its own field as spaces.
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, FIELD, link);
    put(257, 8, b"ustar\x0000");
    put(329, 8, b"0000000\0");
    put(337, 8, b"0000000\0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Fills the last block of what was `size` bytes long.
fn pad(out: &mut dyn Write, size: u64) -> std::io::Result<()> {
    let last = (size % BLOCK as u64) as usize;
    match last {
        0 => Ok(()),
        _ => out.write_all(&[0; BLOCK][last..]),
    }
}
