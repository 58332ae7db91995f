//! Every path has an inode of its own, for programs that identify files by device and inode number.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use castore_fs::castore::{Directory, Name, Node};
use castore_fs::fs::{FsOptions, ReadPath};
use castore_fs::store::{MemoryStore, Store};
use castore_fs::transport::fuse::RequestCounts;
use kit::model::{Model, directory, file, program, symlink};
use kit::mounted::{Mounted, can_mount, mount_root_of};

fn mounted(model: &Model) -> Mounted {
    let store = Arc::new(MemoryStore::new());
    let node = model.put_root(&*store, "root");
    Mounted::mount_root(store, &node)
}

/// A tree in which much is equal.
fn twins() -> Model {
    let program = program("#!/bin/sh\n");
    let log = directory([("boot.log", file("")), ("mail.log", file(""))]);
    directory([
        ("a", log.clone()),
        ("b", log),
        ("link", symlink("a")),
        ("one", program.clone()),
        ("plain", file("#!/bin/sh\n")),
        ("two", program),
    ])
}

/// The inode numbers of a directory and of all that is below it, by path, from stat; those of
/// readdir are the same.
fn numbers(mount_root: &Path) -> BTreeMap<PathBuf, u64> {
    let stat = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    let mut all = BTreeMap::from([(PathBuf::new(), stat(mount_root))]);
    let mut dirs = vec![mount_root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            assert_eq!(entry.ino(), stat(&path), "{path:?}");
            all.insert(
                path.strip_prefix(mount_root).unwrap().to_owned(),
                entry.ino(),
            );
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path);
            }
        }
    }
    all
}

/// The inode numbers of `.` and `..` in readdir.
fn dots(dir: &Path) -> [u64; 2] {
    let dir = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let mut found = [0; 2];
    // SAFETY: the stream is open until closedir, and an entry is looked at before the next is read.
    unsafe {
        let stream = libc::opendir(dir.as_ptr());
        assert!(!stream.is_null());
        while let Some(entry) = libc::readdir64(stream).as_ref() {
            match std::ffi::CStr::from_ptr(entry.d_name.as_ptr()).to_bytes() {
                b"." => found[0] = entry.d_ino,
                b".." => found[1] = entry.d_ino,
                _ => {}
            }
        }
        libc::closedir(stream);
    }
    found
}

fn assert_unique(numbers: &BTreeMap<PathBuf, u64>) {
    let mut all: Vec<u64> = numbers.values().copied().collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), numbers.len(), "{numbers:?}");
}

fn drop_caches() {
    // Only root may; without, what is tested afterwards is as true.
    let _ = fs::write("/proc/sys/vm/drop_caches", "2");
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let reported = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {reported}");
    output
}

fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .unwrap();
    if !found.status.success() {
        kit::skip::skip(&format!("it needs {program}"));
    }
    found.status.success()
}

// Numbers.

#[test]
fn every_path_has_a_number_of_its_own_that_stays() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    let node = twins().put_root(&*store, "root");
    let mount = Mounted::mount_root(store.clone(), &node);
    let first = numbers(mount.path());
    // Entries in the order of names, then what is in each of them.
    let expected = [
        ("", 1),
        ("a", 2),
        ("a/boot.log", 8),
        ("a/mail.log", 9),
        ("b", 3),
        ("b/boot.log", 10),
        ("b/mail.log", 11),
        ("link", 4),
        ("one", 5),
        ("plain", 6),
        ("two", 7),
    ];
    let expected = expected.map(|(path, ino)| (PathBuf::from(path), ino));
    assert_eq!(first, BTreeMap::from(expected));
    assert_eq!(dots(mount.path()), [1, 1]);
    assert_eq!(dots(&mount.join("b")), [3, 1]);
    drop_caches();
    assert_eq!(numbers(mount.path()), first, "after FORGET");
    let second = Mounted::mount_root(store, &node);
    // Looked up in another order.
    assert_eq!(fs::metadata(second.join("b/mail.log")).unwrap().ino(), 11);
    assert_eq!(numbers(second.path()), first, "on the next mount");
}

#[test]
fn equal_root_nodes_have_numbers_of_their_own() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    for name in ["a", "b"] {
        file("same").put_root(&*store, name);
        twins().put_root(&*store, &format!("tree-{name}"));
    }
    let mount = Mounted::new(store, FsOptions::default());
    let first = numbers(mount.path());
    assert_unique(&first);
    assert!(first.values().all(|ino| *ino < 100), "{first:?}");
    drop_caches();
    assert_eq!(numbers(mount.path()), first);
}

