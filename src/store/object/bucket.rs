//! A place for objects: a bucket of a cloud, a WebDAV server, or a folder.

use std::fmt;

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;
use tonic::Code;
use url::Url;

use crate::castore::Digest;
use crate::store::failure::Failure;

/// How long one operation may take, its retries included.
const DEADLINE: Duration = Duration::from_secs(60);
/// Environment variables that say how to reach a cloud, and with which credentials.
const ENVIRONMENT: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];
/// Words in the names of parameters that are secrets.
const SECRETS: [&str; 5] = ["secret", "token", "password", "access_key", "account_key"];

/// Objects by path.
pub(super) struct Bucket {
    pub(super) url: String,
    pub(super) runtime: Handle,
    store: Box<dyn ObjectStore>,
    /// What every path starts with, with a slash at its end unless it is empty.
    base: String,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Bucket {
    /// Opens `objectstore+SCHEME://…`; says what is wrong otherwise.
    pub(super) fn open(url: &str, runtime: Handle) -> Result<Self, String> {
        let inner = url
            .strip_prefix("objectstore+")
            .ok_or("it does not start with objectstore+")?;
        let mut inner = Url::parse(inner).map_err(|error| error.to_string())?;
        if inner.password().is_some() {
            return Err(in_the_environment("a password"));
        }
        let mut options: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| ENVIRONMENT.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        options.push(("connect_timeout".to_owned(), "5 seconds".to_owned()));
        options.push(("timeout".to_owned(), "30 seconds".to_owned()));
        if inner.scheme() == "http" {
            options.push(("allow_http".to_owned(), "true".to_owned()));
        }
        for (name, value) in inner.query_pairs() {
            let name = name.to_ascii_lowercase();
            if SECRETS.iter().any(|secret| name.contains(secret)) {
                return Err(in_the_environment(&name));
            }
            options.push((name, value.into_owned()));
        }
        inner.set_query(None);
        // Whoever has chosen already has chosen well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, base) =
            object_store::parse_url_opts(&inner, options).map_err(|error| error.to_string())?;
        let base = match base.is_root() {
            true => String::new(),
            false => format!("{base}/"),
        };
        Ok(Self {
            url: format!("objectstore+{inner}"),
            runtime,
            store,
            base,
        })
    }

    /// The path of the object of `kind` that `digest` names.
    pub(super) fn path(&self, kind: &str, digest: &Digest) -> String {
        let hex = digest.to_hex();
        let (shard, _) = hex.split_at(4);
        format!("{kind}/b3/{shard}/{hex}")
    }

    fn at(&self, path: &str) -> Result<Path, Failure> {
        Path::parse(format!("{}{path}", self.base))
            .map_err(|error| Failure::Status(Code::InvalidArgument, error.to_string()))
    }

    /// The object at `path`, if there is one.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Bytes>, Failure> {
        let at = self.at(path)?;
        let got = in_time(async { self.store.get(&at).await?.bytes().await });
        absent(got.await)
    }

    /// Whether there is an object at `path`.
    pub(super) async fn has(&self, path: &str) -> Result<bool, Failure> {
        let at = self.at(path)?;
        Ok(absent(in_time(self.store.head(&at)).await)?.is_some())
    }

    pub(super) async fn put(&self, path: &str, bytes: Bytes) -> Result<(), Failure> {
        let at = self.at(path)?;
        in_time(self.store.put(&at, PutPayload::from_bytes(bytes))).await?;
        Ok(())
    }

    /// Removes the object at `path`, if there is one.
    pub(super) async fn delete(&self, path: &str) -> Result<(), Failure> {
        let at = self.at(path)?;
        absent(in_time(self.store.delete(&at)).await)?;
        Ok(())
    }

    /// The paths of all objects below the folder `path`.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<String>, Failure> {
        let at = self.at(path)?;
        let listed = self.store.list(Some(&at)).map_ok(|object| {
            let path = object.location.to_string();
            path.strip_prefix(&self.base).unwrap_or(&path).to_owned()
        });
        // A long listing takes many requests: each page gets the time of one operation.
        let mut listed = std::pin::pin!(listed);
        let mut paths = Vec::new();
        while let Some(path) = in_time(async { listed.next().await.transpose() }).await? {
            paths.push(path);
        }
        Ok(paths)
    }
}

fn in_the_environment(what: &str) -> String {
    format!("{what} is a secret and belongs into the environment, not into a URL")
}

async fn in_time<T>(work: impl Future<Output = object_store::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(DEADLINE, work).await {
        Err(_) => Err(Failure::Timeout(DEADLINE)),
        Ok(done) => done.map_err(|error| {
            let code = match error {
                object_store::Error::NotFound { .. } => Code::NotFound,
                object_store::Error::PermissionDenied { .. } => Code::PermissionDenied,
                object_store::Error::Unauthenticated { .. } => Code::Unauthenticated,
                _ => Code::Unavailable,
            };
            Failure::Status(code, error.to_string())
        }),
    }
}

fn absent<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    crate::store::failure::found(answer)
}
