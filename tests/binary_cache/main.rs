//! Nix binary caches: as stores (what is accepted and refused, which requests are made), and made of stores.

mod served;
mod source;
mod uploads;
