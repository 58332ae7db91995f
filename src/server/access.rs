//! Access control, from files.

use std::io;
use std::path::PathBuf;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use super::tls::acceptor;
use super::{AcceptedTokens, TlsInput, TokensError};
use crate::nix::{KeyError, SecretKey};
use crate::store::credential::warn_if_public;

/// Files that control access.
#[derive(Clone, Debug, Default)]
pub struct AccessFiles {
    /// The server's certificate chain (PEM).
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// The authorities of the certificates that clients must present (PEM).
    pub client_authority: Option<PathBuf>,
    /// Bearer tokens, one a line, one of which clients must send.
    pub tokens: Option<PathBuf>,
}

/// Why access control cannot be loaded.
#[derive(Debug, Error)]
pub enum AccessError {
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A file that is no PEM, or has something else in it.
    #[error("{}: {why}", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file of tokens.
    #[error("{}: {source}", path.display())]
    Tokens {
        /// The path.
        path: PathBuf,
        /// The error.
        source: TokensError,
    },
    /// The file of a secret key.
    #[error("{}: {source}: make one with `nix-store --generate-binary-cache-key`", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
}

/// Reads a secret key that signs store paths, in the form of `nix-store --generate-binary-cache-key`.
pub fn load_secret_key(path: &PathBuf) -> Result<SecretKey, AccessError> {
    warn_if_public(path);
    let text = read(path)?;
    SecretKey::parse(&String::from_utf8_lossy(&text)).map_err(|source| AccessError::Key {
        path: path.clone(),
        source,
    })
}

impl AccessFiles {
    /// Reads the files.
    pub fn load(&self) -> Result<(Option<TlsInput>, Option<AcceptedTokens>), AccessError> {
        let secrets = [self.key.as_deref(), self.tokens.as_deref()];
        secrets.into_iter().flatten().for_each(warn_if_public);
        let tls = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(TlsInput {
                certificate: certificates(certificate)?,
                key: private_key(key)?,
                client_authority: self
                    .client_authority
                    .as_ref()
                    .map(certificates)
                    .transpose()?,
            }),
            _ => None,
        };
        // A key of another certificate, for one.
        if let (Some(tls), Some(path)) = (&tls, &self.certificate) {
            acceptor(tls).map_err(|why| AccessError::Pem {
                path: path.clone(),
                why,
            })?;
        }
        let tokens = |path: &PathBuf| {
            AcceptedTokens::parse(&read(path)?).map_err(|source| AccessError::Tokens {
                path: path.clone(),
                source,
            })
        };
        Ok((tls, self.tokens.as_ref().map(tokens).transpose()?))
    }
}

/// The bytes of a file with certificates.
fn certificates(path: &PathBuf) -> Result<Vec<u8>, AccessError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let why = match found {
        Ok(found) if !found.is_empty() => return Ok(bytes),
        Ok(_) => "there is no certificate in it (PEM)".to_owned(),
        Err(error) => format!("it is no PEM file of certificates: {error}"),
    };
    let path = path.clone();
    Err(AccessError::Pem { path, why })
}

/// The bytes of a file with a private key.
fn private_key(path: &PathBuf) -> Result<Vec<u8>, AccessError> {
    let bytes = read(path)?;
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(_) => Ok(bytes),
        // What it quotes may be of the key.
        Err(_) => Err(AccessError::Pem {
            path: path.clone(),
            why: "there is no private key in it (PEM)".to_owned(),
        }),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|source| AccessError::File {
        path: path.clone(),
        source,
    })
}
