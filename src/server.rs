//! Serving any store over gRPC, or as a Nix binary cache ([`BinaryCacheOptions`]), or to Nix as its daemon
//! ([`ServerOptions::nix_daemon`]).
//!
//! One server answers two kinds of client: castore-fs of the same version, through the services of
//! `castore_fs.v1` (roots of any name, parts of blobs, additions in one stream), and clients of
//! either generation of the castore protocol. `docs/protocol.md` has the details. The generations
//! cost one rewritten word per call ([`crate::proto::ProtocolGeneration`]).
//!
//! A store may read the local disk in a call, and a few of its methods block; so every call runs on
//! tokio's blocking pool, and holds no thread of it while it waits for its client: a thousand slow
//! readers cost a thousand small tasks.
//!
//! **What is refused.** Calls without one of [`ServerOptions::tokens`], if there are any; clients without
//! a certificate, if [`TlsInput::client_authority`] is given. Additions, unless [`ServerOptions::writable`];
//! replacing and removing roots, unless [`ServerOptions::allow_replace`] or a token gives the right.
//! Requests, connections, calls, uploads and memory over a limit ([`ServerLimits`]), before and after a
//! token is checked. More than [`ServerOptions::streams`] calls at once on a connection wait for their
//! turn.

mod access;
mod authorize;
mod binary_cache;
mod blobs;
mod budget;
mod capacity;
mod chunks;
mod client;
mod client_root_changes;
mod connections;
mod directories;
mod guard;
mod incomplete;
mod ingest;
mod limits;
mod listen;
mod nars;
mod nix_daemon;
mod parts;
mod path_infos;
mod path_names;
mod respond;
mod roots;
mod tls;
mod turns;
mod upload;

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::Request;
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tower::util::MapRequestLayer;

use crate::proto::castore::services::blob_service_server::BlobServiceServer;
use crate::proto::castore::services::directory_service_server::DirectoryServiceServer;
use crate::proto::castore_fs::services::ingest_service_server::IngestServiceServer;
use crate::proto::castore_fs::services::part_service_server::PartServiceServer;
use crate::proto::castore_fs::services::root_service_server::RootServiceServer;
use crate::proto::store::services::path_info_service_server::PathInfoServiceServer;
use crate::proto::{DESCRIPTORS, MAX_MESSAGE_BYTES, ProtocolGeneration, with_generation};
use crate::store::{LocalStore, Store};

pub use access::{AccessError, AccessFiles, load_secret_key};
pub use authorize::{AcceptedTokens, ClientRights, TokensError};
pub use binary_cache::{BinaryCacheOptions, DEFAULT_PRIORITY};
pub use capacity::Capacity;
pub use limits::ServerLimits;
pub use listen::{ListenError, Listener};
pub use nix_daemon::{ConnectionHolder, HandOver, NixDaemonOptions};
pub use turns::BLOCKING_THREADS;

use authorize::Authorize;
use binary_cache::ServedBinaryCache;
use chunks::ServedChunks;
use connections::Connections;
use guard::LimitsLayer;
use incomplete::IncompleteRoots;
use limits::HEADERS;
use nars::NarHashes;
use path_infos::PathInfos;
use path_names::PathNames;
use turns::ConnectionTurns;

/// HTTP/2 windows, in bytes: what a client may have under way to us before we report that we have read it,
/// and so what it can leave with us unread: all connections together no more than a quarter of 512 MiB. It
/// fills 400 Mbit/s over 10 ms. The library also counts small frames that were not read yet by the window:
/// half as many as there would be of 256 bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

/// Calls at once on a connection, by default.
pub const DEFAULT_STREAMS: NonZeroU32 = NonZeroU32::new(256).expect("256 is not 0");

/// How a store is served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Whether clients may add to the store. Existing roots are not replaced.
    pub writable: bool,
    /// Whether clients whose token names no rights may replace and remove roots.
    pub allow_replace: bool,
    /// Whether missing hashes of NARs are computed before a client requests them: for stores that
    /// have all their content locally.
    pub narinfos_ahead: bool,
    /// The store that is served, if it is one that stores computed chunk lists.
    pub local: Option<LocalStore>,
    /// The limits.
    pub limits: ServerLimits,
    /// What this server shares with others of the process; nothing for the limits alone.
    pub capacity: Option<Capacity>,
    /// Calls at once on a connection.
    pub streams: NonZeroU32,
    /// How long running calls may take once the server is stopped.
    pub drain: Duration,
    /// TLS on the TCP listeners.
    pub tls: Option<TlsInput>,
    /// If given, calls must have one of these.
    pub tokens: Option<AcceptedTokens>,
    /// If given, the store is served as a Nix binary cache, and not over gRPC.
    pub binary_cache: Option<BinaryCacheOptions>,
    /// If given, these are served as a Nix daemon, and not over gRPC.
    pub nix_daemon: Option<NixDaemonOptions>,
}

