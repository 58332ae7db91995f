//! Opening stores: from a URL, or from the description of one that is made of others.

mod binary_cache_url;
mod needs;
mod plan;
mod url;
mod valid_paths;

pub use needs::{Needs, UsedFile, needs};
pub use plan::{Named, OpenError, OpenStores, Opened, Plan, open_all, open_each};
pub use url::{check_url, must_exist, open};
pub use valid_paths::{CannotPromise, ValidPaths, cannot_promise};
