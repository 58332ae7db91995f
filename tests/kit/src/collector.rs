//! An OpenTelemetry collector that stores what it receives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use castore_fs::proto::opentelemetry::any_value::Value;
use castore_fs::proto::opentelemetry::trace_service_server::{TraceService, TraceServiceServer};
use castore_fs::proto::opentelemetry::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, KeyValue, Span,
};
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector, with a runtime of its own.
pub struct Collector {
    address: SocketAddr,
    kept: Kept,
    _runtime: Runtime,
}

impl Collector {
    pub fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let kept = Kept::default();
        let incoming = {
            let _inside = runtime.enter();
            TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap()
        };
        let address = incoming.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(kept.clone()))
            .serve_with_incoming(incoming);
        runtime.spawn(server);
        Self {
            address,
            kept,
            _runtime: runtime,
        }
    }

    /// For `log.otlp`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has been received.
    pub fn spans(&self) -> Vec<Span> {
        let kept = self.kept.0.lock().unwrap();
        let resources = kept.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The attributes of the sender.
    pub fn resource(&self) -> BTreeMap<String, String> {
        let kept = self.kept.0.lock().unwrap();
        let resource = kept[0].resource_spans[0].resource.as_ref().unwrap();
        reported(&resource.attributes)
    }
}

/// Attributes as text.
pub fn reported(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| {
        let value = match pair.value.clone().unwrap().value.unwrap() {
            Value::StringValue(text) => text,
            Value::BoolValue(value) => value.to_string(),
            Value::IntValue(value) => value.to_string(),
            Value::DoubleValue(value) => value.to_string(),
        };
        (pair.key.clone(), value)
    };
    attributes.iter().map(text).collect()
}
