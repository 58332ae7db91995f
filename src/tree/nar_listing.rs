//! The listing of a NAR as binary caches have it (`<hash>.ls`), made piece by piece.
//!
//! ```json
//! {"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":3,"narOffset":400}}}}
//! ```
//!
//! `executable` is there if it is true; `narOffset` is where the contents begin in the NAR. Names and
//! targets that are no UTF-8 cannot be written in JSON: what is none of it is written as U+FFFD.

use std::io::Write;

use bytes::Bytes;

use super::nar_stream::{NarStep, NarWalk, after_file};
use super::{TreeError, TreePath};
use crate::castore::Node;
use crate::store::Blocking;

/// The listing of one NAR.
#[derive(Debug)]
pub struct NarListing {
    walk: NarWalk,
    /// Where the walk is in the NAR.
    offset: u64,
    /// Whether the entry that comes next is the first of its directory.
    first: bool,
    begun: bool,
    ended: bool,
    frame: Vec<u8>,
}

impl NarListing {
    /// The listing of the NAR of `node`, which stands at `path` in `store`.
    pub fn new(store: Blocking, path: TreePath, node: Node) -> Self {
        Self {
            walk: NarWalk::new(store, path, node),
            offset: 0,
            first: true,
            begun: false,
            ended: false,
            frame: Vec::new(),
        }
    }

    /// The next bytes, about `most`; nothing at the end. Blocks.
    pub fn next(&mut self, most: usize) -> Result<Option<Bytes>, TreeError> {
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            out.extend_from_slice(br#"{"version":1,"root":"#);
        }
        while out.len() < most && !self.ended {
            self.step(&mut out)?;
        }
        Ok((!out.is_empty()).then(|| Bytes::from(out)))
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Result<(), TreeError> {
        let depth = self.walk.depth();
        let Some(step) = self.walk.step()? else {
            self.ended = true;
            out.extend_from_slice(b"}");
            return Ok(());
        };
        self.frame.clear();
        step.framing(&mut self.frame, depth);
        self.offset += self.frame.len() as u64;
        let name = match step {
            NarStep::Directory { name }
            | NarStep::File { name, .. }
            | NarStep::Symlink { name, .. } => name,
            NarStep::EndDirectory => None,
        };
        if let Some(name) = name {
            if !std::mem::replace(&mut self.first, false) {
                out.push(b',');
            }
            string(out, name);
            out.push(b':');
        }
        match step {
            NarStep::Directory { .. } => {
                out.extend_from_slice(br#"{"type":"directory","entries":{"#);
                self.first = true;
            }
            NarStep::EndDirectory => {
                out.extend_from_slice(b"}}");
                self.first = false;
            }
            NarStep::File {
                name,
                size,
                executable,
                ..
            } => {
                let executable = match executable {
                    true => r#","executable":true"#,
                    false => "",
                };
                let offset = self.offset;
                write!(
                    out,
                    r#"{{"type":"regular","size":{size}{executable},"narOffset":{offset}}}"#
                )
                .expect("memory takes all that is written to it");
                self.frame.clear();
                after_file(&mut self.frame, size, name.is_some());
                self.offset = (offset.saturating_add(size)).saturating_add(self.frame.len() as u64);
            }
            NarStep::Symlink { target, .. } => {
                out.extend_from_slice(br#"{"type":"symlink","target":"#);
                string(out, target);
                out.push(b'}');
            }
        }
        Ok(())
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    serde_json::to_writer(out, &*text).expect("memory takes all that is written to it");
}
