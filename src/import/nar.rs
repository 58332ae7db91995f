//! Importing a NAR as it is read.

use std::io::Read;

use super::assembly::{AssembledValue, DirectoryId, ReadFiles, TreeAssembly};
use super::packet::BlobPacket;
use super::{ImportError, ImportProgress};
use crate::castore::{Name, Node};
use crate::nar::{NarEvent, NarReader};
use crate::store::Ingest;

/// See [`super::add`].
pub(super) fn add(
    ingest: &dyn Ingest,
    input: &mut dyn Read,
    progress: &ImportProgress,
) -> Result<Node, ImportError> {
    let mut reader = NarReader::new(input);
    let mut packet = BlobPacket::new(ingest, progress);
    let mut assembly = TreeAssembly::default();
    let mut files = ReadFiles::default();
    let mut open: Vec<DirectoryId> = Vec::new();
    let mut root = None;
    while let Some(event) = reader.next()? {
        progress.check()?;
        let (name, slot) = match event {
            NarEvent::EndDirectory => {
                open.pop();
                continue;
            }
            NarEvent::Directory { name } => {
                progress.add_directory();
                (name, AssembledValue::Directory(assembly.directory()))
            }
            NarEvent::File {
                name,
                executable,
                mut contents,
            } => {
                let size = contents.size();
                let file =
                    packet.file(size, executable, |buffer| contents.read(buffer).map(drop))?;
                let id = assembly.file();
                files.set(id, file);
                (name, AssembledValue::File(id))
            }
            NarEvent::Symlink { name, target } => {
                progress.add_symlink();
                (name, AssembledValue::Symlink(target))
            }
        };
        let directory = slot.directory();
        place(&mut assembly, &mut root, open.last(), name, slot);
        open.extend(directory);
    }
    packet.put()?;
    let root = root.expect("a reader gives the root before it gives nothing");
    assembly.finish(root, &files, ingest)
}

/// Puts a node where it belongs: into the directory that is open, or at the root.
fn place(
    assembly: &mut TreeAssembly,
    root: &mut Option<AssembledValue>,
    parent: Option<&DirectoryId>,
    name: Option<Name>,
    slot: AssembledValue,
) {
    match (parent, name) {
        (Some(parent), Some(name)) => {
            assembly.entries(*parent).insert(name, slot);
        }
        _ => *root = Some(slot),
    }
}