/// Sizes of directories are claims: too small, too large, and larger than there are numbers.
#[test]
fn wrong_sizes_make_no_number_come_twice_or_large() {
    if !can_mount() {
        return;
    }
    for claim in [0, 1, 2, 7, 100, 1 << 32, 1 << 33, 1 << 60, u64::MAX / 4] {
        let store = Arc::new(MemoryStore::new());
        let ingest = store.ingest().unwrap();
        let inner = twins().put(&*ingest);
        let put = |children: &[(&str, &Node, u64)]| {
            let entries = children.iter().map(|(name, node, size)| {
                let digest = node.digest().unwrap();
                let node = Node::Directory {
                    digest,
                    size: *size,
                };
                (Name::new(name.as_bytes()).unwrap(), node)
            });
            let directory = Directory::from_entries(entries.collect()).unwrap();
            ingest.put_directory(&directory).unwrap();
            directory.node()
        };
        let middle = put(&[
            ("x", &inner, claim),
            ("y", &inner, 22),
            ("z", &inner, claim),
        ]);
        let mount_root = put(&[("m", &middle, 8), ("n", &middle, claim), ("o", &inner, 22)]);
        ingest.commit().unwrap();
        let mount = Mounted::mount_root(store, &mount_root);
        let first = numbers(mount.path());
        assert_eq!(first.len(), 1 + 3 + 2 * (3 + 3 * 10) + 10);
        assert_unique(&first);
        let small = |ino: &u64| *ino < 1 << 32;
        assert!(first.values().all(small), "{claim}: {first:?}");
        drop_caches();
        assert_eq!(numbers(mount.path()), first, "{claim}");
    }
}

/// A directory of twice a directory of twice a directory…: more names than 32 bits can number.
#[test]
fn a_tree_of_more_names_than_32_bits_is_numbered_on() {
    if !can_mount() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    let ingest = store.ingest().unwrap();
    let mut node = directory([("f", file("leaf"))]).put(&*ingest);
    for _ in 0..40 {
        let twice = ["0", "1"].map(|name| (Name::new(name.as_bytes()).unwrap(), node.clone()));
        let directory = Directory::from_entries(twice.into()).unwrap();
        ingest.put_directory(&directory).unwrap();
        node = directory.node();
    }
    ingest.commit().unwrap();
    let mount = Mounted::mount_root(store, &node);
    let mut all = BTreeMap::new();
    for way in ["0", "1", "01", "10", "001", "110"] {
        let mut path = PathBuf::new();
        for at in 0..40 {
            path.push(&way[at % way.len()..][..1]);
            all.insert(path.clone(), fs::metadata(mount.join(&path)).unwrap().ino());
        }
        path.push("f");
        all.insert(path.clone(), fs::metadata(mount.join(&path)).unwrap().ino());
    }
    assert_unique(&all);
    drop_caches();
    for (path, ino) in &all {
        assert_eq!(
            fs::metadata(mount.join(path)).unwrap().ino(),
            *ino,
            "{path:?}"
        );
    }
}

/// A READ fills the page cache of one path: what that costs, and that other paths lose nothing by it.
#[test]
fn equal_files_are_read_once_each() {
    if !can_mount() {
        return;
    }
    let mount = mounted(&twins());
    let read = |path: &str| {
        let (requests, bytes) = mount.requests_of(|| fs::read(mount.join(path)).unwrap());
        assert_eq!(bytes, b"#!/bin/sh\n");
        let requests: RequestCounts = requests;
        requests.of("READ")
    };
    assert_eq!(["one", "two", "plain"].map(read), [1, 1, 1]);
    assert_eq!(
        fs::metadata(mount.join("plain")).unwrap().mode() & 0o777,
        0o444
    );
    assert_eq!(
        fs::metadata(mount.join("one")).unwrap().mode() & 0o777,
        0o555
    );
}

// Programs.

