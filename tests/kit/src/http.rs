//! A directory of objects over plain HTTP: GET and HEAD, many requests on a connection.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Serves a directory for as long as it lives.
pub struct HttpDir {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl HttpDir {
    pub fn serve(dir: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let dir = dir.to_owned();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((connection, _)) = listener.accept().await {
                connection.set_nodelay(true).unwrap();
                let dir = dir.clone();
                // The client may disconnect.
                tokio::spawn(async move { answer_all(connection, dir).await.ok() });
            }
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }
}

impl Drop for HttpDir {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer_all(connection: TcpStream, dir: PathBuf) -> std::io::Result<()> {
    let (reads, mut writes) = connection.into_split();
    let mut lines = BufReader::new(reads).lines();
    while let Some(request) = lines.next_line().await? {
        while lines
            .next_line()
            .await?
            .is_some_and(|line| !line.is_empty())
        {}
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let found = std::fs::read(dir.join(path.trim_start_matches('/')));
        let status = if found.is_ok() {
            "200 OK"
        } else {
            "404 Not Found"
        };
        let body = found.unwrap_or_default();
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\n\
             Last-Modified: Thu, 01 Jan 1970 00:00:01 GMT\r\n\r\n",
            body.len()
        )
        .into_bytes();
        if method == "GET" {
            answer.extend_from_slice(&body);
        }
        writes.write_all(&answer).await?;
    }
    Ok(())
}
