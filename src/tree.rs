//! Operations on a store's trees without a mount: find a node, list, walk, export, verify.
//!
//! A user names a tree by its root or by a digest; [`Target`] is that address with a path below it.
//! From there everything is a [`Walk`]: pre-order, in the byte order of names, with an explicit
//! stack, so that neither a deep tree nor a wide one costs more than the Directories on the way
//! down. [`export`], [`tar`] and [`nar`] write a walk out; [`verify`] does not walk paths at all
//! but objects, each once, however many places refer to it.
//!
//! [`copy`] sends trees to another store.
//!
//! Everything here blocks, and waits for upstreams; call it from a thread that may block.

mod blob;
pub mod copy;
mod error;
pub mod export;
mod image;
pub mod nar;
mod nar_listing;
mod nar_stream;
mod new_file;
mod path;
mod place;
mod removal;
pub mod repair;
pub mod tar;
mod target;
mod unfinished;
pub mod usage;
pub mod verify;
mod walk;

pub use blob::copy_blob;
pub use error::Error;
pub use image::{ImageFile, ImageFileError, NoTime, Waits, image_to_file, image_top, write_image};
pub use nar_listing::NarListing;
pub use nar_stream::{NarStep, NarStream, NarWalk};
pub use new_file::NewFile;
pub use path::TreePath;
pub use target::{Found, Preference, Target};
pub use unfinished::discard_unfinished;
pub use usage::{Usage, Usages, usage};
pub use walk::{Step, Walk};

#[cfg(test)]
mod tests;
