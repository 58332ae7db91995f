//! What is known of a valid path, as it is sent.

use super::Encoder;
use crate::nix::NarinfoFile;

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
