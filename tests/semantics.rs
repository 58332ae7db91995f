//! System calls on a mount, as described in `docs/semantics.md`.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use castore_fs::fs::{FsOptions, ReadPath};
use castore_fs::store::MemoryStore;
use castore_fs::transport::fuse::MountOptions;
use kit::model::{directory, file, program, symlink};
use kit::mounted::{Mounted, can_mount, mount_root_of};

fn mounted() -> Mounted {
    mounted_with(ReadPath::PageCache)
}

fn mounted_with(reads: ReadPath) -> Mounted {
    let store = Arc::new(MemoryStore::new());
    let tree = directory([
        ("d", directory([("f", file("inner"))])),
        ("f", file(vec![b'x'; 10_000])),
        ("l", symlink("f")),
        ("p", program("#!/bin/sh\necho ran\n")),
    ]);
    let mount_root = mount_root_of(&tree.put_root(&*store, "root"));
    let options = FsOptions {
        mount_root,
        reads,
        ..FsOptions::default()
    };
    Mounted::new(store, options)
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The errno of a call that returned `result`; 0 if it worked.
fn errno<T: Into<i64>>(result: T) -> i32 {
    match result.into() {
        0.. => 0,
        _ => io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

/// Whether this kernel is at least so new.
fn is_linux(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next().and_then(|part| part.parse::<u32>().ok());
    (part().unwrap(), part().unwrap()) >= (major, minor)
}

#[test]
fn what_would_change_something_is_refused_as_on_a_disk_mounted_read_only() {
    if !can_mount() {
        return;
    }
    let mount = mounted();
    let (f, d, new) = (
        text(&mount.join("f")),
        text(&mount.join("d")),
        text(&mount.join("new")),
    );
    let opened = File::open(mount.join("f")).unwrap();
    let fd = opened.as_raw_fd();
    let (f, d, new) = (f.as_ptr(), d.as_ptr(), new.as_ptr());
    let (name, times) = (c"user.x".as_ptr(), std::ptr::null());
    // SAFETY: every path ends in NUL and lives until the end; buffers have the stated lengths.
    let calls = unsafe {
        [
            (
                "open for writing",
                errno(libc::open(f, libc::O_WRONLY)),
                libc::EROFS,
            ),
            (
                "open for both",
                errno(libc::open(f, libc::O_RDWR)),
                libc::EROFS,
            ),
            (
                "O_TRUNC",
                errno(libc::open(f, libc::O_WRONLY | libc::O_TRUNC)),
                libc::EROFS,
            ),
            (
                "O_CREAT",
                errno(libc::open(new, libc::O_CREAT | libc::O_WRONLY, 0o644)),
                libc::EROFS,
            ),
            (
                "O_TMPFILE",
                errno(libc::open(d, libc::O_TMPFILE | libc::O_RDWR, 0o600)),
                libc::EROFS,
            ),
            ("truncate", errno(libc::truncate(f, 0)), libc::EROFS),
            ("mkdir", errno(libc::mkdir(new, 0o755)), libc::EROFS),
            (
                "mknod",
                errno(libc::mknod(new, libc::S_IFIFO | 0o644, 0)),
                libc::EROFS,
            ),
            (
                "symlink",
                errno(libc::symlink(c"f".as_ptr(), new)),
                libc::EROFS,
            ),
            ("link", errno(libc::link(f, new)), libc::EROFS),
            ("unlink", errno(libc::unlink(f)), libc::EROFS),
            ("rmdir", errno(libc::rmdir(d)), libc::EROFS),
            ("rename", errno(libc::rename(f, new)), libc::EROFS),
            ("chmod", errno(libc::chmod(f, 0o777)), libc::EROFS),
            ("chown", errno(libc::chown(f, 1, 1)), libc::EROFS),
            (
                "utimensat",
                errno(libc::utimensat(libc::AT_FDCWD, f, times, 0)),
                libc::EROFS,
            ),
            (
                "setxattr",
                errno(libc::setxattr(f, name, name.cast(), 4, 0)),
                libc::EROFS,
            ),
            (
                "removexattr",
                errno(libc::removexattr(f, name)),
                libc::EROFS,
            ),
            (
                "access W_OK",
                errno(libc::access(f, libc::W_OK)),
                libc::EROFS,
            ),
            ("ftruncate", errno(libc::ftruncate(fd, 0)), libc::EINVAL),
            (
                "fallocate",
                errno(libc::fallocate(fd, 0, 0, 1)),
                libc::EBADF,
            ),
            (
                "write",
                errno(libc::write(fd, name.cast(), 4) as i64),
                libc::EBADF,
            ),
        ]
    };
    for (call, errno, expected) in calls {
        assert_eq!(errno, expected, "{call}");
    }
}

#[test]
fn what_reads_works() {
    if !can_mount() {
        return;
    }
    for reads in [ReadPath::PageCache, ReadPath::Passthrough] {
        let mount = mounted_with(reads);
        let opened = File::open(mount.join("f")).unwrap();
        let fd: RawFd = opened.as_raw_fd();
        let f = text(&mount.join("f"));
        let mut out = tempfile::tempfile().unwrap();
        let to = out.as_raw_fd();
        let none = std::ptr::null_mut();
        // SAFETY: as above; the map is of the file and is read within its bounds.
        unsafe {
            assert_eq!(libc::sendfile(to, fd, none, 10_000), 10_000);
            assert_eq!(libc::lseek(fd, 0, libc::SEEK_DATA), 0);
            assert_eq!(libc::lseek(fd, 0, libc::SEEK_HOLE), 10_000);
            assert_eq!(libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_WILLNEED), 0);
            assert_eq!(errno(libc::readahead(fd, 0, 4096) as i64), 0);
            assert_eq!(errno(libc::fsync(fd)), 0);
            assert_eq!(errno(libc::access(f.as_ptr(), libc::R_OK)), 0);
            for flags in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
                let map = libc::mmap(std::ptr::null_mut(), 10_000, libc::PROT_READ, flags, fd, 0);
                assert_ne!(map, libc::MAP_FAILED, "{:?}", io::Error::last_os_error());
                assert_eq!(*map.cast::<u8>().add(9_999), b'x');
                libc::munmap(map, 10_000);
            }
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(std::ptr::null_mut(), 10_000, both, libc::MAP_SHARED, fd, 0);
            assert_eq!(map, libc::MAP_FAILED);
            assert_eq!(
                io::Error::last_os_error().raw_os_error(),
                Some(libc::EACCES)
            );
            let direct = libc::open(f.as_ptr(), libc::O_RDONLY | libc::O_DIRECT);
            assert!(direct >= 0, "{:?}", io::Error::last_os_error());
            let mut page = [0u8; 4096];
            let (requests, read) =
                mount.requests_of(|| libc::pread(direct, page.as_mut_ptr().cast(), 4096, 4096));
            assert_eq!((read, page), (4096, [b'x'; 4096]));
            assert_eq!(requests.of("READ"), 1, "past the page cache, which has it");
            libc::close(direct);
        }
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut out).unwrap();
        io::Read::read_to_end(&mut out, &mut bytes).unwrap();
        assert!(bytes == [b'x'; 10_000]);
        let ran = Command::new(mount.join("p")).output().unwrap();
        assert_eq!(ran.stdout, b"ran\n");
    }
}

