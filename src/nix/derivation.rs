//! The outputs in a derivation: the first list of the text that Nix writes to a `.drv`.

/// The outputs of the derivation that begins with `text`: names, and absolute paths as far as they follow from
/// it. Nothing if it is no derivation, or if the list does not end within `text`.
pub fn derivation_outputs(text: &[u8]) -> Option<Vec<(String, String)>> {
    let mut rest = text.strip_prefix(b"Derive([")?;
    let mut outputs = Vec::new();
    loop {
        rest = rest.strip_prefix(b"(")?;
        let mut fields = [const { String::new() }; 4];
        for (number, field) in fields.iter_mut().enumerate() {
            if number > 0 {
                rest = rest.strip_prefix(b",")?;
            }
            (*field, rest) = string(rest)?;
        }
        let [name, path, _, _] = fields;
        outputs.push((name, path));
        rest = rest.strip_prefix(b")")?;
        match rest.split_first()? {
            (b',', more) => rest = more,
            (b']', _) => return Some(outputs),
            _ => return None,
        }
    }
}

/// A string in quotes, and what follows it.
fn string(text: &[u8]) -> Option<(String, &[u8])> {
    let text = text.strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| *byte == b'"')?;
    let (string, rest) = text.split_at(end);
    // Names and paths have nothing that would be escaped.
    let string = std::str::from_utf8(string)
        .ok()
        .filter(|string| !string.contains('\\'))?;
    Some((string.to_owned(), &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read_and_what_is_no_derivation_has_none() {
        let text = br#"Derive([("dev","/nix/store/x-dev","",""),("out","","r:sha256","")],[("#;
        let pair = |name: &str, path: &str| (name.to_owned(), path.to_owned());
        let outputs = [pair("dev", "/nix/store/x-dev"), pair("out", "")];
        assert_eq!(derivation_outputs(text).as_deref(), Some(&outputs[..]));
        for length in 0..text.len() - 4 {
            assert_eq!(derivation_outputs(&text[..length]), None, "{length}");
        }
        for text in [
            "",
            "Derive([])",
            r#"Derive([("a\"","","",""])"#,
            r#"Derive([("a")]"#,
        ] {
            assert_eq!(derivation_outputs(text.as_bytes()), None, "{text}");
        }
    }
}
