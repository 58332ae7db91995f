//! The first and only program of the guests that `tests/system/virtiofs` and `tests/system/pmem` boot.
//!
//! It takes commands from the second serial port, one a line, and answers each with a line: `ok`
//! and what was found, or `err` and why not. Linked statically and built by bare rustc, so that an
//! initramfs needs nothing else. With arguments it does what they name, on any machine. Times are in microseconds and taken here, around the work alone.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString, c_char, c_int, c_ulong, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn reboot(how: c_int) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn syscall(number: std::ffi::c_long, ...) -> std::ffi::c_long;
    fn tcgetattr(fd: c_int, termios: *mut [u8; 256]) -> c_int;
    fn cfmakeraw(termios: *mut [u8; 256]);
    fn tcsetattr(fd: c_int, when: c_int, termios: *const [u8; 256]) -> c_int;
}

/// finit_module(2), on x86-64.
const FINIT_MODULE: std::ffi::c_long = 313;
const MS_RDONLY: c_ulong = 1;
const MS_MOVE: c_ulong = 8192;
const MNT_DETACH: c_int = 2;
const RB_AUTOBOOT: c_int = 0x0123_4567;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const O_DIRECT: i32 = 0o40000;

type Outcome = Result<String, String>;

fn text(bytes: &str) -> CString {
    CString::new(bytes).expect("a command has no NUL")
}

fn check(outcome: c_int, what: &str) -> Result<(), String> {
    match outcome {
        0 => Ok(()),
        _ => Err(format!("{what}: {}", io::Error::last_os_error())),
    }
}

fn mount_at(kind: &str, source: &str, target: &str, flags: c_ulong) -> Result<(), String> {
    mount_with(kind, source, target, flags, "")
}

fn mount_with(
    kind: &str,
    source: &str,
    target: &str,
    flags: c_ulong,
    options: &str,
) -> Result<(), String> {
    let (source, kind_name, at) = (text(source), text(kind), text(target));
    let options = text(options);
    // SAFETY: four C strings that live through the call.
    let outcome = unsafe {
        mount(
            source.as_ptr(),
            at.as_ptr(),
            kind_name.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    check(outcome, &format!("mount {kind} on {target}"))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.is_empty() && std::process::id() != 1 {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match run(&words) {
            Ok(reply) => println!("{reply}"),
            Err(why) => panic!("{why}"),
        }
        return;
    }
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir(place);
        if let Err(error) = mount_at(kind, kind, place, 0) {
            println!("{error}");
        }
    }
    let mut port = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ttyS1")
        .expect("the machine has two serial ports");
    let mut termios = [0; 256];
    // SAFETY: 256 bytes are more than any termios; the descriptor is open.
    unsafe {
        tcgetattr(port.as_raw_fd(), &mut termios);
        cfmakeraw(&mut termios);
        tcsetattr(port.as_raw_fd(), 0, &termios);
    }
    let mut lines = BufReader::new(port.try_clone().expect("a descriptor to spare"));
    let root = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let root = root
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(1) == Some("/"));
    let root = root.and_then(|line| line.split(' ').nth(2)).unwrap_or("?");
    let _ = writeln!(port, "ready root={root}");
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).unwrap_or(0) == 0 {
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let reply = match run(&words) {
            Ok(reply) => format!("ok {reply}"),
            Err(why) => format!("err {why}"),
        };
        let _ = writeln!(port, "{}", reply.replace('\n', "\\n"));
    }
}

