//! What the tests share: data made by other implementations, which is kept outside of the
//! repository, and random trees.

#[path = "../tests/kit/fixtures.rs"]
mod outside;
mod tree;

pub(crate) use outside::{fixture, unescape};
pub(crate) use tree::{Tree, any_tree};
