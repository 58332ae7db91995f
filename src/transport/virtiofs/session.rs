//! A guest: its session, and the replies to its requests.
//!
//! A guest's session starts with INIT and ends with the next INIT, with DESTROY, with the reset of
//! the device, or with the connection: each gets a file system with a node table of its own, while
//! the store and its cache are shared. A request outside of a session is answered with EIO. That
//! happens to a guest whose mount was served by a process that has since died: node ids are places
//! in that process's table, and invalid in any other, unless the table was handed over.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, Reader};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use vm_memory::ByteValued;

use super::chain::HEADER_BYTES;
use super::record::Record;
use super::warm_up::WarmUp;
use crate::fs::{CastoreFs, Ledger, LedgerError, NodeCount, Options, Parked, Paused, Waiting};
use crate::store::Store;
use crate::transport::init::{self, Peer};
use crate::transport::reply::ReplyBuffer;
use crate::transport::requests::{self, Counters};

/// Where `struct fuse_in_header` has the request's number.
pub const UNIQUE: Range<usize> = 8..16;
/// Buffers that are kept for later requests.
const SPARE_BUFFERS: usize = 16;

/// What guests see.
pub struct Shown {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How the store is presented.
    pub options: Options,
    /// Where requests wait for the store.
    pub runtime: Handle,
    /// The tracing span of everything that is logged for a request.
    pub span: tracing::Span,
    /// Requests of all guests, including those that have disconnected.
    pub counters: Counters,
}

/// A guest, for the length of a connection.
pub struct Guest {
    shown: Arc<Shown>,
    /// Where the next process finds it.
    record: Arc<Record>,
    session: RwLock<Option<Session>>,
    /// The warm-up of its sessions, if the options enable it.
    warm_up: Arc<WarmUp>,
    buffers: Mutex<Vec<Buffers>>,
    /// The guest is no longer served.
    dismissed: AtomicBool,
    /// Whether a malformed request of this guest has been logged.
    complained: AtomicBool,
}

#[derive(Clone)]
struct Session {
    server: Arc<Server<Arc<CastoreFs>>>,
    fs: Arc<CastoreFs>,
}

impl Session {
    fn new(fs: CastoreFs) -> Self {
        let fs = Arc::new(fs);
        let server = Arc::new(Server::new(fs.clone()));
        Self { server, fs }
    }
}

impl Shown {
    fn waiting(&self) -> Waiting {
        Waiting::new(self.runtime.clone())
    }
}

/// The buffers of a request.
pub struct Buffers {
    /// The request, copied out of the guest.
    pub request: Vec<u8>,
    /// The reply, not yet copied into the guest.
    pub reply: ReplyBuffer,
}

