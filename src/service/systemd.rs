//! The exchange between the service and systemd (sd_notify(3), sd_listen_fds(3)).
//!
//! Without systemd every message is dropped, and nothing was passed on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use sd_notify::NotifyState;

use crate::server::ConnectionHolder;
use crate::transport::fuse::{MountDescriptors, MountHolder};
use crate::transport::virtiofs::DescriptorHolder;

/// How descriptors of mounts are named in the descriptor store; the mount's name follows.
const DEVICE: &str = "mount.";
/// What stands between the name of a mount and the number of a tree of it, unless that is 0.
const NUMBER: char = '~';
/// How node tables are named in the descriptor store.
const TABLE: &str = "nodes.";
/// How guests of virtual machines are named there; the device's name and the guest's follow.
const GUEST: &str = "guest.";
/// How connections of Nix are named there; the listener's name and the connection's follow.
const CONNECTION: &str = "nix.";
/// How long systemd may take to read a message.
const BARRIER_PATIENCE: Duration = Duration::from_secs(5);

/// What was handed over of a mount: of the tree that it shows, and of those that it showed before and that are
/// in use, by their numbers. Which one it shows is seen where it is mounted.
pub(super) type PreviousMount = BTreeMap<u64, PreviousTree>;

/// The two descriptors of a tree that a mount shows, as far as they were handed over.
#[derive(Debug, Default)]
pub(super) struct PreviousTree {
    /// The connection.
    pub device: Option<OwnedFd>,
    /// The node table.
    pub table: Option<OwnedFd>,
}

/// What the service was started with.
#[derive(Debug, Default)]
pub(super) struct PassedDescriptors {
    /// Mounts of the previous process, by name.
    pub mounts: BTreeMap<String, PreviousMount>,
    /// Guests of the previous process by device, each with its own name.
    pub guests: BTreeMap<String, Vec<(String, OwnedFd)>>,
    /// Connections of Nix of the previous process by listener, each with its own name.
    pub connections: BTreeMap<String, Vec<(String, OwnedFd)>>,
    /// Sockets of the socket unit, by their names there.
    pub sockets: Vec<(String, OwnedFd)>,
    /// Devices, by their names in `OpenFile=`.
    pub devices: BTreeMap<String, OwnedFd>,
}

/// Takes what systemd passed on. To be called once, at the start of the process.
pub(super) fn passed_descriptors() -> io::Result<PassedDescriptors> {
    let mut passed_descriptors = PassedDescriptors::default();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: LISTEN_FDS lists this descriptor as open and this process's, and it is taken only
        // here: this function is called once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        // Of several with one name the last is the newest.
        if let Some(mount) = name.strip_prefix(DEVICE) {
            passed_descriptors.tree(mount).device = Some(descriptor);
        } else if let Some(mount) = name.strip_prefix(TABLE) {
            passed_descriptors.tree(mount).table = Some(descriptor);
        } else if is_device(&descriptor)? {
            passed_descriptors.devices.insert(name, descriptor);
        } else if let Some((device, guest)) = guest_name(&name) {
            let guests = passed_descriptors
                .guests
                .entry(device.to_owned())
                .or_default();
            guests.push((guest.to_owned(), descriptor));
        } else if let Some((listener, connection)) = connection_name(&name) {
            let connections = passed_descriptors
                .connections
                .entry(listener.to_owned())
                .or_default();
            connections.push((connection.to_owned(), descriptor));
        } else {
            passed_descriptors.sockets.push((name, descriptor));
        }
    }
    Ok(passed_descriptors)
}

impl PassedDescriptors {
    /// The tree that is `named` so in the descriptor store.
    fn tree(&mut self, named: &str) -> &mut PreviousTree {
        let numbered = named.rsplit_once(NUMBER);
        let numbered = numbered.and_then(|(mount, number)| Some((mount, number.parse().ok()?)));
        let (mount, number) = numbered.unwrap_or((named, 0));
        let mount = self.mounts.entry(mount.to_owned()).or_default();
        mount.entry(number).or_default()
    }
}

fn is_device(descriptor: &OwnedFd) -> io::Result<bool> {
    let mode = rustix::fs::fstat(descriptor)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::CharacterDevice)
}

/// Whether a service manager receives the messages.
pub(super) fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Everything is up.
pub(super) fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the clock"),
    }
}

/// The stop has begun.
pub(super) fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// A line for `systemctl status`.
pub(super) fn status(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// The service works.
pub(super) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// The present step takes up to `longer`.
pub(super) fn extend(longer: Duration) {
    let micros = u32::try_from(longer.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(micros)]);
}

/// How often systemd expects the watchdog's message, if it does.
pub(super) fn watchdog() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let micros = number("WATCHDOG_USEC").filter(|&micros| micros > 0)?;
    let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    for_us.then(|| Duration::from_micros(micros))
}

