//! Nix's base 32: an alphabet without e, o, u and t, and digits from the last to the first.
//!
//! The bytes are read as one little-endian number; the text is that number in base 32, the most
//! significant digit first. 20 bytes make exactly 32 digits; for other lengths the bits above the
//! number must be zero.

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// `bytes` as text: `bytes.len() * 8 / 5` digits, rounded up.
pub fn encode(bytes: &[u8]) -> String {
    let digits = (bytes.len() * 8).div_ceil(5);
    (0..digits)
        .rev()
        .map(|digit| {
            let bit = digit * 5;
            let low = bytes[bit / 8];
            let high = bytes.get(bit / 8 + 1).copied().unwrap_or(0);
            let value = u16::from_le_bytes([low, high]) >> (bit % 8);
            char::from(ALPHABET[usize::from(value & 31)])
        })
        .collect()
}

/// The `N` bytes of `text`; nothing if [`encode`] makes it of no bytes.
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut bytes = [0; N];
    for (digit, letter) in text.iter().rev().enumerate() {
        let value = ALPHABET.iter().position(|other| other == letter)?;
        let bit = digit * 5;
        let [low, high] = ((value as u16) << (bit % 8)).to_le_bytes();
        bytes[bit / 8] |= low;
        match bytes.get_mut(bit / 8 + 1) {
            Some(byte) => *byte |= high,
            None if high == 0 => {}
            None => return None,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(encode(b""), "");
        assert_eq!(encode(&[0x1f]), "0z");
        // The SHA-256 of the empty string, as `nix-hash --type sha256 --base32` prints it.
        let empty = [
            0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f,
            0xb9, 0x24, 0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b,
            0x78, 0x52, 0xb8, 0x55,
        ];
        let text = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        assert_eq!(encode(&empty), text);
        assert_eq!(decode(text.as_bytes()), Some(empty));
    }

    #[test]
    fn what_encode_does_not_make_is_refused() {
        assert_eq!(decode::<1>(b"0z"), Some([0x1f]));
        // Bits beyond the byte.
        assert_eq!(decode::<1>(b"zz"), None);
        for text in [&b""[..], b"0", b"000", b"0e", b"0Z", b"0\xff"] {
            assert_eq!(decode::<1>(text), None);
        }
    }

    proptest! {
        #[test]
        fn every_value_reads_back(bytes in any::<[u8; 20]>(), odd in any::<[u8; 32]>()) {
            prop_assert_eq!(decode(encode(&bytes).as_bytes()), Some(bytes));
            prop_assert_eq!(decode(encode(&odd).as_bytes()), Some(odd));
        }
    }
}
