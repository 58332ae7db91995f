//! `castore-fs copy`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use castore_fs::castore::Name;
use castore_fs::store::Blocking;
use castore_fs::tree::copy::{self, Progress};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use std::os::unix::ffi::OsStrExt;
use tokio::runtime::Runtime;

use super::failure::{Failure, failure};
use super::interrupt::on_interrupt;
use super::output::Output;
use super::progress::Line;
use super::store::{ConfigArguments, Place};

/// Copy roots and everything below them from one store to another
///
/// Sends only what the other store lacks. A copy that broke off goes on where it was when it is
/// started again. A root of the same name is replaced.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs copy --from local:/srv/castore --to grpc+https://cache.example tree
  castore-fs copy --from grpc+unix:/run/castore.sock --to local:/srv/castore --all")]
pub(super) struct Copy {
    /// The store to read from: a URL, or store:NAME
    #[arg(long, value_name = "URL")]
    from: String,
    /// The store to write to: a URL, or store:NAME
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    config: ConfigArguments,
    /// Every root of the store
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// The roots' names
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<PathBuf>,
}

impl Copy {
    pub(super) fn run(self) -> Result<(), Failure> {
        let runtime = Runtime::new()?;
        let (from, to) = (self.config.place(&self.from)?, self.config.place(&self.to)?);
        from.must_exist()?;
        let open = |place: Place| {
            let store = place.open(&runtime)?;
            Ok::<_, Failure>(Blocking::new(store, runtime.handle().clone()))
        };
        let (from, to) = (open(from)?, open(to)?);
        let mut output = Output::open()?;
        let roots =
            if self.all {
                from.roots()?
            } else {
                let mut roots = Vec::new();
                for path in &self.names {
                    let bytes = path.as_os_str().as_bytes();
                    let name = bytes.strip_prefix(b"/nix/store/").unwrap_or(bytes);
                    let name = Name::new(name)
                        .map_err(|error| failure(format!("{}: {error}", path.display())))?;
                    let root = from.root(&name)?;
                    roots.push(root.ok_or_else(|| {
                        failure(format!("{} has no root named {name}", from.url()))
                    })?);
                }
                roots
            };
        let progress = Arc::new(Progress::default());
        let stopped = progress.clone();
        on_interrupt(&runtime, move || {
            stopped.stop.store(true, Ordering::Relaxed);
        })?;
        let counted = progress.clone();
        let line = Line::show("copying", move || {
            let blobs = HumanCount(counted.blobs.load(Ordering::Relaxed));
            let skipped = HumanCount(counted.skipped.load(Ordering::Relaxed));
            let bytes = counted.bytes.load(Ordering::Relaxed);
            (
                format!("{blobs} blobs sent, {skipped} there already"),
                bytes,
            )
        });
        copy::copy(&from, &to, &roots, &progress)?;
        drop(line);
        let sent = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        writeln!(
            output,
            "{} roots; sent {} directories, {} blobs, {}; {} blobs were there already",
            HumanCount(roots.len() as u64),
            HumanCount(sent(&progress.directories)),
            HumanCount(sent(&progress.blobs)),
            HumanBytes(sent(&progress.bytes)),
            HumanCount(sent(&progress.skipped)),
        )?;
        output.flush()?;
        Ok(())
    }
}
