//! How requests come in: descriptors, rings, loops. Nothing here knows of content.

pub mod fuse;
