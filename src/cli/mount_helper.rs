//! `mount.castore-fs`: the helper of mount(8) and fstab.
//!
//! Installed under that name (or `mount.fuse.castore-fs`), the program takes the arguments of
//! mount(8): `mount.castore-fs URL DIR [-sfnv] [-N namespace] [-t type] [-o options]`. It starts
//! `castore-fs mount` in the background, and ends when that process reports that the mount is up, or why it
//! is not. It prints nothing unless it fails.

mod remount;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::store;
use crate::stores;
use crate::transport::fuse::GenericOptions;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use super::background::{BACKGROUND, PROGRAM, wait_until_ready};
use super::failure::CommandFailure;

/// Exit statuses of mount(8).
const USAGE: u8 = 1;
const SYSTEM_ERROR: u8 = 2;
const MOUNT_FAILURE: u8 = 32;

/// Why nothing was mounted: an exit status, and a message, unless it was printed already.
#[derive(Debug)]
pub(super) struct HelperRefusal {
    status: u8,
    words: Option<String>,
}

impl HelperRefusal {
    /// Status 32, "mount failure".
    pub(super) fn failure(words: impl Into<String>) -> Self {
        Self {
            status: MOUNT_FAILURE,
            words: Some(words.into()),
        }
    }

    fn usage(words: impl Into<String>) -> Self {
        Self {
            status: USAGE,
            words: Some(words.into()),
        }
    }
}

impl From<io::Error> for HelperRefusal {
    /// Status 2, "system error".
    fn from(error: io::Error) -> Self {
        Self {
            status: SYSTEM_ERROR,
            words: Some(error.to_string()),
        }
    }
}

/// The arguments of mount(8).
#[derive(Debug, Default)]
pub(super) struct HelperArguments {
    /// The store's URL.
    pub(super) url: OsString,
    /// The directory to mount on.
    pub(super) directory: PathBuf,
    /// Options of castore-fs, in order, as in fstab: `root=tree`.
    pub(super) ours: Vec<String>,
    /// Options that do not depend on the file system, in order.
    pub(super) generic: Vec<String>,
    /// Options that the kernel shows for a FUSE mount: mount(8) repeats them for a remount.
    pub(super) fuse: Vec<String>,
    fake: bool,
    namespace: Option<OsString>,
}

/// Whether the program was called by the name of the helper.
pub(super) fn is_called(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().map(OsStr::as_bytes);
    matches!(name, Some(b"mount.castore-fs" | b"mount.fuse.castore-fs"))
}

/// Mounts by `arguments`; returns the exit status for mount(8).
pub(super) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match HelperArguments::parse(arguments).and_then(|wanted| wanted.execute()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(HelperRefusal { status, words }) => {
            if let Some(words) = words {
                let _ = CommandFailure::Message(words).report();
            }
            ExitCode::from(status)
        }
    }
}

