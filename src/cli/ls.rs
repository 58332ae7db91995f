//! `castore-fs ls`.

use std::io::Write;
use std::path::PathBuf;

use crate::castore::{Node, NodeRef};
use crate::store::Blocking;
use crate::tree::{KindPreference, Target, TreePath, TreeWalk, WalkStep};
use clap::Args;
use serde::Serialize;

use super::failure::{CommandFailure, print_error};
use super::json;
use super::output::Output;
use super::store::StoreArguments;
use super::utc::minutes;

/// List root names, or what is in a directory
///
/// One name a line, in byte order. With one TARGET the names are those below it; with several, or
/// none and -R, each line is the whole path. On a terminal, names with unprintable bytes are
/// escaped; in a pipe they are unchanged. A failing target is reported, the others are listed all
/// the same, and the exit status is 1.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs ls
  castore-fs ls -l tree/bin
  castore-fs ls -R --json tree")]
pub(super) struct Ls {
    #[command(flatten)]
    store: StoreArguments,
    /// Mode, size and digest before each name, and where a link points
    ///
    /// The size of a file is in bytes. The size of a directory is how many names are below it, followed by "n"; of a
    /// root with a recorded NAR, the bytes of that. The roots of a local store also have the time when they were
    /// added (UTC).
    #[arg(short)]
    long: bool,
    /// Everything below, as paths
    #[arg(short = 'R', long)]
    recursive: bool,
    /// End each line with NUL instead of a newline, and escape nothing
    #[arg(short = '0', long, conflicts_with = "json")]
    zero: bool,
    /// One JSON object a line: path, type, digest, size, executable, target; of roots added and nar_size, if known
    ///
    /// `size` is in bytes of a file; of a directory it is twice the number of names below it, at any depth, as the
    /// data model has it: `castore-fs du` measures bytes. `added` is in seconds since 1970. A path that is not UTF-8
    /// has `path_base64` too.
    #[arg(long)]
    json: bool,
    /// What to list: NAME[/PATH] or a digest; without any, the roots
    targets: Vec<PathBuf>,
}

#[derive(Serialize)]
struct LsLine {
    #[serde(flatten)]
    path: json::JsonPath,
    #[serde(flatten)]
    node: json::JsonNode,
    #[serde(flatten)]
    record: ListedRecord,
}

/// What a store has recorded of a root.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct ListedRecord {
    /// When it was added, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<u64>,
    /// Bytes of its NAR.
    #[serde(skip_serializing_if = "Option::is_none")]
    nar_size: Option<u64>,
}

impl ListedRecord {
    fn of(store: &Blocking, name: &[u8]) -> Result<Self, CommandFailure> {
        for local in store.store().embedded() {
            if let Some(record) = local.root_record(name)? {
                let nar = record.path_info.and_then(|info| info.narinfo);
                return Ok(Self {
                    added: record.added,
                    nar_size: nar.map(|nar| nar.nar_size),
                });
            }
        }
        Ok(Self::default())
    }

    /// The time as text.
    fn date(self) -> String {
        let date = self.added.and_then(minutes);
        date.unwrap_or_else(|| "-".to_owned())
    }
}

/// A tree to list.
struct ListedTree {
    path: TreePath,
    node: Node,
    /// Bytes of `path` that are not shown.
    hidden: usize,
    /// Whether a directory's own line is shown.
    itself: bool,
    /// Whether what is in the directory is shown.
    below: bool,
    /// Of a root in a list of roots.
    record: Option<ListedRecord>,
}

