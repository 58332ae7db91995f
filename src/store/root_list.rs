//! The roots that an upstream lists, within limits.

use tonic::Code;

use super::failure::Failure;
use crate::castore::{Node, Root};

/// Roots in one listing, at most. A shared cache of a large company has some hundred thousand.
pub(super) const MOST_ROOTS: usize = 1_000_000;
/// Memory that a listing may take, in bytes: a million store paths, each with a name of 60 bytes.
const MOST_BYTES: usize = 256 << 20;

/// A listing in progress.
#[derive(Debug, Default)]
pub(super) struct RootList {
    roots: Vec<Root>,
    bytes: usize,
}

impl RootList {
    /// Adds a root, unless that is too many.
    pub(super) fn push(&mut self, root: Root) -> Result<(), Failure> {
        let target = match &root.node {
            Node::Symlink { target } => target.len(),
            _ => 0,
        };
        self.bytes += size_of::<Root>() + root.name.as_bytes().len() + target;
        if self.roots.len() >= MOST_ROOTS || self.bytes > MOST_BYTES {
            return Err(too_many());
        }
        self.roots.push(root);
        Ok(())
    }
}

impl From<RootList> for Vec<Root> {
    fn from(list: RootList) -> Self {
        list.roots
    }
}

/// A listing that is too long.
pub(super) fn too_many() -> Failure {
    let why = format!(
        "it lists more than {MOST_ROOTS} roots or {} MiB of them; a mount with list-root = false and \
         commands that name roots do without the list",
        MOST_BYTES >> 20
    );
    Failure::Status(Code::ResourceExhausted, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Name, SymlinkTarget};

    #[test]
    fn a_listing_has_an_end() {
        let mut list = RootList::default();
        let target = SymlinkTarget::new(&[b'x'; 4000]).unwrap();
        let mut taken = 0;
        let refused = loop {
            let name = Name::new(format!("n{taken}").as_bytes()).unwrap();
            let node = Node::Symlink {
                target: target.clone(),
            };
            match list.push(Root { name, node }) {
                Ok(()) => taken += 1,
                Err(failure) => break failure,
            }
        };
        assert!(refused.is(Code::ResourceExhausted));
        assert!(taken * target.len() <= MOST_BYTES, "{taken}");
        assert_eq!(Vec::from(list).len(), taken);
    }
}
