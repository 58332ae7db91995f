//! Targets: how a user names a node, by a root's name or a digest, and a path below it.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::walk::open;
use super::{TreeError, TreePath};
use crate::castore::{Digest, Directory, Name, Node, Printable, Root, SymlinkTarget};
use crate::store::Blocking;

/// Characters of `blake3-` and the base64 form of a digest after it. That form may hold slashes,
/// so a path cannot be split off at the first one.
const SRI_LENGTH: usize = 7 + 44;

/// An address: `NAME[/PATH]` or `DIGEST[/PATH]`.
///
/// A text that reads as a digest is one. A root whose name happens to read as a digest is reached
/// with a slash in front, as below a mount point: `/NAME`. `/nix/store/NAME` is `NAME`. Empty
/// components and `.` are skipped; symbolic links are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    start: TargetStart,
    below: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TargetStart {
    Root(Name),
    Digest(Digest),
}

/// Which object a digest means that names both a Directory and a blob: the empty one, or a file
/// that holds an encoded Directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindPreference {
    /// The Directory.
    Directory,
    /// The blob.
    Blob,
}

/// The node of a target.
#[derive(Clone, Debug)]
pub struct ResolvedTarget {
    /// Its path.
    pub path: TreePath,
    /// The node. A blob found by its digest alone is a file that is not executable.
    pub node: Node,
    /// The root at which the path starts; none if it starts at a digest.
    pub root: Option<Root>,
    /// The last component of the path: the name for a local copy of the node. The hex digits of a
    /// bare digest.
    pub name: Name,
}

impl Target {
    /// The address of the root `name`.
    pub fn root(name: Name) -> Self {
        Self {
            start: TargetStart::Root(name),
            below: Vec::new(),
        }
    }

    /// Reads an address from the bytes of an argument.
    pub fn parse(bytes: &[u8]) -> Result<Self, TreeError> {
        let wrong = |why: String| TreeError::Target {
            text: format!("\"{}\"", Printable(bytes)),
            why,
        };
        let (start, rest) = match digest_in_front(bytes) {
            Some(found) => found.map_err(|error| wrong(error.to_string()))?,
            None => {
                let path = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
                let path = trim_slashes(path);
                let end = path.iter().position(|&byte| byte == b'/');
                let (name, rest) = path.split_at(end.unwrap_or(path.len()));
                let name = Name::new(name).map_err(|error| wrong(error.to_string()))?;
                (TargetStart::Root(name), rest)
            }
        };
        let below = rest
            .split(|&byte| byte == b'/')
            .filter(|part| !matches!(*part, b"" | b"."))
            .map(Name::new)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self { start, below })
    }

    /// The name of the root at which it starts; none if that is a digest, which stands for one object for ever.
    pub fn root_name(&self) -> Option<&Name> {
        match &self.start {
            TargetStart::Root(name) => Some(name),
            TargetStart::Digest(_) => None,
        }
    }

    /// Finds the node.
    pub fn resolve(
        &self,
        store: &Blocking,
        preference: KindPreference,
    ) -> Result<ResolvedTarget, TreeError> {
        let (mut path, mut node, root, mut name) = match &self.start {
            TargetStart::Root(name) => {
                let root = store.root(name)?.ok_or_else(|| TreeError::NoRoot {
                    store: store.url().to_owned(),
                    name: name.to_string(),
                })?;
                let path = TreePath::new(name);
                (path, root.node.clone(), Some(root), name.clone())
            }
            TargetStart::Digest(digest) => {
                // Below a digest there can only be a Directory.
                let preference = match self.below.is_empty() {
                    true => preference,
                    false => KindPreference::Directory,
                };
                let path = TreePath::new(digest.to_string().as_bytes());
                let node = object(store, digest, preference)?;
                let name = Name::new(digest.to_hex().as_bytes()).expect("hex digits make a name");
                (path, node, None, name)
            }
        };
        for part in &self.below {
            let digest = match &node {
                Node::Directory { digest, .. } => *digest,
                Node::File { .. } => {
                    return Err(TreeError::NotADirectory {
                        path,
                        kind: "file",
                        hint: String::new(),
                    });
                }
                Node::Symlink { target } => {
                    return Err(TreeError::NotADirectory {
                        path,
                        kind: "symbolic link",
                        hint: not_followed(target),
                    });
                }
            };
            let directory = open(store, &path, &digest)?;
            path.push(part);
            let entry = directory
                .lookup(part)
                .ok_or_else(|| TreeError::NoEntry { path: path.clone() })?;
            node = entry
                .to_owned()
                .expect("a Directory's symlink targets were checked when it was decoded");
            name = part.clone();
        }
        Ok(ResolvedTarget {
            path,
            node,
            root,
            name,
        })
    }

    /// The digest and size of the Directory that is to be a mount root.
    pub fn resolve_mount_root(&self, store: &Blocking) -> Result<(Digest, u64), TreeError> {
        let found = self.resolve(store, KindPreference::Directory)?;
        match found.node {
            Node::Directory { digest, size } => Ok((digest, size)),
            Node::File { .. } | Node::Symlink { .. } => {
                Err(TreeError::NoMountRoot { path: found.path })
            }
        }
    }
}

