//! What the Nix of this machine knows of its store paths, through the socket of its daemon.
//!
//! Only what is known is read here; the contents are files below `/nix/store`. Facts of the protocol are
//! in [`daemon_protocol`](crate::nix::daemon_protocol). A daemon may interleave its answer with messages
//! for a user; they are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::castore::Printable;
use crate::nix::daemon_protocol::{
    Encoder, ExpectedInput, Field, MAX_TEXT, MessageReader, Operation, SERVER_MAGIC, ServerMessage,
    VALID_PATH, Value, Version, WireError, read_valid_path,
};
use crate::nix::{NarinfoFile, StorePath};

/// Where the daemon of a Nix installation listens, unless `NIX_DAEMON_SOCKET_PATH` names another place.
pub const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";
/// The paths of a closure, at most, as of a reference graph.
pub const MAX_CLOSURE: usize = 100_000;
/// How long a daemon may take for one message of an answer: it may wait for a lock of its database.
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages for a user within one answer, at most.
const MAX_MESSAGES: usize = 10_000;

/// Why the daemon of Nix gave no answer.
#[derive(Debug, Error)]
pub enum NixDaemonError {
    /// It cannot be reached.
    #[error(
        "the Nix daemon cannot be reached at {}: {source}; NIX_DAEMON_SOCKET_PATH names another socket",
        Printable::path(socket)
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The connection failed.
    #[error(
        "the Nix daemon at {} does not answer: {source}",
        Printable::path(socket)
    )]
    Io {
        /// The socket.
        socket: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// It does not speak the protocol, or another version of it.
    #[error(
        "what listens at {} is no Nix daemon that castore-fs can use: {why}",
        Printable::path(socket)
    )]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What it sent.
        why: String,
    },
    /// It answered with an error.
    #[error("the Nix daemon refused {asked}: {why}")]
    Refused {
        /// The path that it was about.
        asked: String,
        /// Its message.
        why: String,
    },
    /// The path is not in the Nix store.
    #[error("{} is not valid in the Nix store of this machine: build it or copy it there with `nix copy`", .0.absolute())]
    Invalid(StorePath),
    /// A closure of too many paths.
    #[error("the closure has more than {MAX_CLOSURE} paths: import parts of it")]
    TooMany,
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct NixDaemon {
    socket: PathBuf,
    stream: UnixStream,
}

/// An error of reading that does not name the socket yet.
enum AnswerFailure {
    Io(io::Error),
    Protocol(String),
    /// The error that the daemon answered.
    Refused(String),
}

