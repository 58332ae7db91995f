//! `mount.castore-fs`: what mount(8) and fstab call.
//!
//! Installed under that name (or `mount.fuse.castore-fs`), the program takes what mount(8) gives:
//! `mount.castore-fs URL DIR [-sfnv] [-N namespace] [-t type] [-o options]`. It starts
//! `castore-fs mount` in the background and ends when that says that the mount is up, or why not;
//! the words are sd_notify(3)'s.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use castore_fs::store;

use super::failure::{Failure, failure};

/// How often to look whether the mount has failed instead of coming up.
const INTERVAL: Duration = Duration::from_millis(50);
/// Set for the mount in the background: once it is up, nobody hears what it says.
pub(super) const BACKGROUND: &str = "CASTORE_FS_MOUNT_HELPER";
/// Options for others: mount(8) itself, systemd, fsck; and what every mount of ours is anyway.
const NOT_FOR_US: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "group",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "norelatime",
    "ro",
    "rw",
    "suid",
    "user",
    "users",
];

/// Whether the program was called as mount(8) calls its helpers.
pub(super) fn is_called(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().map(OsStr::as_bytes);
    matches!(name, Some(b"mount.castore-fs" | b"mount.fuse.castore-fs"))
}

/// Mounts as `arguments` say; gives the exit status that mount(8) wants.
pub(super) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match parse(arguments).and_then(|wanted| match wanted {
        Some(wanted) => mount(&wanted),
        None => Ok(()),
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.report();
            // mount(8): "mount failure".
            ExitCode::from(32)
        }
    }
}

/// The arguments of `castore-fs mount`; none if nothing is to be done (`-f`).
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Vec<OsString>>, Failure> {
    let mut places = Vec::new();
    let mut options = Vec::new();
    let (mut sloppy, mut fake) = (false, false);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            b"-o" => options.push(arguments.next().unwrap_or_default()),
            b"-t" | b"-N" => drop(arguments.next()),
            flags if flags.len() > 1 && flags[0] == b'-' => {
                sloppy |= flags.contains(&b's');
                fake |= flags.contains(&b'f');
                if let Some(wrong) = flags[1..].iter().find(|flag| !b"sfnv".contains(flag)) {
                    let wrong = char::from(*wrong);
                    return Err(failure(format!(
                        "mount.castore-fs knows no option -{wrong}"
                    )));
                }
            }
            _ => places.push(argument),
        }
    }
    let [url, folder] = places.as_slice() else {
        return Err(failure(
            "usage: mount.castore-fs STORE-URL DIR [-o OPTIONS]",
        ));
    };
    // Before it becomes an argument, which every user of the machine can see.
    if let Some(url) = url.to_str().filter(|url| !url.starts_with("store:"))
        && let Err(why) = store::check_url(url)
    {
        let url = store::shown_url(url);
        return Err(failure(format!("{url:?} is no store URL: {why}")));
    }
    let mut wanted: Vec<OsString> = vec!["mount".into(), "--store".into(), url.clone()];
    let options: Vec<&[u8]> = options
        .iter()
        .flat_map(|list| list.as_bytes().split(|&byte| byte == b','))
        .filter(|option| !option.is_empty())
        .collect();
    for option in options {
        let text = String::from_utf8_lossy(option);
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text.as_ref(), None),
        };
        match (key, value) {
            ("allow_other" | "allow-other", None) => wanted.push("--allow-other".into()),
            ("xattr", None) => wanted.push("--xattr".into()),
            ("list-root", None) => wanted.push("--list-root".into()),
            ("list-root", Some(what)) => wanted.push(format!("--list-root={what}").into()),
            ("no-list-root", None) => wanted.push("--no-list-root".into()),
            (
                "config" | "root" | "uid" | "gid" | "threads" | "reads" | "warmup" | "profiles",
                Some(value),
            ) => {
                wanted.push(format!("--{key}={value}").into());
            }
            _ if key.starts_with("x-") || key.starts_with("comment") => {}
            _ if value.is_none() && NOT_FOR_US.contains(&key) => {}
            _ if sloppy => {}
            _ => {
                return Err(failure(format!(
                    "the mount option {text:?} is not known: allow_other, list-root[=empty], no-list-root, \
                     xattr, root=NAME, uid=N, gid=N, threads=N, reads=page-cache|passthrough, \
                     warmup=off|learn, profiles=PATH"
                )));
            }
        }
    }
    wanted.push("--".into());
    wanted.push(folder.clone());
    Ok((!fake).then_some(wanted))
}

/// Runs `castore-fs` with `arguments` in the background; returns when the mount is up.
fn mount(arguments: &[OsString]) -> Result<(), Failure> {
    let folder = match rustix::process::geteuid().is_root() {
        true => PathBuf::from("/run"),
        false => std::env::temp_dir(),
    };
    let address = folder.join(format!("castore-fs-mount-{}", std::process::id()));
    let socket = UnixDatagram::bind(&address)?;
    let outcome = wait_for_mount(arguments, &address, &socket);
    let _ = std::fs::remove_file(&address);
    outcome
}

fn wait_for_mount(
    arguments: &[OsString],
    address: &Path,
    socket: &UnixDatagram,
) -> Result<(), Failure> {
    socket.set_read_timeout(Some(INTERVAL))?;
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .env("NOTIFY_SOCKET", address)
        .env(BACKGROUND, "1")
        .env_remove("WATCHDOG_USEC")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A terminal's interrupt is not for it.
        .process_group(0)
        .spawn()?;
    let mut message = [0; 4096];
    loop {
        match socket.recv(&mut message) {
            Ok(length) => {
                let message = String::from_utf8_lossy(&message[..length]);
                if message.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(error) => return Err(error.into()),
        }
        if child.try_wait()?.is_some() {
            // It has said why.
            return Err(Failure::Reported);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Option<String>, String> {
        let given = arguments.iter().map(OsString::from);
        match parse(given) {
            Ok(wanted) => {
                Ok(wanted.map(|wanted| wanted.join(OsStr::new(" ")).into_string().unwrap()))
            }
            Err(Failure::Message(message)) => Err(message),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_words_of_mount_become_ours() {
        let words = "local:/s /m -o rw,nosuid,_netdev,nofail,x-systemd.automount,uid=7,allow_other,\
                     warmup=learn";
        let words: Vec<&str> = words.split(' ').collect();
        let said = parsed(&words).unwrap().unwrap();
        assert_eq!(
            said,
            "mount --store local:/s --uid=7 --allow-other --warmup=learn -- /m"
        );
        assert_eq!(parsed(&["local:/s", "/m", "-f"]).unwrap(), None);
    }

    #[test]
    fn an_option_that_nobody_knows_is_an_error_unless_mount_is_sloppy() {
        assert!(
            parsed(&["local:/s", "/m", "-o", "colour=red"])
                .unwrap_err()
                .contains("colour=red")
        );
        assert!(parsed(&["-s", "local:/s", "/m", "-o", "colour=red"]).is_ok());
        assert!(parsed(&["local:/s"]).unwrap_err().starts_with("usage"));
    }

    #[test]
    fn a_url_with_a_secret_never_becomes_an_argument() {
        let said = parsed(&["grpc+https://me:hunter2@host", "/m"]).unwrap_err();
        assert!(
            said.contains("token-file") && !said.contains("hunter2"),
            "{said}"
        );
    }

    #[test]
    fn the_name_decides() {
        assert!(is_called(OsStr::new("/sbin/mount.castore-fs")));
        assert!(is_called(OsStr::new("mount.fuse.castore-fs")));
        assert!(!is_called(OsStr::new("/usr/bin/castore-fs")));
    }
}
