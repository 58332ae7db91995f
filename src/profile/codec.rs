//! The encoding of a profile file.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | `castore-profile\n` |
//! | 4 | the version, little-endian: 1 |
//! | 32 | BLAKE3 of everything after it |
//! | | the key: its length, its bytes |
//! | 32 | the digest of the root node |
//! | | the number of files; of each: how many bytes of its path are shared with the path before it,
//! how many follow, these; how often it was missed |
//! | | the number of runs; of each: the file, by its index; the first extent; how many |
//!
//! Numbers are LEB128 in as few bytes as they need. Files are in the order in which runs first name
//! them, and a path repeats as much of the one before as it can. So a profile has exactly one
//! encoding, and the decoder refuses any other.

use thiserror::Error;

use super::{
    ExtentRun, LONGEST_PATH, MOST_EXTENTS, MOST_FILES, MOST_PATH_BYTES, MOST_RUNS, Profile,
    ProfileKey, ProfileRecording,
};
use crate::castore::Digest;

const MAGIC: &[u8; 16] = b"castore-profile\n";
const VERSION: u32 = 1;
/// Bytes before the digested part.
const HEADER: usize = MAGIC.len() + 4 + Digest::LEN;
/// Bytes of a profile, at most; its files' and runs' bounds come to less.
pub(super) const MOST_BYTES: u64 = 8 << 20;

/// Bytes that are not a valid profile.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Longer than any.
    #[error("it is longer than {MOST_BYTES} bytes, the limit of a profile")]
    TooLong,
    /// Another file format.
    #[error("it does not begin as a profile does")]
    NotAProfile,
    /// Another version of the format.
    #[error(
        "it is of version {0}, and this castore-fs knows version {VERSION}: record it again, or use the \
         castore-fs that wrote it"
    )]
    Version(u32),
    /// Cut short or changed since it was written.
    #[error("it is damaged: its bytes are not those that were written")]
    Damaged,
    /// Not written by a correct encoder.
    #[error("it is not a valid profile: {0}")]
    Malformed(&'static str),
}

impl Profile {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 64 * self.files.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; Digest::LEN]);
        put_bytes(&mut bytes, self.profile_key.as_bytes());
        bytes.extend_from_slice(self.digest.as_bytes());
        put_number(&mut bytes, self.files.len() as u32);
        let mut before: &[u8] = &[];
        for file in &self.files {
            let shared = shared(before, &file.path);
            put_number(&mut bytes, shared as u32);
            put_bytes(&mut bytes, &file.path[shared..]);
            bytes.push(file.missed);
            before = &file.path;
        }
        put_number(&mut bytes, self.runs.len() as u32);
        for run in &self.runs {
            put_number(&mut bytes, run.file);
            put_number(&mut bytes, run.first);
            put_number(&mut bytes, run.count);
        }
        let (header, body) = bytes.split_at_mut(HEADER);
        header[HEADER - Digest::LEN..].copy_from_slice(Digest::of(body).as_bytes());
        bytes
    }

    /// The profile that `bytes` are.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() as u64 > MOST_BYTES {
            return Err(FormatError::TooLong);
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or(FormatError::NotAProfile)?;
        let (version, rest) = rest.split_first_chunk().ok_or(FormatError::Damaged)?;
        match u32::from_le_bytes(*version) {
            VERSION => {}
            other => return Err(FormatError::Version(other)),
        }
        let (digest, body) = rest
            .split_first_chunk::<{ Digest::LEN }>()
            .ok_or(FormatError::Damaged)?;
        if Digest::of(body) != Digest::from(*digest) {
            return Err(FormatError::Damaged);
        }
        let profile = decode_body(&mut ProfileReader(body)).map_err(FormatError::Malformed)?;
        // One profile has one encoding.
        match profile.encode() == bytes {
            true => Ok(profile),
            false => Err(FormatError::Malformed("it can be written shorter")),
        }
    }
}

fn decode_body(from: &mut ProfileReader<'_>) -> Result<Profile, &'static str> {
    let profile_key = from.bytes(LONGEST_PATH)?;
    let profile_key = ProfileKey::new(profile_key).filter(|read| read.as_bytes() == profile_key);
    let profile_key = profile_key.ok_or("what it is of has no such name")?;
    let digest = Digest::from(*from.chunk::<{ Digest::LEN }>()?);
    let count = from.count(MOST_FILES, "it names too many files")?;
    let mut files: Vec<(Vec<u8>, u8)> = Vec::new();
    let mut path_bytes = 0;
    for _ in 0..count {
        let before = files.last().map_or(&[][..], |(path, _)| path);
        let shared = from.count(before.len(), "a path repeats more than there is")?;
        let mut path = before[..shared].to_vec();
        path.extend_from_slice(from.bytes(LONGEST_PATH - shared.min(LONGEST_PATH))?);
        path_bytes += path.len();
        if path_bytes > MOST_PATH_BYTES {
            return Err("its paths are too long");
        }
        let [missed] = *from.chunk()?;
        files.push((path, missed));
    }
    let count = from.count(MOST_RUNS, "it has too many runs")?;
    let mut recording = ProfileRecording::new(profile_key, digest);
    let mut extents = 0;
    for _ in 0..count {
        let run = ExtentRun {
            file: from.number()?,
            first: from.number()?,
            count: from.number()?,
        };
        extents += u64::from(run.count);
        if extents > MOST_EXTENTS {
            return Err("it has too many extents");
        }
        let file = files.get(run.file as usize);
        let (path, missed) = file.ok_or("a run is of no file")?;
        let end = run.first.checked_add(run.count);
        for extent in run.first..end.ok_or("a run never ends")? {
            if !recording.take(path, extent, *missed) {
                return Err("a file's path or an extent of it is wrong, or there twice");
            }
        }
    }
    match from.0.is_empty() {
        true => Ok(recording.profile),
        false => Err("something follows"),
    }
}

/// The length of the common prefix.
fn shared(before: &[u8], path: &[u8]) -> usize {
    let pairs = before.iter().zip(path);
    pairs.take_while(|(one, other)| one == other).count()
}

fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    put_number(to, bytes.len() as u32);
    to.extend_from_slice(bytes);
}

fn put_number(to: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// The remaining bytes.
struct ProfileReader<'a>(&'a [u8]);

impl<'a> ProfileReader<'a> {
    fn chunk<const N: usize>(&mut self) -> Result<&'a [u8; N], &'static str> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or("it ends early")?;
        self.0 = rest;
        Ok(chunk)
    }

    fn number(&mut self) -> Result<u32, &'static str> {
        let mut number = 0u64;
        for shift in (0..35).step_by(7) {
            let [byte] = *self.chunk()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(number).map_err(|_| "a number is too large");
            }
        }
        Err("a number is too long")
    }

    fn count(&mut self, most: usize, beyond: &'static str) -> Result<usize, &'static str> {
        let count = self.number()? as usize;
        if count > most { Err(beyond) } else { Ok(count) }
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], &'static str> {
        let length = self.count(most, "a path is too long")?;
        let bytes = self.0.split_at_checked(length).ok_or("it ends early")?;
        self.0 = bytes.1;
        Ok(bytes.0)
    }
}
