//! Reading words, texts and lists as they come, within bounds.

use thiserror::Error;

use super::{Field, padding};

/// Bytes of a text, at most.
pub const MAX_TEXT: u64 = 1 << 20;
/// Bytes of the fields of an operation, at most: 100,000 paths and more.
pub const MAX_MESSAGE: u64 = 16 << 20;
/// Bytes that are asked for at once, so that a claimed length costs no memory.
const BUFFER_BYTES: u64 = 64 << 10;

/// What was read of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Field::Word`].
    Word(u64),
    /// Of [`Field::Text`].
    Text(Vec<u8>),
    /// Of [`Field::Texts`]: all texts of all elements.
    Texts(Vec<Vec<u8>>),
}

/// What a [`MessageReader`] is to be given next.
#[derive(Debug, PartialEq, Eq)]
pub enum ExpectedInput {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing: these are the values.
    Done(Vec<Value>),
}

/// Bytes that are no message of the protocol, or one over the bounds.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A long text.
    #[error("a text of {0} bytes is longer than {MAX_TEXT}")]
    Text(u64),
    /// A long message.
    #[error("the fields of an operation have more than {MAX_MESSAGE} bytes")]
    Message,
    /// Bytes after a text that are not zero.
    #[error("the bytes after a text are not zero")]
    Padding,
}

/// Reads the values of some fields.
#[derive(Debug)]
pub struct MessageReader {
    fields: std::slice::Iter<'static, Field>,
    values: Vec<Value>,
    expected: ExpectedPart,
    /// Bytes that were read so far.
    taken: u64,
}

#[derive(Debug)]
enum ExpectedPart {
    /// The next of the fields.
    Field,
    Word,
    /// The length of a text; within a list, with how many follow it.
    Length(Option<u64>),
    Count(u64),
    /// The rest of a text: bytes without and with the zeros after it.
    Text {
        text: Vec<u8>,
        length: u64,
        padded: u64,
        list: Option<u64>,
    },
}

impl MessageReader {
    /// Reads `fields`.
    pub fn new(fields: &'static [Field]) -> Self {
        Self {
            fields: fields.iter(),
            values: Vec::new(),
            expected: ExpectedPart::Field,
            taken: 0,
        }
    }

    /// Bytes that were read so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// What comes next.
    pub fn wanted(&mut self) -> ExpectedInput {
        if let ExpectedPart::Field = self.expected {
            self.expected = match self.fields.next() {
                None | Some(Field::Frames) => {
                    return ExpectedInput::Done(std::mem::take(&mut self.values));
                }
                Some(Field::Word) => ExpectedPart::Word,
                Some(Field::Text) => ExpectedPart::Length(None),
                Some(Field::Texts(each)) => ExpectedPart::Count(*each),
            };
        }
        ExpectedInput::Bytes(match &self.expected {
            ExpectedPart::Text { text, padded, .. } => {
                (padded - text.len() as u64).min(BUFFER_BYTES) as usize
            }
            _ => 8,
        })
    }

