//! Which threads list names only: their READDIRPLUS replies leave attributes out.
//!
//! **Problem.** READDIRPLUS gives the attributes of every entry, and the kernel makes an inode of
//! each. That takes the kernel a few microseconds an entry. For `ls -l`, `du` and `tar` it is well
//! spent, because each entry would otherwise cost a LOOKUP. A plain `find`, `fd`, `rg --files` or a
//! shell pattern never uses the attributes. FUSE does not report which of the two a program is.
//!
//! **Mechanism.** A trial finds out. In a directory without subdirectories, which a walk finishes
//! before it continues elsewhere, the attributes of the first entry are omitted now and then. A
//! program that wants attributes sends one LOOKUP. A thread that passes [`PROOFS`] trials in a row
//! without a LOOKUP is trusted: its listings omit the attributes of all files and symlinks. LOOKUPs
//! caused by omitted attributes use up a credit, which grows with every omitted entry that is not
//! looked up ([`LOOKUP_COSTS`]). When the credit is empty, attributes are sent again, and the next
//! trial is delayed longer.
//!
//! **Invariants.** Directories always have attributes, because a walk opens them. A directory of at
//! most [`FEW`] files has all its attributes. The kernel caches a listing and shows it to later
//! programs, which may want attributes: their LOOKUPs are recognized, and the cached listings ahead
//! of them are dropped ([`page_cache_push`](super::page_cache_push)). With a transport that cannot drop a
//! listing, nothing is omitted.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Threads that are remembered.
const MOST_LISTING_THREADS: usize = 8;
/// For each thread, how many of the directories that it listed last are remembered.
const RECENT: usize = 8;
/// A directory of at most so many files and symlinks is listed in full: to list it again would cost
/// as much.
const FEW: usize = 4;
/// Passed trials in a row that make a thread trusted.
const PROOFS: u32 = 4;
/// Inodes that could be made in the time of one LOOKUP, roughly.
const LOOKUP_COSTS: u32 = 8;
/// The credit of a thread that has just earned it, and the most that it can have, in inodes.
const FIRST_CREDIT: u32 = 16 * LOOKUP_COSTS;
const MOST_CREDIT: u32 = 64 * LOOKUP_COSTS;
/// Directories between two trials, at most.
const MOST_PATIENCE: u32 = 256;
/// A slot that no thread has listed.
const NOWHERE: u32 = u32::MAX;

/// Entries of a listing whose attributes are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OmittedAttributes {
    Nothing,
    /// The first one of the directory.
    First,
    /// All that are not directories.
    Leaves,
}

/// The threads that listed most recently.
#[derive(Default)]
pub(super) struct ReaddirplusHeuristic {
    /// Whether attributes were ever left out: spares every LOOKUP the lock until then.
    left_out: AtomicBool,
    state: Mutex<HeuristicState>,
}

#[derive(Default)]
struct HeuristicState {
    /// The one that listed last comes first.
    readdirplus: Vec<ListingThread>,
    /// The thread that asked last for what was left out, and the directory that it is in.
    asking: (u32, u32),
}

struct ListingThread {
    thread: u32,
    /// Whether something was omitted from the directory that it listed last, and no LOOKUP has come
    /// for it.
    on_trial: bool,
    /// Passed trials in a row.
    proofs: u32,
    /// Directories to list before the next trial.
    patience: u32,
    /// What `patience` becomes when this trial fails.
    next_patience: u32,
    /// Inodes that its LOOKUPs may yet cost while it is trusted.
    credit: u32,
    /// Directories that it listed and of which something was omitted, the most recent first.
    recent: [u32; RECENT],
}

impl ReaddirplusHeuristic {
    /// `thread` lists the directory in `slot` from its start, with `leaves` files and symlinks and
    /// so many `subdirectories`. Returns what to omit.
    pub(super) fn begins(
        &self,
        thread: u32,
        slot: u32,
        leaves: usize,
        subdirectories: usize,
    ) -> OmittedAttributes {
        let mut state = self.state.lock();
        let left_out = state
            .listing_thread(thread)
            .begins(slot, leaves, subdirectories);
        if left_out != OmittedAttributes::Nothing {
            self.left_out.store(true, Ordering::Relaxed);
        }
        left_out
    }

    /// `thread` continues a listing.
    pub(super) fn continues(&self, thread: u32) -> OmittedAttributes {
        let state = self.state.lock();
        let mut readdirplus = state.readdirplus.iter();
        match readdirplus
            .any(|listing_thread| listing_thread.thread == thread && listing_thread.is_trusted())
        {
            true => OmittedAttributes::Leaves,
            false => OmittedAttributes::Nothing,
        }
    }

