//! Spans for OpenTelemetry: what was done for whom, and how long it took, sent to a collector.
//!
//! [`layer::Traces`] listens to `tracing`: each span of [`crate::spans`] that ends becomes one of
//! OTLP's, with its fields and those around it under the names that they have in the journal
//! (`MOUNT`, `STORE`, `ENDPOINT`, `DIGEST`, …). The [`Exporter`], a thread of its own, sends what has
//! come together. A collector that is slow or gone costs spans, which are counted, and nothing else:
//! requests never wait for it.
//!
//! The protocol is one message in one gRPC call, which our own gRPC library sends: the crates of the
//! OpenTelemetry project would be four more, each bound to versions of the others, for the same bytes.

mod exporter;
mod layer;
#[cfg(test)]
mod tests;

pub use exporter::{CollectorError, Exporter};
pub use layer::is_followed;
