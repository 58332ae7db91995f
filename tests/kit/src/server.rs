//! Servers that live as long as a test.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use castore_fs::server::{Listener, ServerOptions, serve};
use castore_fs::store::{GrpcStore, Store};
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;

/// A castore-fs server; stops when dropped.
pub struct Server {
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub fn tcp(store: Arc<dyn Store>) -> Self {
        Self::start(store, "127.0.0.1:0", true)
    }

    pub fn read_only(store: Arc<dyn Store>) -> Self {
        Self::start(store, "127.0.0.1:0", false)
    }

    pub fn start(store: Arc<dyn Store>, address: &str, writable: bool) -> Self {
        let options = ServerOptions {
            writable,
            allow_replace: writable,
            drain: Duration::from_secs(2),
            ..ServerOptions::default()
        };
        Self::with(store, address, options)
    }

    /// A server with these options.
    pub fn with(store: Arc<dyn Store>, address: &str, options: ServerOptions) -> Self {
        let listeners = Listener::bind(address).unwrap();
        let url = match &listeners[0] {
            Listener::Tcp(listener) if options.tls.is_some() => {
                // The name that certificates of tests are for.
                let port = listener.local_addr().unwrap().port();
                format!("grpc+https://localhost:{port}")
            }
            Listener::Tcp(_) => format!("grpc+http://{}", listeners[0]),
            Listener::Unix(_) => format!("grpc+{}", listeners[0]),
        };
        let (url, stop, thread) = run(url, move |stopped| async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(store, listeners, options, stopped).await.unwrap();
        });
        Self {
            url,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// A server of any services: `serving` serves what comes in.
    pub fn of<F>(serving: impl FnOnce(TcpIncoming) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), tonic::transport::Error>>,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("grpc+http://{}", listener.local_addr().unwrap());
        let (url, stop, thread) = run(url, move |stopped| async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            tokio::select! {
                served = serving(incoming) => served.unwrap(),
                _ = stopped => {}
            }
        });
        Self {
            url,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn client(&self) -> GrpcStore {
        self.client_with("")
    }

    /// A client with these parameters in its URL.
    pub fn client_with(&self, query: &str) -> GrpcStore {
        GrpcStore::open(&format!("{}?{query}", self.url)).unwrap()
    }

    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn run<F: Future<Output = ()>>(
    url: String,
    serve: impl FnOnce(oneshot::Receiver<()>) -> F + Send + 'static,
) -> (String, oneshot::Sender<()>, std::thread::JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(serve(stopped));
        runtime.shutdown_timeout(Duration::from_millis(100));
    });
    (url, stop, thread)
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
