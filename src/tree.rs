//! Back out of a store: trees as they are wanted elsewhere.

pub mod nar;
