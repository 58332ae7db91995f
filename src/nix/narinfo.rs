//! Narinfos: a binary cache's metadata of a store path, as text.
//!
//! Lines of `Key: value`, each with LF at its end. What must be there, what may be wrong and how
//! real clients and caches treat it was observed (the tests name each row): `StorePath`, `URL`,
//! `NarHash` and `NarSize` are required; a missing `Compression` means bzip2; `FileHash` and
//! `FileSize` are hints; unknown keys are ignored.

use std::fmt::Write as _;

use thiserror::Error;

use super::{
    ContentAddress, NarHash, NarInfo, NixHash, PathInfo, PublicKey, STORE_DIR, Signature,
    StorePath, StorePathHash,
};
use crate::castore::{Name, Node, Root};
use crate::proto::castore::v1::Entry;
use crate::proto::store::v1::StorePath as StorePathMessage;

/// The longest narinfo that is read or accepted, in bytes: 10,000 references are 600 kB.
pub const MAX_NARINFO_BYTES: usize = 1 << 20;

/// One narinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarinfoFile {
    /// The store path.
    pub path: StorePath,
    /// The address of the NAR: relative to the cache, or absolute.
    pub url: String,
    /// The compression of the file at `url`: `none`, `xz`, `zstd`, `bzip2`, `gzip`, `br` or another
    /// name, unchanged.
    pub compression: String,
    /// Hash of the file at `url`. Not to be trusted.
    pub file_hash: Option<NixHash>,
    /// Bytes of the file at `url`. Not to be trusted.
    pub file_size: Option<u64>,
    /// Size and hash of the NAR.
    pub nar: NarHash,
    /// Store paths that the contents refer to, perhaps the path itself among them; sorted, each
    /// once.
    pub references: Vec<StorePath>,
    /// The derivation that made the path.
    pub deriver: Option<StorePath>,
    /// Signatures that can be read.
    pub signatures: Vec<Signature>,
    /// The content address.
    pub content_address: Option<ContentAddress>,
    /// Whether what the path refers to is known, and not only a hash that was computed from its contents.
    pub references_known: bool,
}

