//! The configuration file.
//!
//! TOML; the structs here are its whole grammar, and their doc comments its reference: the file
//! `docs/config.md` is generated from them, and a test keeps it current. Unknown keys are errors.
//! [`Config::parse`] also checks what the grammar cannot express (which store a mount names, which
//! keys exclude each other), so that a file that passes `castore-fs check-config` fails later only
//! because of the machine.

mod check;
mod composition;
mod problem;
mod protected_files;
#[cfg(test)]
mod reference;
mod socket_mode;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::castore::Name;
use crate::fs::{ImageRoots, RootListing};
use crate::quantity::{Size, TimeSpan};
use crate::server::{self, AccessFiles};
use crate::stores::StorePlan;

pub use check::check_level;
pub use problem::ConfigProblem;
pub use socket_mode::SocketMode;
pub use stores::{
    CacheConfig, FilterConfig, MirrorOrder, MirrorsConfig, StoreConfig, VerifyConfig,
};

/// The name of the implied store, if the file names none.
pub const DEFAULT_STORE: &str = "default";

/// The whole file.
///
/// An empty file is complete: it means the local store in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The directory for the service's own files. By default systemd's `StateDirectory=`, else
    /// `/var/lib/castore-fs`.
    pub state_dir: Option<PathBuf>,
    /// How long a stop waits for programs that still use a mount. A restart does not have to wait:
    /// the next process takes the mounts over.
    #[cfg_attr(test, schemars(with = "String", default = "drain_text"))]
    #[serde(default = "drain")]
    pub drain: TimeSpan,
    /// The stores. Without any, there is one named `default`, which is the local store in the state
    /// directory.
    pub stores: BTreeMap<String, StoreConfig>,
    /// The mounts on this machine.
    pub mounts: BTreeMap<String, MountConfig>,
    /// Images of several roots: a mount with `images = true` shows each as `.images/NAME.erofs`.
    pub images: BTreeMap<String, ImageConfig>,
    /// Devices for virtual machines, which mount them.
    pub virtiofs: BTreeMap<String, VirtiofsConfig>,
    /// Sockets on which stores are served over gRPC. Without any mount, device or socket there is
    /// one named `default`: `castore.sock` in systemd's `RuntimeDirectory=`, else in
    /// `/run/castore-fs`.
    pub listen: BTreeMap<String, ListenConfig>,
    /// Commands to the running service.
    pub control: ControlConfig,
    /// Metrics for Prometheus.
    pub metrics: MetricsConfig,
    /// What is logged, and in which format.
    pub log: LogConfig,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MountConfig {
    /// The store that is shown, by its name in this file. Can be left out if there is only one.
    pub store: Option<String>,
    /// The mount point: an absolute path. The directory is made if it does not exist.
    pub path: PathBuf,
    /// `fd:NAME`: serve the descriptor of `/dev/fuse` that was passed on under that name, by
    /// `OpenFile=` in the unit or by a privileged program. It is mounted at `path` already, or else
    /// the service mounts it, for which it needs the right. A mount that another program has made
    /// is not unmounted.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub device: Option<DeviceName>,
    /// Show this directory as the mount root, by root name (`tree`, `tree/share`) or digest; else
    /// the store's roots are shown by name.
    pub root: Option<String>,
    /// With `root` by a name: whether the mount shows another tree once the name stands for one, without being
    /// mounted again: [semantics.md](semantics.md#a-mount-that-follows-its-root). With `false` it shows what
    /// the name stood for when the service was started.
    #[serde(default = "yes")]
    pub follow: bool,
    /// What listing the roots gives: all of them (`true`), EPERM (`false`), or an empty directory
    /// (`"empty"`), which is for the lower layer of an overlay. Lookups by name find them in any
    /// case.
    #[cfg_attr(test, schemars(with = "bool", default = "yes"))]
    #[serde(default)]
    pub list_root: ListRootConfig,
    /// Which names of root nodes the store is asked for. With `"store-paths"` only those that can be Nix
    /// store paths with content: a name of another shape, and one that ends in `.drv`, `.lock`, `.check`
    /// or `.chroot` or is one of Nix's temporary names, does not exist (ENOENT), and no server observes
    /// of it. Where the store lists its roots, they are looked up in that list. With `"valid-paths"` only
    /// those that a listener with the protocol `"nix-daemon"` has reported to Nix as valid.
    #[serde(default)]
    pub names: RequestedNames,
    /// What a lookup of a root returns while the store cannot be reached: EIO or ETIMEDOUT
    /// (`"error"`), or ENOENT for names that were never seen (`"absent"`). With `"absent"` such a
    /// lookup waits at most 1 s, and for 5 s after one that failed no other waits. It is for a
    /// mount below `/nix/store`, where Nix looks up each name that it is about to create.
    #[serde(default)]
    pub when_unreachable: WhenUnreachableConfig,
    /// Whether users other than the service's own have access.
    #[serde(default = "yes")]
    pub allow_other: bool,
    /// Options of mount(8) that do not depend on the file system, such as `noexec`, `nosymfollow` or
    /// `private`. `ro`, `nosuid`, `nodev` and `noatime` are the default.
    #[serde(default)]
    pub mount_options: Vec<String>,
    /// The owner of every file: user id.
    #[serde(default)]
    pub uid: u32,
    /// The owner of every file: group id.
    #[serde(default)]
    pub gid: u32,
    /// Whether there are extended attributes, which have the digests. The kernel caches none of
    /// them, so that `ls -l` becomes several times slower.
    #[serde(default)]
    pub xattr: bool,
    /// How files are read.
    #[serde(default)]
    pub reads: ReadsConfig,
    /// Threads that read requests, 1 to 1024. By default one for each processor.
    pub threads: Option<u16>,
    /// How far the kernel reads ahead of sequential readers.
    #[cfg_attr(test, schemars(with = "String", default = "read_ahead_text"))]
    #[serde(default = "read_ahead")]
    pub read_ahead: Size,
    /// Whether processors are kept from sleeping while a program sends one request after the other,
    /// as `find` does in a cold tree: twice as fast if nothing else runs, at the price of the power
    /// of processors that spin meanwhile. By default if there are two to eight of them.
    pub latency_guard: Option<bool>,
    /// How much memory Directories may take.
    #[cfg_attr(test, schemars(with = "String", default = "directory_memory_text"))]
    #[serde(default = "directory_memory")]
    pub directory_memory: Size,
    /// Whether the files that are read first below a root are recorded, and prefetched in that
    /// order when the root is mounted again: [warmup.md](warmup.md). By default they are not.
    #[serde(default)]
    pub warmup: Warmup,
    /// Whether trees are shown as disk images too, in `.images`: [images.md](images.md).
    #[serde(default)]
    pub images: bool,
    /// For how long a read of an image in `.images` is repeated while its endpoint fails, before it is an
    /// I/O error: a virtual machine that maps the image dies of one. `0s` repeats none.
    #[cfg_attr(test, schemars(with = "String", default = "image_patience_text"))]
    #[serde(default = "image_patience")]
    pub image_patience: TimeSpan,
    /// What the kernel mounts: with `root` an image that EROFS reads where that is possible, else FUSE:
    /// [images.md](images.md#the-image-as-the-mount).
    #[serde(default)]
    pub view: ViewConfig,
}

