//! The `castore-fs` command.
fn main() {}
