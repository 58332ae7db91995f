//! What a client of a binary cache may do.
//!
//! Nix shows what its `netrc-file` has, a login and a password: the password is the token, whatever the
//! login. Others may show the token itself (`Bearer`).

use data_encoding::BASE64;
use http::{HeaderMap, header};
use tonic::Status;

use crate::server::authorize::{AcceptedTokens, ClientRights};

/// The rights of clients.
#[derive(Clone, Debug)]
pub(super) struct HttpAccess {
    pub(super) tokens: Option<AcceptedTokens>,
    /// What a client may do whose token names no rights, or that needs no token.
    pub(super) every: ClientRights,
    /// Whether reading takes no token.
    pub(super) open_to_read: bool,
}

impl HttpAccess {
    /// The rights of a client that sends `headers`.
    pub(super) fn rights(&self, headers: &HeaderMap) -> Result<ClientRights, Status> {
        let Some(tokens) = &self.tokens else {
            return Ok(self.every);
        };
        let shown = headers.get(header::AUTHORIZATION);
        let Some(shown) = shown else {
            return match self.open_to_read {
                true => Ok(ClientRights {
                    read: true,
                    ..ClientRights::default()
                }),
                false => Err(Status::unauthenticated(
                    "this binary cache demands a token: put it into the netrc-file as the password",
                )),
            };
        };
        let rights = token(shown.as_bytes()).and_then(|token| tokens.rights_of(&token, self.every));
        let rights = rights.ok_or_else(|| {
            Status::unauthenticated(
                "this binary cache takes another token than was shown: see the netrc-file",
            )
        })?;
        Ok(ClientRights {
            read: rights.read || self.open_to_read,
            ..rights
        })
    }
}

/// The token in the value of an `Authorization` header.
fn token(shown: &[u8]) -> Option<Vec<u8>> {
    if let Some(token) = shown.strip_prefix(b"Bearer ") {
        return Some(token.to_vec());
    }
    let login = BASE64.decode(shown.strip_prefix(b"Basic ")?).ok()?;
    let colon = login.iter().position(|&byte| byte == b':')?;
    Some(login[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_bearers_or_the_password_of_a_login() {
        let tokens = AcceptedTokens::parse(b"plain\nreader read\nwriter add\n").unwrap();
        let every = ClientRights {
            read: true,
            add: true,
            replace: false,
        };
        let access = |open_to_read| HttpAccess {
            tokens: Some(tokens.clone()),
            every,
            open_to_read,
        };
        let rights = |access: &HttpAccess, shown: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(shown) = shown {
                headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
            }
            access.rights(&headers).ok()
        };
        let basic = |login: &str| format!("Basic {}", BASE64.encode(login.as_bytes()));
        let (closed, open) = (access(false), access(true));
        let of = |read, add| {
            Some(ClientRights {
                read,
                add,
                replace: false,
            })
        };
        assert_eq!(rights(&closed, Some("Bearer plain")), of(true, true));
        assert_eq!(rights(&closed, Some(&basic("any:plain"))), of(true, true));
        assert_eq!(rights(&closed, Some(&basic(":reader"))), of(true, false));
        assert_eq!(rights(&closed, Some(&basic("x:writer"))), of(false, true));
        assert_eq!(rights(&open, Some(&basic("x:writer"))), of(true, true));
        assert_eq!(rights(&open, None), of(true, false));
        for wrong in [
            "plain",
            "Bearer other",
            "Basic plain",
            &basic("plain"),
            &basic("plain:x"),
        ] {
            assert_eq!(rights(&closed, Some(wrong)), None, "{wrong}");
            assert_eq!(rights(&open, Some(wrong)), None, "{wrong}");
        }
        assert_eq!(rights(&closed, None), None);
    }
}
