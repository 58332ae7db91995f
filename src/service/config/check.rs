//! Checks that the grammar of the configuration cannot express.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::composition::{self, bad_store};
use super::problem::{ConfigText, UnreadKeys};
use super::{
    Config, ConfigProblem, ListRootConfig, ListenConfig, ListenProtocol, RequestedNames,
    ViewConfig, WhenUnreachableConfig,
};
use crate::castore::Name;
use crate::fs::NodeOwner;
use crate::server::{AccessFiles, DEFAULT_PRIORITY};
use crate::service::telemetry::SpanExporter;
use crate::store::shown_url;
use crate::stores::{StorePlan, cannot_promise};
use crate::transport::fuse::GenericOptions;
use crate::transport::virtiofs::{DeviceTag, MOST_QUEUES};
use crate::tree::Target;

/// Bytes of a name, at most: it becomes part of a descriptor's name in systemd.
const LONGEST_NAME: usize = 100;
/// Bytes of the path of a unix socket, at most: `sun_path` of unix(7), less the NUL at its end.
const LONGEST_SOCKET: usize = 107;
/// The most threads of a mount.
const MOST_THREADS: u16 = 1024;

/// All errors of `config`, whose text is `source`, less those that follow from the keys that could not be read.
pub(super) fn check(
    config: &Config,
    source: &ConfigText<'_>,
    unread: &UnreadKeys,
) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut names = |section: &str, names: Vec<&String>| {
        for name in names {
            if let Some(what) = bad_name(name) {
                problems.push(source.at(&[section, name], what));
            }
        }
    };
    names("stores", config.stores.keys().collect());
    names("mounts", config.mounts.keys().collect());
    names("images", config.images.keys().collect());
    names("virtiofs", config.virtiofs.keys().collect());
    names("listen", config.listen.keys().collect());
    composition::check(config, source, unread, &mut problems);
    check_mounts(config, source, &mut problems);
    check_images(config, source, &mut problems);
    check_owners(config, source, &mut problems);
    for (name, virtiofs) in &config.virtiofs {
        let key = |last| ["virtiofs", name.as_str(), last];
        if let Some(what) = bad_store(config, virtiofs.store.as_deref()) {
            problems.push(source.at(&key("store"), what));
        }
        if !virtiofs.socket.is_absolute() {
            problems.push(source.at(&key("socket"), "this must be an absolute path"));
        }
        if let Some(file) = &virtiofs.roots_from {
            if !file.is_absolute() {
                problems.push(source.at(&key("roots-from"), "this must be an absolute path"));
            }
            if virtiofs.root.is_some() {
                let what = "this selects roots, and with `root` none are shown";
                problems.push(source.at(&key("roots-from"), what));
            }
        }
        if !(1..=MOST_QUEUES).contains(&usize::from(virtiofs.queues)) {
            let what = format!("this must be 1 to {MOST_QUEUES}");
            problems.push(source.at(&key("queues"), what));
        }
        if let Some(what) = bad_socket(&virtiofs.socket) {
            problems.push(source.at(&key("socket"), what));
        }
        if let Some(what) = virtiofs.root.as_deref().and_then(bad_root) {
            problems.push(source.at(&key("root"), what));
        }
        if let Some(Err(error)) = virtiofs.tag.as_deref().map(DeviceTag::new) {
            problems.push(source.at(&key("tag"), error.to_string()));
        }
    }
    if let Some(Err(what)) = config.log.level.as_deref().map(check_level) {
        problems.push(source.at(&["log", "level"], what));
    }
    if let Some(Err(error)) = config.log.otlp.as_deref().map(SpanExporter::check) {
        problems.push(source.at(&["log", "otlp"], error.to_string()));
    }
    for (name, listen) in &config.listen {
        let key = |last| ["listen", name.as_str(), last];
        if let Some(what) = bad_store(config, listen.store.as_deref()) {
            problems.push(source.at(&key("store"), what));
        }
        let passed = listen.address.strip_prefix("systemd:");
        let tcp = passed.is_none() && !listen.address.starts_with("unix:");
        for (key_name, what) in bad_access(&listen.access(), tcp) {
            problems.push(source.at(&key(key_name), what));
        }
        let plan = config.plan(&config.store_of(listen.store.as_deref()));
        if listen.protocol == ListenProtocol::NixDaemon
            && let Some(why) = plan.as_ref().and_then(|named| cannot_promise(&named.plan))
        {
            problems.push(source.at(&key("protocol"), why.to_string()));
        }
        if listen.protocol == ListenProtocol::BinaryCache
            && plan.is_some_and(|named| matches!(named.plan, StorePlan::BinaryCache { .. }))
        {
            let what = "a binary cache is served from a store that lists its paths, and a Nix binary cache does not: \
                        serve another store";
            problems.push(source.at(&key("store"), what.to_owned()));
        }
        for (key_name, what) in bad_for_protocol(listen) {
            problems.push(source.at(&key(key_name), what));
        }
        if let Some(what) = bad_address(&listen.address).filter(|_| passed.is_none()) {
            problems.push(source.at(&key("address"), what));
        }
    }
    if let Some(what) = config.metrics.address.as_deref().and_then(bad_address) {
        problems.push(source.at(&["metrics", "address"], what));
    }
    for (key, path) in [
        (["state-dir"].as_slice(), &config.state_dir),
        (&["control", "socket"], &config.control.socket),
    ] {
        if path.as_ref().is_some_and(|path| !path.is_absolute()) {
            problems.push(source.at(key, "this must be an absolute path"));
        }
    }
    if let Some(what) = config.control.socket.as_deref().and_then(bad_socket) {
        problems.push(source.at(&["control", "socket"], what));
    }
    sockets_once(config, source, &mut problems);
    problems.retain(|problem| !unread.explains(problem));
    problems
}

