//! Which store a command works on.

use std::path::PathBuf;

use castore_fs::store::{self, Blocking};
use clap::Args;
use tokio::runtime::Runtime;

use super::failure::{Failure, failure};

/// The `--store` of every verb.
#[derive(Debug, Args)]
pub(super) struct StoreArguments {
    /// The store: local:PATH, or memory:
    ///
    /// Without it, local: in $XDG_DATA_HOME/castore-fs, by default ~/.local/share/castore-fs; for
    /// root /var/lib/castore-fs.
    #[arg(
        long,
        value_name = "URL",
        env = "CASTORE_FS_STORE",
        hide_env_values = true
    )]
    store: Option<String>,
}

/// A store and the runtime that it waits on.
pub(super) struct Opened {
    pub(super) store: Blocking,
    pub(super) runtime: Runtime,
}

impl StoreArguments {
    /// Opens the store to read from it: it has to be there.
    pub(super) fn open(&self) -> Result<Opened, Failure> {
        store::must_exist(&self.url()?)?;
        self.open_or_make()
    }

    /// Opens the store; makes it if there is none.
    pub(super) fn open_or_make(&self) -> Result<Opened, Failure> {
        let url = self.url()?;
        let runtime = Runtime::new()?;
        let inside = runtime.enter();
        let store = store::open(&url)?;
        drop(inside);
        Ok(Opened {
            store: Blocking::new(store, runtime.handle().clone()),
            runtime,
        })
    }

    /// The store's URL, given or by default.
    pub(super) fn url(&self) -> Result<String, Failure> {
        match &self.store {
            Some(url) => Ok(url.clone()),
            None => default_url(),
        }
    }
}

fn default_url() -> Result<String, Failure> {
    let folder = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        let set = |name| {
            let path = std::env::var_os(name).map(PathBuf::from);
            // The XDG specification: paths that are not absolute are to be ignored.
            path.filter(|path| path.is_absolute())
        };
        set("XDG_DATA_HOME")
            .or_else(|| Some(set("HOME")?.join(".local/share")))
            .ok_or_else(|| {
                failure(
                    "there is no default store, since neither XDG_DATA_HOME nor HOME is set: \
                     give one with --store local:PATH",
                )
            })?
    };
    let path = folder.join("castore-fs");
    match path.to_str() {
        Some(path) => Ok(format!("local:{path}")),
        None => Err(failure(format!(
            "the default store {} is not UTF-8: give another with --store local:PATH",
            path.display()
        ))),
    }
}
