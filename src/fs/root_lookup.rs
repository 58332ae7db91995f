//! How names in the mount root are looked up in the store: which names are requested at all, and
//! what a lookup returns while the store cannot be reached.
//!
//! The defaults serve a mount with a directory of its own: every name is requested, and a store
//! that fails is an error. A mount below the machine's own Nix store, as the lower layer of an
//! overlay, gets a lookup for every name that Nix is about to create. It requests only names that
//! can be store paths ([`RootNames::StorePaths`]), and an endpoint that is down, slow or silent
//! hides names that were never seen instead of failing Nix ([`UnreachableLookup::Absent`]). Where the
//! store lists its roots, names are looked up in that list ([`listed_roots`](super::listed_roots)).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CastoreFs;
use super::errno::{self, failure};
use super::waiting::{self, AwaitedObject, FetchedObject, NotInPlace};
use crate::castore::{Printable, Root};
use crate::nix;
use crate::store::Answer;

/// How long a lookup of an unknown name waits for the store before the name counts as absent.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long unknown names are absent without a request after the store failed, or took longer than
/// [`PATIENCE`]. Then one lookup tries again.
const PAUSE: Duration = Duration::from_secs(5);

/// What listing the roots gives. Lookups by name find them in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootListing {
    /// All of them.
    All,
    /// An empty directory: for the lower layer of an overlay, where the upper layer does the
    /// listing.
    Nothing,
    /// EPERM.
    Refused,
}

/// Which names the store is asked for. All others do not exist (ENOENT), without a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootNames {
    /// Every name.
    #[default]
    Any,
    /// Names of Nix store paths that hold content ([`nix::is_content_name`]); where the store lists its
    /// roots, only those in its list.
    StorePaths,
    /// Names of paths that were reported to Nix as valid ([`crate::store::LocalStore::valid_path`]).
    ValidPaths,
}

/// What a lookup of a root returns while the store cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnreachableLookup {
    /// EIO, or ETIMEDOUT: the store did not answer that there is no such name.
    #[default]
    Error,
    /// ENOENT for a name that was never seen; for a known name, as [`UnreachableLookup::Error`].
    Absent,
}

impl RootNames {
    fn take(self, name: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::StorePaths => nix::is_content_name(name),
            // A valid path may be a derivation.
            Self::ValidPaths => nix::output_hash(name).is_some(),
        }
    }
}

/// Until when unknown names are absent without a request ([`PAUSE`]).
#[derive(Debug, Default)]
pub(super) struct RootLookupPause(Mutex<Option<Instant>>);

impl RootLookupPause {
    /// Whether a request may be made now. When the pause is over, one request may, and the others
    /// stay paused for as long as that one may take.
    fn allows_request(&self, now: Instant) -> bool {
        let mut until = self.0.lock();
        match *until {
            Some(end) if now < end => false,
            Some(_) => {
                *until = Some(now + PATIENCE);
                true
            }
            None => true,
        }
    }

    fn begin(&self, now: Instant) {
        *self.0.lock() = Some(now + PAUSE);
    }

    fn end(&self) {
        *self.0.lock() = None;
    }
}

impl CastoreFs {
    /// The root `name`, if there is one.
    pub(super) fn find_root(&self, name: &[u8]) -> std::io::Result<Option<Root>> {
        if !self.options.root_names.take(name) {
            return Ok(None);
        }
        let only_reported = self.options.root_names == RootNames::ValidPaths;
        let hides = self.options.when_unreachable == UnreachableLookup::Absent;
        let root = match hides && !self.roots.has(name) {
            _ if only_reported && !self.was_reported(name)? => return Ok(None),
            true if !self.was_reported(name)? => self.find_unknown_root(name),
            _ => self.ask_for_root(name, None),
        };
        if matches!(root, Ok(None)) && self.was_reported(name)? {
            tracing::error!(
                path = %Printable(name), errno = libc::EIO,
                "the path was reported to Nix as valid, and the store has it no more"
            );
            return Err(failure(libc::EIO));
        }
        root.map_err(|stop| {
            let error = match stop {
                NotInPlace::Parked => return errno::parked(),
                NotInPlace::Failed(error) => error,
            };
            let errno = errno::errno(&error);
            tracing::error!(
                path = %Printable(name), endpoint = errno::endpoint(&error), errno, %error,
                "cannot look up a root node"
            );
            failure(errno)
        })
    }

    /// Whether `name` is a path that was reported to Nix as valid: it never counts as absent.
    fn was_reported(&self, name: &[u8]) -> std::io::Result<bool> {
        if nix::output_hash(name).is_none() {
            return Ok(false);
        }
        for local in &self.embedded {
            match local.valid_path(name) {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(true),
                Err(error) => {
                    let errno = errno::errno(&error);
                    tracing::error!(path = %Printable(name), errno, %error, "cannot look up a root node");
                    return Err(failure(errno));
                }
            }
        }
        Ok(false)
    }

    /// Looks the root up in the store. A request takes no longer than `patience`, and may
    /// begin a pause.
    fn ask_for_root(
        &self,
        name: &[u8],
        patience: Option<Duration>,
    ) -> Result<Option<Root>, NotInPlace> {
        match self.store.root_now(name)? {
            Answer::Found(root) => return Ok(Some(root)),
            Answer::Absent => return Ok(None),
            Answer::Wait => {}
        }
        if self.options.root_names == RootNames::StorePaths
            && !self.roots.has(name)
            && self.listed.answers()
        {
            return Ok(None);
        }
        let wanted = AwaitedObject::Root {
            name: name.to_vec(),
            patience,
        };
        // A parked request has already sent its own.
        let asks_now = patience.is_some() && !waiting::knows(&wanted);
        if asks_now && !self.pause.allows_request(Instant::now()) {
            return Ok(None);
        }
        let FetchedObject::Root(root) = self.waiting.wait(&self.store, wanted)? else {
            return Ok(None);
        };
        if patience.is_some() {
            self.pause.end();
        }
        Ok(root)
    }

    /// A root of a name that was never seen: absent while the store cannot be reached.
    fn find_unknown_root(&self, name: &[u8]) -> Result<Option<Root>, NotInPlace> {
        match self.ask_for_root(name, Some(PATIENCE)) {
            Err(NotInPlace::Failed(error)) if errno::is_unreachable(&error) => {
                self.pause.begin(Instant::now());
                tracing::warn!(
                    path = %Printable(name), endpoint = errno::endpoint(&error), %error,
                    "the store cannot be reached: names that were never seen do not exist for {PAUSE:?}"
                );
                Ok(None)
            }
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_one_request_at_a_time_tries_again() {
        let pause = RootLookupPause::default();
        let start = Instant::now();
        assert!(pause.allows_request(start) && pause.allows_request(start));
        pause.begin(start);
        assert!(!pause.allows_request(start + PAUSE - Duration::from_millis(1)));
        let later = start + PAUSE;
        assert!(pause.allows_request(later), "the first tries");
        assert!(!pause.allows_request(later), "the second does not wait");
        pause.end();
        assert!(pause.allows_request(later));
    }
}
