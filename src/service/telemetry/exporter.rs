//! Sending spans to a collector.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::layer::{SpanLayer, SpanQueue};
use crate::proto::opentelemetry::any_value::Value;
use crate::proto::opentelemetry::trace_service_client::TraceServiceClient;
use crate::proto::opentelemetry::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans,
    ScopeSpans, Span,
};
use crate::spans;
use crate::store::shown_url;

/// Spans that wait to be sent, at most.
const MOST_WAITING: usize = 4096;
/// Spans that are sent at once, at most.
const MOST_AT_ONCE: usize = 512;
/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a call with a temporary error is tried, and the pause before the second time, which
/// doubles.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last spans.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why spans cannot be exported.
#[derive(Debug, Error)]
pub enum CollectorError {
    /// The text is not an address.
    #[error(
        "{:?} is not a collector's address: write http://HOST:PORT or https://HOST:PORT",
        shown_url(.0)
    )]
    Address(String),
    /// TLS is unavailable.
    #[error("cannot reach a collector over TLS: {0}")]
    Tls(tonic::transport::Error),
    /// Its thread cannot be started.
    #[error("cannot start to export spans: {0}")]
    Start(#[from] std::io::Error),
}

/// Sends spans to a collector, until this is dropped.
pub(crate) struct SpanExporter {
    thread: Option<JoinHandle<()>>,
    end: Option<mpsc::Sender<()>>,
}

impl SpanExporter {
    /// Checks that `address` can be a collector's.
    pub(crate) fn check(address: &str) -> Result<(), CollectorError> {
        endpoint(address).map(drop)
    }

    /// Sends the spans of [`SpanLayer`] to the collector at `address`, `http://HOST:PORT` or
    /// `https://…`, which need not be running yet.
    pub(crate) fn start(address: &str) -> Result<(Self, SpanLayer), CollectorError> {
        let endpoint = endpoint(address)?;
        let (waiting, mut spans) = mpsc::channel(MOST_WAITING);
        let (end, mut ended) = mpsc::channel::<()>(1);
        let lost = Arc::new(AtomicU64::new(0));
        let runtime: Runtime = Builder::new_current_thread().enable_all().build()?;
        let queue = SpanQueue {
            waiting,
            lost: lost.clone(),
        };
        let address = address.to_owned();
        let export = async move {
            let mut collector = CollectorConnection {
                client: TraceServiceClient::new(endpoint.connect_lazy()),
                address,
                lost,
            };
            loop {
                let mut batch = Vec::new();
                tokio::select! {
                    some = spans.recv_many(&mut batch, MOST_AT_ONCE) => if some == 0 { break },
                    _ = ended.recv() => break,
                }
                let more = async {
                    while batch.len() < MOST_AT_ONCE {
                        let room = MOST_AT_ONCE - batch.len();
                        if spans.recv_many(&mut batch, room).await == 0 {
                            break;
                        }
                    }
                };
                let over = tokio::select! {
                    _ = timeout(GATHER, more) => false,
                    _ = ended.recv() => true,
                };
                let mut sent = pin!(collector.send(batch));
                if !over {
                    tokio::select! {
                        () = &mut sent => continue,
                        _ = ended.recv() => {}
                    }
                }
                let _ = timeout(FAREWELL, sent).await;
                break;
            }
            let mut rest = Vec::new();
            while let Ok(span) = spans.try_recv() {
                rest.push(span);
            }
            if !rest.is_empty() {
                let _ = timeout(FAREWELL, collector.send(rest)).await;
            }
        };
        let thread = std::thread::Builder::new()
            .name("castore-otlp".to_owned())
            .spawn(move || runtime.block_on(export))?;
        spans::want();
        let exporter = Self {
            thread: Some(thread),
            end: Some(end),
        };
        Ok((exporter, SpanLayer::new(queue)))
    }
}

impl Drop for SpanExporter {
    /// Sends the rest, for a moment.
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn endpoint(address: &str) -> Result<Endpoint, CollectorError> {
    let wrong = || CollectorError::Address(address.to_owned());
    let uri: http::Uri = address.parse().map_err(|_| wrong())?;
    if uri.host().is_none() || !matches!(uri.path(), "" | "/") {
        return Err(wrong());
    }
    let endpoint = match uri.scheme_str() {
        Some("http") => Endpoint::from(uri),
        Some("https") => Endpoint::from(uri)
            .tls_config(ClientTlsConfig::new().with_native_roots())
            .map_err(CollectorError::Tls)?,
        _ => return Err(wrong()),
    };
    Ok(endpoint.timeout(PATIENCE).connect_timeout(PATIENCE))
}

/// The connection to the collector.
struct CollectorConnection {
    client: TraceServiceClient<Channel>,
    address: String,
    /// Spans that could not be sent, and were not logged yet.
    lost: Arc<AtomicU64>,
}

impl CollectorConnection {
    async fn send(&mut self, batch: Vec<Span>) {
        let count = batch.len() as u64;
        let request = request(batch);
        let mut pause = PAUSE;
        for attempt in 1.. {
            let failed = match self.client.export(request.clone()).await {
                Ok(_) => break,
                Err(status) => status,
            };
            // The codes for which the protocol allows a retry.
            let passes = matches!(
                failed.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Aborted
                    | Code::ResourceExhausted
            );
            if !passes || attempt == TRIES {
                self.lost.fetch_add(count, Ordering::Relaxed);
                let why = failed.message();
                tracing::warn!(
                    COLLECTOR = self.address,
                    why,
                    "the collector takes no spans"
                );
                break;
            }
            sleep(pause).await;
            pause *= 2;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(COLLECTOR = self.address, lost, "spans were lost");
        }
    }
}

/// `spans`, and their sender.
fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let text = |key: &str, value: String| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value)),
        }),
    };
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let mut attributes = vec![
        text("service.name", name.to_owned()),
        text("service.version", version.to_owned()),
        text("service.instance.id", std::process::id().to_string()),
    ];
    // A unit that sees nothing of /proc but processes has no name.
    if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        attributes.push(text("host.name", host.trim().to_owned()));
    }
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: name.to_owned(),
                    version: version.to_owned(),
                }),
                spans,
            }],
        }],
    }
}
