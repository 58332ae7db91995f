//! From a URL to a store.

use std::sync::Arc;

use super::{Error, GrpcStore, MemoryStore, Store};

/// Opens the store that `url` names.
///
/// | URL | store |
/// |---|---|
/// | `memory:` | in this process's memory, gone with it |
/// | `grpc+http://HOST:PORT`, `grpc+https://HOST:PORT`, `grpc+unix:/PATH` | behind a gRPC server |
pub fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    let wrong = |why: &str| Error::Url {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let (scheme, rest) = url
        .split_once(':')
        .ok_or_else(|| wrong("it starts with no scheme; for a folder write local:PATH"))?;
    match scheme {
        "memory" if rest.is_empty() || rest == "//" => Ok(Arc::new(MemoryStore::new())),
        "memory" => Err(wrong("nothing can follow memory:")),
        "grpc+http" | "grpc+https" | "grpc+unix" => Ok(Arc::new(GrpcStore::open(url)?)),
        _ => Err(wrong("the schemes are local:, memory: and grpc+{http,https,unix}:")),
    }
}
