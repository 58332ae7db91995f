//! `castore-fs status`.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::castore::Printable;
use crate::fs::WarmUpCount;
use crate::quantity::count;
use crate::service::{
    self, CacheRoots, ControlRequest, ControlResult, ReloadStatus, ServiceStatus as Answer,
    StoreRate, StoreStatus, TrafficRate, TrafficStatus,
};
use crate::store::{EndpointState, MemberState};
use crate::transport::fuse::{FileUsers, MountView};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};

use super::control::{ControlArguments, not_that};
use super::failure::CommandFailure;
use super::output::Output;
use super::units;

/// Names of pinned roots that are printed.
const PINS_SHOWN: usize = 10;

/// Show the status of the running service
///
/// Connects to the control socket of `castore-fs daemon`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs status
  castore-fs status --config ./config.toml
  castore-fs status --watch
  castore-fs status --roots
  castore-fs status --json | jq .mounts")]
pub(super) struct StatusCommand {
    #[command(flatten)]
    control: ControlArguments,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// With how much of each root is in a cache
    #[arg(long)]
    roots: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

impl StatusCommand {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        let socket = self.control.socket()?;
        loop {
            let mut status = service::ask_status(&socket)?;
            count_image_users(&mut status);
            if self.roots {
                ask_roots(&socket, &mut status)?;
            }
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

/// Adds the roots of caches to `status`, of the service at `socket`.
fn ask_roots(socket: &Path, status: &mut Answer) -> Result<(), CommandFailure> {
    let done = service::send_request(socket, &ControlRequest::CacheRoots, |_| {})?;
    let ControlResult::CacheRoots(caches) = done else {
        return Err(not_that(&done));
    };
    for (name, roots) in caches {
        if let Some(store) = status.stores.get_mut(&name) {
            store.roots = Some(roots);
        }
    }
    Ok(())
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
        (Some(blobs), Some(bytes)) => {
            let blobs = count(blobs, "blob", "blobs");
            writeln!(text, ", {blobs}, {}", HumanBytes(bytes))?;
        }
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
            "  {state}: {}, {} failed, {} in flight, {} received{}",
            count(endpoint.requests, "request", "requests"),
            HumanCount(endpoint.failures),
            HumanCount(endpoint.in_flight),
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
            "  {}: {state}: {}, {} failed, {} hedged, {} corrupt{}",
            member.name,
            count(member.requests, "request", "requests"),
            HumanCount(member.failures),
            HumanCount(member.hedges),
            HumanCount(member.corrupt_responses),
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
            "  cached {}{}: {}, {}, {} evicted, {} not kept, {} repaired",
            HumanBytes(cache.size),
            limit.unwrap_or_default(),
            count(cache.hits, "hit", "hits"),
            count(cache.misses, "miss", "misses"),
            HumanCount(cache.evictions),
            HumanCount(cache.not_stored),
            HumanCount(cache.repairs),
        )?;
        if !cache.pins.is_empty() {
            let shown = cache.pins.iter().take(PINS_SHOWN);
            let names: Vec<_> = shown
                .map(|name| Printable(name.as_bytes()).to_string())
                .collect();
            let more = match cache.pins.len().saturating_sub(PINS_SHOWN) {
                0 => String::new(),
                more => format!(" and {} more", HumanCount(more as u64)),
            };
            writeln!(text, "  pinned: {}{more}", names.join(", "))?;
        }
        for (what, why) in [
            ("fetched objects are not kept at the moment", &cache.backoff),
            ("the upstream is unreachable", &cache.upstream_down),
        ] {
            if let Some(why) = why {
                writeln!(text, "  {what}: {}", Printable(why.as_bytes()))?;
            }
        }
    }
    if let Some(roots) = &store.roots {
        show_roots(roots, text)?;
    }
    let rate = |rate: &StoreRate| {
        let mut parts = Vec::new();
        let requests = rate.requests_per_second;
        parts.extend(requests.map(|requests| units::per_second(requests, "requests")));
        let received = rate.received_bytes_per_second;
        parts.extend(received.map(|bytes| format!("{} received", units::bytes_per_second(bytes))));
        parts.extend(rate.hit_ratio.map(hit_ratio));
        (rate.seconds, parts)
    };
    show_rates(store.rates.iter().map(rate), text)
}

fn cached_directories(number: u64) -> String {
    count(number, "cached Directory", "cached Directories")
}

fn show_warmup(warmup: &WarmUpCount, text: &mut Vec<u8>) -> io::Result<()> {
    write!(
        text,
        "  warm-up: {} recorded, {} in progress, {} prefetched",
        count(warmup.recording, "root", "roots"),
        count(warmup.fetching, "profile", "profiles"),
        HumanBytes(warmup.bytes)
    )?;
    match warmup.fetches {
        0 => writeln!(text)?,
        fetches => {
            let mean = warmup.fetch_micros / fetches;
            writeln!(text, ", {} a profile", units::micros(mean))?;
        }
    }
    writeln!(
        text,
        "    profiles: {} of their own, {} of similar roots, {} without; {} fetched, {} of \
         them read, {} recorded",
        warmup.own,
        warmup.similar,
        warmup.none,
        count(warmup.extents, "extent", "extents"),
        warmup.hits,
        warmup.recorded
    )?;
    for (profiles, what) in [
        (warmup.failed_finds, "not read"),
        (
            warmup.failed_fetches,
            "given up, as the store did not answer",
        ),
        (warmup.failed_saves, "not written"),
    ] {
        if profiles > 0 {
            let profiles = count(profiles, "profile", "profiles");
            writeln!(text, "    {profiles} {what}: see the log")?;
        }
    }
    Ok(())
}

/// The rates of a mount or device, its errors, and its requests by kind, the most frequent first, with
/// their times.
fn show_traffic(traffic: &TrafficStatus, text: &mut Vec<u8>) -> io::Result<()> {
    let rate = |rate: &TrafficRate| {
        let mut parts = vec![
            units::per_second(rate.requests_per_second, "requests"),
            format!(
                "{} read",
                units::bytes_per_second(rate.read_bytes_per_second)
            ),
        ];
        parts.extend(rate.hit_ratio.map(hit_ratio));
        (rate.seconds, parts)
    };
    show_rates(traffic.rates.iter().map(rate), text)?;
    if !traffic.errors.is_empty() {
        let errors = traffic.errors.iter();
        let errors: Vec<_> = errors
            .map(|(errno, count)| format!("{} {errno}", HumanCount(*count)))
            .collect();
        writeln!(text, "  errors: {}", errors.join(", "))?;
    }
    let mut kinds: Vec<_> = traffic.requests.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (kind, requests) in kinds {
        let latency = traffic.latencies.get(kind).cloned().unwrap_or_default();
        let times = times(latency.median_micros, latency.p95_micros);
        let waited = match traffic.waits.get(kind) {
            Some(waited) => format!(", {} waited for an upstream", HumanCount(*waited)),
            None => String::new(),
        };
        writeln!(text, "  {kind}: {}{waited}{times}", HumanCount(*requests))?;
    }
    Ok(())
}

fn hit_ratio(ratio: f64) -> String {
    format!("hit ratio {}", units::percent(ratio))
}

/// The rates of each window: its length in seconds, and what there is to print.
fn show_rates(
    rates: impl Iterator<Item = (f64, Vec<String>)>,
    text: &mut Vec<u8>,
) -> io::Result<()> {
    for (seconds, parts) in rates.filter(|(_, parts)| !parts.is_empty()) {
        let window = units::span(Duration::from_secs_f64(seconds.round()));
        writeln!(text, "  last {window}: {}", parts.join(", "))?;
    }
    Ok(())
}

/// Their median and 95th percentile.
fn times(median: Option<u64>, p95: Option<u64>) -> String {
    match (median, p95) {
        (Some(median), Some(p95)) => {
            format!(", {} (p95 {})", units::micros(median), units::micros(p95))
        }
        _ => String::new(),
    }
}

/// How much of its roots a cache has.
fn show_roots(roots: &CacheRoots, text: &mut Vec<u8>) -> io::Result<()> {
    for root in &roots.shares {
        let name = Printable(root.name.as_bytes());
        let cached = HumanBytes(root.cached_bytes);
        write!(text, "  root {name}: ")?;
        match root.share() {
            Some(share) => {
                let (share, all) = (units::percent(share), HumanBytes(root.known_bytes));
                write!(text, "{share} cached, {cached} of {all}")?;
            }
            None => {
                let missing = count(root.missing_directories, "directory", "directories");
                write!(text, "{cached} cached, {missing} or more are not")?;
            }
        }
        let pinned = if root.pinned { ", pinned" } else { "" };
        writeln!(text, "{pinned}")?;
    }
    match roots.omitted {
        0 => Ok(()),
        more => writeln!(text, "  and {}", count(more, "more root", "more roots")),
    }
}

/// A failed reload.
fn show_reloads(reloads: &ReloadStatus, text: &mut Vec<u8>) -> io::Result<()> {
    let Some(failure) = &reloads.failure else {
        return Ok(());
    };
    let ago = units::span(Duration::from_secs(failure.seconds_ago));
    let outcome = match failure.refused {
        true => "the new configuration was refused, and the old one stays",
        false => "not everything of the new configuration is there",
    };
    writeln!(text, "THE LAST RELOAD FAILED {ago} ago: {outcome}")?;
    for problem in &failure.problems {
        writeln!(text, "  {}", Printable(problem.as_bytes()))?;
    }
    Ok(())
}

fn show(status: &Answer, output: &mut Output) -> Result<(), CommandFailure> {
    let mut text = Vec::new();
    let (version, pid) = (&status.version, status.pid);
    let uptime = units::span(Duration::from_secs(status.uptime_seconds));
    writeln!(
        text,
        "castore-fs {version}, process {pid}, up {uptime}: {}",
        status.line()
    )?;
    show_reloads(&status.reloads, &mut text)?;
    for (name, store) in &status.stores {
        show_store(name, store, &mut text)?;
    }
    for prefetch in &status.prefetches {
        let (into, roots) = (&prefetch.store, prefetch.roots.join(", "));
        let roots = Printable(roots.as_bytes());
        let blobs = HumanCount(prefetch.blobs);
        let total = count(prefetch.total_blobs, "blob", "blobs");
        let (bytes, of) = (HumanBytes(prefetch.bytes), HumanBytes(prefetch.total_bytes));
        writeln!(
            text,
            "fetching {roots} into {into}: {blobs} of {total}, {bytes} of {of}"
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
            "  {}, {} of Directories, {} of node table",
            cached_directories(mount.cached_directories),
            HumanBytes(mount.directory_bytes),
            HumanBytes(mount.table_bytes)
        )?;
        if let Some(open) = &mount.open {
            writeln!(
                text,
                "  {} open, {} of them read through passthrough",
                count(open.files, "file", "files"),
                open.backed
            )?;
        }
        for image in &mount.opened_images {
            let size = image.size.map(|size| format!("{}, ", HumanBytes(size)));
            writeln!(
                text,
                "  image {}: {}layout version {}, {} read, used by {}",
                image.digest,
                size.unwrap_or_default(),
                image.layout_version,
                HumanBytes(image.read_bytes),
                count(image.users.unwrap_or_default(), "process", "processes")
            )?;
        }
        if let Some(warmup) = &mount.warmup {
            show_warmup(warmup, &mut text)?;
        }
        show_traffic(&mount.traffic, &mut text)?;
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
            "  {}, {} of Directories, {} of node tables",
            cached_directories(device.cached_directories),
            HumanBytes(device.directory_bytes),
            HumanBytes(device.table_bytes)
        )?;
        if let Some(warmup) = &device.warmup {
            show_warmup(warmup, &mut text)?;
        }
        show_traffic(&device.traffic, &mut text)?;
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
