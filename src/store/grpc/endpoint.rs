//! One server: connection, deadlines, generation of the protocol. Its calls are made by
//! [`EndpointCalls`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::AUTHORIZATION;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tower::Service;

use crate::proto::{MAX_MESSAGE_BYTES, ProtocolGeneration, with_generation};
use crate::store::Error;
use crate::store::endpoint_calls::{EndpointCalls, RetryPolicy, in_time};
use crate::store::failure::{CallFailure, FailureKind};
use crate::store::pace::{AnswerPace, Payload};

/// A call that misses its deadline is not repeated: its reader has waited long enough.
const RETRIES: RetryPolicy = RetryPolicy {
    attempts: 3,
    first_pause: Duration::from_millis(50),
    growth: 3,
    longest_pause: Duration::from_secs(1),
    within: Duration::MAX,
    timeouts: false,
};
/// The largest message of an answer, in bytes: gRPC's own default, so that no other server sends
/// larger pieces of a blob.
pub(super) const USUAL_MESSAGE: usize = 4 << 20;
/// Answers of more than [`USUAL_MESSAGE`] and up to [`MAX_MESSAGE_BYTES`] that are accepted at
/// once: the Directories of very large directories, and the chunk lists of very large blobs.
const LARGE_AT_ONCE: usize = 2;
/// Bytes of an answer in many messages after which the endpoint has answered: what a reader waits for.
const ANSWERED: u64 = 256 << 10;

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallDeadlines {
    /// To accept a connection.
    pub connect: Duration,
    /// From a call to the first message of its answer.
    pub first_byte: Duration,
    /// The time for which an answer may bring less than
    /// [`LEAST_RATE`](crate::store::pace::LEAST_RATE).
    pub stall: Duration,
    /// To make an addition durable.
    pub commit: Duration,
}

impl Default for CallDeadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(15),
            stall: Duration::from_secs(15),
            commit: Duration::from_secs(300),
        }
    }
}

/// A server.
pub(super) struct GrpcEndpoint {
    pub(super) url: String,
    pub(super) runtime: Handle,
    pub(super) deadlines: CallDeadlines,
    channel: Channel,
    token: Option<HeaderValue>,
    generation: AtomicU8,
    pub(super) calls: EndpointCalls,
    /// The server has no castore-fs service.
    field_only: AtomicBool,
    large: Semaphore,
}

impl fmt::Debug for GrpcEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl GrpcEndpoint {
    pub(super) fn new(
        url: String,
        channel: Channel,
        token: Option<HeaderValue>,
        deadlines: CallDeadlines,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            calls: EndpointCalls::new(url.clone(), RETRIES, Arc::default()),
            url,
            runtime,
            deadlines,
            channel,
            token,
            generation: AtomicU8::new(ProtocolGeneration::Current as u8),
            field_only: AtomicBool::new(false),
            large: Semaphore::new(LARGE_AT_ONCE),
        })
    }

    /// Whether the server is known to have no castore-fs service.
    pub(super) fn is_field_only(&self) -> bool {
        self.field_only.load(Ordering::Relaxed)
    }

    /// Records that the server answered that it has no castore-fs service.
    pub(super) fn knows_the_field_only(&self) {
        self.field_only.store(true, Ordering::Relaxed);
    }

    fn generation(&self) -> ProtocolGeneration {
        if self.generation.load(Ordering::Relaxed) == ProtocolGeneration::Older as u8 {
            ProtocolGeneration::Older
        } else {
            ProtocolGeneration::Current
        }
    }

    /// A connection for an addition, whose client decides how long it may take.
    pub(super) fn connection(&self) -> CallConnection {
        self.calls.count_attempt();
        self.connection_of(self.generation())
    }

    fn connection_of(&self, generation: ProtocolGeneration) -> CallConnection {
        CallConnection {
            channel: self.channel.clone(),
            token: self.token.clone(),
            generation,
        }
    }

    /// Makes a call with one answer.
    pub(super) async fn call<T, F>(
        &self,
        call: impl Fn(CallConnection) -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.call_within(self.deadlines.first_byte, call).await
    }

    /// As [`call`](Self::call), for which the server may take `limit`.
    pub(super) async fn call_within<T, F>(
        &self,
        limit: Duration,
        call: impl Fn(CallConnection) -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let attempt = || self.attempt(limit, &call);
        self.calls.make(limit, attempt).await
    }

    /// As [`call`](Self::call), for what no reader waits for.
    pub(super) async fn call_in_background<T, F>(
        &self,
        call: impl Fn(CallConnection) -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let limit = self.deadlines.first_byte;
        let attempt = || self.attempt(limit, &call);
        self.calls.make_in_background(limit, attempt).await
    }

    /// Makes a call whose answer is a stream: returns its first message, if there is one, with the
    /// rest.
    pub(super) async fn stream<T, F>(
        self: &Arc<Self>,
        call: impl Fn(CallConnection) -> F,
    ) -> Result<Option<(T, StreamRest<T>)>, CallFailure>
    where
        T: Payload,
        F: Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    {
        let (call, limit) = (&call, self.deadlines.first_byte);
        let begin = |connection| async move {
            let mut stream = call(connection).await?.into_inner();
            let first = stream.message().await?;
            Ok(first.map(|first| (first, stream)))
        };
        let answer = self.calls.begin(limit, || self.attempt(limit, &begin));
        let Some((first, stream)) = answer.await? else {
            self.calls.answered();
            return Ok(None);
        };
        let mut rest = StreamRest {
            stream,
            pace: AnswerPace::new(self.deadlines.stall),
            endpoint: self.clone(),
            came: 0,
            moved: Instant::now(),
            waits: false,
        };
        rest.pace.note(first.payload())?;
        rest.took(&first);
        Ok(Some((first, rest)))
    }

    /// Requests a message that is hardly ever larger than [`USUAL_MESSAGE`]: `ask` is called with
    /// that limit, and if the answer is larger, with [`MAX_MESSAGE_BYTES`] when few others are as
    /// large.
    pub(super) async fn large<T, F>(&self, ask: impl Fn(usize) -> F) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, CallFailure>>,
    {
        match ask(USUAL_MESSAGE).await {
            Err(failure) if failure.is(FailureKind::TooLarge) => {
                let _turn = self.large.acquire().await;
                ask(MAX_MESSAGE_BYTES).await
            }
            answer => answer,
        }
    }

    async fn attempt<T, F>(
        &self,
        limit: Duration,
        call: &impl Fn(CallConnection) -> F,
    ) -> Result<T, CallFailure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let generation = self.generation();
        let answer = in_time(limit, call(self.connection_of(generation))).await;
        if !answer
            .as_ref()
            .is_err_and(|failure| failure.is(FailureKind::Unsupported))
        {
            return answer;
        }
        let other = generation.other();
        self.calls.count_attempt();
        let second = in_time(limit, call(self.connection_of(other))).await;
        match &second {
            Err(CallFailure::Failed(FailureKind::Unsupported, _)) => answer,
            Ok(_) | Err(CallFailure::Failed(..)) => {
                tracing::debug!("{} has the {other:?} generation", self.url);
                self.generation.store(other as u8, Ordering::Relaxed);
                second
            }
            Err(_) => second,
        }
    }

    /// The public error for `failure` of `request`.
    pub(super) fn error(&self, request: impl fmt::Display, failure: CallFailure) -> Error {
        failure.of(&self.url, request)
    }
}