/// The owner of what mounts and devices show is a user and a group.
fn check_owners(config: &Config, source: &ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
    let mounts = config.mounts.iter();
    let mounts = mounts.map(|(name, mount)| ("mounts", name, mount.uid, mount.gid));
    let devices = config.virtiofs.iter();
    let devices = devices.map(|(name, device)| ("virtiofs", name, device.uid, device.gid));
    for (section, name, uid, gid) in mounts.chain(devices) {
        for (key, id) in [("uid", uid), ("gid", gid)] {
            if let Err(what) = NodeOwner::check_id(id) {
                problems.push(source.at(&[section, name, key], what));
            }
        }
    }
}

/// No two endpoints have the same address.
fn sockets_once(config: &Config, source: &ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let listeners = config.listen.iter().map(|(name, listen)| {
        let key = ["listen", name.as_str(), "address"];
        (key, listen.address.clone())
    });
    let devices = config.virtiofs.iter().map(|(name, virtiofs)| {
        let key = ["virtiofs", name.as_str(), "socket"];
        (key, format!("unix:{}", virtiofs.socket.display()))
    });
    for (key, address) in listeners.chain(devices) {
        let name = format!("{}.{}", key[0], key[1]);
        if let Some(other) = taken.insert(address, name) {
            problems.push(source.at(&key, format!("{other} is at this address already")));
        }
    }
}

/// The error in the text of a mount's or device's `root`.
fn bad_root(root: &str) -> Option<String> {
    let parsed = Target::parse(root.as_bytes());
    parsed.err().map(|error| error.to_string())
}

/// The error in the path of a unix socket.
fn bad_socket(path: &Path) -> Option<String> {
    let length = path.as_os_str().len();
    (length > LONGEST_SOCKET).then(|| {
        format!("the path of a unix socket has at most {LONGEST_SOCKET} bytes, not {length}")
    })
}