/// 32-bit programs without large file support, for which the kernel refuses what has more than 32
/// bits. Needs no 32-bit libraries: it is all system calls.
const I386: &str = r#"
static int call(int number, int a, int b, int c) {
  int result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
  return result;
}
static int run(char **arguments) {
  static char buffer[32768];
  int names = 0, got;
  if (call(106, (int)arguments[1], (int)buffer, 0)) return 101;       /* stat */
  int directory = call(5, (int)arguments[1], 0200000, 0);                /* open, O_DIRECTORY */
  if (directory < 0) return 102;
  while ((got = call(141, directory, (int)buffer, sizeof buffer)) > 0)   /* getdents */
    for (int at = 0; at < got; at += *(unsigned short *)(buffer + at + 8)) names++;
  return got ? 103 : names;
}
__attribute__((force_align_arg_pointer)) void start_at(int *stack) {
  call(1, run((char **)(stack + 1)), 0, 0);                           /* exit */
}
__asm__(".globl _start\n_start: movl %esp, %eax\n pushl %eax\n call start_at\n");
"#;

#[cfg(target_arch = "x86_64")]
#[test]
fn programs_of_32_bits_can_stat_and_list() {
    if !can_mount() || !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("i386.c"), dir.path().join("i386"));
    fs::write(&source, I386).unwrap();
    let options = [
        "-m32",
        "-nostdlib",
        "-static",
        "-ffreestanding",
        "-fno-pie",
        "-no-pie",
    ];
    let stack = "-fno-stack-protector";
    run(Command::new("cc")
        .args(options)
        .arg(stack)
        .arg("-o")
        .arg(&program)
        .arg(&source));
    let names = |dir: &Path| Command::new(&program).arg(dir).status();
    match names(dir.path()) {
        Ok(status) if status.code() == Some(4) => {}
        Ok(status) => panic!("{status}"),
        Err(error) => {
            return kit::skip::skip(&format!("this kernel runs no 32-bit programs: {error}"));
        }
    }
    let many = directory((0..70_000).map(|number| (number.to_string(), directory::<&str>([]))));
    let mount = mounted(&directory([("a", twins()), ("many", many)]));
    let code = |path: &str| names(&mount.join(path)).unwrap().code();
    assert_eq!(code("a"), Some(8));
    // More links than 16 bits have: counted as 1, as on ext4.
    let many = fs::metadata(mount.join("many")).unwrap();
    assert_eq!(many.nlink(), 1);
    // A 32-bit program's exit status has 8 bits.
    assert_eq!(code("many"), Some(70_002 % 256));
}

#[test]
fn locks_are_of_one_path() {
    if !can_mount() {
        return;
    }
    let mount = mounted(&twins());
    let open = |path: &str| fs::File::open(mount.join(path)).unwrap();
    let (first, second) = (open("a/boot.log"), open("b/boot.log"));
    first.lock().unwrap();
    second.try_lock().expect("another file's lock is free");
    first.unlock().unwrap();
    // fcntl locks end when any descriptor of the file is closed.
    let lock = |file: &fs::File, operation: i32, kind: i32| {
        // SAFETY: flock is plain integers, and the call reads or fills it.
        unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = kind as i16;
            assert_eq!(libc::fcntl(file.as_raw_fd(), operation, &mut lock), 0);
            i32::from(lock.l_type)
        }
    };
    let held = open("a/mail.log");
    lock(&held, libc::F_SETLK, libc::F_RDLCK);
    drop(open("b/mail.log"));
    let path = mount.join("a/mail.log");
    let another = run(Command::new("python3")
        .arg("-c")
        .arg(
            "import fcntl, os, struct, sys\n\
         asked = struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0, 0, 0)\n\
         said = fcntl.fcntl(os.open(sys.argv[1], os.O_RDONLY), fcntl.F_GETLK, asked)\n\
         print(struct.unpack('hhqqi', said)[0] == fcntl.F_RDLCK)",
        )
        .arg(path));
    assert_eq!(another.stdout, b"True\n", "the lock is held");
}

#[test]
fn equal_plugins_are_two() {
    if !can_mount() || !has("cc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let compile = |name: &str, text: &str, options: &[&str]| {
        let source = dir.path().join(format!("{name}.c"));
        let made = dir.path().join(name);
        fs::write(&source, text).unwrap();
        let mut cc = Command::new("cc");
        run(cc.arg("-o").arg(&made).arg(&source).args(options));
        made
    };
    let plugin = "int count; int plugin(void) { return ++count; }";
    let library = compile("plugin.so", plugin, &["-shared", "-fPIC"]);
    // A program of its own: dlopen holds a lock that the threads which serve this mount need.
    let loader = compile(
        "loader",
        "#include <dlfcn.h>\nint main(int argc, char **argv) {\n\
         void *a = dlopen(argv[1], RTLD_NOW), *b = dlopen(argv[2], RTLD_NOW);\n\
         return !a || !b || a == b; }",
        &["-ldl"],
    );
    let plugin = fs::read(&library).unwrap();
    let mount = mounted(&directory([
        ("a", directory([("plugin.so", program(plugin.clone()))])),
        ("b", directory([("plugin.so", program(plugin))])),
    ]));
    let plugins = ["a/plugin.so", "b/plugin.so"].map(|path| mount.join(path));
    run(Command::new(loader).args(plugins));
}

