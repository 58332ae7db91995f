//! Importing a NAR as it is read.

use std::io::Read;

use super::assembly::{Assembly, DirectoryId, Files, Slot};
use super::packet::Packet;
use super::{Error, Progress};
use crate::castore::{Name, Node};
use crate::nar::{Event, Reader};
use crate::store::Ingest;

/// See [`super::add`].
pub(super) fn add(
    ingest: &dyn Ingest,
    input: &mut dyn Read,
    progress: &Progress,
) -> Result<Node, Error> {
    let mut reader = Reader::new(input);
    let mut packet = Packet::new(ingest, progress);
    let mut assembly = Assembly::default();
    let mut files = Files::default();
    let mut open: Vec<DirectoryId> = Vec::new();
    let mut root = None;
    while let Some(event) = reader.next()? {
        progress.check()?;
        let (name, slot) = match event {
            Event::EndDirectory => {
                open.pop();
                continue;
            }
            Event::Directory { name } => {
                progress.add_directory();
                (name, Slot::Directory(assembly.directory()))
            }
            Event::File {
                name,
                executable,
                mut contents,
            } => {
                let size = contents.size();
                let file =
                    packet.file(size, executable, |buffer| contents.read(buffer).map(drop))?;
                let id = assembly.file();
                files.set(id, file);
                (name, Slot::File(id))
            }
            Event::Symlink { name, target } => {
                progress.add_symlink();
                (name, Slot::Symlink(target))
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
    assembly: &mut Assembly,
    root: &mut Option<Slot>,
    parent: Option<&DirectoryId>,
    name: Option<Name>,
    slot: Slot,
) {
    match (parent, name) {
        (Some(parent), Some(name)) => {
            assembly.entries(*parent).insert(name, slot);
        }
        _ => *root = Some(slot),
    }
}