fn run(words: &[&str]) -> Outcome {
    match *words {
        ["mount", tag, place] => {
            let _ = fs::create_dir_all(place);
            mount_at("virtiofs", tag, place, MS_RDONLY).map(|()| String::new())
        }
        ["mount_image", device, place] => {
            let _ = fs::create_dir_all(place);
            // Its driver looks at it in the background.
            let appears = (0..100).any(|_| {
                thread::sleep(Duration::from_millis(50));
                Path::new(device).exists()
            });
            if !appears {
                return Err(format!("there is no {device}"));
            }
            mount_with("erofs", device, place, MS_RDONLY, "dax=always").map(|()| String::new())
        }
        ["insmod", file] => {
            let module = File::open(file).map_err(reported)?;
            // SAFETY: a descriptor and a C string that live through the call, and a number.
            let outcome = unsafe { syscall(FINIT_MODULE, module.as_raw_fd(), c"".as_ptr(), 0) };
            check(outcome as c_int, file).map(|()| String::new())
        }
        ["memory"] => {
            let all = fs::read_to_string("/proc/meminfo").map_err(reported)?;
            let lines = all.lines().filter_map(|line| line.split_once(':'));
            let lines = lines
                .map(|(name, rest)| format!("{name}={} ", rest.trim().trim_end_matches(" kB")));
            Ok(lines.collect())
        }
        ["sum", place] => {
            let (mut files, mut state) = (0, 0);
            sum(Path::new(place), &mut files, &mut state)?;
            Ok(format!("files={files} hash={state:016x}"))
        }
        ["umount", place] => {
            // SAFETY: a C string that lives through the call.
            check(
                unsafe { umount2(text(place).as_ptr(), MNT_DETACH) },
                "umount",
            )?;
            Ok(String::new())
        }
        ["drop"] => fs::write("/proc/sys/vm/drop_caches", "3")
            .map(|()| String::new())
            .map_err(reported),
        ["compare", reference, actual] => {
            let mut seen = BTreeMap::new();
            compare(Path::new(reference), Path::new(actual), &mut seen)?;
            Ok(seen
                .iter()
                .map(|(kind, count)| format!("{kind}={count} "))
                .collect())
        }
        ["walk", place] => timed(|| {
            walk(Path::new(place)).map(|(files, rest)| format!("files={files} rest={rest}"))
        }),
        ["ls", place] => {
            let listed = fs::read_dir(place).map_err(reported)?;
            let mut names: Vec<_> = listed
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_, _>>()
                .map_err(reported)?;
            names.sort();
            Ok(names.join(" "))
        }
        ["tar", place] => timed(|| {
            let mut sum = (0, 0);
            read_all(Path::new(place), &mut sum)?;
            Ok(format!("files={} bytes={}", sum.0, sum.1))
        }),
        ["stream", file] => timed(|| {
            stream(Path::new(file)).map(|(bytes, hash)| format!("bytes={bytes} hash={hash:016x}"))
        }),
        ["random", file, count] => random(Path::new(file), count.parse().map_err(reported)?),
        ["storm", place, threads] => storm(Path::new(place), threads.parse().map_err(reported)?),
        ["exec", program, ref arguments @ ..] => {
            let output = Command::new(program)
                .args(arguments)
                .output()
                .map_err(reported)?;
            let out = String::from_utf8_lossy(&output.stdout);
            Ok(format!(
                "status={} {}",
                output.status.code().unwrap_or(-1),
                out.trim_end()
            ))
        }
        ["read", file, seconds] => patiently(file, seconds.parse().map_err(reported)?),
        ["interrupts"] => interrupts(),
        ["switch_root", place, init] => {
            switch_root(place, init)?;
            Ok(String::new())
        }
        ["reboot"] => {
            // SAFETY: takes a number.
            check(unsafe { reboot(RB_AUTOBOOT) }, "reboot").map(|()| String::new())
        }
        ["poweroff"] => {
            // SAFETY: takes a number.
            check(unsafe { reboot(RB_POWER_OFF) }, "poweroff").map(|()| String::new())
        }
        _ => Err(format!("no such command: {words:?}")),
    }
}

