//! Whether there is a binary cache at an address.

use std::sync::Arc;

use super::address::CacheAddress;
use super::client::CacheClient;
use super::info::{CacheInfo, MAX_INFO_BYTES};
use crate::store::{CallFailure, Error};

/// Reads the `nix-cache-info` of the cache at `address`, with its login; fails if it has none, as Nix does.
pub async fn probe(address: CacheAddress) -> Result<(), Error> {
    let shown = address.shown.clone();
    let client = CacheClient::new(address, Arc::default());
    let client = client.map_err(|why| Error::Url {
        url: shown.clone(),
        why,
    })?;
    let info = client.small("nix-cache-info", MAX_INFO_BYTES).await;
    let info = info.and_then(|found| {
        let missing = || {
            let why = "it is not there: is that the address of a binary cache?";
            CallFailure::refused(why.to_owned())
        };
        CacheInfo::parse(&found.ok_or_else(missing)?).map_err(CallFailure::refused)
    });
    match info {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.of(&shown, "reading nix-cache-info")),
    }
}
