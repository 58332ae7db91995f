//! Connections: the handshake, and one operation after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::NixDaemonOptions;
use super::answers::Answers;
use super::hand_over::{self, HandedOverConnection};
use super::wire::{ConversationEnd, Wire};
use crate::nix::daemon_protocol::{
    CLIENT_MAGIC, ClientTrust, Encoder, Field, Hello, Operation, OperationFailure, Value, Version,
};
use crate::server::client::ClientId;
use crate::server::connections::Connections;
use crate::server::listen::Listener;
use crate::server::{ServerError, ServerOptions};

/// How long a connection is quiet before it is kept for the next process: one for a single question never is.
const QUIET: Duration = Duration::from_millis(100);

/// Serves `of_nix` on `listener` until `stopping`; operations that run then are completed.
pub(in crate::server) async fn serve_one(
    of_nix: NixDaemonOptions,
    listener: Listener,
    options: ServerOptions,
    connections: Arc<Connections>,
    stopping: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let address = listener.to_string();
    let unusable = |source| ServerError::Listen {
        listener: address.clone(),
        source,
    };
    let Listener::Unix(listener) = listener else {
        let why = "Nix speaks to a daemon over a Unix socket only";
        return Err(unusable(io::Error::new(io::ErrorKind::InvalidInput, why)));
    };
    listener.set_nonblocking(true).map_err(unusable)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(unusable)?;
    tracing::info!("listening on {address}, as a Nix daemon");
    let mut incoming = connections.accept(listener, address.clone(), stopping.clone());
    let mut running = JoinSet::new();
    while let Some(accepted) = incoming.next().await {
        // Those that have ended need no place.
        while running.try_join_next().is_some() {}
        let Ok(connection) = accepted else { continue };
        let conversation = Conversation {
            wire: Wire::new(connection, options.limits.silence),
            answers: Answers::new(of_nix.paths.clone()),
            handed_over: of_nix.hand_over.keep_later(),
            stopping: stopping.clone(),
        };
        running.spawn(conversation.begin(options.limits.first_call).boxed());
    }
    while running.join_next().await.is_some() {}
    Ok(())
}

/// Continues the connections that the previous process left.
pub(in crate::server) async fn serve_previous(
    of_nix: NixDaemonOptions,
    options: ServerOptions,
    connections: Arc<Connections>,
    stopping: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let mut running = JoinSet::new();
    for (socket, version, handed_over) in of_nix.hand_over.previous() {
        let socket = std::os::unix::net::UnixStream::from(socket);
        let converted = socket.set_nonblocking(true);
        let converted = converted.and_then(|()| tokio::net::UnixStream::from_std(socket));
        let Ok(stream) = converted else { continue };
        let client = ClientId::of_socket(&stream);
        let connection = connections.take_over(stream, client);
        let conversation = Conversation {
            wire: Wire::new(connection, options.limits.silence),
            answers: Answers::new(of_nix.paths.clone()),
            handed_over,
            stopping: stopping.clone(),
        };
        running.spawn(conversation.serve_from(version).boxed());
    }
    while running.join_next().await.is_some() {}
    // The other listeners end when they are stopped.
    let mut stopping = stopping;
    let _ = stopping.wait_for(|stop| *stop).await;
    Ok(())
}

/// One connection.
struct Conversation {
    // Dropped first: what is no longer kept is closed.
    handed_over: HandedOverConnection,
    wire: Wire,
    answers: Answers,
    stopping: watch::Receiver<bool>,
}

impl Conversation {
    /// From the handshake on, which may take `patience`.
    async fn begin(mut self, patience: Duration) {
        match tokio::time::timeout(patience, shake_hands(&mut self.wire)).await {
            Ok(Ok(Some(version))) => self.serve_from(version).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => report(&error),
            Err(_) => report(&ConversationEnd::Late("the handshake was not completed")),
        }
    }

    /// One operation after the other.
    async fn serve_from(mut self, version: Version) {
        if let Err(error) = self.converse(version).await {
            report(&error);
        }
    }

