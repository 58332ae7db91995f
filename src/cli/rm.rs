//! `castore-fs rm`.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use crate::castore::Name;
use crate::clock::unix_seconds;
use crate::store::RootCondition;
use crate::tree::closure;
use clap::Args;
use serde::Serialize;

use super::failure::{CommandFailure, failure, print_error};
use super::gc::DEFAULT_GRACE;
use super::json::JsonName;
use super::names::{referred, refuse_referred, taken_root_name};
use super::output::Output;
use super::progress::{QuietArgument, print_note};
use super::store::{CommandStore, StoreArguments};
use super::utc::utc;

/// Remove roots from a store, by name
///
/// Only the names are removed; `castore-fs gc` deletes what is not reachable from another root and
/// frees its space. What is mounted or open stays readable until it is unmounted or closed. If one
/// of the names does not exist, none is removed. Nix store paths that other roots refer to are refused, by
/// what the store knows of those roots.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs rm tree
  castore-fs rm --store local:/srv/castore --dry-run old-1 old-2
  castore-fs rm --closure /nix/store/dbghhbq1x39yxgkv3vkgfwbxrmw9nfzi-hello-2.12.1")]
pub(super) struct Rm {
    #[command(flatten)]
    store: StoreArguments,
    /// Only print the names that would be removed; fails where the removal would
    #[arg(long)]
    dry_run: bool,
    /// With every Nix store path that the roots refer to, unless another root refers to it
    #[arg(long)]
    closure: bool,
    /// Remove Nix store paths too that other roots refer to
    #[arg(long)]
    referred: bool,
    /// Remove paths too that were reported to Nix as valid (serve --nix-daemon)
    ///
    /// Also those whose contents are not in the store any more, or never were. A Nix store above this one still
    /// takes them for valid, and fails where it uses them: delete them there first.
    #[arg(long)]
    reported: bool,
    /// One JSON object: `roots`, a list of the names, and `dry_run`, with which they are still there
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    quiet: QuietArgument,
    /// The roots' names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<PathBuf>,
}

/// When and how the space of roots that were just removed is freed.
fn space_hint(opened: &CommandStore) -> String {
    let url = opened.store.url();
    if url.starts_with("objectstore+") {
        return "`castore-fs gc --no-other-writers` with the same --store frees the space, in two calls with the grace \
                period (by default 1h) between them"
            .to_owned();
    }
    let Some(_) = opened.local_dir() else {
        return format!("`castore-fs gc` on the machine of {url} frees the space");
    };
    // The collection compares whole seconds.
    let from = unix_seconds().saturating_add(DEFAULT_GRACE.as_secs() + 1);
    format!(
        "`castore-fs gc --store {url}` frees the space from {} on (with its default --grace of 1h), except of what is \
         mounted then",
        utc(from)
    )
}

/// The result, in JSON.
#[derive(Serialize)]
struct RemovedObject {
    roots: Vec<JsonName>,
    dry_run: bool,
}

impl Rm {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        self.quiet.apply();
        let opened = self.store.open()?;
        let store = &opened.store;
        self.check_reported_list(&opened)?;
        let embedded = store.store().embedded();
        let (mut names, mut forgotten) = (Vec::new(), Vec::new());
        let mut all_there = true;
        for path in &self.names {
            let name = taken_root_name(path, "rm")?;
            let mut is_reported = false;
            for local in &embedded {
                is_reported |= local.valid_path(name.as_bytes())?.is_some();
            }
            // A look-up in a binary cache would fetch the contents, and it has no roots to remove.
            let fetches = is_reported && self.reported && opened.described.binary_caches.is_some();
            let has_root = !fetches && store.root(&name)?.is_some();
            if self.reported && is_reported && !has_root {
                forgotten.push(name);
            } else {
                if !has_root {
                    let hint = match is_reported {
                        true => "it was reported to Nix as valid, which --reported forgets",
                        false => "`castore-fs ls` lists the names it has",
                    };
                    print_error(&format!("{} has no root named {name}; {hint}", store.url()));
                    all_there = false;
                }
                names.push(name);
            }
        }
        if !all_there {
            return Err(CommandFailure::Reported);
        }
        let explicit: BTreeSet<Name> = names.iter().cloned().collect();
        if self.closure {
            names = self.with_closure(&opened, names)?;
        } else if !self.referred {
            refuse_referred(&opened, &names)?;
        }
        let all: Vec<&[u8]> = names
            .iter()
            .chain(&forgotten)
            .map(|name| name.as_bytes())
            .collect();
        // Of a cache, its upstream does not know what was reported.
        for local in &embedded {
            local.check_removal(&all, self.reported)?;
        }
        // Fails for a store whose roots cannot be removed, before anything of a path is forgotten. Without a
        // commit nothing is changed.
        let ingest = match names.is_empty() {
            true => None,
            false => Some(store.ingest()?),
        };
        if let Some(ingest) = &ingest {
            for name in &names {
                ingest.remove_root(name)?;
                // What was found may have changed.
                if !(self.referred && explicit.contains(name)) {
                    ingest.only_if(RootCondition::NotReferred(name.clone()));
                }
            }
        }
        if !self.dry_run {
            if self.reported {
                for local in &embedded {
                    local.forget_valid_paths(&all)?;
                }
            }
            if let Some(ingest) = ingest {
                ingest.commit()?;
            }
        }
        let mut output = Output::open()?;
        let all = names.iter().chain(&forgotten);
        if self.json {
            output.json(&RemovedObject {
                roots: all.map(|name| name.as_bytes().into()).collect(),
                dry_run: self.dry_run,
            })?;
            output.flush()?;
            self.print_hint(&opened, &names);
            return Ok(());
        }
        for name in all {
            let name = output.name(name.as_bytes()).into_owned();
            output.write_all(&name)?;
            writeln!(output)?;
        }
        output.flush()?;
        self.print_hint(&opened, &names);
        Ok(())
    }

    fn print_hint(&self, opened: &CommandStore, removed: &[Name]) {
        if !removed.is_empty() && !self.dry_run {
            print_note(&space_hint(opened));
        }
    }

    /// With --reported: fails if the store has no list of reported paths.
    fn check_reported_list(&self, opened: &CommandStore) -> Result<(), CommandFailure> {
        match self.reported && opened.store.store().embedded().is_empty() {
            false => Ok(()),
            true => Err(failure(format!(
                "--reported is for the local store that has the list of reported paths, and {} is not one: name \
                 that store (--store local:DIR, the directory of the cache or of `into`)",
                opened.store.url()
            ))),
        }
    }

    /// `names`, and what they refer to and no other root does.
    fn with_closure(
        &self,
        opened: &CommandStore,
        names: Vec<Name>,
    ) -> Result<Vec<Name>, CommandFailure> {
        let store = opened.store.store().as_ref();
        let found = closure::removable(store, &names);
        let found = opened.runtime.block_on(found)?;
        let mut removed = found.names;
        for name in names {
            if let Some(by) = found.referred.get(&name)
                && !self.referred
            {
                return Err(referred(&name, by));
            }
            removed.insert(name);
        }
        Ok(removed.into_iter().collect())
    }
}
