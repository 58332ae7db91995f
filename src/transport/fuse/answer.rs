//! Answering requests.
//!
//! LOOKUP, GETATTR, READ, READDIR, READDIRPLUS and the FORGETs are nearly all that a kernel sends,
//! and OPEN and RELEASE with passthrough. They are decoded in place and answered into the worker's
//! reply buffer, without an allocation (`tests/allocations.rs`); a blob is verified in the place
//! from which the kernel takes it. Everything else is rare, and left to the crate.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, BatchForgetIn, Dirent, EntryOut, ForgetIn, ForgetOne, InHeader, Opcode, OpenIn,
    OpenOut, OutHeader, ReadIn, ReleaseIn,
};
use fuse_backend_rs::api::filesystem::{Context, DirEntry, Entry, FileSystem};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, Reader};
use parking_lot::Mutex;
use vm_memory::ByteValued;

use super::device;
use crate::fs::{
    CastoreFs, FileHandle, NodeId, OpenReply, OpenRequest, ParkedState, ParkedWait, Passthrough,
};
use crate::transport::reply::ReplyBuffer;
use crate::transport::requests;
use crate::transport::traffic::ReplyCounters;

/// `FUSE_UNIQUE_RESEND` of the kernel's `fuse.h`: this request was sent before.
const REPEATED: u64 = 1 << 63;
/// `FOPEN_KEEP_CACHE`.
const KEEP_CACHE: u32 = 1 << 1;
/// `FOPEN_PASSTHROUGH`.
const PASSTHROUGH: u32 = 1 << 7;

/// Answers the requests for one file system.
pub struct FuseAnswerer {
    fs: Arc<CastoreFs>,
    rare: Server<Arc<CastoreFs>>,
    pub(super) replies: Arc<ReplyCounters>,
    /// In which replies to rare requests are made.
    buffers: Mutex<Vec<ReplyBuffer>>,
}

/// The outcome of a request.
enum RequestOutcome {
    /// It is answered with so many bytes after the header, or with an errno.
    Reply(io::Result<usize>),
    /// It is answered with so many bytes, by which the kernel has a file open.
    Open(usize, FileHandle),
    /// It has no reply.
    Silent,
    /// It is left to the crate.
    Rare,
}

impl FuseAnswerer {
    /// Answers for `fs`.
    pub fn new(fs: Arc<CastoreFs>) -> Self {
        Self {
            rare: Server::new(fs.clone()),
            replies: Arc::default(),
            buffers: Mutex::default(),
            fs,
        }
    }

