//! The sockets on which the service serves virtual machines.

use std::sync::Arc;

use thiserror::Error;
use tokio::runtime::Handle;

use super::config;
use super::mounts::{StartError, find_top};
use crate::fs::{Options, Owner, Top};
use crate::store::{Blocking, Store};
use crate::transport::virtiofs::{
    Access, DeviceOptions, Endpoint, ROOT_TIMEOUT, Socket, SocketError, Tag, group_id,
};

/// Why a socket for virtual machines is not there.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// What it is to show is not there.
    #[error(transparent)]
    Root(#[from] StartError),
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system refused.
    #[error("cannot serve it: {0}")]
    System(#[from] std::io::Error),
}

/// A socket as the configuration wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What the configuration says of it.
    pub config: config::Virtiofs,
    /// The name of the store.
    pub store: String,
    /// What the configuration says of the store.
    pub store_config: config::Store,
}

/// A socket that is served, until this is dropped.
pub struct Served {
    /// As it was wanted.
    pub wanted: Wanted,
    /// The socket.
    pub endpoint: Arc<Endpoint>,
}

impl Wanted {
    /// Binds the socket `name`, and serves `store` on it.
    pub fn start(
        self,
        name: &str,
        store: Arc<dyn Store>,
        runtime: &Handle,
    ) -> Result<Served, EndpointError> {
        let config = &self.config;
        let top = match &config.root {
            None => Top::Roots {
                list: config.list_root,
            },
            Some(root) => find_top(root, &Blocking::new(store.clone(), runtime.clone()))?,
        };
        let options = Options {
            top,
            owner: Owner {
                uid: config.uid,
                gid: config.gid,
            },
            xattr: config.xattr,
            root_timeout: ROOT_TIMEOUT,
            directory_limit: usize::try_from(config.directory_memory.0).unwrap_or(usize::MAX),
            ..Options::default()
        };
        let access = Access {
            mode: Access::parse_mode(&config.socket_mode).unwrap_or(Access::default().mode),
            gid: config.socket_group.as_deref().map(group_id).transpose()?,
        };
        let device = DeviceOptions {
            // Checked when the configuration was read.
            tag: config.tag.as_deref().and_then(|tag| Tag::new(tag).ok()),
            request_queues: usize::from(config.queues),
        };
        let socket = Socket::bind(&config.socket, access)?;
        let endpoint = Endpoint::serve(store, socket, options, device, runtime.clone())?;
        tracing::info!(
            VIRTIOFS = name, STORE = self.store, path = %config.socket.display(), "listening"
        );
        Ok(Served {
            wanted: self,
            endpoint: Arc::new(endpoint),
        })
    }
}