#[test]
fn unsupported_calls_fail_with_their_errno() {
    if !can_mount() {
        return;
    }
    let mount = mounted();
    let opened = File::open(mount.join("f")).unwrap();
    let fd = opened.as_raw_fd();
    /// `FS_IOC_GETFLAGS`, `FS_IOC_ENABLE_VERITY` and `FICLONE` of the kernel's `fs.h`.
    const GET_FLAGS: libc::c_ulong = 0x8008_6601;
    const CLONE: libc::c_ulong = 0x4004_9409;
    let mut flags = 0i64;
    let other = tempfile::tempfile().unwrap();
    // SAFETY: the calls fill buffers of the stated lengths.
    unsafe {
        assert_eq!(errno(libc::ioctl(fd, GET_FLAGS, &mut flags)), libc::ENOTTY);
        assert_eq!(
            errno(libc::ioctl(other.as_raw_fd(), CLONE, fd)),
            libc::EXDEV
        );
        let mut value = [0u8; 64];
        let name = c"user.x".as_ptr();
        let read = libc::fgetxattr(fd, name, value.as_mut_ptr().cast(), value.len());
        assert_eq!(errno(read as i64), libc::EOPNOTSUPP);
    }
    if rustix::process::geteuid().is_root() {
        // What NFS exports and overlayfs's index need.
        let program = "import ctypes, os, sys\n\
            libc = ctypes.CDLL(None, use_errno=True)\n\
            handle = (ctypes.c_uint8 * 136)(128)\n\
            mount = ctypes.c_int()\n\
            path = sys.argv[1].encode()\n\
            failed = libc.name_to_handle_at(-100, path, handle, ctypes.byref(mount), 0)\n\
            print(os.strerror(ctypes.get_errno()) if failed else 'ok')";
        let python = Command::new("python3")
            .args(["-c", program])
            .arg(mount.join("f"))
            .output();
        let reported = String::from_utf8(python.unwrap().stdout).unwrap();
        assert_eq!(reported, "Operation not supported\n");
    }
}