/// What the kernel mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ViewConfig {
    /// FUSE.
    Fuse,
    /// An image where that is possible, else FUSE; the log has the reason.
    #[default]
    Auto,
    /// An image; without one there is no mount.
    Image,
}

/// A disk image of several roots, whose root directory lists them by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageConfig {
    /// The names of the roots. They are looked up in the mount's store when the image is opened;
    /// there is no image while one of them is missing.
    #[serde(default)]
    pub roots: Vec<String>,
    /// Take the names from this file instead: one a line, the last component of a path, so that the
    /// `store-paths` of nixpkgs' `closureInfo` can be used. An absolute path. It is read when the image
    /// is opened.
    pub roots_from: Option<PathBuf>,
}

/// What listing the roots gives: `true`, `false` or `"empty"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListRootConfig {
    /// All of them.
    #[default]
    All,
    /// EPERM.
    Refused,
    /// An empty directory.
    Empty,
}

impl ListRootConfig {
    /// The corresponding option of the file system.
    pub fn listing(self) -> RootListing {
        match self {
            Self::All => RootListing::All,
            Self::Refused => RootListing::Refused,
            Self::Empty => RootListing::Nothing,
        }
    }
}

impl<'de> Deserialize<'de> for ListRootConfig {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ListRootVisitor;
        impl serde::de::Visitor<'_> for ListRootVisitor {
            type Value = ListRootConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"empty\"")
            }

            fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<ListRootConfig, E> {
                Ok(if value {
                    ListRootConfig::All
                } else {
                    ListRootConfig::Refused
                })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ListRootConfig, E> {
                match text {
                    "empty" => Ok(ListRootConfig::Empty),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        from.deserialize_any(ListRootVisitor)
    }
}

/// Which names of roots the store is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RequestedNames {
    /// Every name.
    #[default]
    Any,
    /// Names that can be Nix store paths with content.
    StorePaths,
    /// Names of paths that a listener with the protocol `"nix-daemon"` has reported to Nix as valid.
    ValidPaths,
}