fn reported(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn at(path: &Path) -> impl Fn(io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

fn timed(work: impl FnOnce() -> Outcome) -> Outcome {
    let start = Instant::now();
    let found = work()?;
    Ok(format!("us={} {found}", start.elapsed().as_micros()))
}

/// Fails unless what is at `actual` is the tree at `reference`, in every name, byte, mode and link.
fn compare(
    reference: &Path,
    actual: &Path,
    seen: &mut BTreeMap<&'static str, u64>,
) -> Result<(), String> {
    let expected = fs::symlink_metadata(reference).map_err(at(reference))?;
    let found = fs::symlink_metadata(actual).map_err(at(actual))?;
    let wrong = |what: &str| Err(format!("{}: {what}", actual.display()));
    if expected.file_type() != found.file_type() {
        return wrong("another type");
    }
    let mode = found.permissions().mode() & 0o7777;
    if expected.is_symlink() {
        if fs::read_link(reference).map_err(at(reference))?
            != fs::read_link(actual).map_err(at(actual))?
        {
            return wrong("another target");
        }
        *seen.entry("symlinks").or_default() += 1;
    } else if expected.is_dir() {
        if mode != 0o555 {
            return wrong(&format!("mode {mode:o}"));
        }
        let names = names(reference)?;
        if names != self::names(actual)? {
            return wrong("other names");
        }
        for name in names {
            compare(&reference.join(&name), &actual.join(&name), seen)?;
        }
        *seen.entry("directories").or_default() += 1;
    } else {
        let executable = expected.permissions().mode() & 0o100 != 0;
        if mode != if executable { 0o555 } else { 0o444 } || found.len() != expected.len() {
            return wrong(&format!("mode {mode:o}, {} bytes", found.len()));
        }
        if fs::read(reference).map_err(at(reference))? != fs::read(actual).map_err(at(actual))? {
            return wrong("other bytes");
        }
        *seen.entry("files").or_default() += 1;
        *seen.entry("bytes").or_default() += expected.len();
    }
    Ok(())
}

fn names(dir: &Path) -> Result<Vec<OsString>, String> {
    let listed = fs::read_dir(dir).map_err(at(dir))?;
    let mut names: Vec<_> = listed
        .map(|entry| Ok(entry?.file_name().into_vec()))
        .collect::<io::Result<_>>()
        .map_err(at(dir))?;
    names.sort();
    Ok(names.into_iter().map(OsString::from_vec).collect())
}

/// Counts files and the rest, asking for the attributes of each.
fn walk(dir: &Path) -> Result<(u64, u64), String> {
    let mut sum = (0, 1);
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let found = entry.metadata().map_err(at(dir))?;
        if found.is_dir() {
            let (files, rest) = walk(&entry.path())?;
            sum = (sum.0 + files, sum.1 + rest);
        } else if found.is_file() {
            sum.0 += 1;
        } else {
            sum.1 += 1;
        }
    }
    Ok(sum)
}

fn read_all(dir: &Path, sum: &mut (u64, u64)) -> Result<(), String> {
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let kind = entry.file_type().map_err(at(dir))?;
        let path = entry.path();
        if kind.is_dir() {
            read_all(&path, sum)?;
        } else if kind.is_file() {
            sum.0 += 1;
            sum.1 += fs::read(&path).map_err(at(&path))?.len() as u64;
        }
    }
    Ok(())
}

/// Adds the names and bytes of all files from `path` on to `state`, names sorted.
fn sum(path: &Path, files: &mut u64, state: &mut u64) -> Result<(), String> {
    if path.is_dir() {
        for name in names(path)? {
            *state = hash(*state, name.as_bytes());
            sum(&path.join(name), files, state)?;
        }
    } else {
        *files += 1;
        *state = hash(*state, &fs::read(path).map_err(at(path))?);
    }
    Ok(())
}

