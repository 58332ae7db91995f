//! A store as a Nix binary cache, over HTTP.
//!
//! Whatever root of the store is named like a store path, and of which is known what it refers to, is
//! there: `nix-cache-info`, `<hash>.narinfo`, `<hash>.ls`, and its NAR, which is rendered while it is
//! sent. A NAR's address has its hash in it, so that it may be kept for ever by whatever is between.
//!
//! **Compression and ranges.** Narinfos name NARs that are not compressed. One of up to 16 MiB is
//! compressed on its way if the client takes zstd (`Content-Encoding`), which Nix undoes itself; longer
//! ones are sent as they are, and any range of them: Nix continues an interrupted download only if
//! it has no `Content-Encoding`, and where `Accept-Ranges` allows it.
//!
//! **Bounds** are those of the gRPC server ([`Limits`](super::ServerLimits)): connections, calls, the time to a
//! first call, memory of answers that are not taken. A connection of HTTP/1.1 has one call at a time.

mod access;
mod answer;
mod connection;
mod incoming;
mod nar_body;
mod paths;
mod range;
mod resource;
mod upload;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use tonic::Status;

use self::access::HttpAccess;
use self::answer::{AnswerBody, HttpAnswer, failure, text};
use self::nar_body::{CompressedNar, ENCODER, MOST_COMPRESSED};
use self::paths::{FoundPath, find};
use self::range::{RequestedRange, wanted};
use self::resource::CacheResource;
use self::upload::WaitingNars;
use super::ServedState;
use super::authorize::ClientRights;
use super::capacity::ConnectionState;
use crate::nix::{STORE_DIR, SecretKey, StorePathHash, encode_base32};
use crate::store::{Blocking, LocalStore};
use crate::tree::{NarListing, NarStream, TreePath};

pub(super) use connection::serve_one;

/// The priority unless another is chosen: before cache.nixos.org, which has 40.
pub const DEFAULT_PRIORITY: u32 = 30;

/// How a store is a binary cache.
#[derive(Clone, Debug)]
pub struct BinaryCacheOptions {
    /// Caches with a smaller one are asked first.
    pub priority: u32,
    /// Signs every path, beside the signatures that it has.
    pub secret_key: Option<Arc<SecretKey>>,
    /// Whether reading takes no token, where there are any.
    pub open_to_read: bool,
}

impl Default for BinaryCacheOptions {
    fn default() -> Self {
        Self {
            priority: DEFAULT_PRIORITY,
            secret_key: None,
            open_to_read: false,
        }
    }
}

const NARINFO: &str = "text/x-nix-narinfo";
const CACHE_INFO: &str = "text/x-nix-cache-info";
const NAR: HeaderValue = HeaderValue::from_static("application/x-nix-nar");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What an address names never changes: RFC 8246.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// A binary cache that is served.
#[derive(Clone)]
pub(super) struct ServedBinaryCache {
    served: ServedState,
    options: BinaryCacheOptions,
    access: HttpAccess,
    waiting: WaitingNars,
}

impl ServedBinaryCache {
    pub(super) fn new(
        served: ServedState,
        options: BinaryCacheOptions,
        tokens: Option<super::AcceptedTokens>,
        every: ClientRights,
        local: Option<LocalStore>,
    ) -> Self {
        let access = HttpAccess {
            tokens,
            every,
            open_to_read: options.open_to_read,
        };
        Self {
            served,
            options,
            access,
            waiting: WaitingNars::new(local),
        }
    }