/// Text that is no narinfo.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NarinfoError {
    /// Too long.
    #[error("it is longer than {MAX_NARINFO_BYTES} bytes")]
    TooLong,
    /// Not text, or a line that does not end with LF.
    #[error("line {0} is not `Key: value` in UTF-8 with LF at its end")]
    Line(usize),
    /// A required field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is there twice.
    #[error("{0} is there twice")]
    Twice(&'static str),
    /// A field's value is not of its form.
    #[error("{field}: {why}")]
    Value {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// The fields of a narinfo by their keys, as text.
#[derive(Default)]
struct NarInfoFields<'a> {
    store_path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_hash: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    deriver: Option<&'a str>,
    content_address: Option<&'a str>,
    signatures: Vec<&'a str>,
}

impl<'a> NarInfoFields<'a> {
    fn read(text: &'a [u8]) -> Result<Self, NarinfoError> {
        if text.len() > MAX_NARINFO_BYTES {
            return Err(NarinfoError::TooLong);
        }
        let mut fields = Self::default();
        for (line, number) in text.split_inclusive(|&byte| byte == b'\n').zip(1..) {
            let wrong = || NarinfoError::Line(number);
            let line = line.strip_suffix(b"\n").ok_or_else(wrong)?;
            let line = std::str::from_utf8(line).map_err(|_| wrong())?;
            let (key, value) = line.split_once(':').ok_or_else(wrong)?;
            if value.ends_with('\r') {
                return Err(wrong());
            }
            let value = value.trim_start_matches(' ');
            let (name, field) = match key {
                "StorePath" => ("StorePath", &mut fields.store_path),
                "URL" => ("URL", &mut fields.url),
                "Compression" => ("Compression", &mut fields.compression),
                "FileHash" => ("FileHash", &mut fields.file_hash),
                "FileSize" => ("FileSize", &mut fields.file_size),
                "NarHash" => ("NarHash", &mut fields.nar_hash),
                "NarSize" => ("NarSize", &mut fields.nar_size),
                "References" => ("References", &mut fields.references),
                "Deriver" => ("Deriver", &mut fields.deriver),
                "CA" => ("CA", &mut fields.content_address),
                "Sig" => {
                    fields.signatures.push(value);
                    continue;
                }
                _ => continue,
            };
            if field.replace(value).is_some() {
                return Err(NarinfoError::Twice(name));
            }
        }
        Ok(fields)
    }
}

/// A field's value, or which field is missing.
fn required<'a>(field: &'static str, value: Option<&'a str>) -> Result<&'a str, NarinfoError> {
    let value = value.filter(|value| !value.is_empty());
    value.ok_or(NarinfoError::Missing(field))
}

/// Makes an error one of a field.
fn of_field<E: ToString>(field: &'static str) -> impl Fn(E) -> NarinfoError {
    move |error| NarinfoError::Value {
        field,
        why: error.to_string(),
    }
}

impl NarinfoFile {
    /// Parses a narinfo.
    pub fn parse(text: &[u8]) -> Result<Self, NarinfoError> {
        let fields = NarInfoFields::read(text)?;
        let path = required("StorePath", fields.store_path)?;
        let url = required("URL", fields.url)?;
        let nar_hash = required("NarHash", fields.nar_hash)?;
        let nar_size = required("NarSize", fields.nar_size)?;
        if !path.starts_with(STORE_DIR) {
            return Err(of_field("StorePath")(format!("it is not in {STORE_DIR}")));
        }
        let nar_hash = NixHash::parse(nar_hash).map_err(of_field("NarHash"))?;
        let nar = NarHash {
            size: nar_size.parse().map_err(of_field("NarSize"))?,
            sha256: (nar_hash.sha256())
                .ok_or_else(|| of_field("NarHash")("it is not a SHA-256"))?,
        };
        if nar.size == 0 {
            return Err(NarinfoError::Missing("NarSize"));
        }
        let references = fields.references.unwrap_or_default().split_whitespace();
        let references: Result<Vec<StorePath>, _> = references
            .map(|name| StorePath::from_base_name(name.as_bytes()))
            .collect();
        let mut references = references.map_err(of_field("References"))?;
        references.sort_by_cached_key(StorePath::to_string);
        references.dedup();
        let deriver = fields.deriver.filter(|name| *name != "unknown-deriver");
        let deriver = deriver.filter(|name| !name.is_empty());
        let content_address = fields.content_address.filter(|text| !text.is_empty());
        Ok(Self {
            path: path.parse().map_err(of_field("StorePath"))?,
            url: url.to_owned(),
            compression: match fields.compression {
                None | Some("") => "bzip2",
                Some(name) => name,
            }
            .to_owned(),
            // Hints: wrong ones are dropped.
            file_hash: fields.file_hash.and_then(|text| NixHash::parse(text).ok()),
            file_size: fields.file_size.and_then(|text| text.parse().ok()),
            nar,
            references,
            deriver: deriver
                .map(|name| StorePath::from_base_name(name.as_bytes()))
                .transpose()
                .map_err(of_field("Deriver"))?,
            // An unreadable one verifies nothing; others may.
            signatures: (fields.signatures.iter())
                .filter_map(|text| Signature::parse(text).ok())
                .collect(),
            // An address of an unknown kind is ignored.
            content_address: content_address.and_then(|text| ContentAddress::parse(text).ok()),
            references_known: true,
        })
    }

    /// The text that is signed: the path, its NAR and its references.
    pub fn fingerprint(&self) -> Vec<u8> {
        let references: Vec<String> = self.references.iter().map(StorePath::absolute).collect();
        format!(
            "1;{};{};{};{}",
            self.path.absolute(),
            NixHash::Sha256(self.nar.sha256),
            self.nar.size,
            references.join(","),
        )
        .into_bytes()
    }

    /// Whether one of `keys` made one of the signatures.
    pub fn is_signed_by(&self, keys: &[PublicKey]) -> bool {
        let fingerprint = self.fingerprint();
        let mut signatures = self.signatures.iter();
        signatures.any(|signature| {
            let mut keys = keys.iter();
            keys.any(|key| key.verifies(&fingerprint, signature))
        })
    }

    /// Whether the content address, if there is one, gives this very path. The address's hash must
    /// still be compared with the contents.
    pub fn address_gives_path(&self) -> bool {
        let Some(address) = &self.content_address else {
            return false;
        };
        let path = address.store_path(self.path.name(), &self.references);
        matches!(path, Some(Ok(path)) if path == self.path)
    }

    /// Whether what the path refers to is known. Otherwise a client would take it for a path without references.
    pub fn knows_references(&self) -> bool {
        self.references_known || self.implies_references()
    }

    /// Whether there is more than a hash that may have been computed from the contents: then the references
    /// came with that.
    pub(crate) fn implies_references(&self) -> bool {
        !self.references.is_empty()
            || self.deriver.is_some()
            || !self.signatures.is_empty()
            || self.content_address.is_some()
    }

    /// The text form, with every known field; [`parse`](Self::parse) reads it back.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            writeln!(text, "{key}: {value}").expect("text grows");
        };
        line("StorePath", &self.path.absolute());
        line("URL", &self.url);
        line("Compression", &self.compression);
        if let Some(hash) = self.file_hash {
            line("FileHash", &hash.to_string());
        }
        if let Some(size) = self.file_size {
            line("FileSize", &size.to_string());
        }
        line("NarHash", &NixHash::Sha256(self.nar.sha256).to_string());
        line("NarSize", &self.nar.size.to_string());
        let references: Vec<String> = self.references.iter().map(StorePath::to_string).collect();
        line("References", &references.join(" "));
        if let Some(deriver) = &self.deriver {
            line("Deriver", &deriver.to_string());
        }
        for signature in &self.signatures {
            line("Sig", &signature.to_string());
        }
        if let Some(address) = &self.content_address {
            line("CA", &address.to_string());
        }
        text
    }

    /// What is known of a path without a file of its NAR: its NAR, and its references in any order. No
    /// deriver, signature or content address is known yet.
    pub fn without_file(path: StorePath, nar: NarHash, mut references: Vec<StorePath>) -> Self {
        references.sort_by_cached_key(StorePath::to_string);
        references.dedup();
        Self {
            path,
            url: String::new(),
            compression: "none".to_owned(),
            file_hash: None,
            file_size: None,
            nar,
            references,
            deriver: None,
            signatures: Vec::new(),
            content_address: None,
            references_known: true,
        }
    }

    /// The path info for a store: `node` are its contents.
    pub fn path_info(&self, node: Node) -> PathInfo {
        let root = self.path.root(node);
        let hash = |path: &StorePath| bytes::Bytes::copy_from_slice(path.hash().as_bytes());
        PathInfo {
            entry: Some(Entry::from(&root)),
            references: self.references.iter().map(hash).collect(),
            narinfo: Some(NarInfo {
                nar_size: self.nar.size,
                nar_sha256: bytes::Bytes::copy_from_slice(&self.nar.sha256),
                signatures: self.signatures.iter().map(Into::into).collect(),
                reference_names: self.references.iter().map(StorePath::to_string).collect(),
                deriver: self.deriver.as_ref().map(|deriver| StorePathMessage {
                    // Other implementations store a deriver's name without its extension.
                    name: deriver
                        .name()
                        .strip_suffix(".drv")
                        .unwrap_or(deriver.name())
                        .to_owned(),
                    digest: hash(deriver),
                }),
                ca: self.content_address.map(Into::into),
                // The same bytes as of other implementations, where these can express it.
                references_known: self.references_known && !self.implies_references(),
            }),
        }
    }

    /// The narinfo for a store's path info, with the NAR at `url` uncompressed. Nothing if the
    /// store has no NAR hash of it, or not enough for its references.
    ///
    /// A content address is left out unless it gives the path: some clients abort on one that does
    /// not.
    pub fn of_path_info(path_info: &PathInfo, url: String) -> Option<Self> {
        let root = Root::try_from(path_info.entry.clone()?).ok()?;
        let path = StorePath::from_base_name(root.name.as_bytes()).ok()?;
        let info = path_info.narinfo.as_ref()?;
        let nar = NarHash {
            size: info.nar_size,
            sha256: info.nar_sha256[..].try_into().ok()?,
        };
        if info.reference_names.len() != path_info.references.len() || nar.size == 0 {
            return None;
        }
        let references: Result<Vec<StorePath>, _> = (info.reference_names.iter())
            .map(|name| StorePath::from_base_name(name.as_bytes()))
            .collect();
        let mut references = references.ok()?;
        references.sort_by_cached_key(StorePath::to_string);
        references.dedup();
        let deriver = info.deriver.as_ref().and_then(|deriver| {
            let hash: [u8; 20] = deriver.digest[..].try_into().ok()?;
            StorePath::new(StorePathHash::from(hash), &format!("{}.drv", deriver.name)).ok()
        });
        let ca = info.ca.as_ref();
        let mut narinfo = Self {
            path,
            url,
            compression: "none".to_owned(),
            file_hash: Some(NixHash::Sha256(nar.sha256)),
            file_size: Some(nar.size),
            nar,
            references,
            deriver,
            signatures: (info.signatures.iter())
                .filter_map(|signature| Signature::try_from(signature).ok())
                .collect(),
            content_address: ca.and_then(|ca| ContentAddress::try_from(ca).ok()),
            references_known: info.references_known,
        };
        narinfo.references_known |= narinfo.implies_references();
        if !narinfo.address_gives_path() {
            narinfo.content_address = None;
        }
        Some(narinfo)
    }

    /// The name of the path's root in a store.
    pub fn root_name(&self) -> Name {
        let name = self.path.to_string();
        Name::new(name.as_bytes()).expect("a store path's base name is a legal name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::castore::Digest;

    /// In the form in which `nix copy --to file://…?compression=none` writes it.
    const REAL: &str = "StorePath: /nix/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree
URL: nar/0v31wsi36rz1fvs6g0ya1w1rscah3k2iv0q1pbhq69jwz1s4nhvq.nar
Compression: none
FileHash: sha256:0v31wsi36rz1fvs6g0ya1w1rscah3k2iv0q1pbhq69jwz1s4nhvq
FileSize: 3338520
NarHash: sha256:7864d072fd3b87c1f966ceb11e98c932967017782d1fc6eb36c1eb3228e6616c
NarSize: 3338520
References: yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree 0c1qha6bp2fm0mrb0qspjzsh9ismik0a-dep
Deriver: 1ra1qha6bp2fm0mrb0qspjzsh9ismik0-tree.drv
CA: fixed:r:sha256:7864d072fd3b87c1f966ceb11e98c932967017782d1fc6eb36c1eb3228e6616c
X-Castore-Root: ignored
";

    fn node() -> Node {
        Node::File {
            digest: Digest::of(b"x"),
            size: 1,
            executable: false,
        }
    }

    fn without(key: &str) -> String {
        let lines = REAL.split_inclusive('\n');
        lines
            .filter(|line| !line.starts_with(&format!("{key}:")))
            .collect()
    }

    #[test]
    fn a_real_one_reads_and_reads_back() {
        let narinfo = NarinfoFile::parse(REAL.as_bytes()).unwrap();
        assert_eq!(narinfo.path.name(), "tree");
        assert_eq!(narinfo.references.len(), 2);
        assert_eq!(narinfo.references[0].name(), "dep", "references are sorted");
        assert_eq!(
            NarinfoFile::parse(narinfo.to_text().as_bytes()),
            Ok(narinfo)
        );
    }

    #[test]
    fn missing_fields_are_named_or_have_their_default() {
        for field in ["StorePath", "URL", "NarHash", "NarSize"] {
            let error = NarinfoFile::parse(without(field).as_bytes()).unwrap_err();
            assert_eq!(error, NarinfoError::Missing(field));
        }
        let parse = |key| NarinfoFile::parse(without(key).as_bytes()).unwrap();
        assert_eq!(parse("Compression").compression, "bzip2");
        assert_eq!(parse("References").references, []);
        assert_eq!(parse("Deriver").deriver, None);
        assert_eq!(parse("FileSize").file_size, None);
        assert_eq!(
            NarinfoFile::parse(b""),
            Err(NarinfoError::Missing("StorePath"))
        );
    }

    #[test]
    fn other_line_ends_doubled_fields_and_wrong_values_are_refused() {
        let parse = |text: String| NarinfoFile::parse(text.as_bytes());
        assert_eq!(
            parse(REAL.replace('\n', "\r\n")),
            Err(NarinfoError::Line(1))
        );
        assert_eq!(
            parse(REAL.trim_end().to_owned()),
            Err(NarinfoError::Line(11))
        );
        assert_eq!(
            parse(format!("{REAL}NarSize: 1\n")),
            Err(NarinfoError::Twice("NarSize"))
        );
        for (from, to) in [
            ("NarSize: 3338520", "NarSize: 0"),
            ("NarSize: 3338520", "NarSize: -1"),
            ("NarSize: 3338520", "NarSize: 99999999999999999999"),
            ("NarHash: sha256", "NarHash: sha1"),
            ("StorePath: /nix/store/", "StorePath: /gnu/store/"),
            ("ik0a-dep", "ik0a-d p"),
            ("ik0a-dep", "ik0a-../x"),
            ("-tree.drv", ""),
        ] {
            assert!(parse(REAL.replace(from, to)).is_err(), "{to}");
        }
        let long = format!("{REAL}X: {}\n", "x".repeat(MAX_NARINFO_BYTES));
        assert_eq!(parse(long), Err(NarinfoError::TooLong));
    }

    #[test]
    fn what_a_store_keeps_gives_the_narinfo_back() {
        let mut narinfo = NarinfoFile::parse(REAL.as_bytes()).unwrap();
        let kept = narinfo.path_info(node());
        assert_eq!(kept.references.len(), 2);
        let again = NarinfoFile::of_path_info(&kept, narinfo.url.clone()).unwrap();
        // Of this path, which refers to itself, the address alone does not give the path.
        narinfo.content_address = None;
        assert_eq!(again.file_hash, Some(NixHash::Sha256(narinfo.nar.sha256)));
        narinfo.file_hash = again.file_hash;
        assert_eq!(again, narinfo);
        let mut unhashed = kept.clone();
        unhashed.narinfo = None;
        assert_eq!(NarinfoFile::of_path_info(&unhashed, String::new()), None);
    }

    #[test]
    fn a_content_address_is_kept_only_if_it_gives_the_path() {
        let text = without("References");
        let narinfo = NarinfoFile::parse(text.as_bytes()).unwrap();
        assert!(narinfo.address_gives_path());
        let renamed = text.replacen("ik0-tree\n", "ik0-bush\n", 1);
        let renamed = NarinfoFile::parse(renamed.as_bytes()).unwrap();
        assert!(!renamed.address_gives_path());
    }
}
