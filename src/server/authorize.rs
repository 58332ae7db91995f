//! Authorization: clients need a bearer token, if the server requires one.
//!
//! The health service needs no token: balancers and probes have none.

use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use thiserror::Error;
use tonic::Status;
use tower::{Layer, Service};

/// The prefix of every path of the health service.
const HEALTH: &str = "/grpc.health.v1.";
/// Methods that need the right to add: by themselves they reveal nothing of what is in the store, but for
/// whether it is there.
const ADDING: [&str; 6] = [
    "BlobService/Put",
    "DirectoryService/Put",
    "PathInfoService/Put",
    "IngestService/Ingest",
    "PartService/Missing",
    "PartService/HasTree",
];

/// The rights of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientRights {
    /// Read all that is in the store.
    pub read: bool,
    /// Add new objects and roots.
    pub add: bool,
    /// Replace and remove roots.
    pub replace: bool,
}

/// The tokens that a server accepts, as their hashes: comparing those takes the same time for any
/// input. Each with its rights, if the file names any.
#[derive(Clone)]
pub struct AcceptedTokens(Vec<(blake3::Hash, Option<ClientRights>)>);

/// No usable token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokensError {
    /// Nothing but white space.
    #[error("there is no token in it: write one on each line")]
    None,
    /// A line that no client could send, or with a word that is not a right.
    #[error(
        "line {0} is not a token: a token is one word of printable ASCII, and after it there may be what \
         it gives the right to: read, add, replace"
    )]
    Line(usize),
}

impl AcceptedTokens {
    /// Parses one token a line, so that an old one can be accepted for a while beside a new one.
    /// Words after it are its rights; without any it has the rights that the server gives to every
    /// client.
    pub fn parse(text: &[u8]) -> Result<Self, TokensError> {
        let mut tokens = Vec::new();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let wrong = TokensError::Line(number + 1);
            let words = line.split(u8::is_ascii_whitespace);
            let mut words = words.filter(|word| !word.is_empty());
            let Some(token) = words.next() else { continue };
            if !token.iter().all(u8::is_ascii_graphic) {
                return Err(wrong);
            }
            let mut rights: Option<ClientRights> = None;
            for word in words {
                let rights = rights.get_or_insert_default();
                match word {
                    b"read" => rights.read = true,
                    b"add" => rights.add = true,
                    b"replace" => (rights.add, rights.replace) = (true, true),
                    _ => return Err(wrong),
                }
            }
            tokens.push((blake3::hash(token), rights));
        }
        match tokens.is_empty() {
            true => Err(TokensError::None),
            false => Ok(Self(tokens)),
        }
    }

    /// The rights of the client that sent `request`, which are `every` if its token names none;
    /// nothing if it has no valid token.
    fn admit<B>(&self, request: &Request<B>, every: ClientRights) -> Option<ClientRights> {
        let shown = request.headers().get(http::header::AUTHORIZATION)?;
        self.rights_of(shown.as_bytes().strip_prefix(b"Bearer ")?, every)
    }

    /// The rights of a client that shows `token`, as [`admit`](Self::admit) has them.
    pub(super) fn rights_of(&self, token: &[u8], every: ClientRights) -> Option<ClientRights> {
        let token = blake3::hash(token);
        // Compares all of them, so that the time does not reveal which one it was.
        let found = self.0.iter().fold(
            None,
            |found, (own, rights)| {
                if *own == token { Some(*rights) } else { found }
            },
        )?;
        Some(found.unwrap_or(every))
    }
}

impl std::fmt::Debug for AcceptedTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

/// Accepts calls that have a token, if one is required, and the right to what they do.
#[derive(Clone)]
pub(super) struct Authorize {
    pub(super) tokens: Option<AcceptedTokens>,
    /// The rights of a client whose token names none.
    pub(super) every: ClientRights,
}

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized {
            inner,
            authorize: self.clone(),
        }
    }
}

/// A service that checks tokens first.
#[derive(Clone)]
pub(super) struct Authorized<S> {
    inner: S,
    authorize: Authorize,
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.authorize.rights(&request) {
            Ok(rights) => {
                request.extensions_mut().insert(rights);
                Either::Left(self.inner.call(request))
            }
            Err(refused) => Either::Right(ready(Ok(refused.into_http()))),
        }
    }
}

impl Authorize {
    fn rights<B>(&self, request: &Request<B>) -> Result<ClientRights, Status> {
        let path = request.uri().path();
        let rights = match &self.tokens {
            None => self.every,
            Some(_) if path.starts_with(HEALTH) => return Ok(ClientRights::default()),
            Some(tokens) => tokens.admit(request, self.every).ok_or_else(|| {
                let shown = request.headers().contains_key(http::header::AUTHORIZATION);
                Status::unauthenticated(match shown {
                    true => {
                        "this server requires a token, and the token of this call is not valid: is it the \
                         right file, ?token-file=PATH?"
                    }
                    false => {
                        "this server requires a token: give its file in the URL, ?token-file=PATH"
                    }
                })
            })?,
        };
        let name = path.rsplit('.').next().unwrap_or_default();
        match rights.read || ADDING.contains(&name) {
            true => Ok(rights),
            false => Err(Status::permission_denied(
                "the token has no right to read: give it the word `read` in the server's token file",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: ClientRights = ClientRights {
        read: true,
        add: false,
        replace: false,
    };

    #[test]
    fn one_token_a_line_and_no_other_is_admitted() {
        let tokens = AcceptedTokens::parse(b" first \n\nsecond\r\n").unwrap();
        let admits = |header: Option<&str>| {
            let mut request = Request::builder();
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            tokens.admit(&request.body(()).unwrap(), EVERY)
        };
        assert_eq!(admits(Some("Bearer first")), Some(EVERY));
        assert_eq!(admits(Some("Bearer second")), Some(EVERY));
        for wrong in [
            "Bearer third",
            "Bearer ",
            "Bearer first ",
            "first",
            "Basic first",
        ] {
            assert_eq!(admits(Some(wrong)), None, "{wrong}");
        }
        assert_eq!(admits(None), None);
        assert_eq!(
            AcceptedTokens::parse(b" \n").unwrap_err(),
            TokensError::None
        );
        assert_eq!(
            AcceptedTokens::parse(b"a\nb c").unwrap_err(),
            TokensError::Line(2)
        );
        assert!(!format!("{tokens:?}").contains("first"));
    }

    #[test]
    fn a_token_has_the_rights_that_its_line_names() {
        let text = "plain\nreader read\nwriter add\nboth read add\nowner read replace\n";
        let authorize = Authorize {
            tokens: Some(AcceptedTokens::parse(text.as_bytes()).unwrap()),
            every: EVERY,
        };
        let may = |token: &str, path: &str| {
            let request = Request::builder()
                .uri(format!("http://host{path}"))
                .header("authorization", format!("Bearer {token}"));
            authorize.rights(&request.body(()).unwrap()).ok()
        };
        let (read, put) = ("/a.BlobService/Read", "/a.IngestService/Ingest");
        assert_eq!(may("plain", read), Some(EVERY));
        let rights = |read, add, replace| Some(ClientRights { read, add, replace });
        assert_eq!(may("reader", read), rights(true, false, false));
        assert_eq!(may("writer", put), rights(false, true, false));
        assert_eq!(may("writer", read), None);
        assert_eq!(may("both", read), rights(true, true, false));
        assert_eq!(may("owner", put), rights(true, true, true));
        assert_eq!(
            AcceptedTokens::parse(b"a read\nb write").unwrap_err(),
            TokensError::Line(2)
        );
    }
}