impl ResolvedTarget {
    /// Whether this is a root itself, and not a path below one.
    pub fn is_root(&self) -> bool {
        let root = self.root.as_ref();
        root.is_some_and(|root| root.name.as_bytes() == self.path.as_bytes())
    }

    /// The Directory, if it is one.
    pub fn directory(&self, store: &Blocking) -> Result<Option<Directory>, TreeError> {
        match &self.node {
            Node::Directory { digest, .. } => open(store, &self.path, digest).map(Some),
            Node::File { .. } | Node::Symlink { .. } => Ok(None),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.start {
            TargetStart::Root(name) => write!(f, "{name}")?,
            TargetStart::Digest(digest) => write!(f, "{digest}")?,
        }
        self.below.iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

impl TryFrom<&Path> for Target {
    type Error = TreeError;

    fn try_from(path: &Path) -> Result<Self, TreeError> {
        Self::parse(path.as_os_str().as_bytes())
    }
}

fn not_followed(target: &SymlinkTarget) -> String {
    format!(" and it is not followed; it points to {target}")
}

fn trim_slashes(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&byte| byte != b'/');
    bytes
        .get(start.unwrap_or(bytes.len())..)
        .unwrap_or_default()
}

/// The digest that `bytes` start with and the rest; none if they do not look like one.
fn digest_in_front(
    bytes: &[u8],
) -> Option<Result<(TargetStart, &[u8]), crate::castore::DigestError>> {
    let slash = |bytes: &[u8]| bytes.iter().position(|&byte| byte == b'/');
    let end = if bytes.starts_with(b"blake3-") {
        // A text that is too short is a name, unless it can only be meant as a digest.
        let end = SRI_LENGTH.min(bytes.len());
        match bytes.get(end) {
            None | Some(b'/') if end == SRI_LENGTH => end,
            _ => return None,
        }
    } else {
        let end = slash(bytes).unwrap_or(bytes.len());
        let first = bytes.get(..end)?;
        let hex = first.len() == 2 * Digest::LEN && first.iter().all(u8::is_ascii_hexdigit);
        if !hex && !first.starts_with(b"b3:") {
            return None;
        }
        end
    };
    let (digest, rest) = bytes.split_at(end);
    let digest = String::from_utf8_lossy(digest).parse::<Digest>();
    Some(digest.map(|digest| (TargetStart::Digest(digest), rest)))
}

/// The node for the object that `digest` names.
fn object(
    store: &Blocking,
    digest: &Digest,
    preference: KindPreference,
) -> Result<Node, TreeError> {
    let directory = || {
        store
            .directory(digest)
            .map(|found| found.map(|directory| directory.node()))
    };
    let blob = || {
        store.blob_size(digest).map(|found| {
            found.map(|size| Node::File {
                digest: *digest,
                size,
                executable: false,
            })
        })
    };
    let found = match preference {
        KindPreference::Directory => match directory()? {
            None => blob()?,
            found => found,
        },
        KindPreference::Blob => match blob()? {
            None => directory()?,
            found => found,
        },
    };
    found.ok_or_else(|| TreeError::NoObject {
        store: store.url().to_owned(),
        digest: *digest,
    })
}
