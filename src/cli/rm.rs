//! `castore-fs rm`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, say};
use super::names::root_name;
use super::output::Output;
use super::store::StoreArguments;

/// Remove roots from a store, by name
///
/// Only the names are removed; `castore-fs gc` deletes what is not reachable from another root and
/// frees its space. What is mounted or open stays readable until it is unmounted or closed. If one
/// of the names does not exist, none is removed.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs rm tree
  castore-fs rm --store local:/srv/castore --dry-run old-1 old-2")]
pub(super) struct Rm {
    #[command(flatten)]
    store: StoreArguments,
    /// Only print the names that would be removed
    #[arg(long)]
    dry_run: bool,
    /// Remove paths too that were reported to Nix as valid (serve --nix-daemon)
    ///
    /// A Nix store above this one still takes them for valid, and fails where it uses them: delete them there first.
    #[arg(long)]
    reported: bool,
    /// The roots' names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<PathBuf>,
}

impl Rm {
    pub(super) fn run(self) -> Result<(), Failure> {
        let opened = self.store.open()?;
        let store = &opened.store;
        let mut names = Vec::new();
        let mut all_there = true;
        for path in &self.names {
            let name = root_name(path)?;
            if store.root(&name)?.is_none() {
                say(&format!(
                    "{} has no root named {name}; `castore-fs ls` lists the names it has",
                    store.url()
                ));
                all_there = false;
            }
            names.push(name);
        }
        if !all_there {
            return Err(Failure::Reported);
        }
        if !self.dry_run {
            if self.reported {
                let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
                for local in store.store().embedded() {
                    local.forget_valid_paths(&names)?;
                }
            }
            let ingest = store.ingest()?;
            for name in &names {
                ingest.remove_root(name)?;
            }
            ingest.commit()?;
        }
        let mut output = Output::open()?;
        for name in &names {
            let name = output.name(name.as_bytes()).into_owned();
            output.write_all(&name)?;
            writeln!(output)?;
        }
        output.flush()?;
        Ok(())
    }
}
