//! Bytes as printable text.
//!
//! Names, paths and symlink targets are any bytes, chosen by the author of a tree. Written out raw
//! they could move a terminal's cursor, change its colours, paste commands, forge a line of a log,
//! or read in another order than they are stored. All output for a reader goes through
//! [`Printable`]: errors, the log, progress, `ls` on a terminal.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::path::Path;

/// Bytes as one line of text that is safe on a terminal and in a log.
///
/// UTF-8 text is shown as it is, other bytes as `\xff`. Characters that are not visible as
/// themselves are escaped: control characters (`\n`, `\x1b`, `\u{9b}`), line and paragraph
/// separators, marks that change the direction of text (`\u{202e}`), and characters without a width
/// that make two names look alike. If anything is escaped, a backslash is too (`\\`).
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl<'a> Printable<'a> {
    /// A path of the host.
    pub fn path(path: &'a Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self(path.as_os_str().as_bytes())
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunks = || self.0.utf8_chunks();
        let safe = |chunk: std::str::Utf8Chunk<'_>| {
            chunk.invalid().is_empty() && chunk.valid().chars().all(is_printable)
        };
        if chunks().all(safe) {
            return chunks().try_for_each(|chunk| f.write_str(chunk.valid()));
        }
        for chunk in chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    _ if is_printable(character) => f.write_char(character)?,
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    '\0'..='\x7f' => write!(f, "\\x{:02x}", u32::from(character))?,
                    _ => write!(f, "\\u{{{:x}}}", u32::from(character))?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// JSON in which every character that is not printable (see [`Printable`]) is escaped (`\u202e`):
/// the same values, safe on a terminal. JSON has such characters in strings only, but for line ends.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let safe = |character: char| character == '\n' || is_printable(character);
    if json.chars().all(safe) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if safe(character) {
            escaped.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    escaped.into()
}

/// Whether a character may reach a terminal or a log as itself.
fn is_printable(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            // Arabic letter mark, left-to-right and right-to-left marks, embeddings, overrides,
            // isolates: Unicode's Bidi_Control.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators.
            | '\u{2028}' | '\u{2029}'
            // Invisible: soft hyphen, zero width space, word joiner and invisible operators,
            // deprecated format characters, byte order mark, annotations, tags. The joiners U+200C
            // and U+200D are needed to write Persian, and emoji.
            | '\u{ad}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> String {
        Printable(bytes).to_string()
    }

    #[test]
    fn text_is_shown_as_it_is() {
        for text in ["", "plain name", "dë 文件 🦀", r"back\slash", "«a»\u{200d}"] {
            assert_eq!(shown(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_could_deceive_is_escaped_and_the_rest_stays_readable() {
        for (bytes, expected) in [
            (&b"a\n ERROR forged\r\t"[..], r"a\n ERROR forged\r\t"),
            (b"\x1b[31m\x7f\x07", r"\x1b[31m\x7f\x07"),
            ("ä\u{9b}31m".as_bytes(), r"ä\u{9b}31m"),
            ("cod\u{202e}exe.txt".as_bytes(), r"cod\u{202e}exe.txt"),
            (
                "\u{2066}x\u{2069}\u{2028}".as_bytes(),
                r"\u{2066}x\u{2069}\u{2028}",
            ),
            ("a\u{200b}\u{feff}".as_bytes(), r"a\u{200b}\u{feff}"),
            (b"\xff\xfe \xc3", r"\xff\xfe \xc3"),
            // No escape sequence can be forged.
            (b"\\n\n", r"\\n\n"),
        ] {
            assert_eq!(shown(bytes), expected);
        }
    }

    #[test]
    fn json_keeps_its_values() {
        let all: String = ('\0'..=char::MAX).collect();
        let json = serde_json::to_string(&all).unwrap();
        let escaped = printable_json(&json);
        assert!(escaped.chars().all(is_printable));
        assert!(serde_json::from_str::<String>(&escaped).unwrap() == all);
        assert_eq!(printable_json("{\"a\":\"ä\"}\n"), "{\"a\":\"ä\"}\n");
    }

    #[test]
    fn nothing_unprintable_is_left_of_any_character() {
        let all: String = ('\0'..=char::MAX).collect();
        assert!(shown(all.as_bytes()).chars().all(is_printable));
        let bytes: Vec<u8> = (0..=255).rev().collect();
        assert!(shown(&bytes).chars().all(is_printable));
    }
}