/// The errors in the access of clients, by key.
fn bad_access(access: &AccessFiles, tcp: bool) -> Vec<(&'static str, &'static str)> {
    let files = [
        ("tls-cert-path", &access.certificate),
        ("tls-key-path", &access.key),
        ("tls-client-ca-path", &access.client_authority),
        ("token-file", &access.tokens),
    ];
    let relative = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.is_absolute());
    let mut bad: Vec<_> = files
        .into_iter()
        .filter(|(_, path)| relative(path))
        .map(|(key, _)| (key, "this must be an absolute path"))
        .collect();
    match (&access.certificate, &access.key, &access.client_authority) {
        (Some(_), None, _) => {
            bad.push(("tls-cert-path", "a certificate needs its key: tls-key-path"));
        }
        (None, Some(_), _) => {
            bad.push(("tls-key-path", "a key needs its certificate: tls-cert-path"));
        }
        (None, None, Some(_)) => {
            bad.push((
                "tls-client-ca-path",
                "client certificates need TLS: give tls-cert-path and tls-key-path",
            ));
        }
        (None, None, None) if tcp && access.tokens.is_some() => {
            bad.push((
                "token-file",
                "tokens would be sent unencrypted: give tls-cert-path and tls-key-path, or listen on \
                 unix:/PATH",
            ));
        }
        _ => {}
    }
    bad
}

/// The keys of a listener that its protocol does not use.
fn bad_for_protocol(listen: &ListenConfig) -> Vec<(&'static str, &'static str)> {
    let file = listen.secret_key_file.as_ref();
    if listen.protocol == ListenProtocol::BinaryCache {
        let relative = file.is_some_and(|path| !path.is_absolute());
        let relative = relative.then_some(("secret-key-file", "this must be an absolute path"));
        let what = "without token-file nothing takes a token";
        let open = listen.read_without_token && listen.token_file.is_none();
        let open = open.then_some(("read-without-token", what));
        return relative.into_iter().chain(open).collect();
    }
    let what = "this is for protocol = \"binary-cache\"";
    let mut bad = Vec::new();
    if listen.protocol == ListenProtocol::NixDaemon {
        bad.extend(bad_for_nix_daemon(listen));
    }
    if file.is_some() {
        bad.push(("secret-key-file", what));
    }
    if listen.read_without_token {
        bad.push(("read-without-token", what));
    }
    if listen.priority != DEFAULT_PRIORITY {
        bad.push(("priority", what));
    }
    bad
}

/// What a Nix daemon has no use for, by key.
fn bad_for_nix_daemon(listen: &ListenConfig) -> Vec<(&'static str, &'static str)> {
    let access =
        "with protocol = \"nix-daemon\" the permissions of the socket decide: see socket-mode";
    let read = "with protocol = \"nix-daemon\" a store is only read";
    let tcp = !listen.address.starts_with("unix:") && !listen.address.starts_with("systemd:");
    let keys = [
        (
            "address",
            tcp,
            "Nix speaks to a daemon over a Unix socket only: write unix:/PATH",
        ),
        ("writable", listen.writable, read),
        ("allow-replace", listen.allow_replace, read),
        ("tls-cert-path", listen.tls_cert_path.is_some(), access),
        ("tls-key-path", listen.tls_key_path.is_some(), access),
        (
            "tls-client-ca-path",
            listen.tls_client_ca_path.is_some(),
            access,
        ),
        ("token-file", listen.token_file.is_some(), access),
    ];
    let bad = keys.into_iter().filter(|(_, is_bad, _)| *is_bad);
    bad.map(|(key, _, what)| (key, what)).collect()
}

