//! Sparse files: a map states where the data in the archive belong; the rest is zeros.

/// A part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SparseSegment {
    /// Bytes from the start of the file.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
}

/// The most segments of a file: 64 MiB of memory, and a terabyte of a file that has a hole in every
/// 256 KiB.
pub(super) const MAX_SEGMENTS: usize = 4 << 20;

/// Where the next bytes of a file come from.
#[derive(Debug, Default)]
pub(super) struct SparseMap {
    /// The segments that are not read yet, the next one last.
    segments: Vec<SparseSegment>,
    /// Bytes of the file before here are read.
    at: u64,
    size: u64,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SparseRange {
    Data(u64),
    Zeros(u64),
}

impl SparseMap {
    /// A file of `size` bytes with data throughout.
    pub(super) fn dense(size: u64) -> Self {
        Self {
            segments: vec![SparseSegment {
                offset: 0,
                length: size,
            }],
            at: 0,
            size,
        }
    }

    /// A file of `size` bytes with data in `segments`, of which the archive holds `stored` bytes.
    pub(super) fn sparse(
        mut segments: Vec<SparseSegment>,
        size: u64,
        stored: u64,
    ) -> Result<Self, &'static str> {
        if segments.len() > MAX_SEGMENTS {
            return Err("a sparse file with too many segments");
        }
        let mut end = 0;
        let mut sum = 0u64;
        for SparseSegment { offset, length } in &segments {
            if *offset < end {
                return Err("a sparse map that is not sorted");
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= size)
                .ok_or("a sparse map that leads beyond the end of its file")?;
            // No overflow: the segments do not overlap.
            sum += length;
        }
        if sum != stored {
            return Err("a sparse map that does not fit its data");
        }
        segments.reverse();
        Ok(Self {
            segments,
            at: 0,
            size,
        })
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the file, of which nothing has been read yet, that are in holes.
    pub(super) fn zeros(&self) -> u64 {
        let data = self.segments.iter().map(|segment| segment.length).sum();
        self.size.saturating_sub(data)
    }

    /// What the next bytes are, at most `limit` of them; nothing at the end of the file.
    pub(super) fn next(&mut self, limit: u64) -> Option<SparseRange> {
        while self.segments.last().is_some_and(|next| next.length == 0) {
            self.segments.pop();
        }
        let range = match self.segments.last_mut() {
            Some(next) if next.offset == self.at => {
                let length = next.length.min(limit);
                next.offset += length;
                next.length -= length;
                SparseRange::Data(length)
            }
            Some(next) => SparseRange::Zeros((next.offset - self.at).min(limit)),
            None if self.at < self.size => SparseRange::Zeros((self.size - self.at).min(limit)),
            None => return None,
        };
        let (SparseRange::Data(length) | SparseRange::Zeros(length)) = range;
        self.at += length;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pairs: &[(u64, u64)]) -> Vec<SparseSegment> {
        pairs
            .iter()
            .map(|&(offset, length)| SparseSegment { offset, length })
            .collect()
    }

    #[test]
    fn holes_are_zeros_wherever_they_are() {
        let mut map = SparseMap::sparse(segments(&[(2, 3), (5, 0), (8, 1)]), 10, 4).unwrap();
        let mut extents = Vec::new();
        while let Some(range) = map.next(2) {
            extents.push(range);
        }
        use SparseRange::{Data, Zeros};
        assert_eq!(
            extents,
            [
                Zeros(2),
                Data(2),
                Data(1),
                Zeros(2),
                Zeros(1),
                Data(1),
                Zeros(1)
            ]
        );
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        let map = |pairs: &[_], size, stored| SparseMap::sparse(segments(pairs), size, stored);
        assert!(map(&[(0, 1), (1, 1)], 2, 2).is_ok());
        assert!(map(&[(1, 1), (0, 1)], 2, 2).is_err(), "unsorted");
        assert!(map(&[(0, 2), (1, 1)], 3, 3).is_err(), "overlapping");
        assert!(map(&[(0, 3)], 2, 3).is_err(), "beyond the end");
        assert!(map(&[(0, 1)], 2, 2).is_err(), "less than the data");
        assert!(map(&[(u64::MAX, 2)], u64::MAX, 2).is_err(), "overflow");
    }
}
