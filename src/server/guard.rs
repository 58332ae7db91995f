//! The limits of every call, by method, in the bytes of its request and of its answer.
//!
//! A request's messages are checked as they come in: one with a too large stated length is refused
//! before it arrives, and a long one has to fit into the memory of its connection. An answer is
//! made only when there is room for it, and what the client has not read is counted until it was
//! sent. So neither grows with what a client claims, sends or leaves unread.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::{BoxFuture, Either, MapOk, Ready, TryFutureExt, ready};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::budget::TakenShare;
use super::capacity::{ConnectionState, OpenCall};
use super::limits::{
    FRAME, HEADERS, LIFE, MethodKind, MethodLimits, ServerLimits, headers_fit, method,
};

/// Messages up to this many bytes need no room of their own: what a connection has of them is bounded
/// by its calls.
const FREE: usize = 16 << 10;
/// The prefix of a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Puts the limits around every call.
#[derive(Clone)]
pub(super) struct LimitsLayer(pub(super) Arc<ServerLimits>);

impl<S> Layer<S> for LimitsLayer {
    type Service = LimitedService<S>;

    fn layer(&self, inner: S) -> LimitedService<S> {
        LimitedService {
            inner,
            limits: self.0.clone(),
        }
    }
}

/// A service within the limits.
#[derive(Clone)]
pub(super) struct LimitedService<S> {
    inner: S,
    limits: Arc<ServerLimits>,
}

type GuardedFuture<F, E> = Either<
    MapOk<F, Box<dyn FnOnce(Response<Body>) -> Response<Body> + Send>>,
    Ready<Result<Response<Body>, E>>,
>;

impl<S> Service<Request<Body>> for LimitedService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = GuardedFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let refuse = |what: &str| {
            let refused = Status::resource_exhausted(format!("{what}: try again later"));
            Either::Right(ready(Ok(refused.into_http())))
        };
        let Some(connection) = request.extensions().get::<Arc<ConnectionState>>().cloned() else {
            // Every connection has one.
            return refuse("the connection is not known");
        };
        let call = connection.begin();
        if !headers_fit(&request) {
            let most = format!("the headers of a call have at most {HEADERS} bytes");
            let refused = Status::resource_exhausted(most).into_http();
            return Either::Right(ready(Ok(refused)));
        }
        let Some(slot) = connection.calls.try_hold(1) else {
            return refuse("too many calls are under way at once");
        };
        let allowed = method(request.uri().path());
        let mut slots = vec![slot];
        if allowed.kind == MethodKind::Upload {
            let Some(slot) = connection.uploads.try_hold(1) else {
                return refuse("too many uploads are under way at once");
            };
            slots.push(slot);
        }
        let limits = self.limits.clone();
        let request = request
            .map(|inner| Body::new(RequestBody::new(inner, allowed, limits, connection.clone())));
        let guard = move |answer: Response<Body>| {
            answer.map(|inner| {
                Body::new(ResponseBody {
                    inner,
                    paced: !matches!(allowed.kind, MethodKind::Watch | MethodKind::Dialogue),
                    room: None,
                    waiting: None,
                    call,
                    _slots: slots,
                })
            })
        };
        Either::Left(self.inner.call(request).map_ok(Box::new(guard)))
    }
}

/// A request's body, within the limits of its method.
struct RequestBody {
    inner: Body,
    method: MethodLimits,
    limits: Arc<ServerLimits>,
    connection: Arc<ConnectionState>,
    /// The received part of the next message's prefix.
    prefix: VecDeque<u8>,
    /// Bytes of the message that have not come yet.
    rest: usize,
    messages: u64,
    bytes: u64,
    /// The reserved room for the message.
    held: Option<TakenShare>,
    /// The room that the message waits for.
    waiting: Option<BoxFuture<'static, TakenShare>>,
    deadline: Pin<Box<Sleep>>,
    /// Bytes since the deadline was set, and the calls that the connection had begun by then.
    since: usize,
    calls: u64,
    /// When the last frame was handed on: the time that this server takes for it is no silence.
    handed_on: Option<Instant>,
    ended: bool,
}

impl RequestBody {
    fn new(
        inner: Body,
        method: MethodLimits,
        limits: Arc<ServerLimits>,
        connection: Arc<ConnectionState>,
    ) -> Self {
        Self {
            deadline: Box::pin(tokio::time::sleep(limits.silence)),
            calls: connection.begun(),
            inner,
            method,
            limits,
            connection,
            prefix: VecDeque::with_capacity(PREFIX),
            rest: 0,
            messages: 0,
            bytes: 0,
            held: None,
            waiting: None,
            since: 0,
            handed_on: None,
            ended: false,
        }
    }

