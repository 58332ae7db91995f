//! A guest: its session, and the replies to its requests.
//!
//! A guest's session starts with INIT and ends with the next INIT, with DESTROY, with the reset of
//! the device, or with the connection: each gets a file system with a node table of its own, while
//! the store and its cache are shared. A request outside of a session is answered with EIO. That
//! happens to a guest whose mount was served by a process that has since died: node ids are places
//! in that process's table, and invalid in any other, unless the table was handed over.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, Reader};
use futures_util::FutureExt;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use vm_memory::ByteValued;

use super::chain::HEADER_BYTES;
use super::record::GuestRecord;
use super::warm_up::GuestWarmUp;
use crate::fs::{
    CastoreFs, FsOptions, InodeTable, InodeTableError, NodeCount, ParkedState, ParkedWait,
    WaitingRequests,
};
use crate::store::Store;
use crate::transport::init::{self, KernelPeer};
use crate::transport::reply::ReplyBuffer;
use crate::transport::requests::{self, RequestCounters};
use crate::transport::traffic::ReplyCounters;

/// Buffers that are kept for later requests.
const SPARE_BUFFERS: usize = 16;

/// What guests see.
pub(super) struct GuestView {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How the store is presented.
    pub options: FsOptions,
    /// Where requests wait for the store.
    pub runtime: Handle,
    /// What the configuration names as shown, for the next process.
    pub shows: String,
    /// The tracing span of everything that is logged for a request.
    pub span: tracing::Span,
    /// Requests of all guests, including those that have disconnected.
    pub counters: RequestCounters,
    /// The replies to them.
    pub replies: ReplyCounters,
}

/// A guest, for the length of a connection.
pub(super) struct Guest {
    shown: Arc<GuestView>,
    /// Where the next process finds it.
    record: Arc<GuestRecord>,
    session: RwLock<Option<GuestSession>>,
    /// The warm-up of its sessions, if the options enable it.
    warm_up: Arc<GuestWarmUp>,
    buffers: Mutex<Vec<GuestBuffers>>,
    /// The guest is no longer served.
    dismissed: AtomicBool,
    /// Whether a malformed request of this guest has been logged.
    complained: AtomicBool,
}

#[derive(Clone)]
struct GuestSession {
    server: Arc<Server<Arc<CastoreFs>>>,
    fs: Arc<CastoreFs>,
}

impl GuestSession {
    fn new(fs: CastoreFs) -> Self {
        let fs = Arc::new(fs);
        let server = Arc::new(Server::new(fs.clone()));
        Self { server, fs }
    }
}

impl GuestView {
    /// Notes in `inode_table` what is shown.
    fn describe(&self, inode_table: &InodeTable) {
        if let Err(error) = inode_table.set_about(self.shows.as_bytes()) {
            tracing::warn!(%error, "the next process cannot see what a guest was shown");
        }
    }

    fn waiting(&self) -> WaitingRequests {
        WaitingRequests::new(self.runtime.clone())
    }
}

/// The buffers of a request.
pub(super) struct GuestBuffers {
    /// The request, copied out of the guest.
    pub request: Vec<u8>,
    /// The reply, not yet copied into the guest.
    pub reply: ReplyBuffer,
}

impl Guest {
    /// A guest that has not mounted yet.
    pub(super) fn new(shown: Arc<GuestView>, record: Arc<GuestRecord>) -> Self {
        Self {
            shown,
            record,
            session: RwLock::new(None),
            warm_up: Arc::default(),
            buffers: Mutex::default(),
            dismissed: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        }
    }

