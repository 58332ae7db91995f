use std::net::TcpListener;

use prost::Message;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;

use kit::collector::{Collector, reported};

use super::*;
use crate::proto::opentelemetry::any_value::Value;
use crate::proto::opentelemetry::span::{Event, SpanKind};
use crate::proto::opentelemetry::status::StatusCode;
use crate::proto::opentelemetry::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans,
    ScopeSpans, Span, Status,
};
use crate::spans::TARGET;

/// Does `work`, of which the collector at `address` gets the spans.
fn followed(address: &str, work: impl FnOnce()) {
    let (exporter, traces) = SpanExporter::start(address).unwrap();
    let layer = traces.with_filter(filter_fn(is_followed));
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, work);
    drop(exporter);
}

#[test]
fn a_span_has_its_fields_its_parents_fields_and_its_parent() {
    let collector = Collector::start();
    followed(&collector.url(), || {
        let mount = tracing::error_span!("mount", MOUNT = "tree", STORE = "main");
        let _in_mount = mount.enter();
        let request = tracing::trace_span!(
            target: TARGET,
            "request",
            otel.kind = "server",
            otel.ago = 3_000_000u64,
            otel.name = tracing::field::Empty,
            digest = tracing::field::Empty,
        );
        let in_request = request.enter();
        tracing::trace_span!(
            target: TARGET,
            "fetch",
            otel.kind = "client",
            otel.name = "fetch blob",
            endpoint = "grpc+https://example.org",
            blobs = 7u64,
            error = "gone",
        );
        tracing::warn!(digest = 1, "a slow request");
        tracing::info!("not trouble");
        drop(in_request);
        request.record("otel.name", "READ");
        request.record("digest", "blake3-x");
        tracing::info_span!(target: "h2", "another library's");
    });
    let spans = collector.spans();
    let [fetch, request] = &spans[..] else {
        panic!("{spans:?}");
    };
    assert_eq!((&*fetch.name, &*request.name), ("fetch blob", "READ"));
    assert_eq!(fetch.kind, SpanKind::Client as i32);
    assert_eq!(request.kind, SpanKind::Server as i32);
    assert_eq!((request.trace_id.len(), request.span_id.len()), (16, 8));
    assert_eq!(fetch.trace_id, request.trace_id);
    assert_eq!(fetch.parent_span_id, request.span_id);
    assert!(request.parent_span_id.is_empty());
    let took = request.end_time_unix_nano - request.start_time_unix_nano;
    assert!((3_000_000_000..60_000_000_000).contains(&took), "{took}");
    let attributes = reported(&request.attributes);
    for (key, value) in [("MOUNT", "tree"), ("STORE", "main"), ("DIGEST", "blake3-x")] {
        assert_eq!(attributes[key], value);
    }
    assert_eq!(request.status, None);
    assert_eq!(request.events.len(), 1, "{:?}", request.events);
    assert_eq!(request.events[0].name, "a slow request");
    let attributes = reported(&fetch.attributes);
    assert_eq!(attributes["ENDPOINT"], "grpc+https://example.org");
    assert_eq!(
        (&*attributes["BLOBS"], &*attributes["MOUNT"]),
        ("7", "tree")
    );
    let status = fetch.status.as_ref().unwrap();
    assert_eq!(
        (status.code, &*status.message),
        (StatusCode::Error as i32, "gone")
    );
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "castore-fs");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn more_than_a_batch_arrives() {
    let collector = Collector::start();
    followed(&collector.url(), || {
        for _ in 0..1500 {
            tracing::trace_span!(target: TARGET, "request");
        }
    });
    assert_eq!(collector.spans().len(), 1500);
}

#[test]
fn an_absent_collector_delays_nothing() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    // More than any queue holds: it comes to its end all the same.
    followed(&address, || {
        for _ in 0..20_000 {
            tracing::trace_span!(target: TARGET, "request");
        }
    });
}

#[test]
fn what_is_no_address_is_refused() {
    for address in [
        "",
        "localhost:4317",
        "unix:/run/x",
        "ftp://a:1",
        "http://a:1/v1/traces",
    ] {
        let error = SpanExporter::check(address).unwrap_err();
        assert!(error.to_string().contains("http://HOST:PORT"), "{error}");
    }
    SpanExporter::check("http://[::1]:4317").unwrap();
    SpanExporter::check("https://collector.example.org:4317/").unwrap();
}

/// The bytes are those that version 0.33.1 of the project's own crate, opentelemetry-proto, makes of
/// the same values.
#[test]
fn spans_are_on_the_wire_what_opentelemetry_says() {
    let pair = |key: &str, value| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    };
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        parent_span_id: vec![3; 8],
        name: "READ".to_owned(),
        kind: SpanKind::Client.into(),
        start_time_unix_nano: 5,
        end_time_unix_nano: 6,
        attributes: vec![
            pair("S", Value::StringValue("text".to_owned())),
            pair("B", Value::BoolValue(true)),
            pair("I", Value::IntValue(-1)),
            pair("D", Value::DoubleValue(1.5)),
        ],
        events: vec![Event {
            time_unix_nano: 7,
            name: "e".to_owned(),
            attributes: vec![],
        }],
        status: Some(Status {
            message: "gone".to_owned(),
            code: StatusCode::Error.into(),
        }),
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![pair("r", Value::StringValue("x".to_owned()))],
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "n".to_owned(),
                    version: "v".to_owned(),
                }),
                spans: vec![span],
            }],
        }],
    };
    let bytes = data_encoding::HEXLOWER.encode(&request.encode_to_vec());
    assert_eq!(
        bytes,
        concat!(
            "0aaa010a0a0a080a017212030a0178129b010a060a016e1201761290010a10010101010101010101",
            "0101010101010112080202020202020202220803030303030303032a045245414430033905000000",
            "000000004106000000000000004a0b0a015312060a04746578744a070a0142120210014a100a0149",
            "120b18ffffffffffffffffff014a0e0a0144120921000000000000f83f5a0c090700000000000000",
            "1201657a081204676f6e651802",
        )
    );
}
