//! Requests over plain HTTP/1.1, byte for byte as a test writes them: one for each connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A client of one server.
#[derive(Clone, Debug)]
pub struct HttpClient {
    server: ServerPlace,
    /// Of every request.
    headers: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
enum ServerPlace {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl HttpClient {
    pub fn tcp(address: SocketAddr) -> Self {
        Self {
            server: ServerPlace::Tcp(address),
            headers: Vec::new(),
        }
    }

    pub fn unix(socket: &Path) -> Self {
        Self {
            server: ServerPlace::Unix(socket.to_owned()),
            headers: Vec::new(),
        }
    }

    /// The same, with a header more in every request.
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// The answer to a request without a body.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> HttpAnswer {
        self.send(method, path, headers, b"")
    }

    pub fn get(&self, path: &str) -> HttpAnswer {
        self.ask("GET", path, &[])
    }

    /// The same; nothing if the server closes the connection before its answer begins.
    pub fn try_get(&self, path: &str) -> Option<HttpAnswer> {
        let bytes = self.exchange(&self.head("GET", path, &[], b""), b"");
        (!bytes.is_empty()).then(|| HttpAnswer::parse(&bytes))
    }

    /// The answer to a request with `body`.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> HttpAnswer {
        let head = self.head(method, path, headers, body);
        HttpAnswer::parse(&self.exchange(&head, body))
    }

    fn head(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let own = self
            .headers
            .iter()
            .map(|(name, value)| (&name[..], &value[..]));
        for (name, value) in own.chain(headers.iter().copied()) {
            head += &format!("{name}: {value}\r\n");
        }
        if method == "PUT" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head
    }

    /// The answer to an upload of `length` bytes of which no more than `body` is sent.
    pub fn send_part(&self, path: &str, length: usize, body: &[u8]) -> HttpAnswer {
        let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n");
        HttpAnswer::parse(&self.exchange(&head, body))
    }

    fn exchange(&self, head: &str, body: &[u8]) -> Vec<u8> {
        let mut stream: Box<dyn Stream> = match &self.server {
            ServerPlace::Unix(socket) => Box::new(UnixStream::connect(socket).unwrap()),
            ServerPlace::Tcp(address) => Box::new(TcpStream::connect(address).unwrap()),
        };
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        // The server may refuse the request before it has read all of it.
        let _ = stream.write_all(body);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }
}

/// An answer, with its body as the server's encoding leaves it, but without chunks.
#[derive(Debug)]
pub struct HttpAnswer {
    pub status: u16,
    /// By their names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl HttpAnswer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end =
            end.unwrap_or_else(|| panic!("no answer: {:?}", bytes.escape_ascii().to_string()));
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: HashMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let rest = &bytes[end + 4..];
        let body = match headers.get("transfer-encoding") {
            Some(_) => unchunk(rest),
            None => rest.to_vec(),
        };
        Self {
            status: status.parse().unwrap(),
            headers,
            body,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .unwrap();
        let length =
            usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        bytes = &bytes[end + 2..];
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[..length]);
        bytes = &bytes[length + 2..];
    }
}
