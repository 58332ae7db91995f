//! `castore-fs status`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use castore_fs::castore::Printable;
use castore_fs::fs::WarmUpCount;
use castore_fs::service::{self, LatencyStatus, ServiceStatus as Answer, StoreStatus};
use castore_fs::store::{EndpointState, MemberState};
use castore_fs::transport::fuse::{FileUsers, MountView};
use clap::Args;
use indicatif::HumanBytes;

use super::control::ControlArguments;
use super::failure::CommandFailure;
use super::output::Output;

/// Show the status of the running service
///
/// Connects to the control socket of `castore-fs daemon`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs status
  castore-fs status --watch
  castore-fs status --json | jq .mounts")]
pub(super) struct StatusCommand {
    #[command(flatten)]
    control: ControlArguments,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

impl StatusCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        loop {
            let mut status = service::ask_status(&self.control.socket)?;
            count_image_users(&mut status);
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

/// Counts the processes that use images. The service itself may not be permitted to look at them.
fn count_image_users(status: &mut Answer) {
    for mount in status.mounts.values_mut() {
        if mount.opened_images.is_empty() || !mount.mounted {
            continue;
        }
        let users = FileUsers::of_mount(&mount.path);
        for image in &mut mount.opened_images {
            let of_file = |inode| users.by_inode.get(inode).copied().unwrap_or_default();
            image.users = Some(match mount.view {
                MountView::Image => users.processes,
                MountView::Fuse => image.inode_numbers.iter().map(of_file).sum(),
            });
        }
    }
}

fn show_store(name: &str, store: &StoreStatus, text: &mut Vec<u8>) -> io::Result<()> {
    let name = Printable(name.as_bytes());
    match store.of.is_empty() {
        true => write!(text, "store {name}: {}", store.url)?,
        false => write!(
            text,
            "store {name}: {} of {}",
            store.kind,
            store.of.join(", ")
        )?,
    }
    match (store.blobs, store.blob_bytes) {
        (Some(blobs), Some(bytes)) => writeln!(text, ", {blobs} blobs, {bytes} bytes")?,
        _ => writeln!(text, ", its size is not known")?,
    }
    if let Some(endpoint) = &store.health.endpoint {
        let state = match endpoint.state {
            EndpointState::Unknown => "no request yet",
            EndpointState::Up => "up",
            EndpointState::Failing => "failing",
        };
        writeln!(
            text,
            "  {state}: {} requests, {} failed, {} in flight, {} in{}",
            endpoint.requests,
            endpoint.failures,
            endpoint.in_flight,
            HumanBytes(endpoint.bytes_in),
            times(endpoint.median_micros, endpoint.p95_micros),
        )?;
        if let (EndpointState::Failing, Some(why)) = (endpoint.state, &endpoint.last_failure) {
            writeln!(text, "  {}", Printable(why.as_bytes()))?;
        }
    }
    for member in &store.health.members {
        let state = match member.state {
            MemberState::Up => "up",
            MemberState::Open => "failed, gets no requests for a while",
            MemberState::Slow => "slower than the others, gets no requests for a while",
            MemberState::Corrupt => "SENT WRONG BYTES, avoided for a while",
        };
        writeln!(
            text,
            "  {}: {state}: {} requests, {} failed, {} hedged, {} corrupt{}",
            member.name,
            member.requests,
            member.failures,
            member.hedges,
            member.corrupt_responses,
            times(member.median_micros, member.p95_micros),
        )?;
        if let (true, Some(why)) = (member.state != MemberState::Up, &member.last_failure) {
            writeln!(text, "    {}", Printable(why.as_bytes()))?;
        }
    }
    if let Some(cache) = &store.cache {
        let limit = cache
            .limit
            .map(|limit| format!(" of {}", HumanBytes(limit)));
        writeln!(
            text,
            "  cached {}{}: {} hits, {} misses, {} evicted, {} not kept, {} repaired",
            HumanBytes(cache.size),
            limit.unwrap_or_default(),
            cache.hits,
            cache.misses,
            cache.evictions,
            cache.not_stored,
            cache.repairs,
        )?;
        for (what, why) in [
            ("fetched objects are not kept at the moment", &cache.backoff),
            ("the upstream is unreachable", &cache.upstream_down),
        ] {
            if let Some(why) = why {
                writeln!(text, "  {what}: {}", Printable(why.as_bytes()))?;
            }
        }
    }
    Ok(())
}

fn show_warmup(warmup: &WarmUpCount, text: &mut Vec<u8>) -> io::Result<()> {
    write!(
        text,
        "  warm-up: {} roots recorded, {} profiles in progress, {} prefetched",
        warmup.recording,
        warmup.fetching,
        HumanBytes(warmup.bytes)
    )?;
    match warmup.fetches {
        0 => writeln!(text)?,
        fetches => {
            let mean = warmup.fetch_micros / fetches;
            writeln!(text, ", {} a profile", shown_micros(mean))?;
        }
    }
    writeln!(
        text,
        "    profiles: {} of their own, {} of similar roots, {} without; {} extents fetched, {} of \
         them read, {} recorded",
        warmup.own, warmup.similar, warmup.none, warmup.extents, warmup.hits, warmup.recorded
    )?;
    for (count, what) in [
        (warmup.failed_finds, "could not be read"),
        (
            warmup.failed_fetches,
            "were given up, as the store did not answer",
        ),
        (warmup.failed_saves, "could not be written"),
    ] {
        if count > 0 {
            writeln!(text, "    {count} profiles {what}: see the log")?;
        }
    }
    Ok(())
}

/// Requests by kind, the most frequent first, and their times.
fn show_requests(
    requests: &BTreeMap<String, u64>,
    latencies: &BTreeMap<String, LatencyStatus>,
    text: &mut Vec<u8>,
) -> io::Result<()> {
    let mut kinds: Vec<_> = requests.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (kind, count) in kinds {
        let latency = latencies.get(kind).cloned().unwrap_or_default();
        let times = times(latency.median_micros, latency.p95_micros);
        writeln!(text, "  {kind}: {count}{times}")?;
    }
    Ok(())
}

/// Their median and 95th percentile.
fn times(median: Option<u64>, p95: Option<u64>) -> String {
    match (median, p95) {
        (Some(median), Some(p95)) => {
            format!(", {} (p95 {})", shown_micros(median), shown_micros(p95))
        }
        _ => String::new(),
    }
}

fn shown_micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

fn show(status: &Answer, output: &mut Output) -> Result<(), CommandFailure> {
    let mut text = Vec::new();
    let (version, pid, uptime) = (&status.version, status.pid, status.uptime_seconds);
    writeln!(
        text,
        "castore-fs {version}, process {pid}, up {uptime} s: {}",
        status.line()
    )?;
    for (name, store) in &status.stores {
        show_store(name, store, &mut text)?;
    }
    for prefetch in &status.prefetches {
        let (into, roots) = (&prefetch.store, prefetch.roots.join(", "));
        let roots = Printable(roots.as_bytes());
        let (blobs, total) = (prefetch.blobs, prefetch.total_blobs);
        let bytes = HumanBytes(prefetch.bytes);
        writeln!(
            text,
            "fetching {roots} into {into}: {blobs} of {total} blobs, {bytes}"
        )?;
    }
    for (name, mount) in &status.mounts {
        let (name, path) = (Printable(name.as_bytes()), Printable::path(&mount.path));
        let state = if mount.mounted { "on" } else { "gone from" };
        let taken_over = if mount.taken_over { ", taken over" } else { "" };
        let view = match mount.view {
            MountView::Fuse => "",
            MountView::Image => ", as an image",
        };
        writeln!(
            text,
            "mount {name}: {} {state} {path}{view}{taken_over}",
            mount.store
        )?;
        if let Some(tree) = &mount.tree {
            writeln!(text, "  shows {}", Printable(tree.as_bytes()))?;
        }
        if let Some(why) = &mount.why_no_image {
            writeln!(text, "  no image, because {}", Printable(why.as_bytes()))?;
        }
        writeln!(
            text,
            "  {} cached Directories, {} bytes of Directories, {} bytes of node table",
            mount.cached_directories, mount.directory_bytes, mount.table_bytes
        )?;
        if let Some(open) = &mount.open {
            writeln!(
                text,
                "  {} files open, {} of them read through passthrough",
                open.files, open.backed
            )?;
        }
        for image in &mount.opened_images {
            let size = image.size.map(|size| format!("{}, ", HumanBytes(size)));
            writeln!(
                text,
                "  image {}: {}layout version {}, {} read, used by {} processes",
                image.digest,
                size.unwrap_or_default(),
                image.layout_version,
                HumanBytes(image.read_bytes),
                image.users.unwrap_or_default()
            )?;
        }
        if let Some(warmup) = &mount.warmup {
            show_warmup(warmup, &mut text)?;
        }
        show_requests(&mount.requests, &mount.latencies, &mut text)?;
    }
    for (name, device) in &status.virtiofs {
        let (name, store) = (Printable(name.as_bytes()), &device.store);
        let socket = Printable::path(&device.socket);
        writeln!(
            text,
            "virtiofs {name}: {store} on {socket}, {} connected, {} so far",
            device.guests, device.connections
        )?;
        writeln!(
            text,
            "  {} cached Directories, {} bytes of Directories, {} bytes of node tables",
            device.cached_directories, device.directory_bytes, device.table_bytes
        )?;
        if let Some(warmup) = &device.warmup {
            show_warmup(warmup, &mut text)?;
        }
        show_requests(&device.requests, &device.latencies, &mut text)?;
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
