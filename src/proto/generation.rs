//! The two generations of the castore protocol.
//!
//! They share every message and method and differ in one word of the path of a call: the current
//! `/snix.castore.v1.BlobService/Stat` and the older `/tvix.castore.v1.BlobService/Stat`. So the
//! generated code knows the current one, and a call's path is rewritten on its way: by the client
//! when its endpoint is of the older generation, by the server when a client is.

use http::Uri;
use http::uri::PathAndQuery;

/// Which package names an endpoint knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolGeneration {
    /// `snix.castore.v1`, `snix.store.v1`.
    Current,
    /// `tvix.castore.v1`, `tvix.store.v1`.
    Older,
}

impl ProtocolGeneration {
    fn prefix(self) -> &'static str {
        match self {
            ProtocolGeneration::Current => "/snix.",
            ProtocolGeneration::Older => "/tvix.",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            ProtocolGeneration::Current => ProtocolGeneration::Older,
            ProtocolGeneration::Older => ProtocolGeneration::Current,
        }
    }
}

/// The address of the same method in `generation`; unchanged if the method is in neither (health,
/// reflection, the `castore_fs.v1` services) or is there already.
pub fn with_generation(uri: Uri, generation: ProtocolGeneration) -> Uri {
    let path = uri.path();
    let Some(rest) = path.strip_prefix(generation.other().prefix()) else {
        return uri;
    };
    let Ok(path) = PathAndQuery::try_from(format!("{}{rest}", generation.prefix())) else {
        return uri;
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).unwrap_or(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_generation_in_the_path_changes() {
        let rewritten =
            |uri: &str, generation| with_generation(uri.parse().unwrap(), generation).to_string();
        let current = "http://host:1/snix.castore.v1.BlobService/Stat";
        let older = "http://host:1/tvix.castore.v1.BlobService/Stat";
        assert_eq!(rewritten(current, ProtocolGeneration::Older), older);
        assert_eq!(rewritten(older, ProtocolGeneration::Older), older);
        assert_eq!(rewritten(older, ProtocolGeneration::Current), current);
        let health = "http://host:1/grpc.health.v1.Health/Check";
        assert_eq!(rewritten(health, ProtocolGeneration::Older), health);
        assert_eq!(
            rewritten(
                "/tvix.store.v1.PathInfoService/Get",
                ProtocolGeneration::Current
            ),
            "/snix.store.v1.PathInfoService/Get"
        );
    }
}
