//! Nix binary caches as stores: what is accepted, what is refused, and which requests are made.

#[path = "../kit/model.rs"]
#[allow(dead_code)]
mod model;
mod source;
#[path = "../kit/web.rs"]
mod web;
mod written;
