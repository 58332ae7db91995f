//! `castore-fs status`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use castore_fs::service::{self, Status as Answer};
use clap::Args;

use super::failure::Failure;
use super::output::Output;

/// Show how the running service is
///
/// Asks the control socket of `castore-fs daemon`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs status
  castore-fs status --watch
  castore-fs status --json | jq .mounts")]
pub(super) struct Status {
    /// The control socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/castore-fs/control.sock"
    )]
    socket: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        loop {
            let status = service::ask_status(&self.socket)?;
            let mut output = Output::open()?;
            match self.json {
                true => output.json(&status)?,
                false => show(&status, &mut output)?,
            }
            output.flush()?;
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn show(status: &Answer, output: &mut Output) -> Result<(), Failure> {
    let mut text = Vec::new();
    let (version, pid, uptime) = (&status.version, status.pid, status.uptime_seconds);
    writeln!(
        text,
        "castore-fs {version}, process {pid}, up {uptime} s: {}",
        status.line()
    )?;
    for (name, store) in &status.stores {
        write!(text, "store {name}: {}", store.url)?;
        if let (Some(blobs), Some(bytes)) = (store.blobs, store.blob_bytes) {
            write!(text, ", {blobs} blobs, {bytes} bytes")?;
        }
        writeln!(text)?;
    }
    for (name, mount) in &status.mounts {
        let path = mount.path.display();
        let state = if mount.mounted { "on" } else { "gone from" };
        let adopted = if mount.adopted { ", taken over" } else { "" };
        writeln!(
            text,
            "mount {name}: {} {state} {path}{adopted}",
            mount.store
        )?;
        writeln!(
            text,
            "  {} directories live, {} bytes of Directories, {} bytes of node table",
            mount.live_directories, mount.directory_bytes, mount.table_bytes
        )?;
        let mut kinds: Vec<_> = mount.requests.iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let kinds: Vec<_> = kinds
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        if !kinds.is_empty() {
            writeln!(text, "  requests: {}", kinds.join(", "))?;
        }
    }
    for (name, listen) in &status.listen {
        writeln!(
            text,
            "listener {name}: {} on {}",
            listen.store, listen.address
        )?;
    }
    output.write_all(&text)?;
    Ok(())
}
