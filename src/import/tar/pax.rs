//! The records of a PAX header: `<length> <key>=<value>\n`, where the length counts the whole record.
//!
//! They are cut by their lengths and not at line ends: a value may hold any byte, and a name with a
//! line feed in it must survive.

use super::sparse::SparseSegment;

/// The records that describe an entry; the others are ignored.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse: SparseRecords,
}

/// The records `GNU.sparse.*`.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// The file's real name.
    pub(super) name: Option<Vec<u8>>,
    /// The file's real size (`size` in the versions 0.x, `realsize` in 1.0).
    pub(super) real_size: Option<u64>,
    /// The map of the versions 0.x.
    pub(super) map: Vec<SparseSegment>,
    /// The offset of a segment whose length comes in the next record (version 0.0).
    offset: Option<u64>,
}

impl PaxRecords {
    /// Adds the records of a header; a record with an empty value cancels an earlier one.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("a malformed PAX record")?;
            self.take(key, value)?;
            bytes = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            [] => Ok(None),
            _ => decimal(value)
                .map(Some)
                .ok_or("a PAX record whose value is no number"),
        };
        let sparse = &mut self.sparse;
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link_path = text(),
            b"size" => self.size = number()?,
            b"GNU.sparse.major" => sparse.major = number()?,
            b"GNU.sparse.minor" => sparse.minor = number()?,
            b"GNU.sparse.name" => sparse.name = text(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => sparse.real_size = number()?,
            b"GNU.sparse.offset" => sparse.offset = number()?,
            b"GNU.sparse.numbytes" => {
                let offset = sparse.offset.take();
                let (Some(offset), Some(length)) = (offset, number()?) else {
                    return Err("a sparse map with a length and no offset");
                };
                sparse.map.push(SparseSegment { offset, length });
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = match value {
                    [] => Some(Vec::new()),
                    _ => value.split(|&byte| byte == b',').map(decimal).collect(),
                };
                let numbers = numbers.ok_or("a sparse map with something else than numbers")?;
                let (pairs, rest) = numbers.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err("a sparse map with an offset and no length");
                }
                sparse.map = pairs
                    .iter()
                    .map(|&[offset, length]| SparseSegment { offset, length })
                    .collect();
            }
            _ => {}
        }
        Ok(())
    }
}

/// The key and value of the first record, and the records after it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = record.split_at(equals);
    Some((key, &value[1..], rest))
}

/// A number in decimal digits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_line_feeds_and_equals_signs() {
        let mut records = PaxRecords::default();
        records
            .read(b"14 path=a\n=b\xff\n13 comment=x\n12 size=123\n")
            .unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a\n=b\xff"[..]));
        assert_eq!(records.size, Some(123));
        records.read(b"8 path=\n").unwrap();
        assert_eq!(records.path, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"9 path=a",
            b"99 path=a\n",
            b"1 path=a\n",
            b"-9 path=a\n",
            b" path=a\n",
            b"7 patha\n9 size=x\n",
            b"18446744073709551616 path=a\n",
        ] {
            assert!(
                PaxRecords::default().read(bytes).is_err(),
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
