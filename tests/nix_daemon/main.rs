//! A store as a Nix daemon: conversations byte by byte, what is valid and stays so, and the bounds.

mod bench;
mod bounds;
mod client;
mod conversation;
mod handed_over;
mod validity;
