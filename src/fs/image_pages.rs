//! Pages of an image that the kernel has twice.
//!
//! EROFS copies file data from the image's page cache into that of its own files, so that each page of data
//! stays in memory twice. What was read of the image is dropped again a moment later: EROFS has its copy
//! by then. A reader that is slower than its read-ahead reads some of it anew. Metadata stays: EROFS uses the
//! image's own pages of that.
//!
//! This is for an image that EROFS mounts here and that no other program can open. Pages that a virtual
//! machine maps must stay.

use std::ops::Range;
use std::time::Duration;

use parking_lot::Mutex;

use super::PageCache;
use super::node_id::NodeId;

/// How long pages stay at least, and half of how long they stay at most.
const AGE: Duration = Duration::from_secs(1);
/// Ranges that are kept separately; where there are more, all data is dropped.
const MOST: usize = 1024;

/// What was read of an image's data and is still in its page cache.
#[derive(Debug, Default)]
pub(super) struct ImagePages(Mutex<Vec<Range<u64>>>);

impl ImagePages {
    /// Notes that `range` was read.
    pub(super) fn read(&self, range: Range<u64>) {
        let mut ranges = self.0.lock();
        let is_full = ranges.len() >= MOST;
        match ranges.last_mut() {
            Some(last) if is_full || (last.start..=last.end).contains(&range.start) => {
                *last = last.start.min(range.start)..last.end.max(range.end);
            }
            _ => ranges.push(range),
        }
    }

    /// Drops from `pages` what was read of the data of the image `node`, until `has_ended`.
    pub(super) fn drop_old(
        &self,
        node: NodeId,
        pages: &dyn PageCache,
        has_ended: impl Fn() -> bool,
    ) {
        let mut old = Vec::new();
        while !has_ended() {
            std::thread::sleep(AGE);
            for range in std::mem::replace(&mut old, self.take()) {
                pages.drop_range(node, range.start, range.end - range.start);
            }
        }
    }

    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_a_row_are_one_range_and_there_are_never_many() {
        let pages = ImagePages::default();
        for at in [0, 10, 20, 15, 100] {
            pages.read(at..at + 10);
        }
        assert_eq!(pages.take(), [0..30, 100..110]);
        for at in 0..5000 {
            pages.read(at * 20..at * 20 + 1);
        }
        let taken = pages.take();
        assert_eq!(taken.len(), MOST);
        assert_eq!(taken.last().unwrap().end, 4999 * 20 + 1);
        assert!(pages.take().is_empty());
    }
}
