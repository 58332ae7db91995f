//! `castore-fs serve`.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::server::{
    self, AccessFiles, BinaryCacheOptions, Capacity, HandOver, ListenError, Listener,
    NixDaemonOptions, ServerLimits, ServerOptions, load_secret_key,
};
use crate::stores::ValidPaths;
use clap::Args;
use tokio::sync::watch;

use super::confine::{AdditionAccess, confine};
use super::failure::{CommandFailure, failure, print_error};
use super::interrupt::on_interrupt;
use super::mode;
use super::store::StoreArguments;
use super::units::{size, time_or_seconds};

/// The permissions of the socket of a Nix daemon: all users may read the store, as through the socket of Nix's own
/// daemon.
const NIX_DAEMON_MODE: u32 = 0o666;

/// Serve a store over gRPC, or to Nix as a binary cache or daemon
///
/// --listen serves the castore protocol in both its generations, and the additional services of
/// castore-fs. --binary-cache is a substituter of Nix over HTTP: it serves the roots that are named like
/// store paths and whose references are known. --nix-daemon is a store of Nix that is only read; its socket is
/// open to all users. Accepts no additions by default. At SIGTERM running calls are completed.
///
/// Before the first client is served the process gives up its privileges, all files but the store's,
/// and the system calls that it does not need.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs serve --listen unix:/run/castore.sock
  castore-fs serve --listen [::]:8000 --tls-cert cert.pem --tls-key key.pem --writable
  castore-fs serve --binary-cache [::]:5000 --secret-key-file /etc/nix/secret-key")]
