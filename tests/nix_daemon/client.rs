//! The client's side of Nix's daemon protocol, byte by byte, as Nix 2.26 speaks it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub(crate) const LAST: u64 = 0x616c_7473;
pub(crate) const ERROR: u64 = 0x6378_7470;

/// A connection after its handshake.
pub(crate) struct Client(pub UnixStream);

/// Bytes of a request.
#[derive(Default)]
pub(crate) struct Bytes(pub Vec<u8>);

impl Bytes {
    pub(crate) fn word(mut self, word: u64) -> Self {
        self.0.extend(word.to_le_bytes());
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        let mut bytes = self.word(text.len() as u64);
        bytes.0.extend(text.as_bytes());
        while !bytes.0.len().is_multiple_of(8) {
            bytes.0.push(0);
        }
        bytes
    }

    pub(crate) fn texts(self, texts: &[&str]) -> Self {
        let bytes = self.word(texts.len() as u64);
        texts.iter().fold(bytes, |bytes, text| bytes.text(text))
    }
}

impl Client {
    /// A connection that has sent nothing.
    pub(crate) fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        // A server that should answer and does not fails the test.
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
        stream.set_write_timeout(patience).unwrap();
        Self(stream)
    }

    /// A connection of Nix 2.26.
    pub(crate) fn connect(socket: &Path) -> Self {
        Self::with_version(socket, 0x126)
    }

    /// A connection of a client with this version.
    pub(crate) fn with_version(socket: &Path, version: u64) -> Self {
        Self::silent(socket).shake_hands(version)
    }

    /// The handshake of a client with this version.
    pub(crate) fn shake_hands(self, version: u64) -> Self {
        let mut client = self;
        client.send(Bytes::default().word(0x6e69_7863).word(version));
        assert_eq!(client.word(), 0x6478_696f);
        assert_eq!(client.word(), 0x126);
        if version >= 0x126 {
            client.send(Bytes::default().texts(&["a-feature"]));
            assert_eq!(client.texts(), [""; 0]);
        }
        client.send(Bytes::default().word(0).word(0));
        assert!(client.text().starts_with("castore-fs "));
        if version >= 0x123 {
            assert_eq!(client.word(), 2, "not trusted");
            assert_eq!(client.word(), LAST);
        }
        client
    }

    pub(crate) fn send(&mut self, bytes: Bytes) {
        self.0.write_all(&bytes.0).unwrap();
    }

    /// Sends an operation, and reads up to its result.
    pub(crate) fn ask(&mut self, code: u64, fields: Bytes) -> &mut Self {
        if let Err(message) = self.try_ask(code, fields) {
            panic!("operation {code}: {message}");
        }
        self
    }

    /// As [`ask`](Self::ask), or the message of the error.
    pub(crate) fn try_ask(&mut self, code: u64, fields: Bytes) -> Result<(), String> {
        let mut all = Bytes::default().word(code);
        all.0.extend(fields.0);
        self.send(all);
        self.result()
    }

    /// Reads up to a result, or an error.
    pub(crate) fn result(&mut self) -> Result<(), String> {
        match self.word() {
            LAST => Ok(()),
            ERROR => {
                assert_eq!(self.text(), "Error");
                assert_eq!(self.word(), 0, "level");
                assert_eq!(self.text(), "Error");
                let message = self.text();
                assert_eq!((self.word(), self.word()), (0, 0), "position and traces");
                Err(message)
            }
            other => panic!("{other:x} is neither a result nor an error"),
        }
    }

    pub(crate) fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        self.0.read_exact(&mut word).unwrap();
        u64::from_le_bytes(word)
    }

    pub(crate) fn text(&mut self) -> String {
        let length = self.word() as usize;
        let mut text = vec![0; length.next_multiple_of(8)];
        self.0.read_exact(&mut text).unwrap();
        assert!(text[length..].iter().all(|byte| *byte == 0));
        text.truncate(length);
        String::from_utf8(text).unwrap()
    }

    pub(crate) fn texts(&mut self) -> Vec<String> {
        (0..self.word()).map(|_| self.text()).collect()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server has ended the connection.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
            || matches!(self.0.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
    }

    /// Whether `path` is valid, by `IsValidPath`.
    pub(crate) fn is_valid(&mut self, path: &str) -> bool {
        self.ask(1, Bytes::default().text(path)).word() == 1
    }
}
