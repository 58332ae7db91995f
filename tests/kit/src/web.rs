//! A directory over HTTP as binary caches are: GET and HEAD with ranges, a list of what was asked
//! for, and faults that a test switches on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// What goes wrong with answers.
#[derive(Clone, Debug, Default)]
pub struct WebFaults {
    /// Every answer longer than this is cut after so many bytes of its body.
    pub break_after: Option<usize>,
    /// `Range` is ignored.
    pub no_ranges: bool,
    /// Answers to paths that contain this text have this status.
    pub status: Option<(&'static str, u16)>,
    /// Wait before each answer.
    pub delay: Duration,
    /// Each file is reached by so many redirects, one after the other.
    pub redirects: usize,
    /// The value that `Authorization` must have.
    pub authorization: Option<String>,
}

/// Serves a directory for as long as it lives.
pub struct Web {
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

struct State {
    directory: PathBuf,
    faults: Mutex<WebFaults>,
    requests: Mutex<Vec<String>>,
}

impl Web {
    pub fn serve(directory: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            directory: directory.to_owned(),
            faults: Mutex::default(),
            requests: Mutex::default(),
        });
        let shared = state.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((connection, _)) = listener.accept().await {
                connection.set_nodelay(true).unwrap();
                let state = shared.clone();
                // A client that breaks the connection ends its task.
                tokio::spawn(async move { state.answer_all(connection).await.ok() });
            }
        });
        Self {
            address,
            state,
            runtime: Some(runtime),
        }
    }

    /// From now on these go wrong.
    pub fn set_faults(&self, faults: WebFaults) {
        *self.state.faults.lock().unwrap() = faults;
    }

    /// Requests since the last call: method, path and range.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    async fn answer_all(&self, connection: TcpStream) -> std::io::Result<()> {
        let (reads, mut writes) = connection.into_split();
        let mut lines = BufReader::new(reads).lines();
        while let Some(request) = lines.next_line().await? {
            let (mut range, mut authorization) = (None, None);
            while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
                if let Some((name, value)) = line.split_once(": ") {
                    match name.to_ascii_lowercase().as_str() {
                        "range" => range = Some(value.to_owned()),
                        "authorization" => authorization = Some(value.to_owned()),
                        _ => {}
                    }
                }
            }
            let faults = self.faults.lock().unwrap().clone();
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            let logged = match &range {
                Some(range) => format!("{method} {path} {range}"),
                None => format!("{method} {path}"),
            };
            self.requests.lock().unwrap().push(logged);
            tokio::time::sleep(faults.delay).await;
            let hop = path.strip_prefix("/hop-");
            let hop = hop.and_then(|path| path.split_once('/'));
            let (hops, path) = match hop {
                Some((hops, path)) => (hops.parse().unwrap(), path),
                None => (0, path.trim_start_matches('/')),
            };
            if hops < faults.redirects {
                let next = format!("Location: /hop-{}/{path}\r\n", hops + 1);
                let answer = format!("HTTP/1.1 302 x\r\nContent-Length: 0\r\n{next}\r\n");
                writes.write_all(answer.as_bytes()).await?;
                continue;
            }
            let found = std::fs::read(self.directory.join(path));
            let fault = faults.status.filter(|(text, _)| path.contains(text));
            let from = range.filter(|_| !faults.no_ranges).and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse()
                    .ok()
            });
            let (status, body, headers) = match (fault, found, from) {
                _ if faults.authorization.is_some() && faults.authorization != authorization => {
                    (401, Vec::new(), String::new())
                }
                (Some((_, status)), ..) => (status, Vec::new(), String::new()),
                (None, Err(_), _) => (404, Vec::new(), String::new()),
                (None, Ok(body), Some(from)) => {
                    let size = body.len();
                    let from: usize = from;
                    let range = format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1);
                    (206, body[from.min(size)..].to_vec(), range)
                }
                (None, Ok(body), None) => (200, body, String::new()),
            };
            let mut answer = format!(
                "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{headers}\r\n",
                body.len()
            )
            .into_bytes();
            let short = faults.break_after.filter(|most| *most < body.len());
            if method == "GET" {
                answer.extend_from_slice(&body[..short.unwrap_or(body.len())]);
            }
            writes.write_all(&answer).await?;
            if short.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }
}