/// Calls that the standard library has no name for, on the mount of [`mounted`]: prints each with the errno
/// it ends with, or `ok`.
const CALLS: &str = r#"
import ctypes, errno, fcntl, os, select, signal, socket, struct, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
libc = ctypes.CDLL(None, use_errno=True)
mnt, outside = sys.argv[1:]
path = mnt + '/f'
file, directory = os.open(path, os.O_RDONLY), os.open(mnt, os.O_RDONLY)
out = os.open(outside + '/out', os.O_RDWR | os.O_CREAT)
def call(name, made):
    try: made(); print(name, 'ok')
    except OSError as error: print(name, errno.errorcode[error.errno])
def made(*arguments):
    result = libc.syscall(*arguments)
    if result < 0: raise OSError(ctypes.get_errno(), '')
    return result
def mark(kind, mask):
    group = made(300, kind, 0)
    try: made(301, group, 1, ctypes.c_uint64(mask), -100, path.encode())
    finally: os.close(group)
for flag in ('O_DIRECT', 'O_APPEND', 'O_SYNC', 'O_NOATIME', 'O_PATH', 'O_CREAT'):
    call(flag, lambda: os.close(os.open(path, os.O_RDONLY | getattr(os, flag))))
call('O_EXCL', lambda: os.open(path, os.O_CREAT | os.O_EXCL))
call('openat2', lambda: made(437, directory, b'l', struct.pack('QQQ', 0, 0, 8), 24))
call('name_to_handle', lambda: made(303, -100, path.encode(), struct.pack('Ii', 128, 0) + bytes(128), ctypes.byref(ctypes.c_int()), 0))
call('preadv2', lambda: os.preadv(file, [bytearray(10)], 0))
call('RWF_NOWAIT', lambda: os.preadv(file, [bytearray(10)], 0, os.RWF_NOWAIT))
call('splice', lambda: os.splice(file, os.pipe()[1], 100, 0))
call('epoll', lambda: select.epoll().register(file))
call('FADV_DONTNEED', lambda: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED))
call('copy_file_range', lambda: os.copy_file_range(file, out, 100, 0, 0))
call('fdatasync', lambda: os.fdatasync(directory))
call('syncfs', lambda: made(306, file))
call('sync_file_range', lambda: made(277, file, ctypes.c_int64(0), ctypes.c_int64(0), 7))
call('fchdir', lambda: os.fchdir(directory))
call('readlink', lambda: os.readlink('f'))
call('mkdir', lambda: os.mkdir('d'))
call('mkfifo', lambda: os.mkfifo('new'))
call('bind', lambda: socket.socket(socket.AF_UNIX).bind('new'))
call('rename out', lambda: os.rename('f', outside + '/f'))
call('rename in', lambda: os.rename(outside + '/out', 'new'))
call('link out', lambda: os.link('f', outside + '/f'))
call('X_OK', lambda: made(21, b'f', 1))
call('X_OK of a program', lambda: made(21, b'p', 1))
call('execve', lambda: os.execv('f', ['f']))
call('capabilities', lambda: os.getxattr('f', 'security.capability'))
for name, number, size in (('FSGETXATTR', 0x801c581f, 28), ('verity', 0xc0046686, 68), ('FITRIM', 0xc0185879, 24),
                           ('FIEMAP', 0xc020660b, 32), ('FIFREEZE', 0xc0045877, 4), ('FIONREAD', 0x541b, 4)):
    call(name, lambda: fcntl.ioctl(directory if name in ('FITRIM', 'FIFREEZE') else file, number, bytes(size)))