#[test]
fn nothing_is_counted_or_copied_as_a_hard_link() {
    if !can_mount() || !["du", "tar", "rsync"].into_iter().all(has) {
        return;
    }
    let same = || file(vec![7; 10_000]);
    let tree = directory([
        ("a", directory([("1", same()), ("2", same())])),
        ("b", directory([("1", same())])),
    ]);
    let mount = mounted(&tree);
    // Of several arguments, or with --dereference, du counts no file twice.
    let bytes = |arguments: &[&str]| -> Vec<u64> {
        let mut du = Command::new("du");
        du.args(["--apparent-size", "--block-size=1", "--summarize"]);
        let output = run(du.args(arguments).current_dir(mount.path()));
        let text = String::from_utf8(output.stdout).unwrap();
        let bytes = |line: &str| line.split('\t').next().unwrap().parse().unwrap();
        text.lines().map(bytes).collect()
    };
    let directories = |paths: &[&str]| -> u64 {
        let size = |path: &&str| fs::metadata(mount.join(path)).unwrap().len();
        paths.iter().map(size).sum()
    };
    let [a, b, all] = [&["a"][..], &["b"], &["", "a", "b"]].map(directories);
    assert_eq!(bytes(&["a", "b"]), [20_000 + a, 10_000 + b]);
    assert_eq!(bytes(&["--dereference", "."]), [30_000 + all]);
    let listed = run(Command::new("sh")
        .args(["-c", "tar -C \"$0\" -c . | tar -tv"])
        .arg(mount.path()));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), 6, "{listed}");
    assert!(!listed.contains(" link to "), "{listed}");
    let copy = tempfile::tempdir().unwrap();
    let mut from = OsString::from(mount.path());
    from.push("/");
    run(Command::new("rsync")
        .args(["--archive", "--hard-links"])
        .arg(&from)
        .arg(copy.path()));
    for path in ["a/1", "a/2", "b/1"] {
        let stat = fs::metadata(copy.path().join(path)).unwrap();
        assert_eq!((stat.nlink(), stat.len()), (1, 10_000), "{path}");
    }
}

// Overlays.

/// Directories for an overlay, and the overlay, which goes when this is dropped.
struct Overlay {
    dir: tempfile::TempDir,
    unmount: &'static [&'static str],
}

impl Overlay {
    fn dirs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        dir
    }

    fn layers(dir: &Path, lower: &Path) -> String {
        format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            dir.join("upper").display(),
            dir.join("work").display()
        )
    }

    fn kernel(lower: &Path, options: &str) -> Self {
        let overlay = Self {
            dir: Self::dirs(),
            unmount: &["umount"],
        };
        overlay.mount(lower, options);
        overlay
    }

    fn mount(&self, lower: &Path, options: &str) {
        let layers = Self::layers(self.dir.path(), lower);
        let mut mount = Command::new("mount");
        mount.args([
            "-t",
            "overlay",
            "overlay",
            "-o",
            &format!("{layers}{options}"),
        ]);
        run(mount.arg(self.merged()));
    }

    fn fuse(lower: &Path) -> Self {
        let dir = Self::dirs();
        let layers = Self::layers(dir.path(), lower);
        let overlay = Self {
            dir,
            unmount: &["fusermount3", "-u"],
        };
        let mut mount = Command::new("fuse-overlayfs");
        run(mount.args(["-o", &layers]).arg(overlay.merged()));
        overlay
    }

    fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    fn unmount(&self) {
        run(Command::new(self.unmount[0])
            .args(&self.unmount[1..])
            .arg(self.merged()));
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new(self.unmount[0])
            .args(&self.unmount[1..])
            .arg(self.merged())
            .status();
    }
}

fn can_overlay() -> bool {
    if !can_mount() {
        return false;
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        kit::skip::skip("only the superuser can mount an overlay");
    }
    is_root
}

