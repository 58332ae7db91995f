//! The address of a binary cache, and its parameters.

use std::path::{Path, PathBuf};

use thiserror::Error;
use url::Url;

use crate::nix::PublicKey;
use crate::store::shown_parameter;

/// The schemes, as they stand before the colon.
pub const SCHEMES: [&str; 3] = ["nix+https", "nix+http", "nix+file"];

/// Whether `url` is that of a binary cache.
pub fn is_url(url: &str) -> bool {
    (url.split_once(':')).is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

/// The address of one binary cache.
///
/// `nix+https://HOST[/PATH]`, `nix+http://HOST[/PATH]` or `nix+file:///DIR`, with parameters:
///
/// | parameter | meaning |
/// |---|---|
/// | `trusted-public-keys` | keys (`name:base64`), separated by spaces or commas; a path needs a signature by one of them |
/// | `require-signatures` | `false`: accept paths without a trusted signature |
/// | `priority` | overrides the cache's own `Priority`; smaller is asked first |
/// | `netrc-file` | a netrc(5) file with login and password |
/// | `token-file` | a file with a bearer token |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheAddress {
    /// The address without its parameters, for logs and errors.
    pub shown: String,
    /// Where it is.
    pub location: CacheLocation,
    /// Keys whose signatures are trusted.
    pub trusted_public_keys: Vec<PublicKey>,
    /// Whether a path needs a signature by one of these keys.
    pub require_signatures: bool,
    /// Overrides the `Priority` of the cache's `nix-cache-info`.
    pub priority: Option<u32>,
    /// A netrc(5) file.
    pub netrc_file: Option<PathBuf>,
    /// A file with a bearer token.
    pub token_file: Option<PathBuf>,
}

/// Where a binary cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheLocation {
    /// On an HTTP server, below this URL, which ends with a slash.
    Http(Url),
    /// In this directory.
    Directory(PathBuf),
}

/// Text that is no address of a binary cache. Repeats nothing of a parameter's value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not a URL.
    #[error("it is not a URL: {0}")]
    Url(#[from] url::ParseError),
    /// Another scheme.
    #[error("its scheme is not one of nix+https, nix+http and nix+file")]
    Scheme,
    /// Login and password must not be in a URL.
    #[error(
        "it contains a user name or password; put them into a netrc file and name it with \
         netrc-file="
    )]
    Password,
    /// A directory that is not absolute, or on another host.
    #[error("nix+file needs an absolute path: nix+file:///DIR")]
    Directory,
    /// An unknown parameter.
    #[error(
        "it has no parameter {0}; there are trusted-public-keys, require-signatures, priority, \
         netrc-file and token-file"
    )]
    Parameter(String),
    /// A parameter's value is not of its form.
    #[error("{parameter}: {why}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What is expected.
        why: String,
    },
    /// A secret would be sent without encryption.
    #[error("{0} would be sent without encryption over nix+http; use nix+https")]
    InTheClear(&'static str),
}

