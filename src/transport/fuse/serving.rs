//! The state of a mount that its threads share, and the course of a request.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode};
use futures_util::FutureExt;
use parking_lot::{Condvar, Mutex};

use super::answer::FuseAnswerer;
use super::device;
use super::fork_server::ForkServer;
use super::notifier::Notifier;
use super::parked::{self, ParkedRequests};
use super::worker_pool::WorkerPool;
use crate::fs::{CastoreFs, ParkedState, ParkedWait, Passthrough};
use crate::transport::init::{self, KernelPeer};
use crate::transport::requests::RequestCounters;

/// How long the kernel may take to send INIT.
const INIT_PATIENCE: Duration = Duration::from_secs(20);
/// `FUSE_UNIQUE_RESEND` of the kernel's `fuse.h`: this request was sent before.
const REPEATED: u64 = 1 << 63;

thread_local! {
    /// Reply buffers of threads that answer parked requests.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the threads of a mount share.
pub(super) struct ServingMount {
    pub(super) device: Arc<OwnedFd>,
    pub(super) fs: Arc<CastoreFs>,
    pub(super) counters: Arc<RequestCounters>,
    pub(super) worker_pool: Arc<WorkerPool>,
    pub(super) parked: ParkedRequests,
    /// Whether a worker has seen that the mount is gone, with its last user.
    pub(super) ended: AtomicBool,
    /// Names the mount in the log of a request.
    pub(super) span: tracing::Span,
    pub(super) answerer: FuseAnswerer,
    fork_server: Option<Arc<ForkServer>>,
    default_permissions: bool,
    /// The outcome of INIT, once it was answered.
    init: Mutex<Option<Result<(), String>>>,
    init_answered: Condvar,
}

impl ServingMount {
    /// Of the mount on `device`, which shows `fs` and is served by `worker_pool`. With `default_permissions` the
    /// kernel checks permissions.
    pub(super) fn new(
        device: Arc<OwnedFd>,
        fs: CastoreFs,
        worker_pool: Arc<WorkerPool>,
        span: tracing::Span,
        fork_server: Option<Arc<ForkServer>>,
        default_permissions: bool,
    ) -> Self {
        let fs = Arc::new(fs);
        Self {
            device,
            answerer: FuseAnswerer::new(fs.clone()),
            fs,
            counters: Arc::default(),
            worker_pool,
            parked: ParkedRequests::default(),
            ended: AtomicBool::new(false),
            span,
            fork_server,
            default_permissions,
            init: Mutex::default(),
            init_answered: Condvar::new(),
        }
    }

    /// With the counters of `former`, which the mount showed before.
    pub(super) fn with_counters_of(mut self, former: &Self) -> Self {
        self.counters = former.counters.clone();
        self.answerer.replies = former.answerer.replies.clone();
        self
    }

    /// Whether the mount is gone, with its last user.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || !device::is_mounted(&self.device)
    }

    /// A notifier, for one thread.
    pub(super) fn notifier(&self) -> io::Result<Notifier> {
        let fork_server = self.fork_server.as_deref();
        let channel = fork_server.map(ForkServer::notifier).transpose()?;
        Ok(Notifier::new(self.device.clone(), channel))
    }

    /// Answers `request`, with `reply` as room for the answer.
    pub(super) fn answer(self: &Arc<Self>, request: &mut [u8], reply: &mut [u8]) {
        let Some(header) = device::header(request) else {
            tracing::error!(bytes = request.len(), "the kernel sent less than a header");
            return;
        };
        let answering = self.counters.begin(&header);
        if init::is_init(&header) {
            return self.answer_init(&header, &request[size_of::<InHeader>()..]);
        }
        if header.opcode == Opcode::Interrupt as u32 {
            return self.interrupt(&request[size_of::<InHeader>()..]);
        }
        if self.fs.may_block(header.nodeid) {
            let in_place = AssertUnwindSafe(|| {
                self.answerer
                    .answer_in_place(&self.device, &header, request, reply)
            });
            if catch_unwind(in_place).unwrap_or(false) {
                return;
            }
            let began = answering.pause();
            let waits = self.clone().wait_blocking(header, request.to_vec(), began);
            self.fs.runtime().spawn(waits.boxed());
            return;
        }
        let mut paused = ParkedState::default();
        if let Some(parked) = self.proceed(&header, request, reply, &mut paused) {
            let began = answering.pause();
            let waits = self
                .clone()
                .wait_parked(header, request.to_vec(), paused, parked, began);
            self.fs.runtime().spawn(waits.boxed());
        }
    }

    /// Answers a request whose answer may block, on threads for that. While it is parked it has none.
    async fn wait_blocking(self: Arc<Self>, header: InHeader, request: Vec<u8>, began: Instant) {
        let unique = header.unique & !REPEATED;
        let (mut ended, interrupted) = self.parked.park(unique, header.pid);
        if interrupted {
            self.watch(unique, header.pid);
        }
        let answered = async {
            let mut paused = ParkedState::default();
            let mut has_waited = false;
            loop {
                let (serving, mut request) = (self.clone(), request.clone());
                let answer = self.fs.runtime().spawn_blocking(move || {
                    let mut reply = vec![0; device::REPLY_BYTES];
                    let _in_span = serving.span.enter();
                    let parked = serving.proceed(&header, &mut request, &mut reply, &mut paused);
                    (parked, paused)
                });
                // A panic of it was answered; a runtime that ends has ended the mount.
                let Ok((Some(parked), state)) = answer.await else {
                    return;
                };
                if !std::mem::replace(&mut has_waited, true) {
                    self.counters.waits_for_upstream(&header);
                }
                paused = state;
                paused.arrived(parked.arrival().await);
            }
        };
        tokio::select! {
            () = answered => {}
            // What it fetches continues, and the kernel ignores a second answer.
            _ = &mut ended => {
                let _ = device::reply_error(&self.device, header.unique, libc::EINTR);
            }
        }
        self.parked.take_back(unique);
        self.counters.ended(&header, began);
    }

    /// Answers a request of which `paused` is the state; returns what it waits for if it cannot be
    /// answered yet.
    fn proceed(
        &self,
        header: &InHeader,
        request: &mut [u8],
        reply: &mut [u8],
        paused: &mut ParkedState,
    ) -> Option<ParkedWait> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.answerer
                .answer(&self.device, header, request, reply, paused)
        }));
        // After any failure, the program must not wait for ever. If it has its answer already, or
        // was killed, the kernel returns ENOENT for this one.
        match outcome {
            Ok(Ok(parked)) => return parked,
            Ok(Err(error)) => {
                if device::reply_error(&self.device, header.unique, libc::EIO).is_ok() {
                    self.answerer.replies.failed(libc::EIO);
                    tracing::error!(opcode = header.opcode, %error, "a request was not answered");
                }
            }
            Err(_) => {
                let _ = device::reply_error(&self.device, header.unique, libc::EIO);
                self.answerer.replies.failed(libc::EIO);
                tracing::error!(
                    opcode = header.opcode,
                    node = header.nodeid,
                    "a request panicked; this is a bug"
                );
            }
        }
        None
    }

    /// Waits for what a request needs, and answers it.
    async fn wait_parked(
        self: Arc<Self>,
        header: InHeader,
        mut request: Vec<u8>,
        mut paused: ParkedState,
        mut parked: ParkedWait,
        began: Instant,
    ) {
        self.counters.waits_for_upstream(&header);
        let unique = header.unique & !REPEATED;
        let (mut ended, interrupted) = self.parked.park(unique, header.pid);
        if interrupted {
            self.watch(unique, header.pid);
        }
        loop {
            let arrival = tokio::select! {
                arrival = parked.arrival() => arrival,
                // Its fetch continues; other requests may need it too.
                _ = &mut ended => {
                    let _ = device::reply_error(&self.device, header.unique, libc::EINTR);
                    break;
                }
            };
            paused.arrived(arrival);
            let again = self.span.in_scope(|| {
                REPLY.with_borrow_mut(|reply| {
                    reply.resize(device::REPLY_BYTES, 0);
                    self.proceed(&header, &mut request, reply, &mut paused)
                })
            });
            match again {
                Some(again) => parked = again,
                None => break,
            }
        }
        self.parked.take_back(unique);
        self.counters.ended(&header, began);
    }

    /// The program of a request got a signal; the body of INTERRUPT names the request.
    fn interrupt(self: &Arc<Self>, body: &[u8]) {
        // `struct fuse_interrupt_in` is the number alone.
        let Some(unique) = body.first_chunk() else {
            return;
        };
        let unique = u64::from_ne_bytes(*unique) & !REPEATED;
        if let Some(thread) = self.parked.interrupted(unique) {
            self.watch(unique, thread);
        }
    }

    /// Ends the wait of the request `unique` once its `thread` is to die.
    fn watch(self: &Arc<Self>, unique: u64, thread: u32) {
        let serving = self.clone();
        self.fs.runtime().spawn(
            async move {
                while serving.parked.has(unique) {
                    if parked::is_killed(thread) {
                        serving.parked.take_back(unique);
                        return;
                    }
                    tokio::time::sleep(parked::LOOK).await;
                }
            }
            .boxed(),
        );
    }

    fn answer_init(&self, header: &InHeader, body: &[u8]) {
        let passthrough = self.fs.passthrough();
        let peer = KernelPeer::Kernel {
            passthrough: passthrough.is_some(),
            default_permissions: self.default_permissions,
        };
        let outcome = match init::answer(body, peer) {
            Ok(agreement) => {
                let replied = device::reply(&self.device, header.unique, &agreement.reply)
                    .map_err(|error| format!("the kernel refused the answer to INIT: {error}"));
                // Files can be registered only now that the kernel has the reply.
                if let Some(passthrough) = passthrough {
                    enable(passthrough, agreement.passthrough);
                }
                replied
            }
            Err(why) => {
                let _ = device::reply_error(&self.device, header.unique, libc::EPROTO);
                Err(why)
            }
        };
        *self.init.lock() = Some(outcome);
        self.init_answered.notify_all();
    }

    /// Waits until the kernel has sent INIT; returns the outcome.
    pub(super) fn wait_for_init(&self) -> Result<(), String> {
        let mut init = self.init.lock();
        while init.is_none() {
            let waited = self.init_answered.wait_for(&mut init, INIT_PATIENCE);
            if waited.timed_out() {
                return Err("the kernel sent no INIT".to_owned());
            }
        }
        init.clone().unwrap_or(Ok(()))
    }
}

/// Enables passthrough if the kernel supports and permits it; else logs the reason once.
fn enable(passthrough: &Passthrough, known: bool) {
    let outcome = if known {
        passthrough
            .enable()
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => "it needs CAP_SYS_ADMIN".to_owned(),
                _ => error.to_string(),
            })
    } else {
        Err("the kernel is older than 6.9, or built without it".to_owned())
    };
    if let Err(why) = outcome {
        passthrough.disable();
        tracing::warn!(why, "no passthrough; reads go through the page cache");
    }
}