/// What a lookup of a root returns while the store cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnreachableConfig {
    /// EIO or ETIMEDOUT.
    #[default]
    Error,
    /// ENOENT for names that were never seen.
    Absent,
}

/// What is done with the first reads below a root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// Nothing.
    #[default]
    Off,
    /// They are recorded as the root's profile, in `profiles` in the state directory, and what a
    /// profile names is prefetched.
    #[serde(rename = "learn")]
    Record,
}

/// A descriptor by its name among those passed on (sd_listen_fds_with_names(3)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName(pub String);

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.strip_prefix("fd:") {
            Some(name) if !name.is_empty() => Ok(Self(name.to_owned())),
            _ => Err(serde::de::Error::custom(format!(
                "{text:?} is not a device: write \"fd:NAME\", with the name under which it is passed on"
            ))),
        }
    }
}

/// How the bytes of files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ReadsConfig {
    /// Through the mount's page cache, every byte verified.
    #[default]
    PageCache,
    /// The kernel reads large files from the store's disk itself.
    Passthrough,
}

/// A socket that serves a store over gRPC.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenConfig {
    /// The store that is served, by its name in this file. Can be left out if there is only one.
    pub store: Option<String>,
    /// The address: `unix:/PATH`, `HOST:PORT`, or `systemd:NAME` for the socket that a socket unit
    /// passes on under that name (`FileDescriptorName=`).
    pub address: String,
    /// What is spoken there: `"grpc"`; or for Nix `"binary-cache"`, over HTTP, or `"nix-daemon"`, over a
    /// Unix socket ([nix-daemon.md](nix-daemon.md)).
    #[serde(default)]
    pub protocol: ListenProtocol,
    /// Of a binary cache: its priority among others; smaller is asked first. cache.nixos.org has 40.
    #[serde(default = "priority")]
    pub priority: u32,
    /// Of a binary cache: the file with the secret key that signs every path
    /// (`nix-store --generate-binary-cache-key`).
    pub secret_key_file: Option<PathBuf>,
    /// Of a binary cache with a `token-file`: whether reading takes no token.
    #[serde(default)]
    pub read_without_token: bool,
    /// Whether clients may add to the store. Existing roots are not replaced.
    #[serde(default)]
    pub writable: bool,
    /// Whether clients may replace and remove roots too. A token in `token-file` can also give that
    /// right.
    #[serde(default)]
    pub allow_replace: bool,
    /// The space that additions of clients leave free on the store's disk, if it is a `local:` one.
    #[cfg_attr(test, schemars(with = "String", default = "keep_free_text"))]
    #[serde(default = "keep_free")]
    pub keep_free: Size,
    /// The limit of one upload.
    #[cfg_attr(test, schemars(with = "String", default = "max_upload_text"))]
    #[serde(default = "max_upload")]
    pub max_upload: Size,
    /// Connections at once, no more than half of the files that the process may have open. The one
    /// that has been idle the longest is closed for the next.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// TLS on `HOST:PORT`: the file with the certificate chain (PEM).
    pub tls_cert_path: Option<PathBuf>,
    /// TLS on `HOST:PORT`: the file with the certificate's private key (PEM).
    pub tls_key_path: Option<PathBuf>,
    /// Require of clients a certificate that an authority in this file (PEM) signed.
    pub tls_client_ca_path: Option<PathBuf>,
    /// Require of clients one of the bearer tokens in this file, one a line; on `HOST:PORT` only
    /// with TLS. A token may be followed by its rights: `read`, `add`, `replace`.
    pub token_file: Option<PathBuf>,
    /// Calls at once on a connection; more wait for their turn.
    #[serde(default = "max_calls")]
    pub max_calls: NonZeroU32,
    /// The access to a unix socket: its permissions, in octal.
    #[cfg_attr(test, schemars(with = "String", default = "socket_mode_text"))]
    #[serde(default = "socket_mode")]
    pub socket_mode: SocketMode,
    /// An implied listener for commands, which is not reported.
    #[serde(skip)]
    pub unnamed: bool,
}