/// Puts the descriptors of the tree of this number of a mount into the descriptor store. Returns when systemd has them, so
/// that a death at any later moment finds them there.
pub(super) fn hold(mount: &str, number: u64, device: BorrowedFd<'_>, table: BorrowedFd<'_>) {
    let name = tree_name(mount, number);
    for (kind, descriptor) in [(DEVICE, device), (TABLE, table)] {
        if let Err(error) = store(&format!("{kind}{name}"), descriptor) {
            tracing::warn!(mount, %error, "systemd does not hold the mount for the next process");
        }
    }
    barrier();
}

/// How the tree of this number of `mount` is named.
fn tree_name(mount: &str, number: u64) -> String {
    match number {
        0 => mount.to_owned(),
        number => format!("{mount}{NUMBER}{number}"),
    }
}

/// systemd as the holder of a mount that shows one tree after the other.
#[derive(Debug)]
pub(super) struct HeldMount {
    name: String,
}

impl HeldMount {
    /// Of the mount `name`; nothing without systemd.
    pub(super) fn of_mount(name: &str) -> Option<Arc<dyn MountHolder>> {
        let name = name.to_owned();
        is_there().then(|| Arc::new(Self { name }) as Arc<dyn MountHolder>)
    }
}

impl MountHolder for HeldMount {
    fn hold(&self, number: u64, descriptors: &MountDescriptors) {
        let (device, table) = (descriptors.device(), descriptors.table());
        hold(&self.name, number, device, table);
    }

    fn forget(&self, number: u64) {
        forget(&self.name, [number]);
    }
}

fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let message = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        // Being woken at each request only to see that nothing is wrong would cost PID 1 much; and
        // a guest's record looks unused to systemd once its writer has died.
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&message, &[descriptor])
}

/// systemd as the holder of a device's guests.
#[derive(Debug)]
pub(super) struct GuestDescriptors {
    device: String,
}

impl GuestDescriptors {
    /// For the guests of `device`; nothing without systemd.
    pub(super) fn of_device(device: &str) -> Option<Arc<dyn DescriptorHolder>> {
        std::env::var_os("NOTIFY_SOCKET")?;
        let device = device.to_owned();
        Some(Arc::new(Self { device }))
    }

    fn name(&self, guest: &str) -> String {
        format!("{GUEST}{}.{guest}", self.device)
    }
}

impl DescriptorHolder for GuestDescriptors {
    fn hold(&self, guest: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        store(&self.name(guest), descriptor)?;
        barrier();
        Ok(())
    }

    fn forget(&self, guest: &str) {
        let name = self.name(guest);
        send(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
    }
}

/// systemd as the holder of a listener's connections.
#[derive(Debug)]
pub(super) struct NixConnections {
    listener: String,
}

impl NixConnections {
    /// Of `listener`; nothing without systemd.
    pub(super) fn of_listener(listener: &str) -> Option<Box<dyn ConnectionHolder>> {
        let listener = listener.to_owned();
        is_there().then(|| Box::new(Self { listener }) as Box<dyn ConnectionHolder>)
    }

    fn name(&self, connection: &str) -> String {
        format!("{CONNECTION}{}.{connection}", self.listener)
    }
}

impl ConnectionHolder for NixConnections {
    fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        // What was sent is read by systemd even if this process dies at once.
        store(&self.name(name), descriptor)
    }