impl HelperArguments {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, HelperRefusal> {
        let mut wanted = Self::default();
        let (mut places, mut lists) = (Vec::new(), Vec::new());
        let mut sloppy = false;
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_bytes() {
                b"-o" => lists.push(arguments.next().unwrap_or_default()),
                b"-t" => drop(arguments.next()),
                b"-N" => wanted.namespace = arguments.next(),
                flags if flags.len() > 1 && flags[0] == b'-' => {
                    sloppy |= flags.contains(&b's');
                    wanted.fake |= flags.contains(&b'f');
                    if let Some(wrong) = flags[1..].iter().find(|flag| !b"sfnv".contains(flag)) {
                        let wrong = char::from(*wrong);
                        let words = format!("mount.castore-fs has no option -{wrong}");
                        return Err(HelperRefusal::usage(words));
                    }
                }
                _ => places.push(argument),
            }
        }
        let [url, directory] = places.as_slice() else {
            let usage = "usage: mount.castore-fs STORE-URL DIR [-sfnv] [-o OPTIONS]";
            return Err(HelperRefusal::usage(usage));
        };
        // A URL may contain a secret, and every user of the machine can see a process's arguments: it is
        // checked before it becomes one.
        if let Some(url) = url.to_str().filter(|url| !url.starts_with("store:"))
            && let Err(why) = stores::check_url(url)
        {
            let url = store::shown_url(url);
            return Err(HelperRefusal::failure(format!(
                "{url:?} is no store URL: {why}"
            )));
        }
        // The process in the background works in another directory.
        wanted.url = absolute_url(url)?;
        wanted.directory = std::path::absolute(directory)?;
        for option in lists.iter().flat_map(|list| split(list)) {
            if !wanted.take(&option) && !sloppy {
                return Err(HelperRefusal::failure(format!(
                    "the mount option {option:?} is not known; beside the options of mount(8) that \
                     do not depend on the file system there are: {}",
                    OURS.map(|(_, example)| example).join(", ")
                )));
            }
        }
        Ok(wanted)
    }

    /// Takes an option; returns whether it is known.
    fn take(&mut self, option: &str) -> bool {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let is_ours = OURS.iter().any(|(known, example)| {
            let (takes_value, is_optional) = (example.contains('='), example.contains("[="));
            *known == key && (is_optional || takes_value == value.is_some())
        });
        let list = match key {
            _ if is_ours => &mut self.ours,
            // Every mount of castore-fs checks permissions in the kernel.
            "default_permissions" if value.is_none() => return true,
            "user_id" | "group_id" | "max_read" | "blksize" | "rootmode" if value.is_some() => {
                &mut self.fuse
            }
            _ if key == "remount" || GenericOptions::default().add(option) => &mut self.generic,
            _ => return false,
        };
        if is_ours {
            // Of an option that is given twice, the last one counts, as in mount(8): the command line
            // overrides fstab.
            let of = |option: &str| {
                let key = option.split('=').next().unwrap_or_default();
                key.trim_start_matches("no-").to_owned()
            };
            list.retain(|before| of(before) != of(option));
        }
        list.push(option.to_owned());
        true
    }

    fn execute(&self) -> Result<(), HelperRefusal> {
        if let Some(namespace) = &self.namespace {
            enter(namespace)?;
        }
        if self.generic.iter().any(|option| option == "remount") {
            return remount::remount(self, self.fake);
        }
        if let Some(option) = self.fuse.first() {
            let words = format!("the mount option {option:?} is set by the kernel and castore-fs");
            return Err(HelperRefusal::failure(words));
        }
        match self.fake {
            true => Ok(()),
            false => self.mount(),
        }
    }

    /// The equivalent arguments of `castore-fs`.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["mount".into(), "--store".into(), self.url.clone()];
        for option in &self.ours {
            let option = option.replace("allow_other", "allow-other");
            arguments.push(format!("--{option}").into());
        }
        if !self.generic.is_empty() {
            arguments.push("--options".into());
            arguments.push(self.generic.join(",").into());
        }
        arguments.push("--".into());
        arguments.push(self.directory.clone().into());
        arguments
    }

    /// Runs `castore-fs mount` in the background; returns when the mount is up.
    fn mount(&self) -> Result<(), HelperRefusal> {
        // Its messages are printed only if it fails. They go to memory, because a pipe could be full.
        let reported = rustix::fs::memfd_create(c"castore-fs-mount", MemfdFlags::CLOEXEC)
            .map_err(io::Error::from)?;
        let mut reported = File::from(reported);
        let mut child = Command::new("/proc/self/exe")
            .arg0(OsStr::from_bytes(PROGRAM.to_bytes()))
            .args(self.arguments())
            .env(BACKGROUND, "1")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(reported.try_clone()?)
            .spawn()?;
        if wait_until_ready(&mut child)? {
            return Ok(());
        }
        child.wait()?;
        reported.rewind()?;
        io::copy(&mut reported, &mut io::stderr())?;
        Err(HelperRefusal {
            status: MOUNT_FAILURE,
            words: None,
        })
    }
}

/// Options of castore-fs: the name, and how to write it.
const OURS: [(&str, &str); 16] = [
    ("allow_other", "allow_other"),
    ("no-allow_other", "no-allow_other"),
    ("config", "config=FILE"),
    ("follow", "follow"),
    ("no-follow", "no-follow"),
    ("gid", "gid=N"),
    ("list-root", "list-root[=empty|refused]"),
    ("no-list-root", "no-list-root"),
    ("profiles", "profiles=PATH"),
    ("reads", "reads=page-cache|passthrough"),
    ("root", "root=NAME"),
    ("threads", "threads=N"),
    ("uid", "uid=N"),
    ("view", "view=fuse|auto|image"),
    ("warmup", "warmup=off|learn"),
    ("xattr", "xattr"),
];

/// The options of a list, separated by commas; those inside double quotes belong to a value.
fn split(list: &OsStr) -> Vec<String> {
    let text = list.to_string_lossy();
    let mut quoted = false;
    let options = text.split(|letter| {
        quoted ^= letter == '"';
        letter == ',' && !quoted
    });
    let options = options.filter(|option| !option.is_empty());
    options.map(str::to_owned).collect()
}