fn hash(mut state: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        state = (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    for byte in words.remainder() {
        state = (state.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    state
}

fn stream(path: &Path) -> Result<(u64, u64), String> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut state) = (0, 0);
    loop {
        match file.read(&mut buffer).map_err(at(path))? {
            0 => return Ok((bytes, state)),
            length => {
                bytes += length as u64;
                // A sample, so that the guest's emulated arithmetic is not what is measured.
                state = hash(state, &buffer[..length.min(4096)]);
            }
        }
    }
}

/// Reads of 4 KiB at places that are the same every time.
fn random(path: &Path, count: u64) -> Outcome {
    let file = File::open(path).map_err(at(path))?;
    let pages = file.metadata().map_err(at(path))?.len() / 4096;
    let mut buffer = vec![0; 4096];
    let (mut place, mut state) = (1u64, 0);
    let start = Instant::now();
    for _ in 0..count {
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let offset = (place >> 20) % pages * 4096;
        file.read_exact_at(&mut buffer, offset).map_err(at(path))?;
        state = hash(state, &buffer);
    }
    Ok(format!(
        "us={} hash={state:016x}",
        start.elapsed().as_micros()
    ))
}

/// Every thread reads every file, each beginning elsewhere, around the page cache where that can
/// be had, so that requests of all are under way at once.
fn storm(dir: &Path, threads: usize) -> Outcome {
    let mut files = Vec::new();
    fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
        for name in names(dir)? {
            let path = dir.join(name);
            let found = fs::symlink_metadata(&path).map_err(at(&path))?;
            if found.is_dir() {
                collect(&path, files)?;
            } else if found.is_file() {
                files.push(path);
            }
        }
        Ok(())
    }
    collect(dir, &mut files)?;
    let hashes = Mutex::new(BTreeMap::new());
    let reads = AtomicUsize::new(0);
    let start = Instant::now();
    let outcome: Result<Vec<()>, String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (files, hashes, reads) = (&files, &hashes, &reads);
                scope.spawn(move || {
                    for index in 0..files.len() {
                        let index = (index + worker * files.len() / threads) % files.len();
                        let path = &files[index];
                        let direct = OpenOptions::new()
                            .read(true)
                            .custom_flags(O_DIRECT)
                            .open(path);
                        let mut file = direct.or_else(|_| File::open(path)).map_err(at(path))?;
                        let mut bytes = Vec::new();
                        file.read_to_end(&mut bytes).map_err(at(path))?;
                        let state = hash(0, &bytes);
                        reads.fetch_add(1, Ordering::Relaxed);
                        let mut hashes = hashes.lock().expect("no panic");
                        if *hashes.entry(index).or_insert(state) != state {
                            return Err(format!("{}: two readers saw other bytes", path.display()));
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect()
    });
    outcome?;
    let all = hashes.into_inner().expect("no panic");
    let all = all
        .values()
        .fold(0, |state, one| hash(state, &u64::to_le_bytes(*one)));
    let reads = reads.into_inner();
    Ok(format!(
        "us={} reads={reads} hash={all:016x}",
        start.elapsed().as_micros()
    ))
}

/// Reads a file in a thread of its own: what came of it, or that nothing did for so long.
fn patiently(file: &str, seconds: u64) -> Outcome {
    let (sender, receiver) = mpsc::channel();
    let path = PathBuf::from(file);
    thread::spawn(move || {
        let outcome = fs::read(&path);
        let _ = sender.send(outcome.map(|bytes| bytes.len()));
    });
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(Ok(bytes)) => Ok(format!("bytes={bytes}")),
        Ok(Err(error)) => Ok(format!("errno={}", error.raw_os_error().unwrap_or(0))),
        Err(_) => Ok("hangs".to_owned()),
    }
}

/// Interrupts of each virtiofs queue so far.
fn interrupts() -> Outcome {
    let all = fs::read_to_string("/proc/interrupts").map_err(reported)?;
    let queues = all
        .lines()
        .filter(|line| line.contains("virtio") && line.contains("request"));
    let sums = queues.map(|line| {
        let counts = line
            .split_whitespace()
            .skip(1)
            .map_while(|word| word.parse::<u64>().ok());
        counts.sum::<u64>().to_string()
    });
    Ok(sums.collect::<Vec<_>>().join(" "))
}

/// As switch_root(8) does it: the mount becomes the root, and its program this process.
fn switch_root(place: &str, init: &str) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    for old in ["/proc", "/sys", "/dev"] {
        // SAFETY: a C string that lives through the call.
        let _ = unsafe { umount2(text(old).as_ptr(), MNT_DETACH) };
    }
    std::env::set_current_dir(place).map_err(reported)?;
    mount_at("", ".", "/", MS_MOVE)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { chroot(c".".as_ptr()) }, "chroot")?;
    std::env::set_current_dir("/").map_err(reported)?;
    Err(format!("exec {init}: {}", Command::new(init).exec()))
}
