//! `castore-fs stat`.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::castore::{NodeRef, Printable};
use crate::nix::{PathInfo, STORE_DIR};
use crate::store::Blocking;
use crate::tree::{KindPreference, ResolvedTarget, Target};
use clap::Args;
use data_encoding::BASE64;
use serde::Serialize;

use super::failure::CommandFailure;
use super::json;
use super::output::Output;
use super::store::StoreArguments;

/// Show a node: type, size, digest, and the path info of a Nix store path
///
/// A failing target is reported, the others are shown all the same, and the exit status is 1.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs stat tree/bin
  castore-fs stat --json /nix/store/yra1qha6bp2fm0mrb0qspjzsh9ismik0-tree")]
pub(super) struct Stat {
    #[command(flatten)]
    store: StoreArguments,
    /// One JSON object a line, with the keys of `ls --json`, `entries` of a directory, and `nix`, the path info
    ///
    /// `size` is in bytes of a file; of a directory it is twice the number of names below it, at any depth.
    #[arg(long)]
    json: bool,
    /// What to show: NAME[/PATH] or a digest
    #[arg(required = true)]
    targets: Vec<PathBuf>,
}

#[derive(Serialize)]
struct StatObject {
    #[serde(flatten)]
    path: json::JsonPath,
    #[serde(flatten)]
    node: json::JsonNode,
    /// For a directory itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nix: Option<NixFields>,
}

/// The fields of a store's PathInfo for a root.
#[derive(Serialize)]
struct NixFields {
    store_path: String,
    nar_size: u64,
    nar_hash: String,
    references: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deriver: Option<String>,
    signatures: Vec<String>,
}

impl Stat {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let opened = self.store.open()?;
        let mut output = Output::open()?;
        let mut shown = 0;
        for target in &self.targets {
            let found = find(&opened.store, target);
            let (found, object) = match found {
                Ok(found) => found,
                Err(failure) => {
                    failure.and_continue(&mut output)?;
                    continue;
                }
            };
            match (self.json, shown) {
                (true, _) => output.json(&object)?,
                (false, 0) => print(&found, &object, &mut output)?,
                (false, _) => {
                    output.write_all(b"\n")?;
                    print(&found, &object, &mut output)?;
                }
            }
            shown += 1;
        }
        output.flush()?;
        match shown == self.targets.len() {
            true => Ok(()),
            false => Err(CommandFailure::Reported),
        }
    }
}

fn find(store: &Blocking, target: &Path) -> Result<(ResolvedTarget, StatObject), CommandFailure> {
    let found = Target::try_from(target)?.resolve(store, KindPreference::Directory)?;
    let object = describe(store, &found)?;
    Ok((found, object))
}

fn describe(store: &Blocking, found: &ResolvedTarget) -> Result<StatObject, CommandFailure> {
    let directory = found.directory(store)?;
    let entries = directory.map(|directory| directory.len() as u64);
    let nix = match &found.root {
        Some(root) if found.is_root() => store.path_info(&root.name)?,
        _ => None,
    };
    Ok(StatObject {
        path: found.path.as_bytes().into(),
        node: found.node.borrow().into(),
        entries,
        nix: nix.map(|info| describe_nix(&found.name.to_string(), info)),
    })
}

fn describe_nix(name: &str, info: PathInfo) -> NixFields {
    let nar = info.narinfo.unwrap_or_default();
    let deriver = nar.deriver.map(|path| {
        let hash = crate::nix::encode_base32(&path.digest);
        format!("{hash}-{}.drv", path.name)
    });
    let signatures = nar.signatures.into_iter();
    NixFields {
        store_path: format!("{STORE_DIR}/{name}"),
        nar_size: nar.nar_size,
        nar_hash: format!("sha256-{}", BASE64.encode(&nar.nar_sha256)),
        references: nar.reference_names,
        deriver,
        signatures: signatures
            .map(|signature| format!("{}:{}", signature.name, BASE64.encode(&signature.data)))
            .collect(),
    }
}

fn print(
    found: &ResolvedTarget,
    object: &StatObject,
    output: &mut Output,
) -> Result<(), CommandFailure> {
    let mut line =
        |label: &str, value: &[u8]| output.line(&format!("{label:12}{}", Printable(value)));
    line("path", found.path.as_bytes())?;
    match found.node.borrow() {
        NodeRef::Directory { size, .. } => {
            line("type", b"directory")?;
            let entries = object.entries.unwrap_or_default();
            let all = format!("{entries}, {} with everything below", size / 2);
            line("entries", all.as_bytes())?;
        }
        NodeRef::File {
            size, executable, ..
        } => {
            let kind = if executable {
                "file, executable"
            } else {
                "file"
            };
            line("type", kind.as_bytes())?;
            line("size", size.to_string().as_bytes())?;
        }
        NodeRef::Symlink { target } => {
            line("type", b"symlink")?;
            line("target", target)?;
        }
    }
    if let Some(digest) = found.node.digest() {
        line("digest", digest.to_string().as_bytes())?;
        line("hex", digest.to_hex().as_bytes())?;
    }
    if let Some(nix) = &object.nix {
        line("store path", nix.store_path.as_bytes())?;
        line("nar size", nix.nar_size.to_string().as_bytes())?;
        line("nar hash", nix.nar_hash.as_bytes())?;
        for reference in &nix.references {
            line("reference", reference.as_bytes())?;
        }
        if let Some(deriver) = &nix.deriver {
            line("deriver", deriver.as_bytes())?;
        }
        for signature in &nix.signatures {
            line("signature", signature.as_bytes())?;
        }
    }
    Ok(())
}
