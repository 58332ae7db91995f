//! Nix binary caches as an upstream: a path appears as a root when it is looked up.
//!
//! A binary cache knows store paths by their hash, has no list of them, and authenticates nothing
//! below a whole NAR. So a lookup of `<hash>-<name>` fetches the narinfo, checks its name and
//! signature, streams the NAR through its decompressor into a local store, checks its size and
//! hash, and only then shows the root. From there on the contents are a castore's: equal files are
//! stored once, and every read is verified. The first lookup of a path waits for its whole NAR.
//!
//! [`BinaryCaches`] is the upstream of a [`Cache`](crate::store::Cache) whose local store is the
//! one it unpacks into: that one keeps roots and their [`PathInfo`](crate::nix::PathInfo)s, answers
//! while no binary cache is reachable, and evicts by use.
//!
//! **Several caches** are asked in the order of their priority. A path is absent only if all of
//! them answer so, which is then valid for an hour (`absent`). **Closures** are prefetched
//! (`closure`). **Nothing is trusted**: sizes are limits, hashes and names are compared, a URL
//! cannot lead out of a directory or from https to http.

mod absent;
mod address;
mod client;
mod closure;
mod info;
mod netrc;
mod probe;
mod unpack;
mod upstream;

pub use address::{AddressError, CacheAddress, CacheLocation, SCHEMES, is_url};
pub use closure::ClosureMode;
pub use probe::probe;
pub use upstream::BinaryCaches;