impl From<io::Error> for AnswerFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WireError> for AnswerFailure {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl NixDaemon {
    /// Connects to the daemon that listens at `socket`.
    pub fn connect(socket: &Path) -> Result<Self, NixDaemonError> {
        let connected = UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let stream = connected.map_err(|source| NixDaemonError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
        let mut daemon = Self {
            socket: socket.to_owned(),
            stream,
        };
        match daemon.shake_hands() {
            Ok(()) => Ok(daemon),
            Err(failure) => Err(daemon.failed("the connection", failure)),
        }
    }

    /// What Nix knows of `path`; nothing if the path is not valid.
    pub fn path_info(&mut self, path: &StorePath) -> Result<Option<NarinfoFile>, NixDaemonError> {
        self.query_path_info(path)
            .map_err(|failure| self.failed(&path.absolute(), failure))
    }

    /// What Nix knows of `paths` and of everything that they refer to: each path once, after all others
    /// that it refers to.
    pub fn closure(&mut self, paths: &[StorePath]) -> Result<Vec<NarinfoFile>, NixDaemonError> {
        let mut known = BTreeMap::new();
        let mut unknown: Vec<StorePath> = paths.to_vec();
        let mut queued: BTreeSet<String> = paths.iter().map(ToString::to_string).collect();
        while let Some(path) = unknown.pop() {
            let name = path.to_string();
            if known.contains_key(&name) {
                continue;
            }
            let info = self.path_info(&path)?;
            let info = info.ok_or(NixDaemonError::Invalid(path))?;
            for reference in &info.references {
                if queued.insert(reference.to_string()) {
                    unknown.push(reference.clone());
                }
            }
            if queued.len() > MAX_CLOSURE {
                return Err(NixDaemonError::TooMany);
            }
            known.insert(name, info);
        }
        Ok(references_first(known))
    }

    fn shake_hands(&mut self) -> Result<(), AnswerFailure> {
        let mut out = Encoder::default();
        Version::LATEST.put_client(&mut out);
        self.stream.write_all(&out.take())?;
        let magic = self.word()?;
        if magic != SERVER_MAGIC {
            return Err(AnswerFailure::Protocol(format!(
                "it begins with {magic:#x}"
            )));
        }
        let word = self.word()?;
        let version = Version::from_word(word).filter(|version| *version >= Version::FIRST);
        let version = version.ok_or_else(|| {
            AnswerFailure::Protocol(format!(
                "its protocol has the version {}, and the first that is supported is {}: use Nix 2.15 or newer",
                Version::from_word(word).map_or_else(|| word.to_string(), |it| it.to_string()),
                Version::FIRST
            ))
        })?;
        if version >= Version::WITH_FEATURES {
            // No features: their number, 0.
            self.stream.write_all(&out.word(0).take())?;
            self.values(&[Field::Texts(1)])?;
        }
        // No processor is named, and no space reserved.
        self.stream.write_all(&out.word(0).word(0).take())?;
        // The version of the program, and whether this client is trusted.
        self.values(&[Field::Text, Field::Word])?;
        self.until_last()
    }

    fn query_path_info(&mut self, path: &StorePath) -> Result<Option<NarinfoFile>, AnswerFailure> {
        let mut out = Encoder::default();
        out.word(Operation::QueryPathInfo.code())
            .text(path.absolute());
        self.stream.write_all(&out.take())?;
        self.until_last()?;
        if self.word()? == 0 {
            return Ok(None);
        }
        let values = self.values(VALID_PATH)?;
        read_valid_path(path, values)
            .map(Some)
            .map_err(AnswerFailure::Protocol)
    }

    /// Reads messages up to the one after which the result follows.
    fn until_last(&mut self) -> Result<(), AnswerFailure> {
        for _ in 0..MAX_MESSAGES {
            match ServerMessage::from_word(self.word()?).map_err(AnswerFailure::Protocol)? {
                ServerMessage::Last => return Ok(()),
                ServerMessage::Failure => {
                    // The type, the level, the name, the message, and no position.
                    let values = self.values(&[
                        Field::Text,
                        Field::Word,
                        Field::Text,
                        Field::Text,
                        Field::Word,
                    ])?;
                    let message = match values.into_iter().nth(3) {
                        Some(Value::Text(text)) => Printable(&text).to_string(),
                        _ => String::new(),
                    };
                    // Its traces follow; the connection is not used again.
                    return Err(AnswerFailure::Refused(message));
                }
                ServerMessage::Fields { before, after } => {
                    self.values(before)?;
                    let Some(after) = after else { continue };
                    for _ in 0..self.word()?.min(MAX_TEXT) {
                        match self.word()? {
                            0 => self.values(&[Field::Word])?,
                            _ => self.values(&[Field::Text])?,
                        };
                    }
                    self.values(after)?;
                }
            }
        }
        Err(AnswerFailure::Protocol(
            "it sends messages without an end".to_owned(),
        ))
    }

    fn word(&mut self) -> Result<u64, AnswerFailure> {
        let mut word = [0; 8];
        self.stream.read_exact(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    fn values(&mut self, fields: &'static [Field]) -> Result<Vec<Value>, AnswerFailure> {
        let mut reader = MessageReader::new(fields);
        let mut bytes = Vec::new();
        loop {
            match reader.wanted() {
                ExpectedInput::Done(values) => return Ok(values),
                ExpectedInput::Bytes(length) => {
                    bytes.resize(length, 0);
                    self.stream.read_exact(&mut bytes)?;
                    reader.take(&bytes)?;
                }
            }
        }
    }

    fn failed(&self, asked: &str, failure: AnswerFailure) -> NixDaemonError {
        let socket = self.socket.clone();
        match failure {
            AnswerFailure::Io(source) if source.kind() == io::ErrorKind::WouldBlock => {
                let source = io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing came for {PATIENCE:?}"),
                );
                NixDaemonError::Io { socket, source }
            }
            AnswerFailure::Io(source) => NixDaemonError::Io { socket, source },
            AnswerFailure::Protocol(why) => NixDaemonError::Protocol { socket, why },
            AnswerFailure::Refused(why) => NixDaemonError::Refused {
                asked: asked.to_owned(),
                why,
            },
        }
    }
}

/// The paths by their names, each after those that it refers to: an import that is interrupted leaves no
/// path whose references are absent.
fn references_first(mut known: BTreeMap<String, NarinfoFile>) -> Vec<NarinfoFile> {
    let mut ordered = Vec::with_capacity(known.len());
    let mut entered = BTreeSet::new();
    while let Some((first, _)) = known.first_key_value() {
        let mut stack = vec![first.clone()];
        while let Some(name) = stack.last() {
            let pending = match known.get(name) {
                Some(info) if entered.insert(name.clone()) => {
                    let references = info.references.iter().map(StorePath::to_string);
                    references
                        .filter(|reference| {
                            known.contains_key(reference) && !entered.contains(reference)
                        })
                        .collect()
                }
                _ => Vec::new(),
            };
            if pending.is_empty() {
                ordered.extend(known.remove(name));
                stack.pop();
            } else {
                stack.extend(pending);
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::nix::NarHash;
    use crate::nix::daemon_protocol::{ClientTrust, ERROR, LAST, OperationFailure, put_valid_path};

    const A: &str = "/nix/store/00000000000000000000000000000000-a";
    const B: &str = "/nix/store/11111111111111111111111111111111-b";
    const C: &str = "/nix/store/22222222222222222222222222222222-c";

    fn described(path: &str, references: &[&str]) -> NarinfoFile {
        let references = references.iter().map(|path| path.parse().unwrap());
        let nar = NarHash {
            size: 112,
            sha256: [7; 32],
        };
        let deriver = "/nix/store/33333333333333333333333333333333-d.drv";
        NarinfoFile {
            deriver: Some(deriver.parse().unwrap()),
            ..NarinfoFile::without_file(path.parse().unwrap(), nar, references.collect())
        }
    }

    fn welcome() -> Vec<u8> {
        let mut out = Encoder::default();
        Version::LATEST.put_server(&mut out);
        out.word(0);
        Version::LATEST.put_welcome("2.26.0", ClientTrust::Trusted, &mut out);
        out.take()
    }

    /// A daemon that sends this to its only client, whatever that client sends.
    fn daemon(answers: Vec<u8>) -> (tempfile::TempDir, NixDaemonResult) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&answers).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // Until the client is gone.
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let daemon = NixDaemon::connect(&socket);
        drop(server);
        (dir, daemon)
    }

    type NixDaemonResult = Result<NixDaemon, NixDaemonError>;

    fn answer(info: &NarinfoFile) -> Vec<u8> {
        let mut out = Encoder::default();
        out.word(LAST).word(1);
        put_valid_path(info, 1, &mut out);
        out.take()
    }

    #[test]
    fn a_closure_comes_with_references_first_and_each_path_once() {
        // In the order in which they are requested: a, its last reference, that one's reference.
        let infos = [
            described(A, &[A, B, C]),
            described(C, &[B]),
            described(B, &[]),
        ];
        let answers = infos.iter().flat_map(answer);
        let (_dir, daemon) = daemon(welcome().into_iter().chain(answers).collect());
        let closure = daemon.unwrap().closure(&[A.parse().unwrap()]).unwrap();
        assert_eq!(
            closure,
            [infos[2].clone(), infos[1].clone(), infos[0].clone()]
        );
    }

    #[test]
    fn references_that_form_a_circle_end() {
        let known = [described(A, &[B]), described(B, &[C]), described(C, &[A])];
        let known = known.into_iter().map(|info| (info.path.to_string(), info));
        assert_eq!(references_first(known.collect()).len(), 3);
    }

    #[test]
    fn an_invalid_path_is_no_failure_and_its_closure_is_one() {
        let absent = || Encoder::default().word(LAST).word(0).take();
        let path: StorePath = A.parse().unwrap();
        let (_dir, daemon) = daemon([welcome(), absent(), absent()].concat());
        let mut daemon = daemon.unwrap();
        assert_eq!(daemon.path_info(&path).unwrap(), None);
        let error = daemon.closure(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.to_string().starts_with(A), "{error}");
    }

    #[test]
    fn messages_for_a_user_are_skipped_and_errors_are_passed_on() {
        let mut messages = Encoder::default();
        // A line; an activity with a number and a text; its result; its end.
        messages.word(0x6f6c_6d67).text("waiting for a lock");
        messages
            .word(0x5354_5254)
            .word(1)
            .word(0)
            .word(0)
            .text("copying");
        messages.word(2).word(0).word(7).word(1).text("x").word(0);
        messages
            .word(0x5253_4c54)
            .word(1)
            .word(105)
            .word(1)
            .word(0)
            .word(1);
        messages.word(0x5354_4f50).word(1);
        let messages = messages.take();
        let mut failure = Encoder::default();
        OperationFailure::new("the database is damaged").put(&mut failure);
        let info = described(B, &[]);
        let sent = [welcome(), messages, answer(&info), failure.take()].concat();
        let (_dir, daemon) = daemon(sent);
        let mut daemon = daemon.unwrap();
        let path: StorePath = B.parse().unwrap();
        assert_eq!(daemon.path_info(&path).unwrap(), Some(info));
        let error = daemon.path_info(&path).unwrap_err();
        assert!(
            error.to_string().ends_with("the database is damaged"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_daemon_or_an_old_one_is_named() {
        let fails = |sent: Vec<u8>| daemon(sent).1.unwrap_err().to_string();
        assert!(fails(b"HTTP/1.1 400 Bad\r\n".to_vec()).contains("is no Nix daemon"));
        let old = Encoder::default().word(SERVER_MAGIC).word(0x0122).take();
        assert!(fails(old).contains("1.34"));
        assert!(fails(Vec::new()).contains("does not answer"));
        let absent = NixDaemon::connect(Path::new("/nonexistent/socket")).unwrap_err();
        assert!(absent.to_string().contains("NIX_DAEMON_SOCKET_PATH"));
        // A length that no text has is refused before its bytes.
        let long = Encoder::default().word(ERROR).word(u64::MAX).take();
        let (_dir, daemon) = daemon([welcome(), long].concat());
        let error = daemon.unwrap().path_info(&A.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn what_a_daemon_lists_and_answers_is_bounded() {
        let many: Vec<String> = (0..=MAX_CLOSURE)
            .map(|number| format!("/nix/store/{number:032}-x"))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let answered = answer(&described(A, &many));
        let (_dir, daemon) = daemon([welcome(), answered].concat());
        let error = daemon.unwrap().closure(&[A.parse().unwrap()]).unwrap_err();
        assert!(matches!(error, NixDaemonError::TooMany), "{error}");
    }

    #[test]
    fn messages_without_an_end_are_an_error() {
        let line = Encoder::default().word(0x6f6c_6d67).text("wait").take();
        let (_dir, daemon) = daemon([welcome(), line.repeat(MAX_MESSAGES)].concat());
        let error = daemon.unwrap().path_info(&A.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("without an end"), "{error}");
    }
}