fn append(path: PathBuf, text: &str) {
    let mut file = fs::File::options().append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

/// Changes some of the equal files of [`twins`] in an overlay over it; the others stay as they are.
fn change_one_of_equal_files(merged: &Path) {
    numbers_exist(merged);
    append(merged.join("a/boot.log"), "secret\n");
    let program = merged.join("one");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
}

/// Reads everything, so that the kernel knows it.
fn numbers_exist(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let stat = fs::symlink_metadata(entry.path()).unwrap();
        if stat.is_dir() {
            numbers_exist(&entry.path());
        }
    }
}

fn assert_only_that_changed(merged: &Path) {
    let read = |path: &str| fs::read_to_string(merged.join(path)).unwrap();
    let logs = ["a/boot.log", "a/mail.log", "b/boot.log", "b/mail.log"];
    assert_eq!(logs.map(read), ["secret\n", "", "", ""]);
    let mode = |path: &str| fs::metadata(merged.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(["one", "two", "plain"].map(mode), [0o4755, 0o555, 0o444]);
    assert_eq!(["one", "two", "plain"].map(read), ["#!/bin/sh\n"; 3]);
}

/// With every feature of overlayfs that looks at inodes. `index` needs file handles, which the mount
/// does not have, and falls back to off.
#[test]
fn an_overlay_changes_the_file_that_is_changed() {
    if !can_overlay() {
        return;
    }
    for options in [
        "",
        ",index=on",
        ",metacopy=on,redirect_dir=on",
        ",xino=on",
        ",userxattr",
    ] {
        for reads in [ReadPath::PageCache, ReadPath::Passthrough] {
            let store = Arc::new(MemoryStore::new());
            let node = twins().put_root(&*store, "root");
            let mount_root = FsOptions {
                mount_root: mount_root_of(&node),
                reads,
                ..FsOptions::default()
            };
            let mount = Mounted::new(store, mount_root);
            let overlay = Overlay::kernel(mount.path(), options);
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            let merged = overlay.merged().display().to_string();
            let mut lines = mounts.lines().filter(|line| line.contains(&merged));
            assert!(lines.all(|line| !line.contains("index=on")), "{mounts}");
            change_one_of_equal_files(&overlay.merged());
            assert_only_that_changed(&overlay.merged());
            overlay.unmount();
            overlay.mount(mount.path(), options);
            assert_only_that_changed(&overlay.merged());
        }
    }
}

#[test]
fn an_overlay_on_an_overlay_changes_the_file_that_is_changed() {
    if !can_overlay() {
        return;
    }
    let mount = mounted(&twins());
    let lower = Overlay::kernel(mount.path(), "");
    let upper = Overlay::kernel(&lower.merged(), "");
    change_one_of_equal_files(&upper.merged());
    assert_only_that_changed(&upper.merged());
    twins_are_at(&lower.merged());
}

/// The kernel stacks two file systems at most, and passthrough counts as one.
#[test]
fn an_overlay_on_an_overlay_on_passthrough_is_refused() {
    if !can_overlay() {
        return;
    }
    let store = Arc::new(MemoryStore::new());
    let node = twins().put_root(&*store, "root");
    let options = FsOptions {
        mount_root: mount_root_of(&node),
        reads: ReadPath::Passthrough,
        ..FsOptions::default()
    };
    let mount = Mounted::new(store, options);
    if mount.session.reads() != ReadPath::Passthrough {
        return kit::skip::skip("it needs passthrough: Linux 6.9 and CAP_SYS_ADMIN");
    }
    let lower = Overlay::kernel(mount.path(), "");
    let dir = Overlay::dirs();
    let layers = Overlay::layers(dir.path(), &lower.merged());
    let mut mounting = Command::new("mount");
    mounting.args(["-t", "overlay", "overlay", "-o", &layers]);
    let output = mounting.arg(dir.path().join("merged")).output().unwrap();
    assert!(!output.status.success());
    twins_are_at(&lower.merged());
}

fn twins_are_at(path: &Path) {
    let read = |name: &str| fs::read(path.join(name)).unwrap();
    assert_eq!(read("a/boot.log"), b"");
    assert_eq!(
        fs::metadata(path.join("one")).unwrap().mode() & 0o7777,
        0o555
    );
}

#[test]
fn fuse_overlayfs_changes_the_file_that_is_changed() {
    if !can_overlay() || !has("fuse-overlayfs") {
        return;
    }
    let mount = mounted(&twins());
    let overlay = Overlay::fuse(mount.path());
    change_one_of_equal_files(&overlay.merged());
    assert_only_that_changed(&overlay.merged());
    twins().assert_is_at(mount.path());
}