fn check_mounts(config: &Config, source: &ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
    let mut places: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for (name, mount) in &config.mounts {
        let key = |last| ["mounts", name.as_str(), last];
        if let Some(what) = bad_store(config, mount.store.as_deref()) {
            problems.push(source.at(&key("store"), what));
        }
        if !mount.path.is_absolute() || mount.path == Path::new("/") {
            let what = "this must be the absolute path of a directory other than /";
            problems.push(source.at(&key("path"), what));
        }
        let place: PathBuf = mount.path.components().collect();
        if let Some(other) = places.insert(place, name) {
            let what = format!("the mount {other:?} is at this place already");
            problems.push(source.at(&key("path"), what));
        }
        if mount
            .threads
            .is_some_and(|threads| !(1..=MOST_THREADS).contains(&threads))
        {
            let what = format!("this must be 1 to {MOST_THREADS}");
            problems.push(source.at(&key("threads"), what));
        }
        if let Err(error) = GenericOptions::of(&mount.mount_options) {
            problems.push(source.at(&key("mount-options"), error.to_string()));
        }
        if let Some(what) = mount.root.as_deref().and_then(bad_root) {
            problems.push(source.at(&key("root"), what));
        }
        if mount.root.is_some() && mount.list_root != ListRootConfig::All {
            let what = "this controls the listing of roots, and with `root` none are shown";
            problems.push(source.at(&key("list-root"), what));
        }
        if !mount.follow && mount.root.is_none() {
            let what = "it needs `root`: a mount of all roots follows them anyway";
            problems.push(source.at(&key("follow"), what));
        }
        if mount.view == ViewConfig::Image && mount.root.is_none() {
            let what = "an image shows one tree: set `root` to say which";
            problems.push(source.at(&key("view"), what));
        }
        let of_roots = [
            ("names", mount.names != RequestedNames::default()),
            (
                "when-unreachable",
                mount.when_unreachable != WhenUnreachableConfig::default(),
            ),
        ];
        for (last, is_set) in of_roots {
            if is_set && mount.root.is_some() {
                let what = "this controls lookups of roots, and with `root` there are none";
                problems.push(source.at(&key(last), what));
            }
        }
    }
}

fn check_images(config: &Config, source: &ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
    for (name, image) in &config.images {
        if let Some(file) = &image.roots_from {
            let what = match (file.is_absolute(), image.roots.is_empty()) {
                (true, true) => continue,
                (true, false) => "the roots come from this file: leave out `roots`",
                (false, _) => "this must be an absolute path",
            };
            problems.push(source.at(&["images", name.as_str(), "roots-from"], what));
            continue;
        }
        let mut seen = BTreeSet::new();
        let mut wrong = |what: String| {
            problems.push(source.at(&["images", name.as_str(), "roots"], what));
        };
        if image.roots.is_empty() {
            wrong("an image needs at least one root, or `roots-from`".to_owned());
        }
        for root in &image.roots {
            if let Err(error) = Name::new(root.as_bytes()) {
                wrong(format!("{root:?} cannot be the name of a root: {error}"));
            }
            if !seen.insert(root) {
                wrong(format!("{root:?} is named twice"));
            }
        }
    }
}

fn bad_name(name: &str) -> Option<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(good)).then(|| {
        format!("a name is 1 to {LONGEST_NAME} letters, digits, dashes, underscores, dots or @")
    })
}

/// The error in a level of the log.
pub fn check_level(level: &str) -> Result<(), String> {
    let parsed = EnvFilter::builder().parse(level);
    parsed.map_err(|error| error.to_string())?;
    // A word that is not a level counts as a module of which everything is logged, and nothing else
    // is.
    let is_meant = |directive: &str| {
        directive.contains(['=', '[', ':'])
            || directive.starts_with("castore_fs")
            || directive.is_empty()
            || directive.parse::<LevelFilter>().is_ok()
    };
    match level
        .split(',')
        .map(str::trim)
        .find(|directive| !is_meant(directive))
    {
        None => Ok(()),
        Some(directive) => Err(format!(
            "{directive:?} is no level: write off, error, warn, info, debug or trace, or \
             MODULE=LEVEL such as castore_fs::store=debug"
        )),
    }
}

fn bad_address(address: &str) -> Option<String> {
    let good = match address.strip_prefix("unix:") {
        Some(path) => {
            if let Some(what) = bad_socket(Path::new(path)) {
                return Some(what);
            }
            path.starts_with('/')
        }
        None => address.rsplit_once(':').is_some_and(|(host, port)| {
            let is_host = !host.is_empty() && !host.contains(['/', '@']);
            is_host && port.parse::<u16>().is_ok()
        }),
    };
    (!good).then(|| {
        let address = shown_url(address);
        format!("{address:?} is not an address: write unix:/PATH or HOST:PORT")
    })
}
