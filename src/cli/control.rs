//! Commands for the caches of the running service: the common parts.

use std::path::PathBuf;

use castore_fs::service::{CachedRoots, Done, PrefetchStatus, Request, tell};
use clap::Args;

use super::failure::{Failure, failure};

/// The control socket.
#[derive(Debug, Args)]
pub(super) struct ControlArguments {
    /// The control socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/castore-fs/control.sock"
    )]
    pub(super) socket: PathBuf,
}

/// A cache of the service.
#[derive(Debug, Args)]
pub(super) struct CacheArguments {
    #[command(flatten)]
    control: ControlArguments,
    /// The cache, by its name in the service's configuration; optional if there is only one
    #[arg(long, value_name = "NAME")]
    pub(super) store: Option<String>,
}

impl CacheArguments {
    /// These roots of it.
    pub(super) fn roots(&self, roots: &[String]) -> CachedRoots {
        CachedRoots {
            store: self.store.clone(),
            roots: roots.to_vec(),
        }
    }

    /// Sends the request to the service.
    pub(super) fn tell(
        &self,
        request: &Request,
        progress: impl FnMut(&PrefetchStatus),
    ) -> Result<Done, Failure> {
        Ok(tell(&self.control.socket, request, progress)?)
    }
}

/// The error for a result that does not match the request.
pub(super) fn not_that(done: &Done) -> Failure {
    failure(format!(
        "the service did something else: {done:?}; is it of another version?"
    ))
}
