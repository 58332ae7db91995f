//! `mount.castore-fs`, the helper of mount(8): options, remount, exit statuses, and the process that it
//! leaves behind.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kit::skip::skip;

/// The user for tests about users: the one that owns nothing.
const UNPRIVILEGED: u32 = 65534;
/// How long to wait for what should happen at once, before it counts as never.
const PATIENCE: Duration = Duration::from_secs(20);

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        skip("it needs the superuser and /dev/fuse");
    }
    can
}

/// A store with a tree, a directory to mount on, and the helper under its name.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(place.join("tree/sub")).unwrap();
        fs::create_dir(place.join("mnt")).unwrap();
        let script = place.join("tree/script");
        fs::write(&script, "#!/bin/sh\necho ran\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        symlink("script", place.join("tree/link")).unwrap();
        // Copied by another process: a descriptor of this one that is open for writing could be on
        // its way through another test's fork, and the copy could not be run.
        let program = place.text("castore-fs");
        run(Command::new("cp").args([env!("CARGO_BIN_EXE_castore-fs"), &program]));
        symlink("castore-fs", place.join("mount.castore-fs")).unwrap();
        let mut import = Command::new(&program);
        run(import
            .args(["import", "--store", &place.url()])
            .arg(place.join("tree")));
        place
    }

    fn join(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        self.join(path).display().to_string()
    }

    fn url(&self) -> String {
        format!("local:{}", self.text("store"))
    }

    /// Calls the helper as mount(8) does.
    fn helper(&self, options: &str) -> Output {
        let mut helper = Command::new(self.join("mount.castore-fs"));
        helper
            .arg(self.url())
            .arg(self.join("mnt"))
            .args(["-o", options]);
        helper.stdin(Stdio::null()).output().unwrap()
    }

    /// Makes the helper mount with `options`, without any output.
    fn good(&self, options: &str) {
        let output = self.helper(options);
        assert_eq!(output.status.code(), Some(0), "{options}: {output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }

    /// Makes the helper fail with `status`; returns its output, in one line.
    fn bad(&self, status: i32, options: &str) -> String {
        let output = self.helper(options);
        assert_eq!(output.status.code(), Some(status), "{options}: {output:?}");
        let reported = String::from_utf8(output.stderr).unwrap();
        assert_eq!(reported.lines().count(), 1, "{reported}");
        assert!(output.stdout.is_empty());
        reported
    }

    /// The options of the mount and of its file system.
    fn options(&self) -> Option<Vec<String>> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = format!(" {} ", self.text("mnt"));
        let line = table.lines().rfind(|line| line.contains(&place))?;
        let columns: Vec<&str> = line.split(' ').collect();
        let all = format!("{},{}", columns[5], columns.last().unwrap());
        Some(all.split(',').map(str::to_owned).collect())
    }

    fn has(&self, option: &str) -> bool {
        let options = self.options().unwrap();
        options.iter().any(|has| has == option)
    }

    /// The process that serves: its arguments and its id.
    fn server(&self) -> (Vec<String>, String) {
        let wanted = self.text("mnt");
        let found = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .find_map(|process| {
                let line = fs::read_to_string(process.path().join("cmdline")).ok()?;
                let line: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
                let id = process.file_name().into_string().unwrap();
                // Not a helper of it.
                let name = fs::read_to_string(process.path().join("comm")).ok()?;
                let is_it = line.last() == Some(&wanted)
                    && line.get(1).is_some_and(|verb| verb == "mount")
                    && name.trim() != "notifier";
                is_it.then_some((line, id))
            });
        found.unwrap()
    }

    fn unmount(&self) {
        run(Command::new("umount").arg(self.join("mnt")));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.options().is_some() {
            let mnt = self.join("mnt");
            if !Command::new("umount")
                .arg("--lazy")
                .arg(mnt)
                .status()
                .unwrap()
                .success()
            {
                break;
            }
        }
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Waits until `is_so`.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn options_that_every_file_system_has_are_applied() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let cases: [(&str, &[&str], &[&str]); 13] = [
        (
            "rw",
            &["ro", "nosuid", "nodev", "noatime"],
            &["noexec", "sync"],
        ),
        (
            "ro,noexec,nosuid,nodev,noauto,user",
            &["noexec", "nosuid", "nodev"],
            &[],
        ),
        ("users", &["noexec", "nosuid", "nodev"], &[]),
        ("user,exec", &["nosuid", "nodev"], &["noexec"]),
        ("owner", &["nosuid", "nodev"], &["noexec"]),
        (
            "nosymfollow,nodiratime",
            &["nosymfollow", "nodiratime"],
            &[],
        ),
        (
            "sync,dirsync,lazytime",
            &["sync", "dirsync", "lazytime"],
            &[],
        ),
        ("strictatime", &[], &["noatime", "relatime"]),
        ("relatime", &["relatime"], &["noatime"]),
        ("noexec,exec,suid,dev", &[], &["noexec", "nosuid", "nodev"]),
        (
            "allow_other,default_permissions",
            &["allow_other", "default_permissions"],
            &[],
        ),
        (
            "silent,loud,auto,nofail,_netdev,group,mand,iversion",
            &["ro"],
            &[],
        ),
        (
            "x-systemd.automount,X-mount.mkdir=755,comment=a,user=me,context=u:r:t:s0",
            &["ro"],
            &[],
        ),
    ];
    for (options, has, has_not) in cases {
        place.good(options);
        let found = place.options().unwrap();
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        assert!(
            has.iter().all(|one| found.contains(one)),
            "{options}: {found:?}"
        );
        assert!(
            !has_not.iter().any(|one| found.contains(one)),
            "{options}: {found:?}"
        );
        // With this flag, programs do not run and links are not followed.
        let ran = Command::new(place.join("mnt/tree/script")).output();
        assert_eq!(ran.is_ok(), !found.contains(&"noexec"), "{options}");
        let followed = fs::read(place.join("mnt/tree/link"));
        assert_eq!(
            followed.is_ok(),
            !found.contains(&"nosymfollow"),
            "{options}"
        );
        place.unmount();
    }
}

#[test]
fn a_mount_by_the_superuser_is_for_all_users_unless_an_option_changes_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for (options, is_for_others) in [
        ("ro", true),
        ("allow_other", true),
        ("no-allow_other", false),
    ] {
        place.good(options);
        assert_eq!(place.has("allow_other"), is_for_others, "{options}");
        let mut cat = Command::new("cat");
        let read = cat
            .uid(UNPRIVILEGED)
            .arg(place.join("mnt/tree/script"))
            .output()
            .unwrap();
        assert_eq!(read.status.success(), is_for_others, "{options}");
        place.unmount();
    }
}

