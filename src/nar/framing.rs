//! The bytes of an archive that are not contents of files.

use std::io::{self, Write};

use super::{MAGIC, padding};

/// Starts a node: the archive's root, or the entry `name` of the directory that is open.
pub(crate) fn start_node(out: &mut impl Write, name: Option<&[u8]>) -> io::Result<()> {
    match name {
        None => string(out, MAGIC)?,
        Some(name) => {
            for part in [b"entry", &b"("[..], b"name", name, b"node"] {
                string(out, part)?;
            }
        }
    }
    string(out, b"(")?;
    string(out, b"type")
}

/// Continues with a node as a directory.
pub(crate) fn directory(out: &mut impl Write) -> io::Result<()> {
    string(out, b"directory")
}

/// Continues with a node as a file, up to its contents of `size` bytes.
pub(crate) fn file(out: &mut impl Write, executable: bool, size: u64) -> io::Result<()> {
    string(out, b"regular")?;
    if executable {
        string(out, b"executable")?;
        string(out, b"")?;
    }
    string(out, b"contents")?;
    out.write_all(&size.to_le_bytes())
}

/// What follows the contents of a file of `size` bytes, before the node's end.
pub(crate) fn after_contents(out: &mut impl Write, size: u64) -> io::Result<()> {
    out.write_all(&[0; 8][..padding(size)])
}

/// Continues with a node as a symbolic link.
pub(crate) fn symlink(out: &mut impl Write, target: &[u8]) -> io::Result<()> {
    string(out, b"symlink")?;
    string(out, b"target")?;
    string(out, target)
}

/// Ends a node, which stands in a directory or is the root.
pub(crate) fn end_node(out: &mut impl Write, in_directory: bool) -> io::Result<()> {
    string(out, b")")?;
    if in_directory {
        string(out, b")")?;
    }
    Ok(())
}

fn string(out: &mut impl Write, string: &[u8]) -> io::Result<()> {
    let length = string.len() as u64;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(string)?;
    out.write_all(&[0; 8][..padding(length)])
}
