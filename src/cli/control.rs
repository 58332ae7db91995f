//! Commands for the caches of the running service: the common parts.

use std::path::{Path, PathBuf};

use crate::castore::Printable;
use crate::service::{
    CachedRoots, Config, ControlRequest, ControlResult, PrefetchStatus, send_request,
};
use clap::Args;

use super::failure::{CommandFailure, failure, print_error};
use super::names::root_name;

/// The control socket of a service whose configuration names no other.
const DEFAULT_SOCKET: &str = "/run/castore-fs/control.sock";

/// Which service is meant.
#[derive(Debug, Args)]
pub(super) struct ControlArguments {
    /// The control socket: by default that of --config, else /run/castore-fs/control.sock
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration of the service, which has its control socket
    #[arg(
        long,
        value_name = "FILE",
        env = "CASTORE_FS_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
}

impl ControlArguments {
    /// The control socket of the service that is meant.
    pub(super) fn socket(&self) -> Result<PathBuf, CommandFailure> {
        match (&self.socket, &self.config) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(file)) => Ok(load(file)?.control_socket()),
            (None, None) => Ok(PathBuf::from(DEFAULT_SOCKET)),
        }
    }
}

/// Reads a configuration, and none of the files that it names; prints what is wrong with it.
fn load(file: &Path) -> Result<Config, CommandFailure> {
    Config::load_with_files(file, false).map_err(|problems| {
        problems
            .iter()
            .for_each(|problem| print_error(&problem.to_string()));
        CommandFailure::Reported
    })
}

/// A cache of the service.
#[derive(Debug, Args)]
pub(super) struct ServiceCacheArguments {
    #[command(flatten)]
    control: ControlArguments,
    /// The cache, by its name in the service's configuration; optional if there is only one
    #[arg(long, value_name = "NAME")]
    pub(super) store: Option<String>,
}

/// Roots by name.
#[derive(Debug, Args)]
pub(super) struct NamedRoots {
    /// With every Nix store path that the roots refer to
    #[arg(long)]
    closure: bool,
    /// The roots' names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<PathBuf>,
}

impl ServiceCacheArguments {
    /// These roots of it.
    pub(super) fn roots(&self, roots: &NamedRoots) -> Result<CachedRoots, CommandFailure> {
        let names = roots.names.iter().map(|path| {
            let name = root_name(path)?;
            let name = std::str::from_utf8(&name).map(str::to_owned);
            name.map_err(|_| {
                failure(format!(
                    "{}: the service takes names that are UTF-8",
                    Printable::path(path)
                ))
            })
        });
        Ok(CachedRoots {
            store: self.store.clone(),
            roots: names.collect::<Result<_, _>>()?,
            closure: roots.closure,
        })
    }

    /// Sends the request to the service.
    pub(super) fn send_request(
        &self,
        request: &ControlRequest,
        progress: impl FnMut(&PrefetchStatus),
    ) -> Result<ControlResult, CommandFailure> {
        Ok(send_request(&self.control.socket()?, request, progress)?)
    }
}

/// The error for a result that does not match the request.
pub(super) fn not_that(done: &ControlResult) -> CommandFailure {
    failure(format!(
        "the service did something else: {done:?}; is it of another version?"
    ))
}
