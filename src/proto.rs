//! The protobuf messages, generated from `proto/` at build time.
//!
//! [`castore::Directory`](crate::castore::Directory) has its own strict codec and does not go
//! through these types: a Directory's identity is its exact bytes, and prost would accept (and
//! lose) unknown fields.

#![allow(missing_docs, clippy::doc_markdown, clippy::upper_case_acronyms)]

/// The castore protocol.
pub mod castore {
    /// Messages of `snix.castore.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/snix.castore.v1.rs"));
    }
}

/// What is known of Nix store paths.
pub mod store {
    /// Messages of `snix.store.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/snix.store.v1.rs"));
    }
}
