//! What the tests share: stores with faults, servers and links, mounts, the reference model, a stand-in
//! for systemd, and how a test reports that it cannot run.
//!
//! The integration tests and the unit tests depend on it. It depends on the library as any user of it
//! does, so a unit test uses only what has no type of the library in its interface.

pub mod bucket;
pub mod collector;
pub mod directory;
pub mod double;
pub mod fixtures;
pub mod garage;
pub mod http;
pub mod http_client;
pub mod link;
pub mod manager;
pub mod model;
pub mod mounted;
pub mod noise;
pub mod passed_descriptors;
pub mod patience;
pub mod program;
pub mod requests;
pub mod server;
pub mod skip;
pub mod small_disk;
pub mod web;
pub mod written;
pub mod xattr;
