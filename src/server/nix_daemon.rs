//! A store as the daemon of a Nix store that is only read: `unix:///SOCKET` for Nix.
//!
//! It is for the lower layer of a `local-overlay` store, for substituters, and for `nix path-info`, `nix store
//! verify` and `nix copy --from`. What is valid, and stays so, [`ValidPaths`] says; operations that add, build or
//! remove get an error with a sentence, and the connection stays open.
//!
//! **Connections are not closed for being quiet**: Nix keeps one open through a build of hours and fails if it is
//! gone afterwards. So they outlive the process, too ([`HandOver`]). Only when all are taken the one that was quiet the longest is closed for the next. All other
//! bounds are those of the other listeners ([`Limits`](super::ServerLimits)).

mod answers;
mod connection;
mod hand_over;
mod wire;

use crate::stores::ValidPaths;

pub(super) use connection::{serve_one, serve_previous};
pub use hand_over::{ConnectionHolder, HandOver};

/// How a store is a Nix daemon.
#[derive(Clone, Debug)]
pub struct NixDaemonOptions {
    /// What is valid.
    pub paths: ValidPaths,
    /// The connections over the end of the process.
    pub hand_over: HandOver,
}