    /// `thread` looks up a file or symlink in the directory in `slot`. Returns whether the thread
    /// seems to want attributes, beyond what a trusted thread may look up now and then.
    pub(super) fn asks(&self, thread: u32, slot: u32) -> bool {
        if !self.left_out.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        let readdirplus = &mut state.readdirplus;
        // Another thread may act on the entries that this one listed.
        let has_listed = |listing_thread: &ListingThread| listing_thread.recent.contains(&slot);
        let is_asking = |listing_thread: &ListingThread| listing_thread.thread == thread;
        let asked = readdirplus.iter().position(has_listed);
        if let Some(asked) = asked.or_else(|| readdirplus.iter().position(is_asking)) {
            readdirplus[asked].is_asked();
            if readdirplus[asked].is_trusted() {
                return false;
            }
        }
        let before = std::mem::replace(&mut state.asking, (thread, slot));
        before == state.asking
    }
}

impl HeuristicState {
    /// The entry of `thread`, which lists now. The thread that has not listed for longest is
    /// forgotten.
    fn listing_thread(&mut self, thread: u32) -> &mut ListingThread {
        let known = self.readdirplus.iter();
        let known = known
            .take_while(|listing_thread| listing_thread.thread != thread)
            .count();
        if known == self.readdirplus.len() {
            self.readdirplus.truncate(MOST_LISTING_THREADS - 1);
            self.readdirplus.insert(0, ListingThread::new(thread));
        } else {
            self.readdirplus[..=known].rotate_right(1);
        }
        &mut self.readdirplus[0]
    }
}

impl ListingThread {
    fn new(thread: u32) -> Self {
        Self {
            thread,
            on_trial: false,
            proofs: 0,
            patience: 0,
            next_patience: 1,
            credit: 0,
            recent: [NOWHERE; RECENT],
        }
    }

    fn is_trusted(&self) -> bool {
        self.credit > 0
    }

    fn begins(&mut self, slot: u32, leaves: usize, subdirectories: usize) -> OmittedAttributes {
        if self.on_trial {
            self.on_trial = false;
            self.proofs += 1;
            if self.proofs == PROOFS {
                self.credit = FIRST_CREDIT;
                self.next_patience = 1;
            }
        }
        if leaves == 0 {
            return OmittedAttributes::Nothing;
        }
        let leave_out = if self.is_trusted() {
            let earned = u32::try_from(leaves).unwrap_or(MOST_CREDIT);
            self.credit = self.credit.saturating_add(earned).min(MOST_CREDIT);
            if leaves < FEW {
                return OmittedAttributes::Nothing;
            }
            OmittedAttributes::Leaves
        } else if subdirectories > 0 {
            return OmittedAttributes::Nothing;
        } else if self.patience > 0 {
            self.patience -= 1;
            return OmittedAttributes::Nothing;
        } else {
            self.on_trial = true;
            OmittedAttributes::First
        };
        self.recent.rotate_right(1);
        self.recent[0] = slot;
        leave_out
    }

