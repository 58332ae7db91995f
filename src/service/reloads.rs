//! The outcomes of reloads, for the status: a configuration that was refused is noticed there, and not
//! only in the log.

use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The reloads of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Reloads after which everything was as the configuration has it.
    pub succeeded: u64,
    /// Reloads that were refused, or after which something was missing.
    pub failed: u64,
    /// The last reload, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ReloadFailure>,
}

/// A reload that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadFailure {
    /// How long ago.
    pub seconds_ago: u64,
    /// Whether the configuration was refused as a whole, so that the old one stays. Otherwise only what the
    /// problems name is missing.
    pub refused: bool,
    /// What was wrong.
    pub problems: Vec<String>,
}

/// The reloads so far.
#[derive(Debug, Default)]
pub(super) struct ReloadHistory(Mutex<(ReloadStatus, Option<Instant>)>);

impl ReloadHistory {
    /// Notes a reload: what is missing after it, or why the configuration was refused.
    pub(super) fn note(&self, outcome: Result<Vec<String>, Vec<String>>) {
        let mut state = self.0.lock();
        let (status, failed_at) = &mut *state;
        let (refused, problems) = match outcome {
            Ok(missing) if missing.is_empty() => {
                status.succeeded += 1;
                status.failure = None;
                *failed_at = None;
                return;
            }
            Ok(missing) => (false, missing),
            Err(problems) => (true, problems),
        };
        status.failed += 1;
        status.failure = Some(ReloadFailure {
            seconds_ago: 0,
            refused,
            problems,
        });
        *failed_at = Some(Instant::now());
    }

    pub(super) fn status(&self) -> ReloadStatus {
        let state = self.0.lock();
        let (mut status, failed_at) = state.clone();
        if let (Some(failure), Some(at)) = (&mut status.failure, failed_at) {
            failure.seconds_ago = at.elapsed().as_secs();
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_reload_is_shown_until_one_succeeds() {
        let history = ReloadHistory::default();
        history.note(Ok(Vec::new()));
        assert_eq!(history.status().failure, None);
        history.note(Err(vec!["line 1: wrong".to_owned()]));
        history.note(Ok(vec!["the mount x: no".to_owned()]));
        let status = history.status();
        assert_eq!((status.succeeded, status.failed), (1, 2));
        let failure = status.failure.unwrap();
        assert!(!failure.refused);
        assert_eq!(failure.problems, ["the mount x: no"]);
        history.note(Ok(Vec::new()));
        let status = history.status();
        assert_eq!(
            (status.succeeded, status.failed, status.failure),
            (2, 2, None)
        );
    }
}
