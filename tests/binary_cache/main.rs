//! Nix binary caches as a store: what is taken from them, what is refused, and what is asked.

#[path = "../kit/model.rs"]
#[allow(dead_code)]
mod model;
mod source;
#[path = "../kit/web.rs"]
mod web;
mod written;