/// The input of TLS: PEM text.
#[derive(Clone)]
pub struct TlsInput {
    /// The server's certificate chain.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// If given, clients must present a certificate that one of these signed.
    pub client_authority: Option<Vec<u8>>,
}

impl std::fmt::Debug for TlsInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            writable: false,
            allow_replace: false,
            narinfos_ahead: false,
            local: None,
            limits: ServerLimits::default(),
            capacity: None,
            streams: DEFAULT_STREAMS,
            drain: Duration::from_secs(20),
            tls: None,
            tokens: None,
            binary_cache: None,
            nix_daemon: None,
        }
    }
}

/// Why the server could not start or continue.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Unusable TLS material, or a listener that failed.
    #[error("cannot serve on {listener}: {source}")]
    Serve {
        /// The listener's address.
        listener: String,
        /// The error.
        source: tonic::transport::Error,
    },
    /// A listener on which a token would be sent unencrypted.
    #[error(
        "cannot require a token on {listener}, where it would be sent unencrypted: listen with TLS, \
         or on a unix socket"
    )]
    TokenInTheClear {
        /// The listener's address.
        listener: String,
    },
    /// TLS material that cannot be used.
    #[error("cannot serve on {listener} with TLS: {why}")]
    Tls {
        /// The listener's address.
        listener: String,
        /// What is wrong with it.
        why: String,
    },
    /// A listening socket cannot be used.
    #[error("cannot listen on {listener}: {source}")]
    Listen {
        /// Its address.
        listener: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The state that all services share.
#[derive(Clone)]
struct ServedState {
    store: Arc<dyn Store>,
    paths: PathNames,
    writable: bool,
    limits: Arc<ServerLimits>,
    /// Held while a root node is replaced for a client.
    replacing: Arc<Mutex<()>>,
    own_turns: ConnectionTurns,
    nars: NarHashes,
    chunks: ServedChunks,
    incomplete: Arc<IncompleteRoots>,
    /// Identifies one run of the server: versions of the roots begin again in each.
    instance: u64,
    proofs: parts::Proofs,
    /// Becomes true when the server is stopped.
    stopping: watch::Receiver<bool>,
    /// The version of the roots; one thread follows it for all watchers.
    version: watch::Receiver<u64>,
}

/// Serves `store` on all of `listeners` until `shutdown` is ready; then accepts no more calls, lets
/// those that run continue for [`ServerOptions::drain`], and returns.
pub async fn serve(
    store: Arc<dyn Store>,
    listeners: Vec<Listener>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let (stop, stopping) = watch::channel(false);
    let version = roots::version_of(store.clone(), stopping.clone());
    let capacity = options.capacity.clone();
    let capacity = capacity.unwrap_or_else(|| Capacity::new(&options.limits));
    let own_turns = capacity.own_turns();
    let connections = Connections::new(options.limits.clone(), capacity);
    let served = ServedState {
        writable: options.writable,
        limits: Arc::new(options.limits.clone()),
        replacing: Arc::default(),
        own_turns,
        nars: NarHashes::new(store.clone(), stopping.clone()),
        chunks: ServedChunks::new(store.clone(), options.local.clone(), options.writable),
        incomplete: Arc::new(IncompleteRoots::new(options.limits.incomplete)),
        paths: PathNames::new(store.clone()),
        store,
        instance: RandomState::new().hash_one(std::process::id()),
        proofs: parts::Proofs::default(),
        stopping: stopping.clone(),
        version: version.clone(),
    };
    for listener in &listeners {
        if options.tokens.is_some() && options.tls.is_none() && matches!(listener, Listener::Tcp(_))
        {
            return Err(ServerError::TokenInTheClear {
                listener: listener.to_string(),
            });
        }
    }
    tokio::spawn(connections.clone().watch(stopping.clone()).boxed());
    let every = ClientRights {
        read: true,
        add: options.writable,
        replace: options.writable && options.allow_replace,
    };
    let mut running = JoinSet::new();
    let mut health = None;
    if let Some(of_nix) = options.nix_daemon.clone() {
        running.spawn(
            nix_daemon::serve_previous(
                of_nix.clone(),
                options.clone(),
                connections.clone(),
                stopping.clone(),
            )
            .boxed(),
        );
        for listener in listeners {
            let (connections, stopping) = (connections.clone(), stopping.clone());
            let (of_nix, options) = (of_nix.clone(), options.clone());
            running.spawn(
                nix_daemon::serve_one(of_nix, listener, options, connections, stopping).boxed(),
            );
        }
    } else if let Some(of_cache) = options.binary_cache.clone() {
        let (tokens, local) = (options.tokens.clone(), options.local.clone());
        let cache = ServedBinaryCache::new(served, of_cache, tokens, every, local);
        for listener in listeners {
            let (connections, stopping) = (connections.clone(), stopping.clone());
            let options = options.clone();
            running.spawn(
                binary_cache::serve_one(cache.clone(), listener, options, connections, stopping)
                    .boxed(),
            );
        }
    } else {
        let path_infos = PathInfos::new(served.clone());
        let (reporter, routes) = routes(&served, path_infos.clone()).await;
        health = Some(reporter);
        tokio::spawn(
            path_infos
                .look_after(options.narinfos_ahead, version, stopping.clone())
                .boxed(),
        );
        for listener in listeners {
            let service = serve_one(
                listener,
                routes.clone(),
                options.clone(),
                every,
                connections.clone(),
                stopping.clone(),
            );
            running.spawn(service.boxed());
        }
    }
    let failed = tokio::select! {
        () = shutdown => None,
        Some(ended) = running.join_next() => ended.ok().and_then(Result::err),
    };
    if let Some(health) = health {
        health
            .set_not_serving::<BlobServiceServer<ServedState>>()
            .await;
    }
    // Fails only if every listener has already ended.
    let _ = stop.send(true);
    let drained = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(options.drain, drained).await.is_err() {
        tracing::warn!("calls still ran after {:?} and were cut", options.drain);
    }
    failed.map_or(Ok(()), Err)
}

async fn serve_one(
    listener: Listener,
    routes: Routes,
    options: ServerOptions,
    every: ClientRights,
    connections: Arc<Connections>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let accepting = stopping.clone();
    let address = listener.to_string();
    let failed = |source| ServerError::Serve {
        listener: address.clone(),
        source,
    };
    let unusable = |source| ServerError::Listen {
        listener: address.clone(),
        source,
    };
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(HEADERS)
        .max_concurrent_streams(options.streams.get())
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)));
    if let (Some(tls), Listener::Tcp(_)) = (&options.tls, &listener) {
        let mut config =
            ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
        if let Some(authority) = &tls.client_authority {
            config = config.client_ca_root(Certificate::from_pem(authority));
        }
        server = server.tls_config(config).map_err(failed)?;
    }
    let stopped = async move {
        // An error means that the server is gone, which is a stop as well.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let tokens = options.tokens;
    let router = server
        .layer(LimitsLayer(Arc::new(options.limits)))
        .layer(Authorize { tokens, every })
        .layer(MapRequestLayer::new(to_current_generation))
        .add_routes(routes);
    tracing::info!("listening on {address}");
    match listener {
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true).map_err(unusable)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(unusable)?;
            let incoming = connections.accept(listener, address.clone(), accepting);
            router.serve_with_incoming_shutdown(incoming, stopped).await
        }
        Listener::Unix(listener) => {
            listener.set_nonblocking(true).map_err(unusable)?;
            let listener = tokio::net::UnixListener::from_std(listener).map_err(unusable)?;
            let incoming = connections.accept(listener, address.clone(), accepting);
            router.serve_with_incoming_shutdown(incoming, stopped).await
        }
    }
    .map_err(failed)
}

fn to_current_generation<B>(mut request: Request<B>) -> Request<B> {
    let uri = std::mem::take(request.uri_mut());
    *request.uri_mut() = with_generation(uri, ProtocolGeneration::Current);
    request
}

async fn routes(
    served: &ServedState,
    path_infos: PathInfos,
) -> (tonic_health::server::HealthReporter, Routes) {
    macro_rules! limited {
        ($server:ident) => {
            $server::new(served.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        };
    }
    let blobs = limited!(BlobServiceServer);
    let directories = limited!(DirectoryServiceServer);
    let path_infos = PathInfoServiceServer::new(path_infos)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<BlobServiceServer<ServedState>>().await;
    health
        .set_serving::<DirectoryServiceServer<ServedState>>()
        .await;
    health
        .set_serving::<PathInfoServiceServer<PathInfos>>()
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("build.rs wrote the descriptors");
    let routes = Routes::new(blobs)
        .add_service(directories)
        .add_service(path_infos)
        .add_service(limited!(RootServiceServer))
        .add_service(limited!(PartServiceServer))
        .add_service(limited!(IngestServiceServer))
        .add_service(health_service)
        .add_service(reflection);
    (health, routes)
}
