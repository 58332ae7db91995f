//! The protobuf messages and gRPC services, generated from `proto/` at build time.
//!
//! [`castore::Directory`](crate::castore::Directory) has its own strict codec and does not go
//! through these types: a Directory's identity is its exact bytes, and prost would accept (and
//! lose) unknown fields. On the wire it is a [`RawDirectory`].

#![allow(
    missing_docs,
    clippy::doc_markdown,
    clippy::large_enum_variant,
    clippy::upper_case_acronyms
)]

mod generation;
mod raw_directory;

pub use generation::{ProtocolGeneration, with_generation};
pub use raw_directory::RawDirectory;

/// The largest message that is sent or accepted, in bytes. tonic's default of 4 MiB would refuse a
/// directory of 60,000 entries.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Every service and message, both generations, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// The castore protocol.
pub mod castore {
    /// Messages of `snix.castore.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/snix.castore.v1.rs"));
    }
    /// Its services.
    pub mod services {
        include!(concat!(env!("OUT_DIR"), "/services/snix.castore.v1.rs"));
    }
}

/// Information about Nix store paths.
pub mod store {
    /// Messages of `snix.store.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/snix.store.v1.rs"));
    }
    /// Its services.
    pub mod services {
        include!(concat!(env!("OUT_DIR"), "/services/snix.store.v1.rs"));
    }
}

/// What OpenTelemetry's collectors receive: messages and the service, which is only called.
pub mod opentelemetry {
    include!(concat!(
        env!("OUT_DIR"),
        "/opentelemetry/opentelemetry.proto.collector.trace.v1.rs"
    ));
}

/// Where the generated code of other packages looks for the two above.
mod snix {
    pub(super) use super::{castore, store};
}

/// The protocol between castore-fs processes.
pub mod castore_fs {
    /// Messages of `castore_fs.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/castore_fs.v1.rs"));
    }
    /// Its services.
    pub mod services {
        include!(concat!(env!("OUT_DIR"), "/services/castore_fs.v1.rs"));
    }
}