    /// Where the next process finds the guest.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn record(&self) -> &Arc<GuestRecord> {
        &self.record
    }

    /// Takes over the session of the previous process, or begins with none if that is impossible.
    pub(super) fn take_over(&self, session: Result<Arc<InodeTable>, InodeTableError>) {
        let GuestView { store, options, .. } = &*self.shown;
        let take_over = |inode_table: Arc<InodeTable>| {
            let fs = CastoreFs::take_over(
                store.clone(),
                options.clone(),
                self.shown.waiting(),
                None,
                inode_table.clone(),
            )?;
            self.shown.describe(&inode_table);
            Ok(fs)
        };
        match session.and_then(take_over) {
            Ok(fs) => {
                fs.hold_in_use(None);
                self.begin(GuestSession::new(fs));
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "cannot take over a guest's session; its requests get EIO until it mounts again"
                );
                self.record.session(None);
            }
        }
    }

    /// From here on the guest's requests are for `session`.
    fn begin(&self, session: GuestSession) {
        let mut current = self.session.write();
        self.warm_up.begin(&session.fs, &self.shown.span);
        *current = Some(session);
    }

    /// The tracing span of everything that is logged for a request.
    pub(super) fn span(&self) -> &tracing::Span {
        &self.shown.span
    }

    /// Buffers for a request; to be returned to [`keep`](Self::keep).
    pub(super) fn buffers(&self) -> Option<GuestBuffers> {
        if let Some(buffers) = self.buffers.lock().pop() {
            return Some(buffers);
        }
        let reply = ReplyBuffer::new().inspect_err(|error| tracing::error!(%error, "no memory"));
        Some(GuestBuffers {
            request: Vec::new(),
            reply: reply.ok()?,
        })
    }

    /// Takes buffers back.
    pub(super) fn keep(&self, buffers: GuestBuffers) {
        let mut kept = self.buffers.lock();
        if kept.len() < SPARE_BUFFERS {
            kept.push(buffers);
        }
    }

    /// Answers the request in `buffers`, which leaves `room` bytes for the reply; then passes the
    /// reply to `send`, later if the request has to wait. The reply to FORGET is empty. Catches
    /// every panic.
    pub(super) fn answer(
        self: &Arc<Self>,
        buffers: &mut GuestBuffers,
        room: usize,
        send: impl FnOnce(&[u8]) + Send + 'static,
    ) {
        let GuestBuffers { request, reply } = buffers;
        let Some(header) = header(request) else {
            return send(&[]);
        };
        let answering = self.shown.counters.begin(&header);
        let session = self.session.read().clone();
        let may_block = |session: &GuestSession| session.fs.may_block(header.nodeid);
        if session.as_ref().is_some_and(may_block) {
            let mut waits = ParkedGuestRequest {
                header,
                session,
                request: request.clone(),
                room,
                paused: ParkedState::default(),
            };
            let (guest, began) = (self.clone(), answering.pause());
            self.shown.runtime.spawn_blocking(move || {
                guest.answer_blocking(&mut waits, send);
                guest.shown.counters.ended(&header, began);
            });
            return;
        }
        let mut paused = ParkedState::default();
        let outcome = self.checked(&header, request).and_then(|request| {
            self.handle(&header, session.as_ref(), request, reply, room, &mut paused)
        });
        if let Ok(GuestReply::Later(parked)) = outcome {
            let waits = ParkedGuestRequest {
                header,
                session,
                request: request.clone(),
                room,
                paused,
            };
            let (guest, began) = (self.clone(), answering.pause());
            self.shown.runtime.spawn(
                async move {
                    guest.wait_parked(waits, *parked, send).await;
                    guest.shown.counters.ended(&header, began);
                }
                .boxed(),
            );
            return;
        }
        self.give(&header, outcome, reply, room, send);
    }

    /// Answers a request on a thread that may wait for it.
    fn answer_blocking(&self, waits: &mut ParkedGuestRequest, send: impl FnOnce(&[u8])) {
        let Some(mut buffers) = self.buffers() else {
            return self.refuse(&waits.header, libc::ENOMEM, send);
        };
        let _in_span = self.shown.span.enter();
        let mut has_waited = false;
        loop {
            let outcome = self.again(waits, &mut buffers.reply);
            if let Ok(GuestReply::Later(parked)) = outcome {
                if !std::mem::replace(&mut has_waited, true) {
                    self.shown.counters.waits_for_upstream(&waits.header);
                }
                let arrival = self.shown.runtime.block_on(parked.arrival());
                waits.paused.arrived(arrival);
                continue;
            }
            self.give(&waits.header, outcome, &buffers.reply, waits.room, send);
            self.keep(buffers);
            return;
        }
    }

    /// Makes the reply to a request that may have waited.
    fn again(
        &self,
        waits: &mut ParkedGuestRequest,
        reply: &mut ReplyBuffer,
    ) -> Result<GuestReply, i32> {
        let request = self.checked(&waits.header, &mut waits.request)?;
        let session = waits.session.as_ref();
        self.handle(
            &waits.header,
            session,
            request,
            reply,
            waits.room,
            &mut waits.paused,
        )
    }

    /// Waits for what a request needs, answers it, and passes the reply to `send`.
    async fn wait_parked(
        &self,
        mut waits: ParkedGuestRequest,
        parked: ParkedWait,
        send: impl FnOnce(&[u8]),
    ) {
        let mut parked = parked;
        self.shown.counters.waits_for_upstream(&waits.header);
        loop {
            let arrival = parked.arrival().await;
            waits.paused.arrived(arrival);
            let Some(mut buffers) = self.buffers() else {
                return self.refuse(&waits.header, libc::ENOMEM, send);
            };
            let span = &self.shown.span;
            let outcome = span.in_scope(|| self.again(&mut waits, &mut buffers.reply));
            if let Ok(GuestReply::Later(again)) = outcome {
                self.keep(buffers);
                parked = *again;
                continue;
            }
            self.give(&waits.header, outcome, &buffers.reply, waits.room, send);
            self.keep(buffers);
            return;
        }
    }

    /// Passes a reply to `send`.
    fn give(
        &self,
        header: &InHeader,
        outcome: Result<GuestReply, i32>,
        reply: &ReplyBuffer,
        room: usize,
        send: impl FnOnce(&[u8]),
    ) {
        match outcome {
            Ok(GuestReply::Made) => {
                let reply = reply.reply();
                self.shown.replies.replied(header, reply);
                send(reply);
            }
            Ok(GuestReply::Own(bytes)) => send(&bytes),
            Ok(GuestReply::Later(_)) => self.refuse(header, libc::EIO, send),
            Err(_) if wants_no_reply(header) || room < size_of::<OutHeader>() => send(&[]),
            Err(errno) => self.refuse(header, errno, send),
        }
    }

    /// Passes `errno` to `send`, as the reply to the request of `header`.
    fn refuse(&self, header: &InHeader, errno: i32, send: impl FnOnce(&[u8])) {
        self.shown.replies.failed(errno);
        send(&failure(header.unique, errno));
    }

    /// The request, of the length that its header states, if there are so many bytes.
    fn checked<'a>(&self, header: &InHeader, request: &'a mut [u8]) -> Result<&'a mut [u8], i32> {
        let length = header.len as usize;
        if length < HEADER_BYTES || length > request.len() {
            self.complain(&format!(
                "its header has the length {length}, and there are {} bytes",
                request.len()
            ));
            return Err(libc::EIO);
        }
        Ok(&mut request[..length])
    }

    /// As [`handle_now`](Self::handle_now); a panic is EIO.
    fn handle(
        &self,
        header: &InHeader,
        session: Option<&GuestSession>,
        request: &mut [u8],
        reply: &mut ReplyBuffer,
        room: usize,
        paused: &mut ParkedState,
    ) -> Result<GuestReply, i32> {
        catch_unwind(AssertUnwindSafe(|| {
            self.handle_now(header, session, request, reply, room, paused)
        }))
        .unwrap_or_else(|_| {
            let (opcode, node) = (header.opcode, header.nodeid);
            tracing::error!(opcode, node, "a request panicked; this is a bug");
            Err(libc::EIO)
        })
    }

    /// Makes the reply to a request of `session`.
    fn handle_now(
        &self,
        header: &InHeader,
        session: Option<&GuestSession>,
        request: &mut [u8],
        reply: &mut ReplyBuffer,
        room: usize,
        paused: &mut ParkedState,
    ) -> Result<GuestReply, i32> {
        if self.dismissed.load(Ordering::Relaxed) {
            return Err(libc::EIO);
        }
        if init::is_init(header) {
            return self
                .start_session(header, request, room)
                .map(GuestReply::Own);
        }
        if header.opcode == Opcode::Destroy as u32 {
            self.end_session();
            return Ok(GuestReply::Own(failure(header.unique, 0)));
        }
        let session = session.ok_or(libc::EIO)?;
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request));
        let (Ok(reader), Ok(writer)) = (reader, reply.writer(room)) else {
            return Err(libc::EIO);
        };
        let (handled, parked) = session.fs.answering(
            paused,
            || requests::name(header.opcode as usize),
            header.nodeid,
            || session.server.handle_message(reader, writer, None, None),
        );
        if let Some(parked) = parked {
            return Ok(GuestReply::Later(Box::new(parked)));
        }
        match handled {
            Ok(_) => Ok(GuestReply::Made),
            Err(error) => {
                self.complain(&format!("opcode {}: {error}", header.opcode));
                Err(libc::EIO)
            }
        }
    }

    /// Answers INIT: from here on the guest has a new file system, and knows no node of it.
    fn start_session(
        &self,
        header: &InHeader,
        request: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, i32> {
        let body = request.get(size_of::<InHeader>()..).unwrap_or_default();
        let agreement = init::answer(body, KernelPeer::Guest).map_err(|why| {
            tracing::warn!(why, "a guest cannot mount");
            libc::EPROTO
        })?;
        let reply = [
            OutHeader {
                len: (size_of::<OutHeader>() + size_of_val(&agreement.reply)) as u32,
                error: 0,
                unique: header.unique,
            }
            .as_slice(),
            agreement.reply.as_slice(),
        ]
        .concat();
        if reply.len() > room {
            return Err(libc::EIO);
        }
        let GuestView { store, options, .. } = &*self.shown;
        let inode_table = match self.record.is_held() {
            true => Some(Arc::new(InodeTable::create().map_err(|error| {
                tracing::error!(%error, "cannot make a node table that outlives this process");
                libc::ENOMEM
            })?)),
            false => None,
        };
        if let Some(inode_table) = &inode_table {
            self.shown.describe(inode_table);
        }
        let waiting = self.shown.waiting();
        let fs = CastoreFs::with_inode_table(
            store.clone(),
            options.clone(),
            waiting,
            None,
            inode_table.clone(),
        );
        fs.hold_in_use(None);
        // Before the guest gets the reply.
        self.record.session(inode_table.as_ref());
        self.begin(GuestSession::new(fs));
        Ok(reply)
    }

    /// Drops the guest's session. Requests that are being served finish with what they have.
    pub(super) fn end_session(&self) {
        let mut session = self.session.write();
        if let Some(session) = session.take() {
            session.fs.end_use();
        }
        self.warm_up.end();
        drop(session);
        self.record.session(None);
    }

    /// Answers every request with EIO from here on.
    pub(super) fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.end_session();
        self.warm_up.dismiss();
    }

    /// Writes what was recorded of its sessions so far.
    pub(super) fn remember(&self) {
        self.warm_up.remember();
    }

    /// Nodes that the guest knows.
    pub(super) fn nodes(&self) -> NodeCount {
        let session = self.session.read();
        session
            .as_ref()
            .map(|session| session.fs.count())
            .unwrap_or_default()
    }

    /// Logs that a request is malformed: once at a high level, because a guest could fill the log.
    pub(super) fn complain(&self, why: &str) {
        if self.complained.swap(true, Ordering::Relaxed) {
            tracing::debug!(why, "a guest sent a malformed request");
        } else {
            tracing::warn!(
                why,
                "a guest sent a malformed request; more of them are logged at level debug"
            );
        }
    }
}

/// Where the reply is.
enum GuestReply {
    /// In the buffer.
    Made,
    /// Here.
    Own(Vec<u8>),
    /// Nowhere yet: the request has to wait.
    Later(Box<ParkedWait>),
}

/// A request that waits.
struct ParkedGuestRequest {
    header: InHeader,
    /// Node ids are places in its table, whatever the guest mounts meanwhile.
    session: Option<GuestSession>,
    request: Vec<u8>,
    room: usize,
    paused: ParkedState,
}

/// A reply without a body: an errno, or 0 for success.
pub(super) fn failure(unique: u64, errno: i32) -> Vec<u8> {
    let header = OutHeader {
        len: size_of::<OutHeader>() as u32,
        error: -errno,
        unique,
    };
    header.as_slice().to_vec()
}

fn wants_no_reply(header: &InHeader) -> bool {
    let silent = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt];
    silent.iter().any(|opcode| header.opcode == *opcode as u32)
}

fn header(request: &[u8]) -> Option<InHeader> {
    let mut header = InHeader::default();
    let bytes = request.get(..size_of::<InHeader>())?;
    header.as_mut_slice().copy_from_slice(bytes);
    Some(header)
}
