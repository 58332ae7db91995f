//! The limits of a server: the table in `docs/limits.md`.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::proto::MAX_MESSAGE_BYTES;

/// Bytes of a unary request: a digest or a name, and what is around it.
const SMALL: usize = 4 << 10;
/// Bytes of an `Entry` by itself, which may be a symlink with the longest target.
const ENTRY: usize = 8 << 10;
/// Bytes of a request about 4096 blobs at once: 64 for each.
const QUESTIONS: usize = 256 << 10;
/// Bytes of a PathInfo: 20,000 references.
const PATH_INFO: usize = 1 << 20;
/// Bytes of a message of a blob: the default limit of gRPC, and of other servers.
const BLOB_MESSAGE: usize = 4 << 20;

/// Bytes that end the silence of an upload.
pub(super) const LIFE: usize = 64 << 10;
/// Approximate bytes of a frame of an answer, for which there has to be room before it is made.
pub(super) const FRAME: usize = 256 << 10;
/// Bounds that a server's administrator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at once on a server's listeners; all servers of a process take as many together as
    /// the one with the most. By default 256, and no more than half of the files that the process may
    /// have open. One of the client with the most is closed for the next.
    pub connections: usize,
    /// Calls at once on all connections, beyond the few that each may have in any case.
    pub calls: usize,
    /// Uploads at once on all connections, beyond one each.
    pub uploads: usize,
    /// How long a connection may be without a call before it is closed.
    pub idle: Duration,
    /// How long a new connection has for its first call, including TLS and headers.
    pub first_call: Duration,
    /// How long a request may take to come in; and how long an upload may be silent, counting other
    /// calls of its connection. (64 KiB end the silence.)
    pub silence: Duration,
    /// Bytes of an upload.
    pub upload: u64,
    /// Bytes of requests and unfinished uploads in memory, of all connections; each may have 256 KiB in
    /// any case.
    pub request_memory: usize,
    /// Bytes of answers in memory that clients have not read, of all connections; each may have 256 KiB
    /// in any case.
    pub response_memory: usize,
    /// The directory on whose file system [`keep_free`](Self::keep_free) is to stay free.
    pub disk: Option<PathBuf>,
    /// Bytes that uploads leave free on the disk.
    pub keep_free: u64,
    /// How long a root may be without its content.
    pub incomplete: Duration,
}

/// Files that the process may have open.
fn most_files() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files).unwrap_or(usize::MAX)
}

impl ServerLimits {
    /// As many connections as are `wanted`, or as half of the files that the process may have open.
    pub fn connections(wanted: usize) -> usize {
        wanted.min(most_files() / 2).max(1)
    }

    /// Those of a Nix daemon: Nix keeps a connection for as long as a build takes, and fails if it is gone.
    pub fn of_nix_daemon() -> Self {
        Self {
            idle: Duration::MAX,
            ..Self::default()
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        let files = most_files();
        Self {
            connections: Self::connections(256),
            calls: 2048,
            uploads: (files / 4).clamp(1, 1024),
            idle: Duration::from_secs(5 * 60),
            first_call: Duration::from_secs(20),
            silence: Duration::from_secs(60),
            upload: 1 << 40,
            request_memory: 160 << 20,
            response_memory: 48 << 20,
            disk: None,
            keep_free: 0,
            incomplete: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Bytes of the headers of a request, counted as in RFC 9113, 6.5.2.
pub(super) const HEADERS: u32 = 16 << 10;
/// What each header counts beside its name and value.
const EACH_HEADER: usize = 32;

/// Whether the target and headers of `request` are within [`HEADERS`]. The libraries look at what comes in
/// one piece less strictly.
pub(super) fn headers_fit<B>(request: &http::Request<B>) -> bool {
    let uri = request.uri();
    let authority = uri
        .authority()
        .map_or(0, |authority| authority.as_str().len());
    let target = uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| name.as_str().len() + value.len() + EACH_HEADER);
    headers.sum::<usize>() + authority + target <= HEADERS as usize
}

/// The kind of a method's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MethodKind {
    /// One message, and an answer of little or much.
    Unary,
    /// One message, and an answer whenever there is something new.
    Watch,
    /// A stream of messages that adds to the store.
    Upload,
    /// A stream of requests.
    Dialogue,
}

/// The limits for the requests of one method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MethodLimits {
    pub(super) kind: MethodKind,
    /// Bytes of a message.
    pub(super) message: usize,
}

/// The limits for requests at `path`, of either generation and whether there is such a method or
/// not.
pub(super) fn method(path: &str) -> MethodLimits {
    // Without the package, which has the generation.
    let name = path.rsplit('.').next().unwrap_or_default();
    let (kind, message) = match name {
        "BlobService/Put" => (MethodKind::Upload, BLOB_MESSAGE),
        "DirectoryService/Put" | "IngestService/Ingest" => (MethodKind::Upload, MAX_MESSAGE_BYTES),
        "PathInfoService/Put" => (MethodKind::Unary, PATH_INFO),
        "PathInfoService/CalculateNAR" => (MethodKind::Unary, ENTRY),
        "PartService/Missing" | "PartService/ReadTogether" => (MethodKind::Unary, QUESTIONS),
        "ServerReflection/ServerReflectionInfo" => (MethodKind::Dialogue, SMALL),
        "RootService/Watch" | "Health/Watch" => (MethodKind::Watch, SMALL),
        _ => (MethodKind::Unary, SMALL),
    };
    MethodLimits { kind, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_a_limit_however_they_come() {
        let with = |name: usize, value: usize, target: usize| {
            let mut request = http::Request::builder().uri(format!("/{}", "t".repeat(target)));
            request = request.header("x", "v".repeat(value));
            for number in 0..name {
                request = request.header(format!("h{number}"), "");
            }
            headers_fit(&request.body(()).unwrap())
        };
        assert!(with(0, 0, 0) && with(0, 16_000, 0) && with(0, 0, 16_000) && with(400, 0, 0));
        assert!(!with(0, 16_384, 0) && !with(0, 0, 16_384) && !with(500, 0, 0));
    }

    #[test]
    fn every_method_has_its_limit() {
        let small = MethodLimits {
            kind: MethodKind::Unary,
            message: 4096,
        };
        for path in [
            "/snix.castore.v1.BlobService/Stat",
            "/tvix.castore.v1.BlobService/Read",
            "/castore_fs.v1.RootService/Get",
            "/grpc.health.v1.Health/Check",
            "/nonsense",
            "",
        ] {
            assert_eq!(method(path), small, "{path}");
        }
        for generation in ["snix", "tvix"] {
            let put = method(&format!("/{generation}.castore.v1.BlobService/Put"));
            assert_eq!(put.kind, MethodKind::Upload);
            let put = method(&format!("/{generation}.store.v1.PathInfoService/Put"));
            assert_eq!((put.kind, put.message), (MethodKind::Unary, 1 << 20));
        }
        assert_eq!(
            method("/grpc.health.v1.Health/Watch").kind,
            MethodKind::Watch
        );
    }
}