call('F_OFD_SETLK', lambda: fcntl.fcntl(file, 37, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 0)))
call('F_SETLEASE', lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK))
call('F_WRLCK', lambda: fcntl.lockf(file, fcntl.LOCK_EX))
call('F_NOTIFY', lambda: fcntl.fcntl(directory, fcntl.F_NOTIFY, fcntl.DN_ACCESS))
call('inotify', lambda: made(254, made(253), mnt.encode(), 0xfff))
call('fanotify', lambda: mark(0, 0x21))
call('permission events', lambda: mark(4, 0x10000))
call('swapon', lambda: made(167, path.encode(), 0))
call('chroot', lambda: os.chroot('.'))
"#;

#[test]
fn every_family_of_calls_does_what_the_documentation_says() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() || !cfg!(target_arch = "x86_64") {
        return kit::skip::skip("it needs root, and the numbers of the system calls of x86-64");
    }
    let mount = mounted();
    let outside = tempfile::tempdir().unwrap();
    let python = Command::new("python3")
        .args(["-c", CALLS])
        .args([mount.path(), outside.path()])
        .output()
        .unwrap();
    assert!(python.status.success(), "{python:?}");
    let reported = String::from_utf8(python.stdout).unwrap();
    let expected = "\
        O_DIRECT ok\nO_APPEND ok\nO_SYNC ok\nO_NOATIME ok\nO_PATH ok\nO_CREAT ok\nO_EXCL EEXIST\n\
        openat2 ok\nname_to_handle ENOTSUP\n\
        preadv2 ok\nRWF_NOWAIT ENOTSUP\nsplice ok\nepoll ok\nFADV_DONTNEED ok\n\
        copy_file_range EXDEV\nfdatasync ok\nsyncfs ok\nsync_file_range ok\n\
        fchdir ok\nreadlink EINVAL\nmkdir EEXIST\nmkfifo EROFS\nbind EROFS\n\
        rename out EXDEV\nrename in EXDEV\nlink out EXDEV\n\
        X_OK EACCES\nX_OK of a program ok\nexecve EACCES\ncapabilities ENOTSUP\n\
        FSGETXATTR ENOTTY\nverity ENOTTY\nFITRIM ENOTTY\nFIEMAP ENOTSUP\nFIFREEZE ENOTSUP\nFIONREAD ok\n\
        F_OFD_SETLK ok\nF_SETLEASE ok\nF_WRLCK EBADF\nF_NOTIFY ok\n\
        inotify ok\nfanotify ok\npermission events ok\nswapon EROFS\nchroot ok\n";
    assert_eq!(reported, expected);
}