    /// Takes the bytes that [`wanted`](Self::wanted) asked for.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.taken += bytes.len() as u64;
        if self.taken > MAX_MESSAGE {
            return Err(WireError::Message);
        }
        let word = || {
            let word = bytes.first_chunk().copied().unwrap_or_default();
            u64::from_le_bytes(word)
        };
        match &mut self.expected {
            ExpectedPart::Field => {}
            ExpectedPart::Word => {
                self.values.push(Value::Word(word()));
                self.expected = ExpectedPart::Field;
            }
            ExpectedPart::Count(each) => {
                let texts = word().checked_mul(*each);
                // Each has a length at least.
                let bytes = texts.and_then(|texts| texts.checked_mul(8)?.checked_add(self.taken));
                let texts = texts.filter(|_| bytes.is_some_and(|bytes| bytes <= MAX_MESSAGE));
                let texts = texts.ok_or(WireError::Message)?;
                self.values.push(Value::Texts(Vec::new()));
                self.expected = match texts {
                    0 => ExpectedPart::Field,
                    _ => ExpectedPart::Length(Some(texts - 1)),
                };
            }
            ExpectedPart::Length(list) => {
                let (length, list) = (word(), *list);
                if length > MAX_TEXT {
                    return Err(WireError::Text(length));
                }
                let padded = length + padding(length);
                if self.taken + padded > MAX_MESSAGE {
                    return Err(WireError::Message);
                }
                match length {
                    0 => self.end_text(Vec::new(), list),
                    _ => {
                        self.expected = ExpectedPart::Text {
                            text: Vec::new(),
                            length,
                            padded,
                            list,
                        }
                    }
                }
            }
            ExpectedPart::Text {
                text,
                length,
                padded,
                list,
            } => {
                text.extend_from_slice(bytes);
                if text.len() as u64 == *padded {
                    let (mut text, length, list) = (std::mem::take(text), *length, *list);
                    let zeros = text.split_off(length as usize);
                    if zeros.iter().any(|byte| *byte != 0) {
                        return Err(WireError::Padding);
                    }
                    self.end_text(text, list);
                }
            }
        }
        Ok(())
    }

    fn end_text(&mut self, text: Vec<u8>, list: Option<u64>) {
        match (list, self.values.last_mut()) {
            (Some(_), Some(Value::Texts(texts))) => texts.push(text),
            _ => self.values.push(Value::Text(text)),
        }
        self.expected = match list {
            Some(more @ 1..) => ExpectedPart::Length(Some(more - 1)),
            _ => ExpectedPart::Field,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoder;
    use super::*;

    fn read(fields: &'static [Field], bytes: &[u8]) -> Result<(Vec<Value>, usize), WireError> {
        let mut reader = MessageReader::new(fields);
        let mut at = 0;
        loop {
            match reader.wanted() {
                ExpectedInput::Done(values) => return Ok((values, at)),
                ExpectedInput::Bytes(length) => {
                    assert!(length <= BUFFER_BYTES as usize);
                    reader.take(&bytes[at..at + length])?;
                    at += length;
                }
            }
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Encoder::default();
        out.word(7).text("").text("nix").text("12345678");
        out.texts(["a", ""].iter()).texts([""; 0].iter());
        // Two pairs, as settings are.
        out.word(2).text("a").text("1").text("b").text("2");
        let bytes = out.take();
        let fields = &[
            Field::Word,
            Field::Text,
            Field::Text,
            Field::Text,
            Field::Texts(1),
            Field::Texts(1),
            Field::Texts(2),
        ];
        let (values, length) = read(fields, &bytes).unwrap();
        assert_eq!(length, bytes.len());
        let texts = |texts: &[&str]| {
            Value::Texts(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
        };
        let text = |text: &str| Value::Text(text.as_bytes().to_vec());
        assert_eq!(
            values,
            [
                Value::Word(7),
                text(""),
                text("nix"),
                text("12345678"),
                texts(&["a", ""]),
                texts(&[]),
                texts(&["a", "1", "b", "2"]),
            ]
        );
        let long = "x".repeat(MAX_TEXT as usize);
        let bytes = Encoder::default().text(&long).take();
        assert_eq!(read(&[Field::Text], &bytes).unwrap().0, [text(&long)]);
    }

    #[test]
    fn claims_over_the_bounds_are_refused_before_their_bytes() {
        let word = |word: u64| word.to_le_bytes();
        assert_eq!(
            read(&[Field::Text], &word(MAX_TEXT + 1)),
            Err(WireError::Text(MAX_TEXT + 1))
        );
        assert_eq!(
            read(&[Field::Text], &word(u64::MAX)),
            Err(WireError::Text(u64::MAX))
        );
        for count in [MAX_MESSAGE / 8, u64::MAX / 8, u64::MAX] {
            for fields in [&[Field::Texts(1)], &[Field::Texts(4)]] {
                assert_eq!(read(fields, &word(count)), Err(WireError::Message));
            }
        }
        let mut bytes = Encoder::default().text("nix").take();
        *bytes.last_mut().unwrap() = 1;
        assert_eq!(read(&[Field::Text], &bytes), Err(WireError::Padding));
        let text = "x".repeat(MAX_TEXT as usize);
        let many = MAX_MESSAGE / MAX_TEXT;
        let bytes = Encoder::default()
            .texts(std::iter::repeat_n(&text, many as usize))
            .take();
        assert_eq!(read(&[Field::Texts(1)], &bytes), Err(WireError::Message));
    }
}