/// What a listener speaks: `"grpc"`, `"binary-cache"` or `"nix-daemon"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum ListenProtocol {
    /// The castore protocol.
    #[default]
    Grpc,
    /// HTTP as Nix' binary caches have it.
    BinaryCache,
    /// The read side of the protocol of Nix' daemon: [nix-daemon.md](nix-daemon.md).
    NixDaemon,
}

impl ListenConfig {
    /// The listener at `socket` for commands on this machine, which only the service's user can
    /// reach.
    fn at_home(store: String, socket: &Path, unnamed: bool) -> Self {
        Self {
            store: Some(store),
            address: format!("unix:{}", socket.display()),
            protocol: ListenProtocol::Grpc,
            priority: priority(),
            secret_key_file: None,
            read_without_token: false,
            writable: true,
            allow_replace: true,
            keep_free: Size(0),
            max_upload: max_upload(),
            max_connections: max_connections(),
            tls_cert_path: None,
            tls_key_path: None,
            tls_client_ca_path: None,
            token_file: None,
            max_calls: max_calls(),
            socket_mode: socket_mode(),
            unnamed,
        }
    }

    /// The access of clients, and the server's certificate.
    pub fn access(&self) -> AccessFiles {
        AccessFiles {
            certificate: self.tls_cert_path.clone(),
            key: self.tls_key_path.clone(),
            client_authority: self.tls_client_ca_path.clone(),
            tokens: self.token_file.clone(),
        }
    }
}

fn keep_free() -> Size {
    Size(1 << 30)
}

#[cfg(test)]
fn keep_free_text() -> String {
    "1GiB".to_owned()
}

fn max_upload() -> Size {
    Size(1 << 40)
}

#[cfg(test)]
fn max_upload_text() -> String {
    "1TiB".to_owned()
}

fn priority() -> u32 {
    crate::server::DEFAULT_PRIORITY
}

fn max_connections() -> usize {
    256
}

fn max_calls() -> NonZeroU32 {
    server::DEFAULT_STREAMS
}

/// A virtiofs device, as a vhost-user socket to which a virtual machine's monitor connects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VirtiofsConfig {
    /// The store that is shown, by its name in this file. Can be left out if there is only one.
    pub store: Option<String>,
    /// The socket: an absolute path.
    pub socket: PathBuf,
    /// The access to the socket: its permissions, in octal.
    #[cfg_attr(test, schemars(with = "String", default = "socket_mode_text"))]
    #[serde(default = "socket_mode")]
    pub socket_mode: SocketMode,
    /// The tag by which a guest mounts, for monitors that read it from the device.
    pub tag: Option<String>,
    /// Request queues, 1 to 63, each with a thread.
    #[serde(default = "queues")]
    pub queues: u8,
    /// Show this directory as the mount root, by root name or digest; else the store's roots.
    pub root: Option<String>,
    /// What listing the roots gives: all of them (`true`), EPERM (`false`), or an empty directory
    /// (`"empty"`), which is for the lower layer of an overlay. Lookups by name find them in any
    /// case.
    #[cfg_attr(test, schemars(with = "bool", default = "yes"))]
    #[serde(default)]
    pub list_root: ListRootConfig,
    /// Show only the roots whose names are in this file: one a line, the last component of a path,
    /// so that the `store-paths` of nixpkgs' `closureInfo` can be used. An absolute path. The file
    /// is read again when it has changed; without it there are no roots.
    pub roots_from: Option<PathBuf>,
    /// The owner of every file: user id.
    #[serde(default)]
    pub uid: u32,
    /// The owner of every file: group id.
    #[serde(default)]
    pub gid: u32,
    /// Whether there are extended attributes.
    #[serde(default)]
    pub xattr: bool,
    /// Whether the files that are read first below a root are recorded, and prefetched in that
    /// order when a guest mounts: [warmup.md](warmup.md). The profiles are shared with mounts. By
    /// default they are not.
    #[serde(default)]
    pub warmup: Warmup,
}