impl Guest {
    /// A guest that has not mounted yet.
    pub fn new(shown: Arc<Shown>, record: Arc<Record>) -> Self {
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
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Takes over the session of the previous process, or begins with none if that is impossible.
    pub fn resume(&self, session: Result<Arc<Ledger>, LedgerError>) {
        let Shown { store, options, .. } = &*self.shown;
        let adopt = |ledger| {
            CastoreFs::adopt(
                store.clone(),
                options.clone(),
                self.shown.waiting(),
                None,
                ledger,
            )
        };
        match session.and_then(adopt) {
            Ok(fs) => {
                fs.hold_in_use(None);
                self.begin(Session::new(fs));
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
    fn begin(&self, session: Session) {
        let mut current = self.session.write();
        self.warm_up.begin(&session.fs, &self.shown.span);
        *current = Some(session);
    }

    /// The tracing span of everything that is logged for a request.
    pub fn span(&self) -> &tracing::Span {
        &self.shown.span
    }

    /// Buffers for a request; to be returned to [`keep`](Self::keep).
    pub fn buffers(&self) -> Option<Buffers> {
        if let Some(buffers) = self.buffers.lock().pop() {
            return Some(buffers);
        }
        let reply = ReplyBuffer::new().inspect_err(|error| tracing::error!(%error, "no memory"));
        Some(Buffers {
            request: Vec::new(),
            reply: reply.ok()?,
        })
    }

    /// Takes buffers back.
    pub fn keep(&self, buffers: Buffers) {
        let mut kept = self.buffers.lock();
        if kept.len() < SPARE_BUFFERS {
            kept.push(buffers);
        }
    }

    /// Answers the request in `buffers`, which leaves `room` bytes for the reply; then passes the
    /// reply to `send`, later if the request has to wait. The reply to FORGET is empty. Catches
    /// every panic.
    pub fn answer(
        self: &Arc<Self>,
        buffers: &mut Buffers,
        room: usize,
        send: impl FnOnce(&[u8]) + Send + 'static,
    ) {
        let Buffers { request, reply } = buffers;
        let Some(header) = header(request) else {
            return send(&[]);
        };
        let answering = self.shown.counters.begin(&header);
        let session = self.session.read().clone();
        let may_block = |session: &Session| session.fs.may_block(header.nodeid);
        if session.as_ref().is_some_and(may_block) {
            let mut waits = Waits {
                header,
                session,
                request: request.clone(),
                room,
                paused: Paused::default(),
            };
            let (guest, began) = (self.clone(), answering.pause());
            self.shown.runtime.spawn_blocking(move || {
                guest.answer_blocking(&mut waits, send);
                guest.shown.counters.ended(&header, began);
            });
            return;
        }
        let mut paused = Paused::default();
        let outcome = self.checked(&header, request).and_then(|request| {
            self.handle(&header, session.as_ref(), request, reply, room, &mut paused)
        });
        if let Ok(Reply::Later(parked)) = outcome {
            let waits = Waits {
                header,
                session,
                request: request.clone(),
                room,
                paused,
            };
            let (guest, began) = (self.clone(), answering.pause());
            self.shown.runtime.spawn(async move {
                guest.wait_parked(waits, *parked, send).await;
                guest.shown.counters.ended(&header, began);
            });
            return;
        }
        give(&header, outcome, reply, room, send);
    }

    /// Answers a request on a thread that may wait for it.
    fn answer_blocking(&self, waits: &mut Waits, send: impl FnOnce(&[u8])) {
        let Some(mut buffers) = self.buffers() else {
            return send(&failure(waits.header.unique, libc::ENOMEM));
        };
        let _in_span = self.shown.span.enter();
        loop {
            let outcome = self.again(waits, &mut buffers.reply);
            if let Ok(Reply::Later(parked)) = outcome {
                let arrival = self.shown.runtime.block_on(parked.arrival());
                waits.paused.arrived(arrival);
                continue;
            }
            give(&waits.header, outcome, &buffers.reply, waits.room, send);
            self.keep(buffers);
            return;
        }
    }

    /// Makes the reply to a request that may have waited.
    fn again(&self, waits: &mut Waits, reply: &mut ReplyBuffer) -> Result<Reply, i32> {
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
    async fn wait_parked(&self, mut waits: Waits, parked: Parked, send: impl FnOnce(&[u8])) {
        let mut parked = parked;
        loop {
            let arrival = parked.arrival().await;
            waits.paused.arrived(arrival);
            let Some(mut buffers) = self.buffers() else {
                return send(&failure(waits.header.unique, libc::ENOMEM));
            };
            let span = &self.shown.span;
            let outcome = span.in_scope(|| self.again(&mut waits, &mut buffers.reply));
            if let Ok(Reply::Later(again)) = outcome {
                self.keep(buffers);
                parked = *again;
                continue;
            }
            give(&waits.header, outcome, &buffers.reply, waits.room, send);
            self.keep(buffers);
            return;
        }
    }

    /// The request, of the length that its header states, if there are so many bytes.
    fn checked<'a>(&self, header: &InHeader, request: &'a mut [u8]) -> Result<&'a mut [u8], i32> {
        let length = header.len as usize;
        if length < HEADER_BYTES || length > request.len() {
            self.complain(&format!(
                "its header says {length} bytes and there are {}",
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
        session: Option<&Session>,
        request: &mut [u8],
        reply: &mut ReplyBuffer,
        room: usize,
        paused: &mut Paused,
    ) -> Result<Reply, i32> {
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
        session: Option<&Session>,
        request: &mut [u8],
        reply: &mut ReplyBuffer,
        room: usize,
        paused: &mut Paused,
    ) -> Result<Reply, i32> {
        if self.dismissed.load(Ordering::Relaxed) {
            return Err(libc::EIO);
        }
        if init::is_init(header) {
            return self.start_session(header, request, room).map(Reply::Own);
        }
        if header.opcode == Opcode::Destroy as u32 {
            self.end_session();
            return Ok(Reply::Own(failure(header.unique, 0)));
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
            return Ok(Reply::Later(Box::new(parked)));
        }
        match handled {
            Ok(_) => Ok(Reply::Made),
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
        let agreement = init::answer(body, Peer::Guest).map_err(|why| {
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
        let Shown { store, options, .. } = &*self.shown;
        let ledger = match self.record.is_kept() {
            true => Some(Arc::new(Ledger::create().map_err(|error| {
                tracing::error!(%error, "cannot make a node table that outlives this process");
                libc::ENOMEM
            })?)),
            false => None,
        };
        let waiting = self.shown.waiting();
        let fs = CastoreFs::with_ledger(
            store.clone(),
            options.clone(),
            waiting,
            None,
            ledger.clone(),
        );
        fs.hold_in_use(None);
        // Before the guest gets the reply.
        self.record.session(ledger.as_ref());
        self.begin(Session::new(fs));
        Ok(reply)
    }

    /// Drops the guest's session. Requests that are being served finish with what they have.
    pub fn end_session(&self) {
        let mut session = self.session.write();
        if let Some(session) = session.take() {
            session.fs.end_use();
        }
        self.warm_up.end();
        drop(session);
        self.record.session(None);
    }

    /// Answers every request with EIO from here on.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.end_session();
        self.warm_up.dismiss();
    }

    /// Writes what was recorded of its sessions so far.
    pub fn remember(&self) {
        self.warm_up.remember();
    }

    /// Nodes that the guest knows.
    pub fn nodes(&self) -> NodeCount {
        let session = self.session.read();
        session
            .as_ref()
            .map(|session| session.fs.count())
            .unwrap_or_default()
    }

    /// Logs that a request is malformed: once at a high level, because a guest could fill the log.
    pub fn complain(&self, why: &str) {
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
enum Reply {
    /// In the buffer.
    Made,
    /// Here.
    Own(Vec<u8>),
    /// Nowhere yet: the request has to wait.
    Later(Box<Parked>),
}

/// A request that waits.
struct Waits {
    header: InHeader,
    /// Node ids are places in its table, whatever the guest mounts meanwhile.
    session: Option<Session>,
    request: Vec<u8>,
    room: usize,
    paused: Paused,
}

/// Passes a reply to `send`.
fn give(
    header: &InHeader,
    outcome: Result<Reply, i32>,
    reply: &ReplyBuffer,
    room: usize,
    send: impl FnOnce(&[u8]),
) {
    match outcome {
        Ok(Reply::Made) => send(reply.reply()),
        Ok(Reply::Own(bytes)) => send(&bytes),
        Ok(Reply::Later(_)) => send(&failure(header.unique, libc::EIO)),
        Err(_) if wants_no_reply(header) || room < size_of::<OutHeader>() => send(&[]),
        Err(errno) => send(&failure(header.unique, errno)),
    }
}

/// A reply without a body: an errno, or 0 for success.
pub fn failure(unique: u64, errno: i32) -> Vec<u8> {
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
