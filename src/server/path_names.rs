//! Which roots of a store are Nix store paths, by the hashes in their names.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::castore::Name;
use crate::nix;
use crate::store::{Error, Store};

/// The names by hash, as of the roots' version.
#[derive(Clone)]
pub(super) struct PathNames {
    store: Arc<dyn Store>,
    /// Locked while the roots are listed, so that concurrent requests share one listing.
    listed: Arc<Mutex<NamesByHash>>,
}

#[derive(Default)]
struct NamesByHash {
    version: Option<u64>,
    names: Arc<HashMap<[u8; 20], Name>>,
}

impl PathNames {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            listed: Arc::default(),
        }
    }

    /// All names, by their hashes. May read the disk.
    pub(super) async fn all(&self) -> Result<Arc<HashMap<[u8; 20], Name>>, Error> {
        let mut listed = self.listed.lock().await;
        let version = self.store.roots_version()?;
        if listed.version != Some(version) {
            let roots = self.store.roots().await?.into_iter();
            let named = roots.filter_map(|root| Some((nix::output_hash(&root.name)?, root.name)));
            *listed = NamesByHash {
                version: Some(version),
                names: Arc::new(named.collect()),
            };
        }
        Ok(listed.names.clone())
    }
}