    /// Answers `request`, whose header is `header`, on `device`. `reply` is room for the answer: of
    /// the largest READ, and a header. If the request has to wait there is no answer yet: what it
    /// waits for is returned, and it is to be answered again with the same `paused` state. Returns
    /// why if the kernel has no answer now.
    pub fn answer(
        &self,
        device: &OwnedFd,
        header: &InHeader,
        request: &mut [u8],
        reply: &mut [u8],
        paused: &mut ParkedState,
    ) -> Result<Option<ParkedWait>, String> {
        let Some((head, data)) = reply.split_at_mut_checked(size_of::<OutHeader>()) else {
            return Err("no room for a reply".to_owned());
        };
        let mut rare = None;
        let name = || requests::name(header.opcode as usize);
        let (outcome, parked) = self.fs.answering(paused, name, header.nodeid, || {
            let body = request.get(size_of::<InHeader>()..).unwrap_or_default();
            let outcome = self.frequent(header, body, data);
            if matches!(outcome, RequestOutcome::Rare) {
                rare = Some(self.rare(request));
            }
            outcome
        });
        if parked.is_some() {
            return Ok(parked);
        }
        let written = match outcome {
            RequestOutcome::Silent => return Ok(None),
            RequestOutcome::Rare => {
                let buffer = rare.ok_or("a rare request without an outcome")??;
                let sent = match buffer.reply() {
                    [] => Ok(()),
                    reply => {
                        self.replies.replied(header, reply);
                        device::send(device, reply)
                    }
                };
                self.buffers.lock().push(buffer);
                sent
            }
            RequestOutcome::Reply(Ok(length)) => {
                let whole = put_header(head, header.unique, length);
                if header.opcode == Opcode::Read as u32 {
                    self.replies.read(length);
                }
                device::send(device, &reply[..whole])
            }
            RequestOutcome::Open(length, handle) => {
                let whole = put_header(head, header.unique, length);
                device::send(device, &reply[..whole]).inspect_err(|_| {
                    // The kernel did not accept the reply, and will not close what it does not
                    // know.
                    if let Some(passthrough) = self.passthrough() {
                        passthrough.close(handle);
                    }
                })
            }
            RequestOutcome::Reply(Err(error)) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.replies.failed(errno);
                device::reply_error(device, header.unique, errno)
            }
        };
        written.map(|()| None).map_err(|error| error.to_string())
    }

    /// Answers `request` if it reads an image and all of that is cached; whether it did.
    pub fn answer_in_place(
        &self,
        device: &OwnedFd,
        header: &InHeader,
        request: &[u8],
        reply: &mut [u8],
    ) -> bool {
        let body = request.get(size_of::<InHeader>()..).unwrap_or_default();
        let Some((head, data)) = reply.split_at_mut_checked(size_of::<OutHeader>()) else {
            return false;
        };
        if header.opcode != Opcode::Read as u32 {
            return false;
        }
        let Some((asked, _)) = take::<ReadIn>(body) else {
            return false;
        };
        let room = data.len().min(asked.size as usize);
        let id = NodeId::from(header.nodeid);
        let read = self
            .fs
            .read_cached_image(id, asked.offset, &mut data[..room]);
        let Some(length) = read else {
            return false;
        };
        let whole = put_header(head, header.unique, length);
        self.replies.read(length);
        // If the kernel does not take it, the program is gone.
        device::send(device, &reply[..whole]).is_ok()
    }

    /// Makes the reply to a rare request.
    fn rare(&self, request: &mut [u8]) -> Result<ReplyBuffer, String> {
        let buffer = self.buffers.lock().pop();
        let mut buffer = match buffer {
            Some(buffer) => buffer,
            None => ReplyBuffer::new().map_err(|error| error.to_string())?,
        };
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request))
            .map_err(|error| error.to_string())?;
        let writer = buffer
            .writer(device::REPLY_BYTES)
            .map_err(|error| error.to_string())?;
        self.rare
            .handle_message(reader, writer, None, None)
            .map_err(|error| error.to_string())?;
        Ok(buffer)
    }

    fn frequent(&self, header: &InHeader, body: &[u8], out: &mut [u8]) -> RequestOutcome {
        const LOOKUP: u32 = Opcode::Lookup as u32;
        const GETATTR: u32 = Opcode::Getattr as u32;
        const READ: u32 = Opcode::Read as u32;
        const READDIR: u32 = Opcode::Readdir as u32;
        const READDIRPLUS: u32 = Opcode::Readdirplus as u32;
        const OPEN: u32 = Opcode::Open as u32;
        const RELEASE: u32 = Opcode::Release as u32;
        const FORGET: u32 = Opcode::Forget as u32;
        const BATCH_FORGET: u32 = Opcode::BatchForget as u32;
        let id = NodeId::from(header.nodeid);
        let reply = match header.opcode {
            LOOKUP => self.look_up(header, body, out),
            GETATTR => self.get_attributes(id, out),
            READ => self.read(id, body, out),
            READDIR => self.list(header, false, body, out),
            READDIRPLUS => self.list(header, true, body, out),
            OPEN => match self.passthrough() {
                Some(passthrough) => return self.open(passthrough, header, body, out),
                None if self.fs.reports_open_images() => open_image(out),
                None => return RequestOutcome::Rare,
            },
            RELEASE => match self.passthrough() {
                Some(passthrough) => release(passthrough, body),
                None if self.fs.reports_open_images() => Ok(0),
                None => return RequestOutcome::Rare,
            },
            FORGET => return self.forget(id, body),
            BATCH_FORGET => return self.forget_many(body),
            _ => return RequestOutcome::Rare,
        };
        RequestOutcome::Reply(reply)
    }

    fn look_up(&self, header: &InHeader, body: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let name = CStr::from_bytes_until_nul(body).map_err(|_| malformed())?;
        let entry = self
            .fs
            .lookup(&Context::from(header), header.nodeid.into(), name)?;
        put(out, &EntryOut::from(entry))
    }

    fn get_attributes(&self, id: NodeId, out: &mut [u8]) -> io::Result<usize> {
        let (stat, timeout) = self.fs.getattr(&Context::default(), id, None)?;
        let attributes = AttrOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            dummy: 0,
            attr: stat.into(),
        };
        put(out, &attributes)
    }

    fn read(&self, id: NodeId, body: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let (asked, _) = take::<ReadIn>(body).ok_or_else(malformed)?;
        let length = out.len().min(asked.size as usize);
        self.fs.read_into(id, asked.offset, &mut out[..length])
    }

    fn list(
        &self,
        header: &InHeader,
        plus: bool,
        body: &[u8],
        out: &mut [u8],
    ) -> io::Result<usize> {
        let (asked, _) = take::<ReadIn>(body).ok_or_else(malformed)?;
        let length = out.len().min(asked.size as usize);
        let mut listing = ReaddirReply {
            room: &mut out[..length],
            written: 0,
        };
        let (context, id) = (Context::from(header), header.nodeid.into());
        let (size, offset) = (asked.size, asked.offset);
        if plus {
            let mut add = |listed: DirEntry<'_>, entry| Ok(listing.add(&listed, Some(entry)));
            self.fs
                .readdirplus(&context, id, 0, size, offset, &mut add)?;
        } else {
            let mut add = |listed: DirEntry<'_>| Ok(listing.add(&listed, None));
            self.fs.readdir(&context, id, 0, size, offset, &mut add)?;
        }
        Ok(listing.written)
    }

    /// The open files, if the kernel sends OPEN at all.
    fn passthrough(&self) -> Option<&Passthrough> {
        let passthrough = self.fs.passthrough()?;
        passthrough.is_enabled().then_some(passthrough)
    }

    fn open(
        &self,
        passthrough: &Passthrough,
        header: &InHeader,
        body: &[u8],
        out: &mut [u8],
    ) -> RequestOutcome {
        let Some((asked, _)) = take::<OpenIn>(body) else {
            return RequestOutcome::Reply(Err(malformed()));
        };
        let request = OpenRequest {
            unique: header.unique & !REPEATED,
            repeated: header.unique & REPEATED != 0,
        };
        let id = NodeId::from(header.nodeid);
        let opened = self.fs.open_file(passthrough, request, id, asked.flags);
        let OpenReply { handle, backing } = match opened {
            Ok(opened) => opened,
            Err(error) => return RequestOutcome::Reply(Err(error)),
        };
        let answer = OpenOut {
            fh: handle.into(),
            open_flags: backing.map_or(KEEP_CACHE, |_| PASSTHROUGH),
            passthrough: backing.unwrap_or(0),
        };
        match put(out, &answer) {
            Ok(length) => RequestOutcome::Open(length, handle),
            Err(error) => {
                passthrough.close(handle);
                RequestOutcome::Reply(Err(error))
            }
        }
    }

    fn forget(&self, id: NodeId, body: &[u8]) -> RequestOutcome {
        if let Some((forgotten, _)) = take::<ForgetIn>(body) {
            self.fs.forget(&Context::default(), id, forgotten.nlookup);
        }
        RequestOutcome::Silent
    }

    fn forget_many(&self, body: &[u8]) -> RequestOutcome {
        if let Some((batch, mut rest)) = take::<BatchForgetIn>(body) {
            let each = std::iter::from_fn(|| {
                let (one, after) = take::<ForgetOne>(rest)?;
                rest = after;
                Some((NodeId::from(one.nodeid), one.nlookup))
            });
            self.fs.forget_all(each.take(batch.count as usize));
        }
        RequestOutcome::Silent
    }
}