#[test]
fn the_process_that_serves_is_called_as_the_program_and_ends_with_the_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    place.good("ro,root=tree");
    let (arguments, id) = place.server();
    assert_eq!(arguments[..2], ["castore-fs", "mount"]);
    let process = PathBuf::from(format!("/proc/{id}"));
    let name = fs::read_to_string(process.join("comm")).unwrap();
    assert_eq!(name.trim(), "castore-fs");
    // No terminal and no session of the caller's is left with it.
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let columns: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(columns[3], id, "it is its own session");
    for descriptor in ["0", "1", "2"] {
        let target = fs::read_link(process.join("fd").join(descriptor)).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    place.unmount();
    until("the server has ended", || !process.exists());
}

#[test]
fn remount_changes_flags_and_refuses_what_is_fixed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    assert!(place.bad(32, "remount,noexec").contains("is not mounted"));
    place.good("rw,noexec,uid=7,root=tree,reads=page-cache,allow_other");
    // As mount(8) calls it: the options of fstab, rw before them.
    place.good("rw,remount,nosymfollow,uid=7,root=tree,allow_other");
    assert!(place.has("nosymfollow") && !place.has("noexec") && place.has("ro"));
    // As it calls it with what the mount has.
    place.good(
        "ro,remount,noexec,nosuid,nodev,noatime,user_id=0,group_id=0,default_permissions,allow_other,\
         max_read=1048576",
    );
    assert!(place.has("noexec") && !place.has("nosymfollow"));
    place.good("remount,exec,sync,lazytime");
    assert!(place.has("sync") && place.has("lazytime") && !place.has("noexec"));
    // Options that the mount has anyway.
    place.good("remount,noexec,gid=0,warmup=off,list-root");
    assert!(place.has("noexec"));
    for changed in [
        "uid=8",
        "root=tree/sub",
        "gid=1",
        "xattr",
        "threads=2",
        "no-list-root",
        "warmup=learn",
        "reads=passthrough",
        "view=image",
        "no-allow_other",
        "max_read=4096",
        "user_id=5",
    ] {
        let reported = place.bad(32, &format!("remount,exec,{changed}"));
        assert!(reported.contains(&format!("{changed:?}")), "{reported}");
        assert!(place.has("noexec"), "nothing was changed");
    }
    for writable in [
        "remount,rw",
        "rw,remount",
        "remount,ro,rw",
        "rw,remount,noexec,nosuid,nodev,noatime,user_id=0",
        "rw,remount,noexec",
    ] {
        let reported = place.bad(32, writable);
        assert!(reported.contains("read-write"), "{writable}: {reported}");
        assert!(place.has("ro"));
    }
    place.good("remount,rw,ro,noexec");
    // Of an option that comes twice the last one counts: fstab's, then the command line's.
    place.good("uid=8,remount,uid=7,noexec");
    let reported = place.bad(32, "uid=7,remount,uid=8,noexec");
    assert!(reported.contains("\"uid=8\""), "{reported}");
    let mut other = Command::new(place.join("mount.castore-fs"));
    other.args([
        "local:/elsewhere",
        &place.text("mnt"),
        "-o",
        "remount,noexec",
    ]);
    let other = other.output().unwrap();
    assert_eq!(other.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&other.stderr).contains("the store (local:/elsewhere)"));
    place.unmount();
}

