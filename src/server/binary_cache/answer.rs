//! Answers over HTTP: a status, headers, and a body that is made as its client takes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status};

use crate::server::budget::TakenShare;
use crate::server::capacity::OpenCall;
use crate::server::guard::UnsentBytes;
use crate::server::limits::FRAME;

/// What a binary cache answers with.
pub(super) type HttpAnswer = Response<AnswerBody>;

/// Makes a body, piece by piece. Blocks.
pub(super) trait BodyProducer: Send + 'static {
    /// The next bytes, about [`FRAME`] of them; nothing at the end.
    fn next(&mut self) -> Result<Option<Bytes>, Status>;

    /// Bytes that are still to come, if that is known.
    fn remaining(&self) -> Option<u64>;
}

/// The body of an answer.
pub(super) struct AnswerBody {
    source: BodySource,
    size: SizeHint,
    /// The call that it is the answer to, with what that holds.
    call: Option<(OpenCall, Vec<TakenShare>)>,
}

enum BodySource {
    Whole(Option<Bytes>),
    Idle(Box<dyn BodyProducer>),
    Producing(BoxFuture<'static, Option<ProducedBytes>>),
    Ended,
}

struct ProducedBytes {
    producer: Box<dyn BodyProducer>,
    made: Result<Option<Bytes>, Status>,
    room: TakenShare,
}

impl AnswerBody {
    /// Bytes that are there.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            size: SizeHint::with_exact(bytes.len() as u64),
            source: BodySource::Whole(Some(bytes)),
            call: None,
        }
    }

    /// What `producer` makes.
    pub(super) fn of(producer: impl BodyProducer) -> Self {
        let size = producer.remaining().map(SizeHint::with_exact);
        Self {
            source: BodySource::Idle(Box::new(producer)),
            size: size.unwrap_or_default(),
            call: None,
        }
    }

    /// Nothing, in the answer to a HEAD.
    pub(super) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// Has `call` and what it holds last as long as this body.
    pub(super) fn during(mut self, call: OpenCall, held: Vec<TakenShare>) -> Self {
        self.call = Some((call, held));
        self
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.source, BodySource::Ended) {
                BodySource::Whole(bytes) => {
                    let bytes = bytes.filter(|bytes| !bytes.is_empty());
                    return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
                }
                BodySource::Ended => return Poll::Ready(None),
                BodySource::Idle(producer) => {
                    let Some((call, _)) = &this.call else {
                        return Poll::Ready(Some(Err(io::ErrorKind::NotConnected.into())));
                    };
                    let share = call.connection().responses.clone();
                    this.source = BodySource::Producing(Box::pin(async move {
                        let room = share.hold(FRAME).await;
                        produce(producer, room).await
                    }));
                }
                BodySource::Producing(mut producing) => {
                    let Poll::Ready(produced) = producing.as_mut().poll(context) else {
                        this.source = BodySource::Producing(producing);
                        return Poll::Pending;
                    };
                    return Poll::Ready(this.take(produced));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.source, BodySource::Ended)
            || matches!(&self.source, BodySource::Whole(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

impl AnswerBody {
    fn take(&mut self, produced: Option<ProducedBytes>) -> Option<io::Result<Frame<Bytes>>> {
        if let Some((call, _)) = &self.call {
            call.connection().is_active();
        }
        let Some(ProducedBytes {
            producer,
            made,
            mut room,
        }) = produced
        else {
            return Some(Err(io::Error::other("the call was interrupted")));
        };
        match made {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                self.source = BodySource::Idle(producer);
                match bytes.len() > FRAME {
                    // It is there already: counted as far as there is room for it.
                    true => drop(room.grow(bytes.len() - FRAME)),
                    false => room.shrink(bytes.len()),
                }
                if let Some(remaining) = self.size.exact() {
                    self.size = SizeHint::with_exact(remaining.saturating_sub(bytes.len() as u64));
                }
                let bytes = Bytes::from_owner(UnsentBytes::new(bytes, room));
                Some(Ok(Frame::data(bytes)))
            }
            Err(status) => {
                // The connection is cut, which is how a client notices it.
                tracing::warn!("an answer was interrupted: {}", status.message());
                Some(Err(io::Error::other(status.message().to_owned())))
            }
        }
    }
}

/// Has `producer` make the next bytes; nothing if that was stopped.
async fn produce(mut producer: Box<dyn BodyProducer>, room: TakenShare) -> Option<ProducedBytes> {
    let done = tokio::task::spawn_blocking(move || {
        let made = producer.next();
        ProducedBytes {
            producer,
            made,
            room,
        }
    });
    done.await.ok()
}

/// An answer of text.
pub(super) fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> HttpAnswer {
    let text = text.into();
    let length = text.len();
    let mut answer = Response::new(AnswerBody::whole(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// A failure as a status of HTTP, with its reason as text.
pub(super) fn failure(status: &Status) -> HttpAnswer {
    let code = match status.code() {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::AlreadyExists | Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::Unimplemented => StatusCode::METHOD_NOT_ALLOWED,
        // 507 would fit what is full better, but clients repeat what was answered with a 5xx.
        Code::ResourceExhausted => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut answer = text(
        code,
        "text/plain; charset=utf-8",
        format!("{}\n", status.message()),
    );
    if code == StatusCode::UNAUTHORIZED {
        let basic = HeaderValue::from_static("Basic realm=\"castore-fs\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    }
    answer
}
