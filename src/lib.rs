//! castore-fs: a content-addressed file system.
//!
//! The crate is layered; a module imports only from the layers below its own.
//!
//! | layer | module | content |
//! |---|---|---|
//! | 0 | [`castore`], [`proto`] | digests, names, nodes, Directory messages: pure, no I/O |
//! | 0 | [`clock`] | the wall clock as numbers |
//! | 0 | [`compression`] | streams out of gzip, xz, zstd, bzip2 and brotli |
//! | 0 | [`descent`] | walking directory trees deeper than the limit of descriptors |
//! | 0 | `heap` | giving free memory of the heap back to the system |
//! | 0 | `latencies` | times of requests, in buckets |
//! | 0 | [`quantity`] | sizes and durations in text, and counts |
//! | 0 | [`sandbox`] | giving up privileges, files and system calls |
//! | 1 | [`nar`], [`nix`] | Nix's formats: pure, no I/O |
//! | 1 | [`image`] | a tree as an EROFS disk image: pure, no I/O |
//! | 2 | [`profile`] | what was read first below a root, for the next mount |
//! | 2 | [`store`] | where blobs, Directories and roots are kept |
//! | 3 | [`fs`] | the file system: nodes, lookups, listings, reads |
//! | 3 | [`import`], [`tree`] | trees into a store, and out of one |
//! | 3 | [`binary_cache`], [`stores`] | Nix binary caches as stores; from a URL or description to a store |
//! | 4 | [`transport`] | how requests come in: FUSE, virtiofs |
//! | 4 | [`server`] | any store, served over gRPC, as a binary cache, or as a daemon of Nix |
//! | 5 | [`service`] | the daemon: configuration, supervision, systemd |
//! | 6 | [`cli`] | the command line of the program, which has nothing else |
//!
//! `docs/architecture.md` has the whole picture.
//!
//! # Example
//!
//! A directory is imported into a store and mounted. The parts are documented where they are:
//! [`stores::open`], [`import::import`], [`tree`] (reading without a mount),
//! [`FuseSession::mount`](transport::fuse::FuseSession::mount).
//!
//! ```no_run
//! use std::path::Path;
//!
//! use castore_fs::castore::Name;
//! use castore_fs::fs::FsOptions;
//! use castore_fs::import::{ImportOptions, ImportProgress, ImportSource, RootNaming, import};
//! use castore_fs::store::Blocking;
//! use castore_fs::transport::fuse::{FuseSession, MountOptions};
//!
//! let runtime = tokio::runtime::Runtime::new()?;
//! let store = castore_fs::stores::open("local:/var/lib/castore-fs")?;
//! import(
//!     &Blocking::new(store.clone(), runtime.handle().clone()),
//!     ImportSource::Path(Path::new("./tree")),
//!     RootNaming::Name(Name::new(b"tree")?),
//!     &ImportOptions::default(),
//!     &ImportProgress::default(),
//! )?;
//! let mountpoint = Path::new("/mnt");
//! let (options, mount) = (FsOptions::default(), MountOptions::default());
//! let session = FuseSession::mount(store, mountpoint, options, &mount, runtime.handle().clone())?;
//! assert!(mountpoint.join("tree").is_dir());
//! session.unmount()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod binary_cache;
pub mod castore;
mod causes;
pub mod cli;
pub mod clock;
pub mod compression;
pub mod descent;
pub mod fs;
mod heap;
pub mod image;
pub mod import;
mod latencies;
pub mod nar;
pub mod nix;
pub mod profile;
pub mod proto;
pub mod quantity;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod spans;
pub mod store;
pub mod stores;
pub mod transport;
pub mod tree;

#[cfg(test)]
mod fixtures;
