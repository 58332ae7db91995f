//! The roots that an upstream lists, within limits.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::failure::{CallFailure, FailureKind};
use crate::castore::{Node, Root};

/// Roots in one listing, at most. A shared cache of a large company has some hundred thousand.
pub(super) const MOST_ROOTS: usize = 1_000_000;
/// Memory that a listing may take, in bytes: a million store paths, each with a name of 60 bytes.
const MOST_BYTES: usize = 192 << 20;
/// Memory that a listing may take beside others, in bytes. A longer one waits for [`LONG`].
const SHORT: usize = 8 << 20;
/// How long a long listing waits for the one before it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The one long listing of the process: several upstreams may list without end at once.
static LONG: Semaphore = Semaphore::const_new(1);

/// The permit for the memory of a listing.
#[derive(Debug, Default)]
pub(super) struct ListingMemory(Option<SemaphorePermit<'static>>);

impl ListingMemory {
    /// Waits until the listing may take `bytes`. The memory is free again when this is dropped.
    pub(super) async fn reserve(&mut self, bytes: usize) -> Result<(), CallFailure> {
        if bytes > MOST_BYTES {
            return Err(too_many());
        }
        if bytes > SHORT && self.0.is_none() {
            let permit = tokio::time::timeout(PATIENCE, LONG.acquire()).await;
            // It is never closed.
            self.0 = permit.map_err(|_| too_busy())?.ok();
        }
        Ok(())
    }
}

/// A listing in progress.
#[derive(Debug, Default)]
pub(super) struct RootList {
    roots: Vec<Root>,
    bytes: usize,
    memory: ListingMemory,
}

impl RootList {
    /// A listing with memory that was reserved already.
    pub(super) fn with(memory: ListingMemory) -> Self {
        Self {
            memory,
            ..Self::default()
        }
    }

    /// Adds a root that an upstream sent, as soon as there is memory for it.
    pub(super) async fn receive(&mut self, root: Root) -> Result<(), CallFailure> {
        self.push(root)?;
        self.memory.reserve(self.bytes).await
    }

    /// Adds a root, unless that is too many.
    pub(super) fn push(&mut self, root: Root) -> Result<(), CallFailure> {
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
pub(super) fn too_many() -> CallFailure {
    let why = format!(
        "it lists more than {MOST_ROOTS} roots or {} MiB of them; a mount with list-root = false and \
         commands that name roots do without the list",
        MOST_BYTES >> 20
    );
    CallFailure::Failed(FailureKind::Exhausted, why)
}

/// Another listing has the memory.
fn too_busy() -> CallFailure {
    let why = format!(
        "it lists more than {} MiB of roots, and another such listing has not ended in {} s; try again",
        SHORT >> 20,
        PATIENCE.as_secs()
    );
    CallFailure::Failed(FailureKind::Exhausted, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::{Name, SymlinkTarget};

    #[tokio::test(start_paused = true)]
    async fn one_long_listing_is_in_memory_at_a_time() {
        let (mut first, mut second) = (ListingMemory::default(), ListingMemory::default());
        first.reserve(SHORT + 1).await.unwrap();
        first.reserve(MOST_BYTES).await.unwrap();
        assert!(first.reserve(MOST_BYTES + 1).await.is_err());
        second.reserve(SHORT).await.unwrap();
        let failure = second.reserve(SHORT + 1).await.unwrap_err();
        assert!(failure.is(FailureKind::Exhausted));
        let waiting = tokio::spawn(async move { second.reserve(SHORT + 1).await });
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(waiting.await.unwrap().is_ok());
    }

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
        assert!(refused.is(FailureKind::Exhausted));
        assert!(taken * target.len() <= MOST_BYTES, "{taken}");
        assert_eq!(Vec::from(list).len(), taken);
    }
}