    /// Checks received bytes; reserves the room for a message that begins in them.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        self.bytes += bytes.len() as u64;
        self.since += bytes.len();
        if self.method.kind == MethodKind::Upload && self.bytes > self.limits.upload {
            return Err(Status::resource_exhausted(format!(
                "an upload to this server has at most {} bytes",
                self.limits.upload
            )));
        }
        while bytes.has_remaining() {
            if self.rest > 0 {
                let step = self.rest.min(bytes.len());
                bytes.advance(step);
                self.rest -= step;
                continue;
            }
            self.prefix.push_back(bytes.get_u8());
            if self.prefix.len() < PREFIX {
                continue;
            }
            self.prefix.pop_front();
            let length = self
                .prefix
                .drain(..)
                .fold(0, |length, byte| length << 8 | usize::from(byte));
            self.begin_message(length)?;
        }
        Ok(())
    }

    fn begin_message(&mut self, length: usize) -> Result<(), Status> {
        let most = self.method.message.min(self.limits.request_memory / 2);
        if length > most {
            return Err(Status::resource_exhausted(format!(
                "a message of {length} bytes is longer than this method takes: {most} bytes"
            )));
        }
        self.messages += 1;
        if self.messages > 1 && matches!(self.method.kind, MethodKind::Unary | MethodKind::Watch) {
            return Err(Status::invalid_argument("this method takes one message"));
        }
        self.rest = length;
        self.held = None;
        if length > FREE {
            match self.connection.requests.try_hold(length) {
                Some(held) => self.held = Some(held),
                None => {
                    let room = self.connection.requests.clone().hold(length);
                    self.waiting = Some(Box::pin(room));
                }
            }
        }
        Ok(())
    }

    /// Whether the request has been silent for too long.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let limit = self.limits.silence;
        let alive = match self.method.kind {
            // Its one message has to come in this time.
            MethodKind::Unary | MethodKind::Watch => false,
            MethodKind::Upload | MethodKind::Dialogue => self.since >= LIFE,
        };
        if alive {
            self.set_deadline(limit);
        }
        while self.deadline.as_mut().poll(context).is_ready() {
            // A client that checks what is missing before it sends is active.
            let works =
                self.method.kind == MethodKind::Upload && self.connection.begun() != self.calls;
            if !works {
                return true;
            }
            self.set_deadline(limit);
        }
        false
    }

    fn set_deadline(&mut self, limit: Duration) {
        self.deadline.as_mut().reset(Instant::now() + limit);
        self.since = 0;
        self.calls = self.connection.begun();
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(handed_on) = this.handed_on.take() {
            let until = this.deadline.deadline() + handed_on.elapsed();
            this.deadline.as_mut().reset(until);
        }
        if this.is_late(context) {
            this.ended = true;
            return Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
                "the request was silent for {:?}",
                this.limits.silence
            )))));
        }
        if let Some(waiting) = &mut this.waiting {
            this.held = Some(ready!(waiting.as_mut().poll(context)));
            this.waiting = None;
        }
        let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(context)) else {
            this.ended = true;
            return Poll::Ready(None);
        };
        let frame = frame.and_then(|frame| {
            if let Some(data) = frame.data_ref() {
                this.connection.is_active();
                this.take(data)?;
            }
            Ok(frame)
        });
        this.ended = frame.is_err();
        this.handed_on = Some(Instant::now());
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body: made as there is room for it.
struct ResponseBody {
    inner: Body,
    /// Whether its frames come one after the other, and may be large.
    paced: bool,
    room: Option<TakenShare>,
    waiting: Option<BoxFuture<'static, TakenShare>>,
    call: OpenCall,
    /// The call's share of the limits.
    _slots: Vec<TakenShare>,
}

/// Bytes that take room until they were sent.
pub(super) struct UnsentBytes {
    bytes: Bytes,
    _room: Option<TakenShare>,
}

impl UnsentBytes {
    pub(super) fn new(bytes: Bytes, room: TakenShare) -> Self {
        Self {
            bytes,
            _room: Some(room),
        }
    }
}

impl AsRef<[u8]> for UnsentBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let connection = this.call.connection();
        if this.paced && this.room.is_none() {
            let waiting = this
                .waiting
                .get_or_insert_with(|| Box::pin(connection.responses.clone().hold(FRAME)));
            this.room = Some(ready!(waiting.as_mut().poll(context)));
            this.waiting = None;
        }
        let Some(frame) = ready!(Pin::new(&mut this.inner).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame?;
        connection.is_active();
        let mut room = this.room.take();
        // What is answered at any time is small, or counted once it is there.
        let length = frame.data_ref().map_or(0, Bytes::len);
        if !this.paced && length > FREE {
            room = connection.responses.try_hold(length);
            if room.is_none() {
                let full = "this client reads too little of its answers";
                return Poll::Ready(Some(Err(Status::resource_exhausted(full))));
            }
        }
        Poll::Ready(Some(Ok(frame.map_data(|bytes| {
            if let Some(room) = &mut room {
                match bytes.len() > FRAME {
                    // It exists already: counted as far as there is room for it.
                    true => drop(room.grow(bytes.len() - FRAME)),
                    false => room.shrink(bytes.len()),
                }
            }
            Bytes::from_owner(UnsentBytes { bytes, _room: room })
        }))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
