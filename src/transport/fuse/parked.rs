//! Requests that wait for an upstream, and the early end of their wait.
//!
//! The kernel sends INTERRUPT when a program that waits for an answer gets a signal, whatever the
//! signal is, once for each request. A program that handles the signal must not notice: a read or a
//! page fault that fails with EINTR breaks programs that have never seen one from a disk. So the
//! request continues unless the program is to die, in which case the kernel has SIGKILL pending for
//! its threads; a later kill is noticed by checking again every [`LOOK`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How often it is checked whether a program that got a signal is to die.
pub(super) const LOOK: Duration = Duration::from_millis(200);
/// Interruptions that are remembered for requests that are not parked, or not yet.
const MOST_EARLY: usize = 4096;
/// SIGKILL in the sets of signals in /proc.
const SIGKILL: u64 = 1 << (libc::SIGKILL - 1);

/// The requests of a mount that are parked, by their numbers.
#[derive(Debug, Default)]
pub(super) struct ParkedRequests(Mutex<ParkedTable>);

#[derive(Debug, Default)]
struct ParkedTable {
    parked: HashMap<u64, ParkedRequest>,
    /// Interrupted while a worker had them.
    early: VecDeque<u64>,
    ended: bool,
}

#[derive(Debug)]
struct ParkedRequest {
    thread: u32,
    /// Ends the wait when it is dropped.
    _wait: oneshot::Sender<()>,
}

impl ParkedRequests {
    /// Parks the request `unique` of `thread`. Returns a receiver that is resolved when the wait is
    /// to end, and whether it was interrupted already.
    pub(super) fn park(&self, unique: u64, thread: u32) -> (oneshot::Receiver<()>, bool) {
        let (wait, ended) = oneshot::channel();
        let mut table = self.0.lock();
        let interrupted = table.early.contains(&unique);
        if interrupted {
            table.early.retain(|early| *early != unique);
        }
        if !table.ended {
            table.parked.insert(
                unique,
                ParkedRequest {
                    thread,
                    _wait: wait,
                },
            );
        }
        (ended, interrupted)
    }

    /// Removes a request that has its answer, or is to wait no longer.
    pub(super) fn take_back(&self, unique: u64) {
        self.0.lock().parked.remove(&unique);
    }

    /// The thread whose request `unique` is parked; one that is not is remembered as interrupted.
    pub(super) fn interrupted(&self, unique: u64) -> Option<u32> {
        let mut table = self.0.lock();
        if let Some(entry) = table.parked.get(&unique) {
            return Some(entry.thread);
        }
        if table.early.len() >= MOST_EARLY {
            table.early.pop_front();
        }
        table.early.push_back(unique);
        None
    }

    /// Whether the request is still parked.
    pub(super) fn has(&self, unique: u64) -> bool {
        self.0.lock().parked.contains_key(&unique)
    }

    /// The mount is gone, and with it all requests.
    pub(super) fn end(&self) {
        let mut table = self.0.lock();
        table.ended = true;
        table.parked.clear();
    }
}

/// Whether `thread` is to die. One without readable state (in another namespace, or hidden from
/// this user) is not: its request ends by its deadlines.
pub(super) fn is_killed(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    let status = std::fs::read_to_string(format!("/proc/{thread}/status"));
    status.is_ok_and(|status| has_sigkill(&status))
}

/// Whether SIGKILL is among the pending signals of a thread or of its process.
fn has_sigkill(status: &str) -> bool {
    status.lines().any(|line| {
        let set = line
            .strip_prefix("SigPnd:")
            .or_else(|| line.strip_prefix("ShdPnd:"));
        let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        set.is_some_and(|set| set & SIGKILL != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sigkill_ends_a_wait() {
        let status = |own: &str, shared: &str| {
            has_sigkill(&format!(
                "Name:\tx\nSigQ:\t1/9\nSigPnd:\t{own}\nShdPnd:\t{shared}\n"
            ))
        };
        let none = "0000000000000000";
        assert!(!status(none, none));
        // SIGURG and SIGALRM.
        assert!(!status("0000000000400000", "0000000000002000"));
        assert!(status("0000000000000100", none));
        assert!(status(none, "0000000000402100"));
        assert!(!is_killed(0) && !is_killed(std::process::id()));
    }

    #[test]
    fn an_interruption_finds_its_request_also_if_it_is_faster() {
        let requests = ParkedRequests::default();
        let (mut ended, interrupted) = requests.park(6, 42);
        assert!(!interrupted && requests.has(6));
        assert_eq!(requests.interrupted(6), Some(42));
        assert_eq!(requests.interrupted(8), None);
        assert!(requests.park(8, 43).1);
        assert!(!requests.park(8, 43).1, "that was for the one before");
        assert!(
            ended
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        );
        requests.take_back(6);
        assert!(
            ended
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        );
        requests.end();
        let (mut late, _) = requests.park(10, 1);
        assert!(
            late.try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        );
    }
}