/// The messages after the first one of a stream.
pub(super) struct StreamRest<T> {
    stream: Streaming<T>,
    pace: AnswerPace,
    endpoint: Arc<GrpcEndpoint>,
    /// Bytes of content that have come, until they are an answer.
    came: u64,
    /// When something came for the last time.
    moved: Instant,
    /// Whether it was asked for more, which has not come.
    waits: bool,
}

impl<T: Payload> StreamRest<T> {
    pub(super) async fn next(&mut self) -> Result<Option<T>, CallFailure> {
        let next = self.stream.message();
        let message = self.pace.wait(next, |message| match message {
            Ok(Some(message)) => message.payload(),
            // The end of a stream is no message without content.
            Ok(None) | Err(_) => 1,
        });
        self.waits = true;
        let message = message.await;
        let message = message.and_then(|message| message.map_err(CallFailure::from));
        match &message {
            Ok(Some(message)) => self.took(message),
            Ok(None) => self.waits = false,
            Err(failure) => self.waits = self.endpoint.calls.interrupted(self.moved, failure),
        }
        message
    }

    /// A message has come.
    fn took(&mut self, message: &T) {
        self.endpoint.calls.received(message.content());
        let bytes = message.payload();
        self.moved = Instant::now();
        self.waits = false;
        if self.came < ANSWERED {
            self.came += bytes;
            if self.came >= ANSWERED {
                self.endpoint.calls.answered();
            }
        }
    }
}

impl<T> Drop for StreamRest<T> {
    /// A reader that has all it wanted does not wait for the end.
    fn drop(&mut self) {
        if !self.waits {
            self.endpoint.calls.answered();
        }
    }
}

/// A connection for one call: uses the server's generation and sends the token.
#[derive(Clone)]
pub(super) struct CallConnection {
    channel: Channel,
    token: Option<HeaderValue>,
    generation: ProtocolGeneration,
}

impl Service<http::Request<Body>> for CallConnection {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let uri = std::mem::take(request.uri_mut());
        *request.uri_mut() = with_generation(uri, self.generation);
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        self.channel.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn endpoint() -> Arc<GrpcEndpoint> {
        let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
        let (url, deadlines) = (
            "grpc+http://127.0.0.1:1".to_owned(),
            CallDeadlines::default(),
        );
        GrpcEndpoint::new(url, channel, None, deadlines, Handle::current())
    }

    #[tokio::test]
    async fn two_large_messages_come_at_once_and_usual_ones_do_not_wait() {
        let endpoint = endpoint();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let large = |_| {
            endpoint.large(async |limit| {
                if limit == USUAL_MESSAGE {
                    return Err(CallFailure::Failed(
                        FailureKind::TooLarge,
                        "too large".to_owned(),
                    ));
                }
                assert_eq!(limit, 64 << 20);
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                // One that is small enough is answered beside those.
                let usual = endpoint.large(async |limit| Ok(limit)).await;
                assert_eq!(usual.ok(), Some(USUAL_MESSAGE));
                now.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            })
        };
        let answers = futures_util::future::join_all((0..10).map(large)).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::Relaxed), 2);
    }
}
