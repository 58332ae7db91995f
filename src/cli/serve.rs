//! `castore-fs serve`.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use castore_fs::server::{self, Access, Limits, Listener, Options};
use castore_fs::service::Size;
use clap::Args;
use tokio::sync::Notify;

use super::confine::{Added, confine};
use super::failure::Failure;
use super::interrupt::on_interrupt;
use super::store::StoreArguments;

/// Serve a store over gRPC
///
/// Serves the castore protocol in both its generations, and the additional services of castore-fs.
/// Accepts no additions by default. At SIGTERM running calls are completed.
///
/// Before the first client is served the process gives up its privileges, all files but the store's,
/// and the system calls that it does not need.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs serve --listen unix:/run/castore.sock
  castore-fs serve --listen [::]:8000 --tls-cert cert.pem --tls-key key.pem --writable")]
pub(super) struct Serve {
    #[command(flatten)]
    store: StoreArguments,
    /// Where to listen: HOST:PORT, unix:PATH, or systemd for sockets passed on by systemd
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<String>,
    /// Let clients add to the store; existing roots are not replaced
    #[arg(long)]
    writable: bool,
    /// Let clients replace and remove roots too
    #[arg(long, requires = "writable")]
    allow_replace: bool,
    /// With --writable: the space that clients leave free on the store's disk (1GiB, 500MiB)
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1GiB")]
    keep_free: u64,
    /// With --writable: the limit of one upload (1GiB, 500MiB)
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1TiB")]
    max_upload: u64,
    /// Connections at once, no more than half of the files that the process may have open
    #[arg(long, value_name = "CONNECTIONS", default_value_t = 256)]
    max_connections: usize,
    /// TLS on TCP: the certificate chain (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// TLS on TCP: the private key (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Require of clients a certificate that one of these signed (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Require of clients one of the bearer tokens in this file; not on TCP without TLS
    ///
    /// A line is a token, optionally followed by its rights: read, add, replace. Without them it
    /// has the rights that the server gives to every client.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Calls at once on a connection; more wait for their turn
    #[arg(long, value_name = "CALLS", default_value_t = server::DEFAULT_STREAMS)]
    max_calls: NonZeroU32,
    /// Seconds that running calls get after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    drain: u64,
    /// Keep all privileges
    #[arg(long)]
    no_sandbox: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let place = self.store.place()?;
        // A server that accepts additions may start with an empty store.
        if !self.writable {
            place.must_exist()?;
        }
        let mut listeners = Vec::new();
        for address in &self.listen {
            listeners.extend(Listener::bind(address)?);
        }
        let access = Access {
            certificate: self.tls_cert,
            key: self.tls_key,
            client_authority: self.tls_client_ca,
            tokens: self.token_file,
        };
        let (tls, tokens) = access.load()?;
        // Before the store and its runtime start threads, which it would not cover.
        if !self.no_sandbox {
            let added = match self.writable {
                true => Added::ByClients,
                false => Added::Never,
            };
            confine(place.needs(), added, None)?;
        }
        let opened = place.open_or_make()?;
        // What has to be sent on waits in a temporary file.
        let disk = opened
            .local_folder()
            .map_or_else(std::env::temp_dir, Path::to_owned);
        let limits = Limits {
            connections: Limits::connections(self.max_connections),
            keep_free: self.keep_free,
            upload: self.max_upload,
            disk: Some(disk),
            ..Limits::default()
        };
        let options = Options {
            writable: self.writable,
            allow_replace: self.allow_replace,
            narinfos_ahead: opened.local_folder().is_some(),
            local: opened.described.local.clone(),
            limits,
            streams: self.max_calls,
            tokens,
            drain: Duration::from_secs(self.drain),
            tls,
        };
        let stop = Arc::new(Notify::new());
        let notified = stop.clone();
        on_interrupt(&opened.runtime, move || notified.notify_one())?;
        let store = opened.store.store().clone();
        let serving = server::serve(store, listeners, options, stop.notified());
        opened.runtime.block_on(serving)?;
        Ok(())
    }
}

/// A size with a unit, in bytes.
fn size(text: &str) -> Result<u64, String> {
    text.parse::<Size>().map(|size| size.0)
}