    async fn converse(&mut self, version: Version) -> Result<(), ConversationEnd> {
        loop {
            hand_over::note(self.wire.socket(), version);
            loop {
                tokio::select! {
                    readable = self.wire.readable() => {
                        readable?;
                        break;
                    }
                    // An error means that the server is gone, which is a stop as well.
                    _ = self.stopping.wait_for(|stop| *stop) => {
                        if self.handed_over.is_handed_over() {
                            self.handed_over.keep(self.wire.socket());
                        }
                        return Ok(());
                    }
                    () = tokio::time::sleep(QUIET), if self.handed_over.is_wanted() => {
                        self.handed_over.keep(self.wire.socket());
                    }
                }
            }
            // Before anything of it is read.
            hand_over::note_busy(self.wire.socket())?;
            let Some(code) = self.wire.first_word().await? else {
                return Ok(());
            };
            if !self.answer(version, code).await? {
                return Ok(());
            }
        }
    }

    /// Answers the request that begins with `code`. False if the connection is to end.
    async fn answer(&mut self, version: Version, code: u64) -> Result<bool, ConversationEnd> {
        let wire = &mut self.wire;
        let _call = wire.state().begin();
        let _slot = wire.state().calls.clone().hold(1).await;
        let Some(operation) = Operation::from_code(code) else {
            // Where the next request begins is not known.
            let message = format!("castore-fs knows no operation with the number {code}");
            refuse(wire, &OperationFailure::new(message)).await?;
            wire.finish().await;
            return Ok(false);
        };
        let read = wire.values(operation.fields()).await;
        if let Err(error @ (ConversationEnd::Wire(_) | ConversationEnd::Incomplete(_))) = &read {
            let message = format!("castore-fs refuses this request: {error}");
            refuse(wire, &OperationFailure::new(message)).await?;
            wire.finish().await;
        }
        let (values, _room) = read?;
        let answered = self.answers.answer(wire, version, operation, values);
        if let Err(failure) = answered.await? {
            refuse(wire, &failure).await?;
            if operation.has_frames() {
                wire.skip_frames().await?;
            }
        }
        Ok(true)
    }
}

fn report(error: &ConversationEnd) {
    match error {
        // A client that ends its connection in the middle of something.
        ConversationEnd::Io(_) => {}
        error => tracing::debug!("a Nix client's connection was closed: {error}"),
    }
}

/// The version that both speak; nothing if the client was refused.
async fn shake_hands(wire: &mut Wire) -> Result<Option<Version>, ConversationEnd> {
    let mut out = Encoder::default();
    match wire.first_word().await? {
        None => return Ok(None),
        Some(CLIENT_MAGIC) => {}
        Some(_) => return Err(ConversationEnd::Other("the client is not Nix".to_owned())),
    }
    // A connection that has shaken hands counts as one that has had a call.
    let _call = wire.state().begin();
    Version::LATEST.put_server(&mut out);
    wire.send(&mut out).await?;
    let theirs = word(wire).await?;
    let theirs = Version::from_word(theirs).ok_or_else(|| {
        ConversationEnd::Other(format!("{theirs} is no version of Nix's protocol"))
    })?;
    let version = theirs.min(Version::LATEST);
    if version >= Version::WITH_FEATURES {
        // None of them is known here, and so none is in use.
        wire.values(&[Field::Texts(1)]).await?;
        wire.send(out.texts([""; 0].iter())).await?;
    }
    let names_processor = word(wire).await? != 0;
    wire.values(Hello::fields(names_processor)).await?;
    let program = concat!("castore-fs ", env!("CARGO_PKG_VERSION"));
    version.put_welcome(program, ClientTrust::Untrusted, &mut out);
    if version < Version::FIRST {
        let message = format!(
            "this Nix speaks version {theirs} of the daemon protocol, and castore-fs {} and later: update Nix \
             to 2.15 or later",
            Version::FIRST
        );
        // Where it expects no error it sees the end of the connection.
        out.take();
        out.text(program);
        OperationFailure::new(message).put(&mut out);
        wire.send(&mut out).await?;
        return Ok(None);
    }
    wire.send(&mut out).await?;
    wire.state().is_active();
    Ok(Some(version))
}

async fn word(wire: &mut Wire) -> Result<u64, ConversationEnd> {
    match &wire.values(&[Field::Word]).await?.0[..] {
        [Value::Word(word)] => Ok(*word),
        _ => Ok(0),
    }
}

async fn refuse(wire: &mut Wire, failure: &OperationFailure) -> Result<(), ConversationEnd> {
    let mut out = Encoder::default();
    failure.put(&mut out);
    wire.send(&mut out).await
}
