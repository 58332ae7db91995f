//! The least that a FUSE server can do, as a lower bound for the large reads of `benches/compare`:
//! one file, and for each READ the same bytes, neither read from anywhere nor verified. Its time is
//! the kernel's share of castore-fs's time in page-cache mode.
//!
//! `floor DIR BYTES`: mounts on DIR, reports that on standard error, and serves `file` of so
//! many bytes there until it is unmounted.

use std::error::Error;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use fuse_backend_rs::abi::fuse_abi::{
    Attr, AttrOut, EntryOut, InHeader, InitOut, Opcode, OutHeader, ReadIn,
};
use rustix::mount::{MountFlags, mount};
use vm_memory::ByteValued;

/// The node of the file; the directory's is 1.
const FILE: u64 = 2;
/// Bytes of a READ, at most, and how many there may be at once: the same as in castore-fs.
const MAX_READ: usize = 1 << 20;
const MAX_BACKGROUND: u16 = 1024;
/// `FUSE_ASYNC_READ`, `FUSE_NO_OPEN_SUPPORT`, `FUSE_MAX_PAGES` and `FUSE_EXPLICIT_INVAL_DATA`.
const FLAGS: u32 = 1 | 1 << 17 | 1 << 22 | 1 << 25;
/// How long the kernel may cache replies, in seconds.
const FOREVER: u64 = 1 << 40;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [dir, bytes] = words[..] else {
        // `cargo bench` and `cargo test` start every bench target; this one is for the script.
        eprintln!("this is run by benches/compare");
        return Ok(());
    };
    let bytes = bytes.parse()?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40555,user_id=0,group_id=0,default_permissions,max_read={MAX_READ}",
        device.as_raw_fd()
    );
    let options = CString::new(options)?;
    mount("floor", dir, "fuse", MountFlags::RDONLY, options.as_c_str())?;
    eprintln!("a server that does nothing is on {dir}");
    // As many as castore-fs has.
    let workers = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| serve(&device, bytes));
        }
    });
    Ok(())
}

fn serve(mut device: &File, bytes: u64) {
    let mut request = vec![0; 8192];
    let mut reply = vec![7; size_of::<OutHeader>() + MAX_READ];
    loop {
        match device.read(&mut request) {
            Ok(length) if length >= size_of::<InHeader>() => {
                let length = answer(&request, bytes, &mut reply);
                // The program that sent the request may have ended.
                let _ = device.write(&reply[..length]);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Writes the reply to `request` into `reply`; returns its length, or 0 if there is to be none.
fn answer(request: &[u8], bytes: u64, reply: &mut [u8]) -> usize {
    const INIT: u32 = Opcode::Init as u32;
    const LOOKUP: u32 = Opcode::Lookup as u32;
    const GETATTR: u32 = Opcode::Getattr as u32;
    const READ: u32 = Opcode::Read as u32;
    const FORGET: u32 = Opcode::Forget as u32;
    const BATCH_FORGET: u32 = Opcode::BatchForget as u32;
    let (head, body) = request.split_at(size_of::<InHeader>());
    let mut header = InHeader::default();
    header.as_mut_slice().copy_from_slice(head);
    let room = &mut reply[size_of::<OutHeader>()..];
    let outcome = match header.opcode {
        FORGET | BATCH_FORGET => return 0,
        INIT => put(room, &agreement()),
        LOOKUP if header.nodeid == 1 && body.starts_with(b"file\0") => put(room, &entry(bytes)),
        LOOKUP => Err(libc::ENOENT),
        GETATTR => put(room, &attributes(header.nodeid, bytes)),
        READ => {
            let mut asked = ReadIn::default();
            asked
                .as_mut_slice()
                .copy_from_slice(&body[..size_of::<ReadIn>()]);
            let remaining = bytes.saturating_sub(asked.offset);
            Ok(remaining.min(asked.size.into()) as usize)
        }
        _ => Err(libc::ENOSYS),
    };
    let length = size_of::<OutHeader>() + outcome.unwrap_or(0);
    let head = OutHeader {
        len: length as u32,
        error: outcome.map_or_else(|errno: i32| -errno, |_| 0),
        unique: header.unique,
    };
    reply[..size_of::<OutHeader>()].copy_from_slice(head.as_slice());
    length
}

fn agreement() -> InitOut {
    InitOut {
        major: 7,
        minor: 31,
        max_readahead: 16 << 20,
        flags: FLAGS,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND,
        max_write: 4096,
        time_gran: 1,
        max_pages: (MAX_READ / 4096) as u16,
        ..InitOut::default()
    }
}

fn entry(bytes: u64) -> EntryOut {
    EntryOut {
        nodeid: FILE,
        entry_valid: FOREVER,
        attr_valid: FOREVER,
        attr: attr(FILE, bytes),
        ..EntryOut::default()
    }
}

fn attributes(node: u64, bytes: u64) -> AttrOut {
    AttrOut {
        attr_valid: FOREVER,
        attr: attr(node, bytes),
        ..AttrOut::default()
    }
}

fn attr(node: u64, bytes: u64) -> Attr {
    let (mode, size) = match node {
        FILE => (libc::S_IFREG | 0o444, bytes),
        _ => (libc::S_IFDIR | 0o555, 0),
    };
    Attr {
        ino: node,
        size,
        mode,
        nlink: 1,
        blksize: 4096,
        ..Attr::default()
    }
}

fn put(room: &mut [u8], value: &impl ByteValued) -> Result<usize, i32> {
    let bytes = value.as_slice();
    room[..bytes.len()].copy_from_slice(bytes);
    Ok(bytes.len())
}