#[test]
fn a_name_that_is_too_long_is_called_that() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    file("x").put_root(&*store, "root");
    for mount in [mounted(), Mounted::new(store, FsOptions::default())] {
        for (length, expected) in [
            (255, libc::ENOENT),
            (256, libc::ENAMETOOLONG),
            (1024, libc::ENAMETOOLONG),
            (4000, libc::ENAMETOOLONG),
        ] {
            let name = "n".repeat(length);
            let errno =
                |result: io::Result<fs::Metadata>| result.unwrap_err().raw_os_error().unwrap();
            assert_eq!(errno(fs::metadata(mount.join(&name))), expected, "{length}");
            let made = fs::create_dir(mount.join(&name)).unwrap_err();
            let expected = match expected {
                libc::ENOENT => libc::EROFS,
                other => other,
            };
            assert_eq!(made.raw_os_error(), Some(expected), "{length}");
        }
        let below = mount.join("n".repeat(256)).join("x");
        let error = fs::metadata(below).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    }
    let mount = mounted();
    let inside = mount.join("d").join(OsStr::from_bytes(&[0xff; 256]));
    let error = fs::metadata(inside).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

/// Maps user and group 0 to 100000 in a copy of the mount, as a container's volume is made, and
/// prints the owner of a file there.
const ID_MAPPED: &str = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result < 0: sys.exit(os.strerror(ctypes.get_errno()))
    return result
tree = must(libc.syscall(428, -100, sys.argv[1].encode(), 1))
read, write = os.pipe()
child = os.fork()
if child == 0:
    libc.unshare(0x10000000); os.write(write, b'x'); time.sleep(60); os._exit(0)
os.read(read, 1)
for which in ('uid_map', 'gid_map'): open(f'/proc/{child}/{which}', 'w').write('0 100000 1000')
class Attributes(ctypes.Structure): _fields_ = [(n, ctypes.c_uint64) for n in ('set', 'clear', 'propagation', 'userns')]
wanted = Attributes(0x100000, 0, 0, os.open(f'/proc/{child}/ns/user', os.O_RDONLY))
try:
    must(libc.syscall(442, tree, b'', 0x1000, ctypes.byref(wanted), 32))
finally:
    os.kill(child, 9)
for name in ('f', 'd/f'):
    stat = os.stat(name, dir_fd=tree)
    print(stat.st_uid, stat.st_gid, oct(stat.st_mode & 0o777), len(open(f'/proc/self/fd/{tree}/{name}').read()))
";

#[test]
fn a_mount_can_be_id_mapped() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() || !is_linux(6, 12) {
        return kit::skip::skip(
            "it needs the superuser and Linux 6.12, which knows id-mapped FUSE mounts",
        );
    }
    for reads in [ReadPath::PageCache, ReadPath::Passthrough] {
        let mount = mounted_with(reads);
        let python = Command::new("python3")
            .args(["-c", ID_MAPPED])
            .arg(mount.path())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let reported = String::from_utf8_lossy(&python.stderr);
        assert!(python.status.success(), "{reported}");
        let seen = String::from_utf8(python.stdout).unwrap();
        assert_eq!(seen, "100000 100000 0o444 10000\n100000 100000 0o444 5\n");
    }
}

/// Where another program made the mount, the kernel need not check permissions: it would refuse a
/// connection that allows id-mapped mounts then.
#[test]
fn a_mount_made_by_another_program_works_without_default_permissions() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return kit::skip::skip("only the superuser can mount a descriptor");
    }
    let dir = tempfile::tempdir().unwrap();
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40555,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let (target, data) = (text(dir.path()), CString::new(options).unwrap());
    let kind = c"fuse.castore-fs".as_ptr();
    // SAFETY: every argument ends in NUL.
    let made = unsafe {
        libc::mount(
            c"x".as_ptr(),
            target.as_ptr(),
            kind,
            libc::MS_RDONLY,
            data.as_ptr().cast(),
        )
    };
    assert_eq!(errno(made), 0);
    let store = Arc::new(MemoryStore::new());
    let node = directory([("f", file("f"))]).put_root(&*store, "root");
    let mount = MountOptions {
        device: Some(Arc::new(device.into())),
        ..MountOptions::default()
    };
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        ..FsOptions::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let session = castore_fs::transport::fuse::FuseSession::mount(
        store,
        dir.path(),
        options,
        &mount,
        runtime.handle().clone(),
    );
    let read = fs::read(dir.path().join("f"));
    // SAFETY: the path ends in NUL.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    assert_eq!(read.unwrap(), b"f");
    drop(session.unwrap());
}
