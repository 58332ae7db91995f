//! Writing words, texts and lists.

use super::padding;
use crate::nix::StorePath;

/// Bytes to be sent.
#[derive(Debug, Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Appends a word.
    pub fn word(&mut self, word: u64) -> &mut Self {
        self.0.extend_from_slice(&word.to_le_bytes());
        self
    }

    /// Appends a text.
    pub fn text(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        let text = text.as_ref();
        let length = text.len() as u64;
        self.word(length);
        self.0.extend_from_slice(text);
        let end = self.0.len() + padding(length) as usize;
        self.0.resize(end, 0);
        self
    }

    /// Appends a list of texts.
    pub fn texts<T: AsRef<[u8]>>(&mut self, texts: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.word(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
        self
    }

    /// Appends a list of absolute store paths.
    pub fn paths<'a>(&mut self, paths: impl ExactSizeIterator<Item = &'a StorePath>) -> &mut Self {
        self.texts(paths.map(StorePath::absolute))
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the bytes out.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}
