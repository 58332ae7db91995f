//! Operations on a store's trees without a mount: find a node, list, walk, export, verify.
//!
//! A user names a tree by its root or by a digest; [`Target`] is that address with a path below it.
//! From there everything is a [`TreeWalk`]: pre-order, in the byte order of names, with an explicit
//! stack, so that neither a deep tree nor a wide one costs more than the Directories on the way
//! down. [`export`], [`tar`] and [`nar`] write a walk out; [`verify`] does not walk paths at all
//! but objects, each once, however many places refer to it.
//!
//! [`copy`] sends trees to another store. [`closure`] finds what a Nix store path refers to, and which
//! refer to it.
//!
//! Everything here blocks, and waits for upstreams; call it from a thread that may block.
//!
//! # Example
//!
//! A file is read from a store, by its root's name and the path below it.
//!
//! ```
//! use castore_fs::castore::{Name, Node};
//! use castore_fs::import::{ImportOptions, ImportProgress, ImportSource, RootNaming, import};
//! use castore_fs::store::Blocking;
//! use castore_fs::tree::{KindPreference, Target, copy_blob};
//!
//! # let dir = tempfile::tempdir()?;
//! # std::fs::write(dir.path().join("greeting"), "hello")?;
//! # let runtime = tokio::runtime::Runtime::new()?;
//! # let store = castore_fs::stores::open("memory:")?;
//! # let store = Blocking::new(store, runtime.handle().clone());
//! # let (options, progress) = (ImportOptions::default(), ImportProgress::default());
//! # let naming = RootNaming::Name(Name::new(b"tree")?);
//! # import(&store, ImportSource::Path(dir.path()), naming, &options, &progress)?;
//! // `store` is a `Blocking` with the root "tree".
//! let found = Target::parse(b"tree/greeting")?.resolve(&store, KindPreference::Blob)?;
//! let Node::File { digest, size, .. } = found.node else {
//!     panic!("{} is no file", found.path);
//! };
//! let mut bytes = Vec::new();
//! copy_blob(&store, &digest, size, &found.path, |_offset, buffer| {
//!     bytes.extend_from_slice(buffer);
//!     Ok(())
//! })?;
//! assert_eq!(bytes, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blob;
pub mod closure;
pub mod copy;
mod error;
pub mod export;
mod image;
pub mod nar;
mod nar_listing;
mod nar_stream;
mod new_file;
mod node_path;
mod path;
mod removal;
pub mod repair;
pub mod tar;
mod target;
mod unfinished;
pub mod usage;
pub mod verify;
mod walk;

pub use blob::copy_blob;
pub use error::TreeError;
pub use image::{
    ImageFile, ImageFileError, NoTime, StoreWaiter, image_root, image_to_file, write_image,
};
pub use nar_listing::NarListing;
pub use nar_stream::{NarStep, NarStream, NarWalk};
pub use new_file::NewFile;
pub use path::TreePath;
pub use target::{KindPreference, ResolvedTarget, Target};
pub use unfinished::discard_unfinished;
pub use usage::{TreeUsage, TreeUsages, UsageProgress, usage};
pub use walk::{TreeWalk, WalkStep};

#[cfg(test)]
mod tests;
