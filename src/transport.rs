//! How requests come in: descriptors, rings, loops. Nothing here knows of content.

pub mod fuse;
mod init;
mod reply;
mod requests;
mod traffic;
pub mod virtiofs;
