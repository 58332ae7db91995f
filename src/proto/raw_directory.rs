//! A Directory on the wire: its bytes, untouched.

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

/// The bytes of a Directory message, as they came or will be sent.
///
/// prost parses a message and drops unknown fields, so the bytes that a digest names would not
/// survive. This message accepts any bytes;
/// [`Directory::decode`](crate::castore::Directory::decode) validates them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawDirectory(pub Bytes);

impl prost::Message for RawDirectory {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn decode(mut buffer: impl Buf) -> Result<Self, DecodeError> {
        Ok(Self(buffer.copy_to_bytes(buffer.remaining())))
    }

    fn merge(&mut self, mut buffer: impl Buf) -> Result<(), DecodeError> {
        let mut all = Vec::with_capacity(self.0.len() + buffer.remaining());
        all.extend_from_slice(&self.0);
        all.put(&mut buffer);
        self.0 = all.into();
        Ok(())
    }

    /// Appends a field that the caller has read from a larger message.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut all = self.0.to_vec();
        encoding::encode_key(tag, wire_type, &mut all);
        match wire_type {
            WireType::LengthDelimited => {
                let mut field = Vec::new();
                encoding::bytes::merge(wire_type, &mut field, buffer, context)?;
                encoding::encode_varint(field.len() as u64, &mut all);
                all.extend_from_slice(&field);
            }
            WireType::Varint => {
                encoding::encode_varint(encoding::decode_varint(buffer)?, &mut all);
            }
            // A Directory has fields of no other kind: the rest is invalid in any case.
            _ => encoding::skip_field(wire_type, tag, buffer, context)?,
        }
        self.0 = all.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn bytes_come_through_as_they_are_even_those_no_directory_has() {
        for bytes in [&b""[..], b"\x0a\x02\x0a\x00", b"\xff\xff nonsense"] {
            let raw = RawDirectory::decode(bytes).unwrap();
            assert_eq!(raw.encode_to_vec(), bytes);
        }
    }
}