/// The control socket, which `castore-fs status` and other commands use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlConfig {
    /// Its path. By default `control.sock` in systemd's `RuntimeDirectory=`, else in
    /// `/run/castore-fs`.
    pub socket: Option<PathBuf>,
}

/// Metrics over HTTP, for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetricsConfig {
    /// The address: `HOST:PORT` or `unix:/PATH`. Without it there are no metrics.
    pub address: Option<String>,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogConfig {
    /// The format.
    pub format: LogFormat,
    /// What is logged, as in `RUST_LOG`: `info`, `castore_fs=debug`. The variable itself, if set,
    /// overrides this. By default `info`.
    pub level: Option<String>,
    /// Requests of a mount or of a guest that take longer are logged, with the parts of their time:
    /// the endpoint, verifying, and the rest (`cache`). `0s` logs none.
    #[cfg_attr(test, schemars(with = "String", default = "slow_requests_text"))]
    #[serde(default = "slow_requests")]
    pub slow_requests: TimeSpan,
    /// The address of an OpenTelemetry collector, `http://HOST:PORT` or `https://HOST:PORT`, to
    /// which spans are sent (OTLP over gRPC; its port is 4317): one for each request of a mount or
    /// of a guest that had to wait for an upstream or was slow, and in it the fetches.
    pub otlp: Option<String>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            level: None,
            slow_requests: slow_requests(),
            otlp: None,
        }
    }
}

/// The format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// The journal if systemd started the service, else lines of text.
    #[default]
    Auto,
    /// systemd's journal, with fields.
    Journal,
    /// Lines of text on standard error.
    Text,
    /// A JSON object a line on standard error.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: None,
            drain: drain(),
            stores: BTreeMap::new(),
            mounts: BTreeMap::new(),
            images: BTreeMap::new(),
            virtiofs: BTreeMap::new(),
            listen: BTreeMap::new(),
            control: ControlConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

fn drain() -> TimeSpan {
    TimeSpan(Duration::from_secs(20))
}

#[cfg(test)]
fn drain_text() -> String {
    "20s".to_owned()
}

fn image_patience() -> TimeSpan {
    TimeSpan(Duration::from_secs(600))
}

#[cfg(test)]
fn image_patience_text() -> String {
    "10m".to_owned()
}

fn slow_requests() -> TimeSpan {
    TimeSpan(Duration::from_secs(1))
}

#[cfg(test)]
fn slow_requests_text() -> String {
    "1s".to_owned()
}

fn yes() -> bool {
    true
}

fn queues() -> u8 {
    8
}

fn socket_mode() -> SocketMode {
    SocketMode(0o600)
}

#[cfg(test)]
fn socket_mode_text() -> String {
    "600".to_owned()
}

fn read_ahead() -> Size {
    Size(1 << 20)
}

fn directory_memory() -> Size {
    Size(crate::fs::DEFAULT_DIRECTORY_LIMIT as u64)
}

#[cfg(test)]
fn read_ahead_text() -> String {
    "1MiB".to_owned()
}

#[cfg(test)]
fn directory_memory_text() -> String {
    "512MiB".to_owned()
}

impl Config {
    /// The images of several roots: the names of the roots by the image's name.
    pub fn image_closures(&self) -> BTreeMap<Name, ImageRoots> {
        // Invalid names were refused when the file was read.
        let name = |text: &String| Name::new(text.as_bytes()).ok();
        let closure = |(image, roots): (&String, &ImageConfig)| {
            let of = match &roots.roots_from {
                Some(file) => ImageRoots::Listed(file.clone()),
                None => ImageRoots::Named(roots.roots.iter().filter_map(name).collect()),
            };
            Some((name(image)?, of))
        };
        self.images.iter().filter_map(closure).collect()
    }

    /// Reads `file`. Returns all errors, not only the first.
    pub fn load(file: &Path) -> Result<Self, Vec<ConfigProblem>> {
        Self::parse(file, &Self::read(file)?)
    }

    fn read(file: &Path) -> Result<String, Vec<ConfigProblem>> {
        std::fs::read_to_string(file).map_err(|error| {
            vec![ConfigProblem {
                file: file.to_owned(),
                line: None,
                key: String::new(),
                what: format!("cannot be read: {error}"),
            }]
        })
    }

