//! Nix binary caches: as stores (what is accepted and refused, which requests are made), and made of stores.

#[path = "../kit/model.rs"]
#[allow(dead_code)]
mod model;
mod served;
mod source;
mod uploads;
#[path = "../kit/web.rs"]
mod web;
mod written;
