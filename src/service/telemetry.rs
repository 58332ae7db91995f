//! Spans for OpenTelemetry, sent to a collector: what each request caused, and how long it took.
//!
//! [`layer::SpanLayer`] listens to `tracing`: each span of [`crate::spans`] that ends becomes one of
//! OTLP's, with its fields and those around it under the names that they have in the journal
//! (`MOUNT`, `STORE`, `ENDPOINT`, `DIGEST`, …). The [`SpanExporter`], a thread of its own, sends them
//! in batches. A slow or missing collector costs spans, which are counted, and nothing else:
//! requests never wait for it.
//!
//! The protocol is one message in one gRPC call, which the gRPC library of this program sends: the
//! crates of the OpenTelemetry project would be four more, each bound to versions of the others,
//! for the same bytes.

mod exporter;
mod layer;
#[cfg(test)]
mod tests;

pub(super) use exporter::{CollectorError, SpanExporter};
pub(super) use layer::is_followed;
