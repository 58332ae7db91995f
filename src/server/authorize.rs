//! Who may call: whoever shows a bearer token, where the server demands one.
//!
//! Whether the server is healthy may be asked by everybody: balancers and probes have no token.

use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use thiserror::Error;
use tonic::Status;
use tower::{Layer, Service};

/// What every path of the health service starts with.
const HEALTH: &str = "/grpc.health.v1.";

/// The tokens that a server takes, as their hashes: comparing those takes the same time whatever
/// is shown.
#[derive(Clone)]
pub struct Tokens(Vec<blake3::Hash>);

/// No token that could be demanded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokensError {
    /// Nothing but white space.
    #[error("there is no token in it: write one on each line")]
    None,
    /// A line that no client could send.
    #[error("line {0} is no token: a token is one word of printable ASCII")]
    Line(usize),
}

impl Tokens {
    /// Reads one token a line, so that an old one can be taken for a while beside a new one.
    pub fn parse(text: &[u8]) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            match line.trim_ascii() {
                b"" => {}
                token if token.iter().all(u8::is_ascii_graphic) => tokens.push(blake3::hash(token)),
                _ => return Err(TokensError::Line(number + 1)),
            }
        }
        match tokens.is_empty() {
            true => Err(TokensError::None),
            false => Ok(Self(tokens)),
        }
    }

    fn admit<B>(&self, request: &Request<B>) -> bool {
        let shown = request.headers().get(http::header::AUTHORIZATION);
        let token = shown.and_then(|shown| shown.as_bytes().strip_prefix(b"Bearer "));
        token.is_some_and(|token| {
            let token = blake3::hash(token);
            // Each of them, so that which one it was takes no time to tell.
            self.0
                .iter()
                .fold(false, |found, own| found | (*own == token))
        })
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

/// Lets calls with a token through; all calls, if none is demanded.
#[derive(Clone)]
pub(super) struct Authorize(pub(super) Option<Tokens>);

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized {
            inner,
            tokens: self.0.clone(),
        }
    }
}

/// A service behind the demand for a token.
#[derive(Clone)]
pub(super) struct Authorized<S> {
    inner: S,
    tokens: Option<Tokens>,
}

impl<S, B, R> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admitted = match &self.tokens {
            Some(tokens) => request.uri().path().starts_with(HEALTH) || tokens.admit(&request),
            None => true,
        };
        if admitted {
            return Either::Left(self.inner.call(request));
        }
        let refused = Status::unauthenticated(
            "this server demands a token: give its file in the URL, ?token-file=PATH",
        );
        Either::Right(ready(Ok(refused.into_http())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_a_line_and_no_other_is_admitted() {
        let tokens = Tokens::parse(b" first \n\nsecond\r\n").unwrap();
        let admits = |header: Option<&str>| {
            let mut request = Request::builder();
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            tokens.admit(&request.body(()).unwrap())
        };
        assert!(admits(Some("Bearer first")) && admits(Some("Bearer second")));
        for wrong in [
            "Bearer third",
            "Bearer ",
            "Bearer first ",
            "first",
            "Basic first",
        ] {
            assert!(!admits(Some(wrong)), "{wrong}");
        }
        assert!(!admits(None));
        assert_eq!(Tokens::parse(b" \n").unwrap_err(), TokensError::None);
        assert_eq!(Tokens::parse(b"a\nb c").unwrap_err(), TokensError::Line(2));
        assert!(!format!("{tokens:?}").contains("first"));
    }
}