    /// Answers a request whose connection is `connection`.
    async fn answer(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> HttpAnswer {
        let answered = self.try_answer(request, connection).await;
        answered.unwrap_or_else(|status| failure(&status))
    }

    async fn try_answer(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> Result<HttpAnswer, Status> {
        let rights = self.access.rights(request.headers())?;
        let resource = CacheResource::at(request.uri().path());
        match *request.method() {
            Method::GET | Method::HEAD => {}
            Method::PUT => {
                let (head, body) = request.into_parts();
                let encoding = head.headers.get(header::CONTENT_ENCODING);
                let encoding = encoding.map_or(&b""[..], HeaderValue::as_bytes);
                self.put(resource, encoding, body, rights, connection)
                    .await?;
                return Ok(text(StatusCode::CREATED, "text/plain", ""));
            }
            _ => {
                return Err(Status::unimplemented(
                    "a binary cache answers GET, HEAD and PUT",
                ));
            }
        }
        let resource = resource.ok_or_else(|| Status::not_found("there is no such file"))?;
        // A client that may only add begins by this too.
        let of_addition = matches!(
            resource,
            CacheResource::CacheInfo | CacheResource::UploadedNar { .. }
        );
        let may_ask = rights.read || (of_addition && rights.add);
        if !may_ask {
            return Err(Status::permission_denied(
                "the token has no right to read: give it the word `read` in the server's token file",
            ));
        }
        let mut answer = match resource {
            CacheResource::CacheInfo => self.cache_info(),
            CacheResource::Narinfo(hash) => {
                let found = self.find(hash).await?;
                text(StatusCode::OK, NARINFO, found.narinfo.to_text())
            }
            CacheResource::Listing(hash) => self.listing(hash).await?,
            CacheResource::UploadedNar { file, .. } => {
                let is_head = request.method() == Method::HEAD;
                if !is_head || !self.has_nar(file).await? {
                    return Err(Status::not_found("there is no such file"));
                }
                HttpAnswer::new(AnswerBody::empty())
            }
            CacheResource::Nar { sha256, path } => {
                let found = self.find(path).await?;
                if found.narinfo.nar.sha256 != sha256 {
                    return Err(Status::not_found(format!(
                        "the NAR of the path with the hash {path} is another one now"
                    )));
                }
                self.nar(found, request.headers(), connection)
            }
        };
        if request.method() == Method::HEAD {
            *answer.body_mut() = AnswerBody::empty();
        }
        Ok(answer)
    }

    async fn find(&self, hash: StorePathHash) -> Result<FoundPath, Status> {
        find(&self.served, hash, self.options.secret_key.clone()).await
    }

    fn cache_info(&self) -> HttpAnswer {
        let priority = self.options.priority;
        let info = format!("StoreDir: {STORE_DIR}\nWantMassQuery: 1\nPriority: {priority}\n");
        text(StatusCode::OK, CACHE_INFO, info)
    }

    async fn listing(&self, hash: StorePathHash) -> Result<HttpAnswer, Status> {
        let found = self.find(hash).await?;
        let listing = NarListing::new(self.blocking(), path(&found), found.root.node);
        let mut answer = HttpAnswer::new(AnswerBody::of(listing));
        answer.headers_mut().insert(header::CONTENT_TYPE, JSON);
        Ok(answer)
    }

    fn nar(
        &self,
        found: FoundPath,
        headers: &HeaderMap,
        connection: &Arc<ConnectionState>,
    ) -> HttpAnswer {
        let size = found.narinfo.nar.size;
        let tag = format!("\"{}\"", encode_base32(&found.narinfo.nar.sha256));
        if has_already(headers, &tag) {
            let mut answer = text(StatusCode::NOT_MODIFIED, "text/plain", "");
            let headers = answer.headers_mut();
            headers.remove(header::CONTENT_TYPE);
            headers.insert(header::CACHE_CONTROL, IMMUTABLE);
            if let Ok(tag) = HeaderValue::try_from(tag) {
                headers.insert(header::ETAG, tag);
            }
            return answer;
        }
        // With a condition, a range is one of the NAR that the client began with, or of none.
        let condition = headers.get(header::IF_RANGE).map(HeaderValue::as_bytes);
        let range = headers.get(header::RANGE).map(HeaderValue::as_bytes);
        let range = range.filter(|_| condition.is_none_or(|wanted| wanted == tag.as_bytes()));
        let wanted = wanted(range, size);
        let stream = |range| {
            let node = found.root.node.clone();
            NarStream::new(self.blocking(), path(&found), node, range)
        };
        let compressed = || {
            let is_wanted = size <= MOST_COMPRESSED && range.is_none() && takes_zstd(headers);
            let held = is_wanted.then(|| connection.responses.try_hold(ENCODER));
            CompressedNar::new(stream(0..size), held.flatten()?).ok()
        };
        let mut answer = match wanted {
            RequestedRange::All => match compressed() {
                Some(compressed) => {
                    let mut answer = HttpAnswer::new(AnswerBody::of(compressed));
                    let zstd = HeaderValue::from_static("zstd");
                    answer.headers_mut().insert(header::CONTENT_ENCODING, zstd);
                    answer
                }
                None => identity(stream(0..size)),
            },
            RequestedRange::Part(range) => {
                let (first, last) = (range.start, range.end - 1);
                let mut answer = identity(stream(range));
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                content_range(&mut answer, &format!("bytes {first}-{last}/{size}"));
                answer
            }
            RequestedRange::Outside => {
                let mut answer = text(StatusCode::RANGE_NOT_SATISFIABLE, "text/plain", "");
                content_range(&mut answer, &format!("bytes */{size}"));
                return answer;
            }
        };
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, NAR);
        headers.insert(header::CACHE_CONTROL, IMMUTABLE);
        let vary = HeaderValue::from_static("accept-encoding");
        headers.insert(header::VARY, vary);
        // Of the bytes as they are: with another encoding it names others.
        if !headers.contains_key(header::CONTENT_ENCODING)
            && let Ok(tag) = HeaderValue::try_from(tag)
        {
            headers.insert(header::ETAG, tag);
        }
        answer
    }

    fn blocking(&self) -> Blocking {
        let runtime = tokio::runtime::Handle::current();
        Blocking::new(self.served.store.clone(), runtime)
    }
}

/// Where a path's tree stands, as errors name it.
fn path(found: &FoundPath) -> TreePath {
    TreePath::new(&found.root.name)
}

/// A NAR as it is.
fn identity(nar: NarStream) -> HttpAnswer {
    let length = nar.remaining();
    let mut answer = HttpAnswer::new(AnswerBody::of(nar));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let bytes = HeaderValue::from_static("bytes");
    headers.insert(header::ACCEPT_RANGES, bytes);
    answer
}

fn content_range(answer: &mut HttpAnswer, range: &str) {
    if let Ok(range) = HeaderValue::try_from(range) {
        answer.headers_mut().insert(header::CONTENT_RANGE, range);
    }
}

/// Whether the client has what `tag` names (`If-None-Match`: RFC 9110, 13.1.2).
fn has_already(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tags.any(|wanted| {
        let wanted = wanted.trim();
        wanted == "*" || wanted.strip_prefix("W/").unwrap_or(wanted) == tag
    })
}

/// Whether `Accept-Encoding` has zstd (RFC 9110, 12.5.3), not only as what is not wanted.
fn takes_zstd(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_zstd = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
        let weights = parts.filter_map(|part| part.strip_prefix("q="));
        let refused = weights
            .filter_map(|weight| weight.parse::<f32>().ok())
            .any(|weight| weight <= 0.0);
        is_zstd && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_is_taken_where_a_client_asks_for_it() {
        let takes = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            takes_zstd(&headers)
        };
        // As Nix sends it.
        assert!(takes("zstd, br, gzip, deflate, bzip2, xz"));
        assert!(takes("gzip, ZSTD;q=0.5"));
        for not in ["", "gzip", "zstd;q=0", "gzip, zstd; q=0.0", "*"] {
            assert!(!takes(not), "{not}");
        }
        assert!(!takes_zstd(&HeaderMap::new()));
    }
}