pub(super) struct Serve {
    #[command(flatten)]
    store: StoreArguments,
    /// Where to listen: HOST:PORT, unix:PATH, or systemd for sockets passed on by systemd
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["binary_cache", "nix_daemon"])]
    listen: Vec<String>,
    /// Where to listen as a binary cache: HOST:PORT, unix:PATH, or systemd without --listen
    #[arg(long, value_name = "ADDRESS")]
    binary_cache: Vec<String>,
    /// The Unix socket where to listen as a Nix daemon (unix:///PATH for Nix), which is only read
    #[arg(long, value_name = "SOCKET", value_parser = socket_path)]
    nix_daemon: Option<PathBuf>,
    /// The permissions of unix sockets, in octal: write permission allows connecting
    ///
    /// Without it, 666 for --nix-daemon, and what the umask leaves for others.
    #[arg(long, value_name = "MODE", value_parser = mode)]
    socket_mode: Option<u32>,
    /// The binary cache's priority; smaller is asked first, and cache.nixos.org has 40
    #[arg(long, value_name = "NUMBER", requires = "binary_cache", default_value_t = server::DEFAULT_PRIORITY)]
    priority: u32,
    /// Sign the binary cache's paths with this key (nix-store --generate-binary-cache-key)
    #[arg(long, value_name = "PATH", requires = "binary_cache")]
    secret_key_file: Option<PathBuf>,
    /// With --token-file: reading from the binary cache takes no token
    #[arg(long, requires = "binary_cache", requires = "token_file")]
    read_without_token: bool,
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
    /// How long running calls may take after SIGTERM; a number alone is seconds
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time_or_seconds)]
    drain: Duration,
    /// Keep all privileges
    #[arg(long)]
    no_sandbox: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.check_nix_daemon_alone()?;
        let place = self.store.place()?;
        if !self.binary_cache.is_empty() && place.is_binary_cache() {
            return Err(failure(
                "--binary-cache serves a store that lists its paths, and a Nix binary cache does not: let clients use \
                 that cache itself, or copy paths of it into a store and serve that",
            ));
        }
        // A server that accepts additions may start with an empty store.
        if !self.writable {
            place.must_exist()?;
        }
        let bind = |addresses: &[String], mode: Option<u32>| {
            let mut listeners = Vec::new();
            for address in addresses {
                listeners.extend(match mode {
                    Some(mode) => Listener::bind_with_mode(address, mode)?,
                    None => Listener::bind(address)?,
                });
            }
            Ok::<_, ListenError>(listeners)
        };
        let grpc = bind(&self.listen, self.socket_mode)?;
        let http = bind(&self.binary_cache, self.socket_mode)?;
        let socket = self.nix_daemon.as_ref();
        let socket = socket.map(|path| format!("unix:{}", path.display()));
        let nix_mode = self.socket_mode.unwrap_or(NIX_DAEMON_MODE);
        let nix = bind(socket.as_slice(), Some(nix_mode))?;
        let secret_key = self.secret_key_file.as_ref();
        let binary_cache = BinaryCacheOptions {
            priority: self.priority,
            secret_key: secret_key.map(load_secret_key).transpose()?.map(Arc::new),
            open_to_read: self.read_without_token,
        };
        let access = AccessFiles {
            certificate: self.tls_cert,
            key: self.tls_key,
            client_authority: self.tls_client_ca,
            tokens: self.token_file,
        };
        let (tls, tokens) = access.load()?;
        // Before the store and its runtime start threads, which it would not cover.
        if !self.no_sandbox {
            // What is reported to Nix is entered in the store first.
            let added = match self.writable || self.nix_daemon.is_some() {
                true => AdditionAccess::ByClients,
                false => AdditionAccess::Never,
            };
            let mut needs = place.needs();
            // What is uploaded to a binary cache is kept there until it is whole.
            if self.writable && !self.binary_cache.is_empty() && place.dir().is_none() {
                needs.write.push(std::env::temp_dir());
            }
            confine(needs, added, None)?;
        }
        let opened = place.open_or_make()?;
        // What has to be sent on waits in a temporary file.
        let disk = opened
            .local_dir()
            .map_or_else(std::env::temp_dir, Path::to_owned);
        let limits = ServerLimits {
            connections: ServerLimits::connections(self.max_connections),
            keep_free: self.keep_free,
            upload: self.max_upload,
            disk: Some(disk),
            ..ServerLimits::default()
        };
        let capacity = Capacity::new(&limits);
        let options = ServerOptions {
            writable: self.writable,
            allow_replace: self.allow_replace,
            narinfos_ahead: opened.local_dir().is_some(),
            local: opened.described.local.clone(),
            limits,
            capacity: Some(capacity),
            streams: self.max_calls,
            tokens,
            drain: self.drain,
            tls,
            binary_cache: None,
            nix_daemon: None,
        };
        let of_cache = ServerOptions {
            binary_cache: Some(binary_cache),
            ..options.clone()
        };
        let valid = socket
            .map(|_| ValidPaths::of(&opened.described))
            .transpose();
        let of_nix = ServerOptions {
            nix_daemon: valid?.map(|paths| NixDaemonOptions {
                paths,
                hand_over: HandOver::default(),
            }),
            limits: ServerLimits {
                connections: options.limits.connections,
                ..ServerLimits::of_nix_daemon()
            },
            ..options.clone()
        };
        for listener in grpc.iter().chain(&http).chain(&nix) {
            print_error(&format!("{} is on {listener}", opened.store.url()));
        }
        let (stop, stopping) = watch::channel(false);
        on_interrupt(&opened.runtime, move || {
            let _ = stop.send(true);
        })?;
        let serve = |listeners: Vec<Listener>, options| {
            let (store, mut stopping) = (opened.store.store().clone(), stopping.clone());
            async move {
                if listeners.is_empty() {
                    return Ok(());
                }
                let stopped = async {
                    // An error means that the process ends, which is a stop as well.
                    let _ = stopping.wait_for(|stop| *stop).await;
                };
                server::serve(store, listeners, options, stopped).await
            }
        };
        let serving = async {
            tokio::try_join!(
                serve(grpc, options),
                serve(http, of_cache),
                serve(nix, of_nix)
            )
        };
        opened.runtime.block_on(serving)?;
        Ok(())
    }

    /// Refuses options that have no effect on a Nix daemon, if there is no other listener.
    fn check_nix_daemon_alone(&self) -> Result<(), CommandFailure> {
        if !(self.listen.is_empty() && self.binary_cache.is_empty()) {
            return Ok(());
        }
        let given = [
            ("--writable", self.writable),
            ("--token-file", self.token_file.is_some()),
            ("--tls-cert", self.tls_cert.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((option, _)) => Err(failure(format!(
                "{option} has no effect on --nix-daemon, which is only read, by the users that --socket-mode \
                 lets connect: leave it out, or add --listen or --binary-cache"
            ))),
        }
    }
}

/// The path of a Unix socket, written as a path or as an address.
fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix:").unwrap_or(text);
    // Nix writes unix:///PATH.
    let path = path
        .strip_prefix("//")
        .filter(|path| path.starts_with('/'))
        .unwrap_or(path);
    if path.is_empty() || !path.contains('/') && path.contains(':') {
        return Err(
            "the protocol of a Nix daemon is served on a Unix socket: write its path".to_owned(),
        );
    }
    Ok(PathBuf::from(path))
}
