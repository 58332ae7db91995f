//! The handshake: which version a connection has.

use super::{CLIENT_MAGIC, Encoder, Field, LAST, SERVER_MAGIC};

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u8,
    minor: u8,
}

/// Whether the server takes a client's settings and unsigned paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientTrust {
    /// It does.
    Trusted,
    /// It does not.
    Untrusted,
}

/// What follows a client's version and, from [`Version::WITH_FEATURES`] on, its features: whether it names a
/// processor to run on, the processor, and whether to reserve space. All of it is obsolete, and is skipped.
#[derive(Clone, Copy, Debug)]
pub struct Hello;

impl Version {
    /// The first that is spoken here: that of Nix 2.15 and of Lix.
    pub const FIRST: Self = Self::of(35);
    /// From here on results of builds have times of processors.
    pub const WITH_PROCESSOR_TIMES: Self = Self::of(37);
    /// From here on both sides list their features.
    pub const WITH_FEATURES: Self = Self::of(38);
    /// The latest that is spoken here.
    pub const LATEST: Self = Self::of(38);

    const fn of(minor: u8) -> Self {
        Self { major: 1, minor }
    }

    /// The version in a word of the handshake, if it is one.
    pub fn from_word(word: u64) -> Option<Self> {
        let [minor, major] = u16::try_from(word).ok()?.to_le_bytes();
        Some(Self { major, minor })
    }

    /// As a word of the handshake.
    pub fn word(self) -> u64 {
        u64::from(u16::from_le_bytes([self.minor, self.major]))
    }

    /// What a client sends first.
    pub fn put_client(self, out: &mut Encoder) {
        out.word(CLIENT_MAGIC).word(self.word());
    }

    /// What a server sends first.
    pub fn put_server(self, out: &mut Encoder) {
        out.word(SERVER_MAGIC).word(self.word());
    }

    /// What a server sends when it has read a client's [`Hello`]: the version of its program, whether it
    /// trusts the client, and that there is no error.
    pub fn put_welcome(self, program: &str, trust: ClientTrust, out: &mut Encoder) {
        out.text(program);
        out.word(match trust {
            ClientTrust::Trusted => 1,
            ClientTrust::Untrusted => 2,
        });
        out.word(LAST);
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Hello {
    /// The fields, by whether the first of them announces the name of a processor.
    pub fn fields(names_processor: bool) -> &'static [Field] {
        match names_processor {
            true => &[Field::Word, Field::Word],
            false => &[Field::Word],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_words() {
        assert_eq!(Version::from_word(0x0126), Some(Version::WITH_FEATURES));
        assert_eq!(Version::LATEST.word(), 0x0126);
        assert_eq!(Version::from_word(0x0126).unwrap().to_string(), "1.38");
        assert!(Version::from_word(0x0122).unwrap() < Version::FIRST);
        assert!(Version::from_word(0x0201).unwrap() > Version::LATEST);
        assert_eq!(Version::from_word(1 << 16), None);
    }
}
