//! A tree whose files are numbers until they are read, and the Directories made of it.

use std::collections::BTreeMap;

use super::ImportError;
use crate::castore::{Digest, Directory, Name, Node, SymlinkTarget};
use crate::store::Ingest;

/// The number of a directory in an [`TreeAssembly`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryId(usize);

/// The number of a file in an [`TreeAssembly`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(usize);

/// The data of a file that has been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadFile {
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
    pub(super) executable: bool,
}

/// The value of a name.
#[derive(Clone, Debug)]
pub(super) enum AssembledValue {
    Directory(DirectoryId),
    File(FileId),
    Symlink(SymlinkTarget),
}

/// A tree without its files' contents: directories and files are numbered, so that nothing here
/// recurses however deep the tree is.
#[derive(Debug, Default)]
pub(super) struct TreeAssembly {
    directories: Vec<BTreeMap<Name, AssembledValue>>,
    files: usize,
}

impl TreeAssembly {
    /// A new directory, empty and not in the tree yet.
    pub(super) fn directory(&mut self) -> DirectoryId {
        self.directories.push(BTreeMap::new());
        DirectoryId(self.directories.len() - 1)
    }

    /// A new file, not in the tree yet.
    pub(super) fn file(&mut self) -> FileId {
        self.files += 1;
        FileId(self.files - 1)
    }

    /// The entries of a directory.
    pub(super) fn entries(
        &mut self,
        directory: DirectoryId,
    ) -> &mut BTreeMap<Name, AssembledValue> {
        &mut self.directories[directory.0]
    }

    /// Makes Directories of the tree below `root`, adds them, and returns the root's node.
    ///
    /// They are added children before parents and, among siblings, in the order of their names: a
    /// walk over the tree finds them close together.
    pub(super) fn finish(
        mut self,
        root: AssembledValue,
        files: &ReadFiles,
        ingest: &dyn Ingest,
    ) -> Result<Node, ImportError> {
        let mut nodes: Vec<Option<Node>> = vec![None; self.directories.len()];
        for DirectoryId(id) in self.children_first(&root) {
            let entries = std::mem::take(&mut self.directories[id])
                .into_iter()
                .map(|(name, slot)| (name, slot.node(files, &nodes)))
                .collect();
            let directory = Directory::from_entries(entries)?;
            ingest.put_directory(&directory)?;
            nodes[id] = Some(directory.node());
        }
        Ok(root.node(files, &nodes))
    }

    /// The directories below `root`, and itself if it is one, children before parents.
    fn children_first(&self, root: &AssembledValue) -> Vec<DirectoryId> {
        let mut order = Vec::with_capacity(self.directories.len());
        let mut open: Vec<DirectoryId> = root.directory().into_iter().collect();
        while let Some(id) = open.pop() {
            order.push(id);
            open.extend(
                self.directories[id.0]
                    .values()
                    .filter_map(AssembledValue::directory),
            );
        }
        // Parents first and the last sibling first, to be reversed.
        order.reverse();
        order
    }
}

impl AssembledValue {
    /// The directory, if it is one.
    pub(super) fn directory(&self) -> Option<DirectoryId> {
        match self {
            AssembledValue::Directory(id) => Some(*id),
            AssembledValue::File(_) | AssembledValue::Symlink(_) => None,
        }
    }

    fn node(self, files: &ReadFiles, directories: &[Option<Node>]) -> Node {
        match self {
            AssembledValue::Directory(DirectoryId(id)) => directories[id]
                .clone()
                .expect("children are made before their parents"),
            AssembledValue::File(id) => {
                let file = files.get(id);
                Node::File {
                    digest: file.digest,
                    size: file.size,
                    executable: file.executable,
                }
            }
            AssembledValue::Symlink(target) => Node::Symlink { target },
        }
    }
}

/// The files that were read, by number; filled in any order.
#[derive(Debug, Default)]
pub(super) struct ReadFiles(Vec<Option<ReadFile>>);

impl ReadFiles {
    pub(super) fn set(&mut self, FileId(id): FileId, file: ReadFile) {
        if self.0.len() <= id {
            self.0.resize(id + 1, None);
        }
        self.0[id] = Some(file);
    }

    /// The file `id`, which has been read.
    fn get(&self, FileId(id): FileId) -> ReadFile {
        self.0
            .get(id)
            .copied()
            .flatten()
            .expect("an importer reads every file before it finishes the tree")
    }
}
