//! HTTP answers with a limit.
//!
//! Objects are read piece by piece, and no more of them than is useful. Everything else (listings,
//! errors, credentials) the crate `object_store` collects whole, in a buffer of the answer's
//! Content-Length. Here that length is hidden, and the body limited to [`MOST_COLLECTED`] bytes.
//!
//! The `Date` of the answers is the service's clock ([`ServiceClock`]).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{Method, header};
use http_body::{Body, Frame};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

use super::bucket_time::BucketTime;

/// Bytes of an answer that is collected whole, at most. A page of a listing has a thousand objects;
/// a WebDAV server lists a whole directory in one answer.
const MOST_COLLECTED: u64 = 64 << 20;

/// The clock of a service.
#[derive(Debug, Default)]
pub(super) struct ServiceClock {
    /// The date of the latest answer that had one, in seconds since 1970; 0 before.
    latest: AtomicI64,
}

impl ServiceClock {
    /// The date of the latest answer, if any had one.
    pub(super) fn latest(&self) -> Option<BucketTime> {
        let seconds = self.latest.load(Ordering::Relaxed);
        let time = DateTime::<Utc>::from_timestamp(seconds, 0);
        time.filter(|_| seconds > 0).map(BucketTime::from)
    }

    fn note(&self, response: &HttpResponse) {
        let date = response.headers().get(header::DATE);
        let date = date.and_then(|date| DateTime::parse_from_rfc2822(date.to_str().ok()?).ok());
        if let Some(date) = date {
            self.latest.store(date.timestamp(), Ordering::Relaxed);
        }
    }
}

/// Makes clients whose answers are limited, and give the time to the clock.
#[derive(Debug)]
pub(super) struct BoundedConnector(pub(super) Arc<ServiceClock>);

impl HttpConnector for BoundedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(BoundedClient {
            client,
            clock: self.0.clone(),
        }))
    }
}

#[derive(Debug)]
struct BoundedClient {
    client: HttpClient,
    clock: Arc<ServiceClock>,
}

#[async_trait]
impl HttpService for BoundedClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Listings have a query.
        let may_be_object = request.method() == Method::GET && request.uri().query().is_none();
        let response = self.client.execute(request).await?;
        self.clock.note(&response);
        let is_object = may_be_object && response.status().is_success();
        let limit = if is_object { u64::MAX } else { MOST_COLLECTED };
        Ok(response.map(|body| {
            HttpResponseBody::new(BoundedBody {
                body,
                remaining: limit,
            })
        }))
    }
}

/// A body that fails when it is longer than the limit. It reports no length, which would be
/// allocated.
struct BoundedBody {
    body: HttpResponseBody,
    remaining: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the answer has more than {} MiB", MOST_COLLECTED >> 20)]
struct TooLong;

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match self.remaining.checked_sub(data.len() as u64) {
                Some(remaining) => self.remaining = remaining,
                None => {
                    let error = HttpError::new(HttpErrorKind::Decode, TooLong);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes of a body.
    async fn collected(mut body: BoundedBody) -> Result<Vec<u8>, HttpError> {
        let mut all = Vec::new();
        while let Some(frame) =
            std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            all.extend(frame?.into_data().unwrap_or_default());
        }
        Ok(all)
    }

    #[tokio::test]
    async fn an_answer_that_is_collected_has_an_end_and_no_length() {
        let body = |remaining| BoundedBody {
            body: HttpResponseBody::from(vec![7; 1000]),
            remaining,
        };
        assert_eq!(body(1000).size_hint().upper(), None);
        assert_eq!(body(1000).size_hint().lower(), 0);
        assert_eq!(collected(body(1000)).await.unwrap(), vec![7; 1000]);
        let error = collected(body(999)).await.unwrap_err();
        assert!(error.to_string().contains("more than 64 MiB"), "{error}");
    }
}