    /// A LOOKUP came for an entry that may have been listed without attributes.
    fn is_asked(&mut self) {
        if !self.on_trial && !self.is_trusted() {
            return;
        }
        self.credit = self.credit.saturating_sub(LOOKUP_COSTS);
        if !self.is_trusted() {
            self.on_trial = false;
            self.proofs = 0;
            self.patience = self.next_patience;
            self.next_patience = (self.next_patience * 2).min(MOST_PATIENCE);
            self.recent = [NOWHERE; RECENT];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LOOKUPs of a program that walks over `directories` of `leaves` files each, and looks each
    /// file up if it wants attributes; and the number of files listed without attributes.
    fn walk(
        readdirplus: &ReaddirplusHeuristic,
        thread: u32,
        directories: u32,
        leaves: usize,
        wants: bool,
    ) -> (usize, usize) {
        let (mut asked, mut left_out) = (0, 0);
        for slot in 0..directories {
            let missing = match readdirplus.begins(thread, slot, leaves, 0) {
                OmittedAttributes::Nothing => 0,
                OmittedAttributes::First => 1,
                OmittedAttributes::Leaves => leaves,
            };
            left_out += missing;
            if wants {
                asked += missing;
                for _ in 0..missing {
                    readdirplus.asks(thread, slot);
                }
            }
        }
        (asked, left_out)
    }

    #[test]
    fn a_thread_that_uses_no_attributes_gets_names_only() {
        let readdirplus = ReaddirplusHeuristic::default();
        let (_, left_out) = walk(&readdirplus, 7, 1000, 100, false);
        assert_eq!(left_out, 4 + 996 * 100);
        assert_eq!(readdirplus.continues(7), OmittedAttributes::Leaves);
        assert_eq!(
            readdirplus.continues(8),
            OmittedAttributes::Nothing,
            "another thread"
        );
    }

    #[test]
    fn a_thread_that_uses_attributes_looks_next_to_none_up() {
        let readdirplus = ReaddirplusHeuristic::default();
        let (asked, _) = walk(&readdirplus, 7, 5000, 10, true);
        assert_eq!(
            asked,
            9 + 5000 / 257 - 1,
            "1 + 2 + 4 + ... directories, then one in 257"
        );
    }

    #[test]
    fn directories_with_subdirectories_prove_nothing() {
        let readdirplus = ReaddirplusHeuristic::default();
        for slot in 0..100 {
            assert_eq!(
                readdirplus.begins(7, slot, 5, 1),
                OmittedAttributes::Nothing
            );
        }
    }

    #[test]
    fn a_thread_that_begins_to_use_attributes_pays_for_a_short_time() {
        let readdirplus = ReaddirplusHeuristic::default();
        walk(&readdirplus, 7, 1000, 10, false);
        let (asked, _) = walk(&readdirplus, 7, 100, 10, true);
        let paid = (MOST_CREDIT / LOOKUP_COSTS) as usize;
        assert!(asked < 2 * paid, "{asked} lookups until it was noticed");
    }

    #[test]
    fn a_thread_that_looks_up_a_few_of_many_stays_trusted() {
        let readdirplus = ReaddirplusHeuristic::default();
        walk(&readdirplus, 7, 10, 100, false);
        for slot in 10..1000 {
            assert_eq!(
                readdirplus.begins(7, slot, 100, 0),
                OmittedAttributes::Leaves
            );
            assert!((0..5).all(|_| !readdirplus.asks(7, slot)));
        }
    }

    #[test]
    fn what_another_thread_asks_for_counts_for_the_one_that_listed() {
        let readdirplus = ReaddirplusHeuristic::default();
        for slot in 0..1000 {
            assert_ne!(
                readdirplus.begins(7, slot, 100, 0),
                OmittedAttributes::Leaves
            );
            readdirplus.asks(8, slot);
        }
    }

    #[test]
    fn a_later_reader_of_a_cached_listing_that_wants_attributes_is_recognized() {
        let readdirplus = ReaddirplusHeuristic::default();
        assert!(
            !readdirplus.asks(8, 1) && !readdirplus.asks(8, 1),
            "nothing is left out"
        );
        walk(&readdirplus, 7, 100, 10, false);
        assert!(!readdirplus.asks(8, 1), "one alone is no evidence");
        assert!(!readdirplus.asks(9, 1), "nor do two of two threads");
        assert!(readdirplus.asks(9, 1) && readdirplus.asks(9, 1));
        assert!(
            !readdirplus.asks(7, 1) && !readdirplus.asks(7, 1),
            "it may ask now and then"
        );
        // Until that is more than it was trusted for.
        assert!((0..100).any(|_| readdirplus.asks(7, 1)));
    }

    #[test]
    fn a_lookup_after_a_full_listing_is_no_failed_trial() {
        let readdirplus = ReaddirplusHeuristic::default();
        // One trial fails, and the next directory is no trial.
        for slot in 0..2 {
            readdirplus.begins(7, slot, 10, 0);
            assert!((0..100).any(|_| readdirplus.asks(7, 1000)));
        }
        assert_eq!(readdirplus.begins(7, 2, 10, 0), OmittedAttributes::First);
    }

    #[test]
    fn the_thread_that_has_not_listed_for_longest_is_forgotten() {
        let readdirplus = ReaddirplusHeuristic::default();
        walk(&readdirplus, 0, 100, 10, false);
        for other in 1..MOST_LISTING_THREADS as u32 {
            readdirplus.begins(other, 0, 10, 0);
        }
        assert_eq!(readdirplus.continues(0), OmittedAttributes::Leaves);
        readdirplus.begins(MOST_LISTING_THREADS as u32, 0, 10, 0);
        assert_eq!(readdirplus.continues(0), OmittedAttributes::Nothing);
    }

    #[test]
    fn a_directory_of_a_few_files_is_listed_in_full() {
        let readdirplus = ReaddirplusHeuristic::default();
        walk(&readdirplus, 7, 100, 10, false);
        assert_eq!(readdirplus.begins(7, 100, 3, 0), OmittedAttributes::Nothing);
        assert_eq!(readdirplus.begins(7, 101, 4, 0), OmittedAttributes::Leaves);
    }

    #[test]
    fn threads_do_not_spoil_each_others_walks() {
        let readdirplus = ReaddirplusHeuristic::default();
        for slot in 0..1000 {
            let names = readdirplus.begins(7, 2 * slot, 10, 0);
            assert_eq!(names == OmittedAttributes::Leaves, slot >= PROOFS);
            if readdirplus.begins(8, 2 * slot + 1, 10, 0) != OmittedAttributes::Nothing {
                readdirplus.asks(8, 2 * slot + 1);
            }
        }
    }
}