    /// Reads `text`, the contents of `file`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<ConfigProblem>> {
        let source = problem::ConfigText::new(file, text);
        match Self::parse_all(text, &source) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(problems),
        }
    }

    /// What can be read of `text`, and every mistake in it, in the order of their lines where the TOML reader
    /// found one.
    fn parse_all(
        text: &str,
        source: &problem::ConfigText<'_>,
    ) -> (Option<Self>, Vec<ConfigProblem>) {
        let problem::ReadConfig {
            value,
            mut problems,
            unread,
        } = problem::read::<Self>(text, source);
        let all_read = problems.is_empty();
        let config = value.map(|mut config| {
            // A store that could not be read exists all the same for what names it.
            for name in source.names("stores") {
                config.stores.entry(name).or_default();
            }
            problems.extend(check::check(&config, source, &unread));
            config
        });
        if !all_read {
            problems.sort_by_key(|problem| problem.line);
        }
        (config, problems)
    }

    /// The directory for the service's own files.
    pub fn state_dir(&self) -> PathBuf {
        let of_systemd = || std::env::var_os("STATE_DIRECTORY").map(first_path);
        let chosen = self.state_dir.clone().or_else(of_systemd);
        chosen.unwrap_or_else(|| PathBuf::from("/var/lib/castore-fs"))
    }

    /// The directory of profiles.
    pub fn profiles(&self) -> PathBuf {
        self.state_dir().join("profiles")
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        let chosen = self.control.socket.clone();
        chosen.unwrap_or_else(|| runtime_dir().join("control.sock"))
    }

    /// The stores, the implied one included.
    pub fn all_stores(&self) -> BTreeMap<String, StoreConfig> {
        let mut stores = self.stores.clone();
        if stores.is_empty() {
            let url = format!("local:{}", self.state_dir().display());
            stores.insert(DEFAULT_STORE.to_owned(), StoreConfig::at(url));
        }
        stores
    }

    /// The listeners, the implied ones included.
    pub fn all_listeners(&self) -> BTreeMap<String, ListenConfig> {
        let mut listeners = self.listen.clone();
        if listeners.is_empty() && self.mounts.is_empty() && self.virtiofs.is_empty() {
            let socket = runtime_dir().join("castore.sock");
            let listen = ListenConfig::at_home(self.store_of(None), &socket, false);
            listeners.insert(DEFAULT_STORE.to_owned(), listen);
        }
        for name in self.stores.keys() {
            let plan = self.plan(name).map(|named| named.plan);
            if let Some(socket) = plan.and_then(|plan| self.store_socket(&plan)) {
                // No name in the file has a colon.
                let listen = ListenConfig::at_home(name.clone(), &socket, true);
                // Two with the same description are one.
                if listeners
                    .values()
                    .all(|other| other.address != listen.address)
                {
                    listeners.insert(format!("store:{name}"), listen);
                }
            }
        }
        listeners
    }

    /// The socket through which commands use a store of this service that is made of others: so
    /// they share its cache and breaker state, and only one process fills a cache. They open other
    /// stores themselves.
    pub fn store_socket(&self, plan: &StorePlan) -> Option<PathBuf> {
        if matches!(plan, StorePlan::Url(_)) {
            return None;
        }
        // By its description: another file can have another store of the same name.
        let identity = blake3::hash(plan.identity().as_bytes()).to_hex();
        let file = format!("{}.sock", &identity.as_str()[..16]);
        let dir = self.control_socket().with_file_name("stores");
        Some(dir.join(file))
    }

    /// The name of the store that `named` means: that name, or the only one.
    pub fn store_of(&self, named: Option<&str>) -> String {
        let only = || self.stores.keys().next().map(String::as_str);
        let name = named.or_else(only).unwrap_or(DEFAULT_STORE);
        name.to_owned()
    }
}

/// The directory for sockets: systemd's, or the usual one.
pub fn runtime_dir() -> PathBuf {
    let of_systemd = std::env::var_os("RUNTIME_DIRECTORY").map(first_path);
    of_systemd.unwrap_or_else(|| PathBuf::from("/run/castore-fs"))
}

/// systemd separates several directories by colons.
fn first_path(list: std::ffi::OsString) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let first = list.as_bytes().split(|&byte| byte == b':').next();
    PathBuf::from(std::ffi::OsString::from_vec(
        first.unwrap_or_default().to_vec(),
    ))
}
