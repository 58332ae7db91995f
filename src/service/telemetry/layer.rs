//! From `tracing`'s spans to OpenTelemetry's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use crate::proto::opentelemetry::any_value::Value;
use crate::proto::opentelemetry::span::SpanKind;
use crate::proto::opentelemetry::status::StatusCode;
use crate::proto::opentelemetry::{AnyValue, KeyValue, Span, Status, span as otlp};
use crate::spans;

/// Bytes of a name of a trace and of a span.
const TRACE_ID: usize = 16;
const SPAN_ID: usize = 8;
/// Events that are kept with a span, at most.
const MOST_EVENTS: usize = 32;

/// The queue of spans.
pub(super) struct SpanQueue {
    pub(super) waiting: mpsc::Sender<Span>,
    /// How many there was no room for, and how many could not be sent.
    pub(super) lost: Arc<AtomicU64>,
}

impl SpanQueue {
    /// Queues `span`, if there is room.
    fn put(&self, span: Span) {
        if self.waiting.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes spans from `tracing`, and queues them.
pub(crate) struct SpanLayer {
    queue: SpanQueue,
}

impl SpanLayer {
    /// For the exporter that reads `queue`.
    pub(super) fn new(queue: SpanQueue) -> Self {
        Self { queue }
    }
}

/// Whether [`SpanLayer`] needs it: castore-fs spans, those around them, and warnings within.
pub(crate) fn is_followed(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().starts_with("castore_fs");
    ours && (metadata.is_span() || *metadata.level() <= Level::WARN)
}

/// A span that has not ended.
struct OpenSpan {
    span: Span,
    fields: SpanFields,
}

/// The fields that a span gives to those in it.
struct EnclosingFields(SpanFields);

/// Fields, and those for the exporter.
#[derive(Default)]
struct SpanFields {
    attributes: Vec<KeyValue>,
    name: Option<String>,
    kind: SpanKind,
    ago: Duration,
    error: Option<String>,
}

impl SpanFields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("otel.name" | "message", Value::StringValue(name)) => self.name = Some(name),
            ("otel.kind", Value::StringValue(kind)) => {
                self.kind = match kind.as_str() {
                    "server" => SpanKind::Server,
                    "client" => SpanKind::Client,
                    _ => SpanKind::Internal,
                };
            }
            ("otel.ago", Value::IntValue(micros)) => {
                self.ago = Duration::from_micros(micros.max(0) as u64);
            }
            (name, value) => {
                if let ("error", Value::StringValue(error)) = (name, &value) {
                    self.error = Some(error.clone());
                }
                self.attributes.push(KeyValue {
                    key: name.to_uppercase(),
                    value: Some(AnyValue { value: Some(value) }),
                });
            }
        }
    }
}

impl Visit for SpanFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::DoubleValue(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::IntValue(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.put(field, Value::IntValue(value)),
            Err(_) => self.put(field, Value::StringValue(value.to_string())),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::BoolValue(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::StringValue(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::StringValue(format!("{value:?}")));
    }
}

/// A unique id: random, and not all zeros, which means none.
fn fresh<const BYTES: usize>() -> Vec<u8> {
    let mut name = vec![0; BYTES];
    while name.iter().all(|byte| *byte == 0) {
        fastrand::fill(&mut name);
    }
    name
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

/// The nearest castore-fs span around `span`.
fn parent<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>) -> Option<(Vec<u8>, Vec<u8>)> {
    span.scope().skip(1).find_map(|outer| {
        let extensions = outer.extensions();
        let open = extensions.get::<OpenSpan>()?;
        Some((open.span.trace_id.clone(), open.span.span_id.clone()))
    })
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let Some(span) = context.span(id) else {
            return;
        };
        let mut fields = SpanFields::default();
        attributes.record(&mut fields);
        if span.metadata().target() != spans::TARGET {
            span.extensions_mut().insert(EnclosingFields(fields));
            return;
        }
        let (trace_id, parent_span_id) =
            parent(&span).unwrap_or_else(|| (fresh::<TRACE_ID>(), Vec::new()));
        let began = SystemTime::now()
            .checked_sub(fields.ago)
            .unwrap_or(UNIX_EPOCH);
        let open = OpenSpan {
            span: Span {
                trace_id,
                span_id: fresh::<SPAN_ID>(),
                parent_span_id,
                start_time_unix_nano: nanos(began),
                ..Span::default()
            },
            fields,
        };
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<OpenSpan>()
        {
            values.record(&mut open.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut scope = context.event_scope(event).into_iter().flatten();
        let Some(span) = scope.find(|span| span.extensions().get::<OpenSpan>().is_some()) else {
            return;
        };
        let mut extensions = span.extensions_mut();
        let Some(open) = extensions.get_mut::<OpenSpan>() else {
            return;
        };
        if open.span.events.len() < MOST_EVENTS {
            let mut fields = SpanFields::default();
            event.record(&mut fields);
            open.span.events.push(otlp::Event {
                time_unix_nano: nanos(SystemTime::now()),
                name: fields.name.unwrap_or_default(),
                attributes: fields.attributes,
            });
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(OpenSpan {
            span: mut ended,
            fields,
        }) = span.extensions_mut().remove::<OpenSpan>()
        else {
            return;
        };
        ended.end_time_unix_nano = nanos(SystemTime::now());
        ended.name = fields.name.unwrap_or_else(|| span.name().to_owned());
        ended.set_kind(fields.kind);
        ended.attributes = fields.attributes;
        for outer in span.scope().skip(1) {
            if let Some(EnclosingFields(around)) = outer.extensions().get::<EnclosingFields>() {
                ended.attributes.extend(around.attributes.iter().cloned());
            }
        }
        ended.status = fields.error.map(|message| {
            let mut status = Status {
                message,
                ..Status::default()
            };
            status.set_code(StatusCode::Error);
            status
        });
        self.queue.put(ended);
    }
}
