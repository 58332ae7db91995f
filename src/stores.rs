//! Opening stores: from a URL, or from the description of one that is made of others.

mod binary_cache_url;
mod needs;
mod plan;
mod url;
mod valid_paths;

pub(crate) use binary_cache_url::address as binary_cache_address;
pub use needs::{StoreNeeds, UsedFile, needs};
pub use plan::{NamedStore, OpenError, OpenStores, OpenedStore, StorePlan, open_all, open_each};
pub use url::{check_url, must_exist, open};
pub use valid_paths::{CannotPromise, QuestionLimits, ValidPaths, cannot_promise};