/// The URL with an absolute path, if it names a directory.
fn absolute_url(url: &OsStr) -> io::Result<OsString> {
    match url.as_bytes().strip_prefix(b"local:") {
        Some(path) if !path.is_empty() && !path.starts_with(b"/") => {
            let mut url = OsString::from("local:");
            url.push(std::path::absolute(OsStr::from_bytes(path))?);
            Ok(url)
        }
        _ => Ok(url.to_owned()),
    }
}

/// Enters the mount namespace `namespace`: `mount -N`.
fn enter(namespace: &OsStr) -> Result<(), HelperRefusal> {
    let enter = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened: OwnedFd = rustix::fs::open(namespace, flags, Mode::empty())?;
        let kind = LinkNameSpaceType::Mount;
        rustix::thread::move_into_link_name_space(opened.as_fd(), Some(kind))
    };
    enter().map_err(|errno: rustix::io::Errno| {
        let namespace = namespace.display();
        HelperRefusal::failure(format!(
            "cannot enter the mount namespace {namespace}: {errno}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<String, (u8, String)> {
        let wanted = HelperArguments::parse(arguments.iter().map(OsString::from));
        match wanted {
            Ok(wanted) => {
                let arguments = wanted.arguments();
                Ok(arguments.join(OsStr::new(" ")).into_string().unwrap())
            }
            Err(refusal) => Err((refusal.status, refusal.words.unwrap())),
        }
    }

    #[test]
    fn the_arguments_of_mount_are_converted() {
        let words = "local:/s /m -o rw,nosuid,_netdev,nofail,x-systemd.automount,uid=7,allow_other,\
                     warmup=learn,default_permissions,context=\"a:b,c\"";
        let words: Vec<&str> = words.split(' ').collect();
        assert_eq!(
            parsed(&words).unwrap(),
            "mount --store local:/s --uid=7 --allow-other --warmup=learn --options \
             rw,nosuid,_netdev,nofail,x-systemd.automount,context=\"a:b,c\" -- /m"
        );
        assert_eq!(
            parsed(&[
                "local:/s",
                "/m",
                "-f",
                "-o",
                "no-allow_other,list-root=empty"
            ])
            .unwrap(),
            "mount --store local:/s --no-allow-other --list-root=empty -- /m"
        );
    }

    #[test]
    fn relative_paths_are_of_the_directory_that_mount_was_called_in() {
        let working_dir = std::env::current_dir().unwrap();
        let working_dir = working_dir.display();
        assert_eq!(
            parsed(&["local:s", "m"]).unwrap(),
            format!("mount --store local:{working_dir}/s -- {working_dir}/m")
        );
    }

    #[test]
    fn an_unknown_option_is_an_error_unless_mount_is_sloppy() {
        for option in ["colour=red", "root", "xattr=1", "loop"] {
            let (status, words) = parsed(&["local:/s", "/m", "-o", option]).unwrap_err();
            assert_eq!(status, 32);
            assert!(words.contains(&format!("{option:?}")), "{words}");
            assert!(parsed(&["-s", "local:/s", "/m", "-o", option]).is_ok());
        }
    }

    #[test]
    fn the_manual_page_has_every_option() {
        let page = include_str!("../../docs/mount.castore-fs.md");
        for (name, example) in OURS {
            // Of several values each is shown.
            let (key, values) = example.split_once('=').unwrap_or((example, ""));
            let values = values.trim_end_matches(']').split('|');
            for value in values {
                let option = match value {
                    "" => name.to_owned(),
                    value => format!("{}={value}", key.trim_end_matches('[')),
                };
                assert!(page.contains(&format!("`{option}`")), "{option}");
            }
        }
    }

    #[test]
    fn a_url_with_a_secret_never_becomes_an_argument() {
        let (status, words) = parsed(&["grpc+https://me:hunter2@host", "/m"]).unwrap_err();
        assert_eq!(status, 32);
        assert!(
            words.contains("token-file") && !words.contains("hunter2"),
            "{words}"
        );
    }

    #[test]
    fn wrong_usage_is_status_1() {
        let (status, words) = parsed(&["local:/s"]).unwrap_err();
        assert!(status == 1 && words.starts_with("usage"), "{words}");
        let (status, words) = parsed(&["local:/s", "/m", "-q"]).unwrap_err();
        assert!(status == 1 && words.contains("-q"), "{words}");
    }

    #[test]
    fn the_name_decides() {
        assert!(is_called(OsStr::new("/sbin/mount.castore-fs")));
        assert!(is_called(OsStr::new("mount.fuse.castore-fs")));
        assert!(!is_called(OsStr::new("/usr/bin/castore-fs")));
    }
}