#[test]
fn exit_statuses_are_those_of_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let helper = |arguments: &[&str]| {
        let mut helper = Command::new(place.join("mount.castore-fs"));
        let output = helper.args(arguments).output().unwrap();
        let reported = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            reported.lines().count(),
            usize::from(!output.status.success()),
            "{reported}"
        );
        (output.status.code().unwrap(), reported)
    };
    let (url, mnt) = (place.url(), place.text("mnt"));
    assert_eq!(helper(&[]).0, 1);
    assert_eq!(helper(&[&url]).0, 1);
    assert_eq!(helper(&[&url, &mnt, "-q"]).0, 1);
    let (status, reported) = helper(&[&url, &mnt, "-o", "colour=red"]);
    assert!(
        status == 32 && reported.contains("colour=red"),
        "{reported}"
    );
    let (status, reported) = helper(&[&url, &place.text("none")]);
    assert!(
        status == 32 && reported.contains("does not exist"),
        "{reported}"
    );
    let (status, reported) = helper(&["local:/no/store", &mnt]);
    assert!(status == 32 && reported.contains("/no/store"), "{reported}");
    let (status, reported) = helper(&[&url, &mnt, "-o", "uid=x"]);
    assert!(status == 32 && reported.contains("uid"), "{reported}");
    assert_eq!(helper(&[&url, &mnt, "-f", "-v"]).0, 0);
    assert!(place.options().is_none(), "-f only tries");
    assert_eq!(helper(&[&url, &mnt, "-s", "-n", "-o", "colour=red"]).0, 0);
    assert!(place.options().is_some());
    place.unmount();
}

