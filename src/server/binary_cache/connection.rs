//! Connections of a binary cache: HTTP/1.1 and HTTP/2, with TLS or without.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::transport::server::Connected;

use super::ServedBinaryCache;
use super::answer::{HttpAnswer, failure, text};
use crate::server::capacity::ConnectionState;
use crate::server::connections::{ClosableConnection, Connections};
use crate::server::limits::{HEADERS, ServerLimits, headers_fit};
use crate::server::listen::Listener;
use crate::server::tls::acceptor;
use crate::server::{CONNECTION_WINDOW, STREAM_WINDOW, ServerError, ServerOptions};

/// Serves `cache` on `listener` until `stopping`, and then until its connections have ended.
pub(in crate::server) async fn serve_one(
    cache: ServedBinaryCache,
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
    let serving = HttpServing {
        cache,
        http: builder(&options),
        limits: options.limits.clone(),
        stopping: stopping.clone(),
    };
    tracing::info!("listening on {address}, as a Nix binary cache");
    match listener {
        Listener::Tcp(listener) => {
            listener.set_nonblocking(true).map_err(unusable)?;
            let listener = tokio::net::TcpListener::from_std(listener).map_err(unusable)?;
            let tls = options.tls.as_ref().map(acceptor).transpose();
            let tls = tls.map_err(|why| ServerError::Tls {
                listener: address.clone(),
                why,
            })?;
            let incoming = connections.accept(listener, address.clone(), stopping);
            serving.serve(incoming, tls).await;
        }
        Listener::Unix(listener) => {
            listener.set_nonblocking(true).map_err(unusable)?;
            let listener = tokio::net::UnixListener::from_std(listener).map_err(unusable)?;
            let incoming = connections.accept(listener, address.clone(), stopping);
            serving.serve(incoming, None).await;
        }
    }
    Ok(())
}

fn builder(options: &ServerOptions) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.limits.first_call)
        .max_buf_size(HEADERS as usize);
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(options.streams.get());
    http
}

/// What serves the connections of one listener.
#[derive(Clone)]
struct HttpServing {
    cache: ServedBinaryCache,
    http: auto::Builder<TokioExecutor>,
    limits: ServerLimits,
    stopping: watch::Receiver<bool>,
}

impl HttpServing {
    async fn serve<T>(
        self,
        mut incoming: impl futures_util::Stream<Item = std::io::Result<ClosableConnection<T>>> + Unpin,
        tls: Option<TlsAcceptor>,
    ) where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut running = JoinSet::new();
        while let Some(accepted) = incoming.next().await {
            // Those that have ended need no place.
            while running.try_join_next().is_some() {}
            let Ok(connection) = accepted else { continue };
            let (serving, tls) = (self.clone(), tls.clone());
            running.spawn(
                async move {
                    let state = connection.connect_info();
                    match tls {
                        None => serving.serve_connection(connection, state).await,
                        Some(tls) => {
                            let limit = serving.limits.first_call;
                            let shaken = tokio::time::timeout(limit, tls.accept(connection)).await;
                            if let Ok(Ok(stream)) = shaken {
                                serving.serve_connection(stream, state).await;
                            }
                        }
                    }
                }
                .boxed(),
            );
        }
        while running.join_next().await.is_some() {}
    }

    async fn serve_connection<I>(self, io: I, state: Arc<ConnectionState>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self {
            cache,
            http,
            mut stopping,
            ..
        } = self;
        let service = service_fn(move |request| {
            let (cache, state) = (cache.clone(), state.clone());
            async move { Ok::<_, Infallible>(serve_call(cache, request, state).await) }
        });
        let connection = http.serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        let stopped = async move {
            // An error means that the server is gone, which is a stop as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = stopped => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("a connection was interrupted: {error}");
        }
    }
}

/// Answers one call, within what its connection may have.
async fn serve_call(
    cache: ServedBinaryCache,
    request: Request<Incoming>,
    connection: Arc<ConnectionState>,
) -> HttpAnswer {
    let call = connection.begin();
    if !headers_fit(&request) {
        let most = format!("the head of a request has at most {HEADERS} bytes\n");
        return text(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "text/plain",
            most,
        );
    }
    // Answered late rather than refused: a client does not come again after a refusal.
    let slot = connection.calls.clone().hold(1).await;
    let answer = match request.uri().path().starts_with('/') {
        true => cache.answer(request, &connection).await,
        false => failure(&Status::not_found("there is no such file")),
    };
    answer.map(|body| body.during(call, vec![slot]))
}
