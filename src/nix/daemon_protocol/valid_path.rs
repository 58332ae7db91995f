//! What is known of a valid path, as it is sent.

use super::{Encoder, Field, Value};
use crate::nix::{ContentAddress, NarHash, NarinfoFile, NixHash, Signature, StorePath};

/// The fields of what is known of a path: the deriver, the hash of the NAR, the references, since when the
/// path is valid, the size of the NAR, whether it was built there, the signatures, and its content address.
pub const VALID_PATH: &[Field] = &[
    Field::Text,
    Field::Text,
    Field::Texts(1),
    Field::Word,
    Field::Word,
    Field::Word,
    Field::Texts(1),
    Field::Text,
];

/// Appends what is known of a path, without its name, to `out`. `since` is when it became valid here, in
/// seconds since 1970.
pub fn put_valid_path(info: &NarinfoFile, since: u64, out: &mut Encoder) {
    let deriver = info.deriver.as_ref().map(|deriver| deriver.absolute());
    let address = info.content_address.as_ref().map(ToString::to_string);
    out.text(deriver.unwrap_or_default())
        .text(data_encoding::HEXLOWER.encode(&info.nar.sha256))
        .paths(info.references.iter())
        .word(since)
        .word(info.nar.size)
        // Not built here.
        .word(0)
        .texts(info.signatures.iter().map(ToString::to_string))
        .text(address.unwrap_or_default());
}

/// What the values of [`VALID_PATH`] have of `path`; else what is wrong with them.
pub fn read_valid_path(path: &StorePath, values: Vec<Value>) -> Result<NarinfoFile, String> {
    let values: [Value; VALID_PATH.len()] = values
        .try_into()
        .map_err(|_| "an answer has too few fields".to_owned())?;
    let [
        Value::Text(deriver),
        Value::Text(hash),
        Value::Texts(references),
        Value::Word(_),
        Value::Word(size),
        Value::Word(_),
        Value::Texts(signatures),
        Value::Text(address),
    ] = values
    else {
        return Err("an answer has fields of another form".to_owned());
    };
    let text = |bytes: &[u8]| -> Result<String, String> {
        let text = std::str::from_utf8(bytes);
        Ok(text
            .map_err(|_| "a text is not UTF-8".to_owned())?
            .to_owned())
    };
    let store_path = |bytes: &[u8]| -> Result<StorePath, String> {
        let text = text(bytes)?;
        text.parse()
            .map_err(|error: crate::nix::StorePathError| format!("{text:?}: {error}"))
    };
    let hash = text(&hash)?;
    // Without its algorithm, which is SHA-256.
    let sha256 = NixHash::parse(&format!("sha256:{hash}"))
        .ok()
        .and_then(|hash| hash.sha256())
        .ok_or_else(|| format!("{hash:?} is no SHA-256"))?;
    let references = references.iter().map(|path| store_path(path));
    let nar = NarHash { size, sha256 };
    let mut info =
        NarinfoFile::without_file(path.clone(), nar, references.collect::<Result<_, _>>()?);
    if !deriver.is_empty() {
        info.deriver = Some(store_path(&deriver)?);
    }
    // As in narinfos: what cannot be read verifies nothing.
    let signatures = signatures.iter().filter_map(|signature| {
        let signature = std::str::from_utf8(signature).ok()?;
        Signature::parse(signature).ok()
    });
    info.signatures = signatures.collect();
    info.content_address = ContentAddress::parse(&text(&address)?).ok();
    Ok(info)
}