impl Ls {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let mut output = Output::open()?;
        let mut all_read = true;
        if self.targets.is_empty() {
            let with_records = self.long || self.json;
            for root in store.roots()? {
                let record = match with_records {
                    true => ListedRecord::of(store, root.name.as_bytes())?,
                    false => ListedRecord::default(),
                };
                let listed = ListedTree {
                    record: Some(record),
                    path: TreePath::new(&root.name),
                    node: root.node,
                    hidden: 0,
                    itself: true,
                    below: self.recursive,
                };
                all_read &= self.list(store, &listed, &mut output)?;
            }
        }
        for target in &self.targets {
            let found = Target::try_from(target.as_path())
                .and_then(|target| target.resolve(store, KindPreference::Directory));
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    CommandFailure::from(error).and_continue(&mut output)?;
                    all_read = false;
                    continue;
                }
            };
            let is_directory = matches!(found.node, Node::Directory { .. });
            // The contents of a single directory are relative to it.
            let inside = is_directory && self.targets.len() == 1 && !self.json;
            let listed = ListedTree {
                hidden: if inside {
                    found.path.as_bytes().len() + 1
                } else {
                    0
                },
                itself: !is_directory,
                below: true,
                record: None,
                path: found.path,
                node: found.node,
            };
            all_read &= self.list(store, &listed, &mut output)?;
        }
        output.flush()?;
        match all_read {
            true => Ok(()),
            false => Err(CommandFailure::Reported),
        }
    }

    /// Lists a tree; returns false when a directory in it could not be read, which was reported.
    fn list(
        &self,
        store: &Blocking,
        listed: &ListedTree,
        output: &mut Output,
    ) -> Result<bool, CommandFailure> {
        if !listed.below {
            let step = WalkStep {
                path: &listed.path,
                name: b"",
                depth: 0,
                node: listed.node.borrow(),
            };
            self.line(&step, listed, output)?;
            return Ok(true);
        }
        let mut all_read = true;
        let mut walk = TreeWalk::new(store, listed.path.clone(), listed.node.clone());
        loop {
            match walk.step() {
                Ok(None) => return Ok(all_read),
                Ok(Some(step)) => {
                    if step.depth > 0 || listed.itself {
                        self.line(&step, listed, output)?;
                    }
                    if step.depth > 0 && !self.recursive {
                        walk.skip();
                    }
                }
                Err(error) => {
                    output.flush()?;
                    print_error(&error.to_string());
                    all_read = false;
                }
            }
        }
    }

    fn line(
        &self,
        step: &WalkStep<'_>,
        listed: &ListedTree,
        output: &mut Output,
    ) -> Result<(), CommandFailure> {
        // Below a root there are no records.
        let record = match step.depth {
            0 => listed.record,
            _ => listed.record.map(|_| ListedRecord::default()),
        };
        if self.json {
            return output.json(&LsLine {
                path: step.path.as_bytes().into(),
                node: step.node.into(),
                record: record.unwrap_or_default(),
            });
        }
        let path = step
            .path
            .as_bytes()
            .get(listed.hidden..)
            .unwrap_or_default();
        let show = |bytes| match self.zero {
            true => std::borrow::Cow::Borrowed(bytes),
            false => output.name(bytes),
        };
        let path = show(path);
        let mut line = Vec::new();
        if self.long {
            let (mode, size) = match step.node {
                NodeRef::Directory { size, .. } => {
                    let size = match record.and_then(|record| record.nar_size) {
                        Some(bytes) => bytes.to_string(),
                        None => format!("{}n", size / 2),
                    };
                    ("dr-xr-xr-x", size)
                }
                NodeRef::File {
                    executable: true,
                    size,
                    ..
                } => ("-r-xr-xr-x", size.to_string()),
                NodeRef::File { size, .. } => ("-r--r--r--", size.to_string()),
                NodeRef::Symlink { .. } => ("lrwxrwxrwx", "-".to_owned()),
            };
            let digest = step.node.digest();
            let digest = digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string());
            write!(line, "{mode} {size:>12} ")?;
            if let Some(record) = record {
                write!(line, "{:>16} ", record.date())?;
            }
            write!(line, "{digest:51} ")?;
        }
        line.extend_from_slice(&path);
        if let (true, NodeRef::Symlink { target }) = (self.long, step.node) {
            line.extend_from_slice(b" -> ");
            line.extend_from_slice(&show(target));
        }
        line.push(if self.zero { 0 } else { b'\n' });
        output.write_all(&line)?;
        Ok(())
    }
}