#[test]
fn mount_and_fstab_find_the_helper_for_root_and_for_users() {
    if !can_mount() {
        return;
    }
    if Command::new("fusermount3")
        .arg("--version")
        .output()
        .is_err()
    {
        return skip("there is no fusermount3 (package fuse3)");
    }
    let place = Place::new();
    run(Command::new("chmod").args(["-R", "a+rwX", &place.text("store")]));
    std::os::unix::fs::chown(place.join("mnt"), Some(UNPRIVILEGED), None).unwrap();
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    let (url, mnt) = (place.url(), place.text("mnt"));
    fs::write(
        place.join("fstab"),
        format!("{url} {mnt} castore-fs noauto,user,x-a=b 0 0\n"),
    )
    .unwrap();
    // In a mount namespace of its own, where the helper and fstab are where mount(8) looks.
    let script = "
        mount -t tmpfs helpers /usr/sbin
        ln -s \"$1/castore-fs\" /usr/sbin/mount.castore-fs
        ln -s \"$1/castore-fs\" /usr/sbin/mount.fuse.castore-fs
        mount --bind \"$1/fstab\" /etc/fstab
        mnt=$1/mnt
        options() { grep \" $mnt \" /proc/self/mountinfo; }
        mount \"$mnt\"
        options | grep -q noexec
        mount -o remount,exec,nosymfollow \"$mnt\"
        options | grep -q nosymfollow
        ! options | grep -q noexec
        ! mount -o remount,rw \"$mnt\"
        umount \"$mnt\"
        as_user() { setpriv --reuid 65534 --regid 65534 --clear-groups -- \"$@\"; }
        as_user mount \"$mnt\"
        options | grep -q 'noexec.*user_id=65534'
        as_user cat \"$mnt/tree/script\" >/dev/null
        as_user umount \"$mnt\"
        ! options
        mount -t castore-fs -o noexec \"$2\" \"$mnt\"
        mount -o remount,nosymfollow \"$mnt\"
        options | grep -q 'nosymfollow'
        umount \"$mnt\"
    ";
    let mut shell = Command::new("unshare");
    shell.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-exc",
        script,
        "sh",
    ]);
    let output = shell.arg(place.0.path()).arg(&url).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Serves a FUSE mount whose root has attributes, and answers nothing else, until it is unmounted.
fn answer_only_attributes(mut fuse: &fs::File) {
    const GETATTR: u32 = 3;
    const INIT: u32 = 26;
    let mut request = vec![0; 64 << 10];
    while fuse.read(&mut request).is_ok_and(|read| read > 0) {
        let opcode = u32::from_le_bytes(request[4..8].try_into().unwrap());
        let mut body = match opcode {
            // `struct fuse_init_out` and `struct fuse_attr_out` of <linux/fuse.h>.
            INIT => vec![0; 64],
            GETATTR => vec![0; 104],
            _ => continue,
        };
        let fields = match opcode {
            // The protocol's version, bytes of a write.
            INIT => [(0, 7), (4, 31), (20, 4096)],
            // Inode, mode, links.
            _ => [(16, 1), (76, libc::S_IFDIR | 0o755), (80, 2)],
        };
        for (at, value) in fields {
            body[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        let mut answer = (16 + body.len() as u32).to_le_bytes().to_vec();
        answer.extend([0; 4]);
        answer.extend(&request[8..16]);
        answer.extend(body);
        if fuse.write(&answer).is_err() {
            return;
        }
    }
}

/// As with `x-systemd.automount` in fstab: a process that looks into the mount point waits until it is
/// mounted. The helper must not. Where the kernel has no autofs, a FUSE server makes it wait.
#[test]
fn a_mount_on_an_automount_does_not_wait_for_itself() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mnt = place.join("mnt");
    let mount = |name: &str, kind: &str, options: String| {
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(name, &mnt, kind, flags, options.as_c_str())
    };
    let (_events, out) = rustix::pipe::pipe().unwrap();
    let automount = format!(
        "fd={},pgrp={},minproto=5,maxproto=5,direct",
        out.as_raw_fd(),
        rustix::process::getpgrp().as_raw_nonzero()
    );
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
    let fuse = fuse.unwrap();
    let silent = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        fuse.as_raw_fd()
    );
    match mount("automount", "autofs", automount) {
        Err(rustix::io::Errno::NODEV) => {
            mount("silent", "fuse", silent).unwrap();
            std::thread::spawn(move || answer_only_attributes(&fuse));
        }
        mounted => mounted.unwrap(),
    }
    drop(out);
    // What is of this process group passes.
    let mut helper = Command::new(place.join("mount.castore-fs"));
    helper.arg(place.url()).arg(&mnt).process_group(0);
    let mut helper = helper.spawn().unwrap();
    let mut status = None;
    until("the helper ends", || {
        status = helper.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    assert!(place.has("user_id=0"));
    assert!(mnt.join("tree/script").exists());
    place.unmount();
    // umount(8) would look into it.
    rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::DETACH).unwrap();
}
