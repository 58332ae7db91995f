//! A cache in front of a far store: what stays, what goes, and what its readers notice of trouble at
//! either end.

mod keeping;
mod local_store;
mod room;
mod roots;
mod shares;
mod tree;
mod trouble;
