//! What clients of a binary cache send, as it comes.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::Status;

use crate::compression::{self, Compression, Decoder};
use crate::server::capacity::ConnectionState;
use crate::server::limits::ServerLimits;
use crate::server::limits::{FRAME, LIFE};
use crate::server::upload::{LOOK, check_room};

/// A request's body, which has to come in time.
pub(super) struct IncomingBody<'a> {
    inner: Incoming,
    limits: &'a ServerLimits,
    connection: &'a ConnectionState,
    deadline: Instant,
    /// Bytes since the deadline was set.
    since: usize,
    /// Whether the deadline is that of all of it.
    at_once: bool,
}

impl<'a> IncomingBody<'a> {
    /// One that may take as long as bytes come.
    pub(super) fn long(
        inner: Incoming,
        limits: &'a ServerLimits,
        connection: &'a ConnectionState,
    ) -> Self {
        Self {
            deadline: Instant::now() + limits.silence,
            inner,
            limits,
            connection,
            since: 0,
            at_once: false,
        }
    }

    /// One that has to be there in the time that another one may be silent.
    pub(super) fn short(
        inner: Incoming,
        limits: &'a ServerLimits,
        connection: &'a ConnectionState,
    ) -> Self {
        Self {
            at_once: true,
            ..Self::long(inner, limits, connection)
        }
    }

    /// The next bytes; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let frame =
                std::future::poll_fn(|context| Pin::new(&mut self.inner).poll_frame(context));
            let frame = tokio::time::timeout_at(self.deadline, frame).await;
            let frame = frame.map_err(|_| {
                let silence = self.limits.silence;
                Status::deadline_exceeded(format!("the request was silent for {silence:?}"))
            })?;
            let broke =
                |error| Status::invalid_argument(format!("the request was interrupted: {error}"));
            let Some(frame) = frame.transpose().map_err(broke)? else {
                return Ok(None);
            };
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            self.connection.is_active();
            self.since += bytes.len();
            if self.since >= LIFE && !self.at_once {
                self.deadline = Instant::now() + self.limits.silence;
                self.since = 0;
            }
            return Ok(Some(bytes));
        }
    }

    /// All of it, if it has no more than `most` bytes.
    pub(super) async fn whole(mut self, most: usize) -> Result<Vec<u8>, Status> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await? {
            if whole.len() + bytes.len() > most {
                return Err(Status::resource_exhausted(format!(
                    "a file of this kind has at most {most} bytes here"
                )));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }

    /// Takes all of it, and keeps nothing.
    pub(super) async fn discard(mut self, most: u64) -> Result<(), Status> {
        let mut seen = 0;
        while let Some(bytes) = self.next().await? {
            seen += bytes.len() as u64;
            if seen > most {
                return Err(Status::resource_exhausted(format!(
                    "a file of this kind has at most {most} bytes here"
                )));
            }
        }
        Ok(())
    }

    /// All of it, in a file without a name in `directory`.
    pub(super) async fn buffer_file(mut self, directory: &Path) -> Result<BufferedBody, Status> {
        let most = self.limits.upload;
        let too_long = || {
            Status::resource_exhausted(format!("an upload to this server has at most {most} bytes"))
        };
        if self.inner.size_hint().lower() > most {
            return Err(too_long());
        }
        let directory = directory.to_owned();
        let limits = self.limits.clone();
        let mut buffer_file = blocking(move || {
            check_room(&limits)?;
            Ok(BufferedBody {
                file: tempfile::tempfile_in(&directory).map_err(|error| no_buffer_file(&error))?,
                size: 0,
                hasher: Sha256::new(),
                looked: 0,
            })
        })
        .await?;
        let mut buffer = Vec::with_capacity(FRAME);
        loop {
            let bytes = self.next().await?;
            let ended = bytes.is_none();
            buffer.extend_from_slice(&bytes.unwrap_or_default());
            if buffer_file.size + buffer.len() as u64 > most {
                return Err(too_long());
            }
            if buffer.len() >= FRAME || (ended && !buffer.is_empty()) {
                let limits = self.limits.clone();
                (buffer_file, buffer) = blocking(move || {
                    buffer_file.write(&buffer, &limits)?;
                    buffer.clear();
                    Ok((buffer_file, buffer))
                })
                .await?;
            }
            if ended {
                return Ok(buffer_file);
            }
        }
    }
}

/// What was uploaded, on the disk until it was looked at.
pub(super) struct BufferedBody {
    file: File,
    pub(super) size: u64,
    hasher: Sha256,
    /// Its size when the disk was last looked at.
    looked: u64,
}

impl BufferedBody {
    fn write(&mut self, bytes: &[u8], limits: &ServerLimits) -> Result<(), Status> {
        if self.size - self.looked >= LOOK {
            self.looked = self.size;
            check_room(limits)?;
        }
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| no_buffer_file(&error))
    }

    /// The SHA-256 of it.
    pub(super) fn sha256(&self) -> [u8; 32] {
        self.hasher.clone().finalize().into()
    }

    /// What is in it, unpacked. Without a known compression its first bytes identify it.
    pub(super) fn unpack(
        mut self,
        compression: Option<Compression>,
    ) -> Result<Decoder<File>, Status> {
        self.file.rewind().map_err(|error| no_buffer_file(&error))?;
        let limits = compression::DecompressionLimits::default();
        let decoder = match compression {
            Some(known) => Decoder::new(self.file, Some(known), limits),
            None => Decoder::detect(self.file, limits),
        };
        decoder.map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

fn no_buffer_file(error: &std::io::Error) -> Status {
    let message = format!("cannot keep an upload until it is whole: {error}");
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Status::resource_exhausted(message)
        }
        _ => Status::internal(message),
    }
}

/// Unpacks `bytes`, which were sent with this `Content-Encoding`, to at most `most` bytes.
pub(super) fn decoded(bytes: Vec<u8>, encoding: &[u8], most: usize) -> Result<Vec<u8>, Status> {
    let compression = match encoding {
        b"" | b"identity" => return Ok(bytes),
        encoding => std::str::from_utf8(encoding)
            .ok()
            .and_then(Compression::from_name),
    };
    let compression = compression.ok_or_else(|| {
        let encoding = encoding.escape_ascii();
        Status::invalid_argument(format!("the Content-Encoding {encoding} is not known here"))
    })?;
    let limits = compression::DecompressionLimits {
        memory: 8 << 20,
        ..compression::DecompressionLimits::of_output(most as u64)
    };
    let mut decoded = Vec::new();
    Decoder::new(&bytes[..], Some(compression), limits)
        .and_then(|mut decoder| decoder.read_to_end(&mut decoded))
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(decoded)
}

/// Does `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|stopped| {
        Err(Status::internal(format!(
            "the call was interrupted: {stopped}"
        )))
    })
}
