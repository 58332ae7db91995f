//! A binary cache in a directory, written by the test.

use std::io::Write;
use std::path::Path;

use castore_fs::nix::{NarHash, NarinfoFile, NixHash, SecretKey, StorePath, encode_base32};
use castore_fs::store::{Blocking, MemoryStore};
use castore_fs::tree::{TreePath, export, nar::write_nar};
use sha2::{Digest as _, Sha256};

use crate::http_client::{HttpAnswer, HttpClient};
use crate::model::Model;

/// A key pair that signs.
pub fn secret_key(name: &str, seed: u8) -> SecretKey {
    SecretKey::parse(&secret_key_text(name, seed)).unwrap()
}

/// The secret key's text, as Nix writes it.
pub fn secret_key_text(name: &str, seed: u8) -> String {
    use ring::signature::{Ed25519KeyPair, KeyPair};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let both = [&[seed; 32], pair.public_key().as_ref()].concat();
    format!("{name}:{}", data_encoding::BASE64.encode(&both))
}

/// The NAR of `tree`.
pub fn nar(tree: &Model, runtime: &tokio::runtime::Runtime) -> Vec<u8> {
    let store = MemoryStore::new();
    let node = tree.put_root(&store, "tree");
    let store = Blocking::new(std::sync::Arc::new(store), runtime.handle().clone());
    let mut nar = Vec::new();
    let progress = export::ExportProgress::default();
    write_nar(&store, &TreePath::new(b"tree"), &node, &mut nar, &progress).unwrap();
    nar
}

/// `bytes`, compressed as a narinfo calls it.
pub fn compress(bytes: &[u8], compression: &str) -> Vec<u8> {
    match compression {
        "none" => bytes.to_vec(),
        "zstd" => zstd::encode_all(bytes, 3).unwrap(),
        "xz" => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "bzip2" => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "gzip" => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        other => panic!("{other}"),
    }
}

/// The narinfo of a path whose NAR is `nar`.
pub fn narinfo(path: &StorePath, nar: &[u8], compression: &str) -> NarinfoFile {
    NarinfoFile {
        path: path.clone(),
        url: format!("nar/{}.nar.{compression}", path.hash()),
        compression: compression.to_owned(),
        file_hash: None,
        file_size: None,
        nar: NarHash {
            size: nar.len() as u64,
            sha256: Sha256::digest(nar).into(),
        },
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
        references_known: true,
    }
}

/// Writes a path into the cache in `directory`.
pub fn write(directory: &Path, narinfo: &NarinfoFile, nar: &[u8]) {
    std::fs::create_dir_all(directory.join("nar")).unwrap();
    let file = compress(nar, &narinfo.compression);
    std::fs::write(directory.join(&narinfo.url), file).unwrap();
    let name = format!("{}.narinfo", narinfo.path.hash());
    std::fs::write(directory.join(name), narinfo.to_text()).unwrap();
    let info = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n";
    std::fs::write(directory.join("nix-cache-info"), info).unwrap();
}

/// A store path of this name, whose hash is made of `digit`.
pub fn path(digit: char, name: &str) -> StorePath {
    let hash: String = std::iter::repeat_n(digit, 32).collect();
    format!("{hash}-{name}").parse().unwrap()
}

/// A path as `nix copy --to` uploads it.
pub struct Upload {
    /// The NAR's file.
    pub bytes: Vec<u8>,
    pub narinfo: NarinfoFile,
}

impl Upload {
    /// `nar` as `path`, which refers to itself.
    pub fn new(path: &StorePath, nar: &[u8], compression: &str) -> Self {
        let bytes = compress(nar, compression);
        let mut narinfo = narinfo(path, nar, compression);
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let ending = match compression {
            "xz" => ".xz",
            "zstd" => ".zst",
            "bzip2" => ".bz2",
            _ => "",
        };
        narinfo.url = format!("nar/{}.nar{ending}", encode_base32(&hash));
        narinfo.file_hash = Some(NixHash::Sha256(hash));
        narinfo.file_size = Some(bytes.len() as u64);
        narinfo.references = vec![path.clone()];
        Self { bytes, narinfo }
    }

    pub fn put_nar(&self, client: &HttpClient) -> HttpAnswer {
        let at = format!("/{}", self.narinfo.url);
        client.send("PUT", &at, &[], &self.bytes)
    }

    pub fn put_narinfo(&self, client: &HttpClient) -> HttpAnswer {
        let at = format!("/{}.narinfo", self.narinfo.path.hash());
        client.send("PUT", &at, &[], self.narinfo.to_text().as_bytes())
    }

    /// Whether the server has the NAR, so that it need not be sent.
    pub fn has_nar(&self, client: &HttpClient) -> bool {
        let at = format!("/{}", self.narinfo.url);
        client.ask("HEAD", &at, &[]).status == 200
    }
}
