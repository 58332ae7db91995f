//! Nix's own formats: what is known of a store path.

pub use crate::proto::store::v1::{NarInfo, PathInfo};