    fn forget(&self, name: &str) {
        let name = self.name(name);
        send(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
    }
}

/// Drops the connections of a listener that no longer exists.
pub(super) fn forget_connections(listener: &str, connections: &[(String, OwnedFd)]) {
    let listener = listener.to_owned();
    let holder = NixConnections { listener };
    let names = connections.iter();
    names.for_each(|(name, _)| holder.forget(name));
}

/// The listener and the connection of a name.
fn connection_name(name: &str) -> Option<(&str, &str)> {
    // As with guests; the name of a socket unit's socket has none after it.
    let (listener, connection) = name.strip_prefix(CONNECTION)?.rsplit_once('.')?;
    let is_ours = |byte: u8| byte == b'-' || byte.is_ascii_hexdigit();
    (connection.contains('-') && connection.bytes().all(is_ours)).then_some((listener, connection))
}

/// Drops the guests of a device that no longer exists.
pub(super) fn forget_guests(device: &str, guests: &[(String, OwnedFd)]) {
    let device = device.to_owned();
    let holder = GuestDescriptors { device };
    guests.iter().for_each(|(guest, _)| holder.forget(guest));
}

/// The device and the guest of a name.
fn guest_name(name: &str) -> Option<(&str, &str)> {
    // Names of devices may have dots in them, those of guests have none.
    name.strip_prefix(GUEST)?.rsplit_once('.')
}

/// Removes the descriptors of the trees of these numbers of a mount from the descriptor store.
pub(super) fn forget(mount: &str, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let name = tree_name(mount, number);
        for kind in [DEVICE, TABLE] {
            let name = format!("{kind}{name}");
            send(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
        }
    }
    barrier();
}

/// Waits until systemd has read everything that was sent.
fn barrier() {
    if !is_there() {
        return;
    }
    let waited = || -> io::Result<bool> {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
        drop(theirs);
        let mut hung_up = [PollFd::new(&ours, PollFlags::HUP)];
        let patience = Timespec {
            tv_sec: BARRIER_PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        Ok(rustix::event::poll(&mut hung_up, Some(&patience))? > 0)
    };
    match waited() {
        Ok(true) => {}
        Ok(false) => tracing::warn!("systemd takes long to read messages"),
        Err(error) => tracing::warn!(%error, "cannot wait for systemd"),
    }
}

fn send(message: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(message) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Whether this stop is part of a restart, after which the next process takes the mounts over.
///
/// systemd does not pass that to the process, but can be queried: a stop is a job of the manager,
/// and the job of a restart has another type. Without systemd, and when the query fails, it is a
/// stop.
pub(super) fn is_restart() -> bool {
    if !is_there() {
        return false;
    }
    let Some(unit) = own_unit() else { return false };
    let mut systemctl = Command::new("systemctl");
    if unit.of_user {
        systemctl.arg("--user");
    }
    let output = systemctl
        .args([
            "list-jobs",
            "--plain",
            "--no-legend",
            "--no-pager",
            "--",
            &unit.name,
        ])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            has_restart(&String::from_utf8_lossy(&output.stdout), &unit.name)
        }
        Ok(output) => {
            let reported = String::from_utf8_lossy(&output.stderr);
            tracing::warn!(
                reported = reported.trim(),
                "cannot query systemd whether this is a restart"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "cannot run systemctl to query whether this is a restart");
            false
        }
    }
}

/// Whether `jobs`, a line each (number, unit, type, state), restart `unit`.
fn has_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|job| {
        let mut columns = job.split_whitespace().skip(1);
        columns.next() == Some(unit)
            && columns
                .next()
                .is_some_and(|kind| kind.contains("restart") || kind == "start")
    })
}

/// A unit of systemd's.
#[derive(Debug, PartialEq, Eq)]
struct SystemdUnit {
    name: String,
    /// Whether it is a user's own manager that runs it. The system's runs services of users, too (`User=`).
    of_user: bool,
}

/// The unit that this process belongs to.
fn own_unit() -> Option<SystemdUnit> {
    unit_of(&fs::read_to_string("/proc/self/cgroup").ok()?)
}

fn unit_of(cgroups: &str) -> Option<SystemdUnit> {
    let paths = cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2));
    let mut units = paths.filter_map(|path| {
        let mut services = path.rsplit('/').filter(|part| part.ends_with(".service"));
        Some(SystemdUnit {
            name: services.next()?.to_owned(),
            of_user: services.any(|manager| manager.starts_with("user@")),
        })
    });
    units.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_recognized_by_its_job() {
        let unit = "castore-fs.service";
        assert!(has_restart(
            "123 castore-fs.service restart running\n",
            unit
        ));
        assert!(!has_restart("123 castore-fs.service stop running\n", unit));
        assert!(!has_restart("7 other.service restart waiting\n", unit));
        assert!(!has_restart("", unit));
    }

    #[test]
    fn a_guest_is_found_by_its_device() {
        assert_eq!(guest_name("guest.a.b.1f-3"), Some(("a.b", "1f-3")));
        assert_eq!(guest_name("mount.a"), None);
        assert_eq!(connection_name("nix.a.b.1f-3"), Some(("a.b", "1f-3")));
        assert_eq!(connection_name("nix.socket"), None);
    }

    #[test]
    fn the_unit_is_found_in_the_cgroup() {
        let unit = |name: &str, of_user| {
            Some(SystemdUnit {
                name: name.to_owned(),
                of_user,
            })
        };
        let v2 = "0::/system.slice/castore-fs.service\n";
        assert_eq!(unit_of(v2), unit("castore-fs.service", false));
        let inner = "0::/system.slice/castore-fs@a.service/payload\n";
        assert_eq!(unit_of(inner), unit("castore-fs@a.service", false));
        let of_user = "0::/user.slice/user-7.slice/user@7.service/app.slice/castore-fs.service\n";
        assert_eq!(unit_of(of_user), unit("castore-fs.service", true));
        assert_eq!(unit_of("0::/user.slice\n"), None);
    }
}