/// Reads of an image name the node only, so that no process has to know what is open.
fn open_image(out: &mut [u8]) -> io::Result<usize> {
    let answer = OpenOut {
        fh: 0,
        open_flags: KEEP_CACHE,
        passthrough: 0,
    };
    put(out, &answer)
}

fn release(passthrough: &Passthrough, body: &[u8]) -> io::Result<usize> {
    let (released, _) = take::<ReleaseIn>(body).ok_or_else(malformed)?;
    passthrough.close(FileHandle::from(released.fh));
    Ok(0)
}

/// The entries of a READDIR or READDIRPLUS, as far as there is room.
struct ReaddirReply<'a> {
    room: &'a mut [u8],
    written: usize,
}

impl ReaddirReply<'_> {
    /// Appends an entry; gives its bytes, or 0 if there is no room for it.
    fn add(&mut self, listed: &DirEntry<'_>, entry: Option<Entry>) -> usize {
        let dirent = Dirent {
            ino: listed.ino,
            off: listed.offset,
            namelen: listed.name.len() as u32,
            type_: listed.type_,
        };
        let before = entry.map_or(0, |_| size_of::<EntryOut>());
        let named = before + size_of::<Dirent>() + listed.name.len();
        // Entries start at multiples of 8 bytes.
        let whole = named.next_multiple_of(8);
        let Some(room) = self.room.get_mut(self.written..self.written + whole) else {
            return 0;
        };
        if let Some(entry) = entry {
            room[..before].copy_from_slice(EntryOut::from(entry).as_slice());
        }
        let name_at = before + size_of::<Dirent>();
        room[before..name_at].copy_from_slice(dirent.as_slice());
        room[name_at..named].copy_from_slice(listed.name);
        room[named..].fill(0);
        self.written += whole;
        whole
    }
}

/// The first bytes of `bytes` as a message of the kernel, and those after it.
fn take<T: ByteValued + Default>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = bytes.split_at_checked(size_of::<T>())?;
    let mut value = T::default();
    value.as_mut_slice().copy_from_slice(head);
    Some((value, rest))
}

/// Writes the header of a reply with `length` bytes after it into `head`; returns the length of
/// both.
fn put_header(head: &mut [u8], unique: u64, length: usize) -> usize {
    let whole = head.len() + length;
    let out = OutHeader {
        len: whole as u32,
        error: 0,
        unique,
    };
    head.copy_from_slice(out.as_slice());
    whole
}

/// Writes `value` at the start of `out`; returns its length.
fn put<T: ByteValued>(out: &mut [u8], value: &T) -> io::Result<usize> {
    let bytes = value.as_slice();
    let room = out.get_mut(..bytes.len()).ok_or_else(malformed)?;
    room.copy_from_slice(bytes);
    Ok(bytes.len())
}

/// The kernel sent less than it should have, or there is less room than there should be.
fn malformed() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}
