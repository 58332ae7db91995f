//! `castore-fs serve`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use castore_fs::server::{self, Access, Listener, Options};
use clap::Args;
use tokio::sync::Notify;

use super::confine::{Added, confine};
use super::failure::Failure;
use super::interrupt::on_interrupt;
use super::store::StoreArguments;

/// Serve a store to others over gRPC
///
/// Speaks the castore protocol in both its generations, and what castore-fs adds to it. Takes
/// no additions unless told so. SIGTERM lets calls that run come to their end.
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
    /// Let clients add to the store
    #[arg(long)]
    writable: bool,
    /// TLS on TCP: the certificate chain (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// TLS on TCP: the private key (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Demand of clients a certificate that one of these signed (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Demand of clients one of the bearer tokens in this file, one a line; not on TCP without TLS
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
        // A server that adds may start with an empty store.
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
        let options = Options {
            writable: self.writable,
            streams: self.max_calls,
            tokens,
            drain: Duration::from_secs(self.drain),
            tls,
        };
        let stop = Arc::new(Notify::new());
        let told = stop.clone();
        on_interrupt(&opened.runtime, move || told.notify_one())?;
        let store = opened.store.store().clone();
        let serving = server::serve(store, listeners, options, stop.notified());
        opened.runtime.block_on(serving)?;
        Ok(())
    }
}