impl CacheAddress {
    /// Parses `text`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let inner = SCHEMES
            .iter()
            .find(|scheme| {
                let rest = text.strip_prefix(*scheme);
                rest.is_some_and(|rest| rest.starts_with(':'))
            })
            .and_then(|_| text.strip_prefix("nix+"))
            .ok_or(AddressError::Scheme)?;
        let mut url = Url::parse(inner)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressError::Password);
        }
        let query = url.query().unwrap_or_default().to_owned();
        url.set_query(None);
        url.set_fragment(None);
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let location = match url.scheme() {
            "file" => {
                CacheLocation::Directory(url.to_file_path().map_err(|()| AddressError::Directory)?)
            }
            _ => CacheLocation::Http(url.clone()),
        };
        let shown = format!("nix+{url}").trim_end_matches('/').to_owned();
        let mut address = Self {
            shown,
            location,
            trusted_public_keys: Vec::new(),
            require_signatures: true,
            priority: None,
            netrc_file: None,
            token_file: None,
        };
        // A plus sign is a digit of base64 and is kept.
        let query = query.replace('+', "%2B");
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            address.set(&name, &value)?;
        }
        address.check_encryption()?;
        Ok(address)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), AddressError> {
        // Other implementations write trusted_public_keys[0]=….
        let plain = name.split('[').next().unwrap_or_default().replace('_', "-");
        let wrong = |parameter, why: &str| AddressError::Value {
            parameter,
            why: why.to_owned(),
        };
        match plain.as_str() {
            "trusted-public-keys" => {
                let keys = value.split([' ', ',']).filter(|key| !key.is_empty());
                for key in keys {
                    let key = PublicKey::parse(key).map_err(|error| AddressError::Value {
                        parameter: "trusted-public-keys",
                        why: error.to_string(),
                    })?;
                    self.trusted_public_keys.push(key);
                }
            }
            "require-signatures" => {
                self.require_signatures = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(wrong("require-signatures", "expected true or false")),
                }
            }
            "priority" => {
                let priority = value.parse();
                let priority = priority.map_err(|_| wrong("priority", "expected a number"))?;
                self.priority = Some(priority);
            }
            "netrc-file" => self.netrc_file = Some(Path::new(value).to_owned()),
            "token-file" => self.token_file = Some(Path::new(value).to_owned()),
            _ => {
                let name: String = name.chars().take(40).collect();
                return Err(AddressError::Parameter(shown_parameter(&name, value)));
            }
        }
        Ok(())
    }

    /// Returns what is wrong with an address that was composed.
    pub fn check(&self) -> Result<(), String> {
        self.check_encryption().map_err(|error| error.to_string())?;
        self.check_trust()
    }

    fn check_encryption(&self) -> Result<(), AddressError> {
        match &self.location {
            CacheLocation::Http(url) if url.scheme() == "http" && self.token_file.is_some() => {
                Err(AddressError::InTheClear("a token"))
            }
            _ => Ok(()),
        }
    }

    /// Returns what is missing if no path could ever be trusted.
    pub fn check_trust(&self) -> Result<(), String> {
        match self.require_signatures && self.trusted_public_keys.is_empty() {
            true => Err("no key is trusted to sign its paths: add \
                 trusted-public-keys=NAME:BASE64, or require-signatures=false"
                .to_owned()),
            false => Ok(()),
        }
    }

    /// The files in its parameters, and its directory.
    pub fn files(&self) -> Vec<&Path> {
        let named = [&self.netrc_file, &self.token_file].into_iter().flatten();
        let named = named.map(PathBuf::as_path);
        named.chain(self.directory()).collect()
    }

    /// The directory of a cache that is in one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.location {
            CacheLocation::Directory(path) => Some(path),
            CacheLocation::Http(_) => None,
        }
    }

    /// The host's name, of a cache on a server.
    pub fn host(&self) -> Option<&str> {
        match &self.location {
            CacheLocation::Http(url) => url.host_str(),
            CacheLocation::Directory(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

    #[test]
    fn addresses_read_and_are_shown_without_their_parameters() {
        let address = CacheAddress::parse(&format!(
            "nix+https://cache.nixos.org?trusted-public-keys={KEY}&priority=40"
        ))
        .unwrap();
        assert_eq!(address.shown, "nix+https://cache.nixos.org");
        assert_eq!(address.trusted_public_keys[0].to_string(), KEY);
        assert_eq!(address.priority, Some(40));
        assert!(address.require_signatures);
        assert_eq!(address.host(), Some("cache.nixos.org"));
        let peers = format!("nix+https://example.org/a?trusted_public_keys[0]={KEY}");
        let peers = CacheAddress::parse(&peers).unwrap();
        assert_eq!(peers.trusted_public_keys.len(), 1);
        assert_eq!(peers.shown, "nix+https://example.org/a");
        let with_plus = KEY.replace('d', "+");
        let with_plus = format!("nix+http://h?trusted-public-keys={with_plus}");
        assert!(CacheAddress::parse(&with_plus).is_ok());
        let directory = CacheAddress::parse("nix+file:///srv/cache").unwrap();
        assert_eq!(
            directory.location,
            CacheLocation::Directory("/srv/cache/".into())
        );
    }

    #[test]
    fn errors_do_not_repeat_a_secret() {
        let parse = |text: &str| CacheAddress::parse(text).unwrap_err();
        assert_eq!(parse("https://cache.nixos.org"), AddressError::Scheme);
        assert_eq!(parse("nix+ftp://h"), AddressError::Scheme);
        assert_eq!(parse("nix+https://a:secret@h"), AddressError::Password);
        assert_eq!(
            parse("nix+http://h?token-file=/t"),
            AddressError::InTheClear("a token")
        );
        let text = parse("nix+https://h?token=secret").to_string();
        assert!(
            text.contains("token-file") && !text.contains("secret"),
            "{text}"
        );
        assert!(matches!(
            parse("nix+https://h?priority=high"),
            AddressError::Value {
                parameter: "priority",
                ..
            }
        ));
        assert!(CacheAddress::parse("nix+file://host/dir").is_err());
    }
}
