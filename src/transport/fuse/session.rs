//! A mount and the workers that serve it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::InHeader;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

use super::answer::Answerer;
use super::backing::FuseDevice;
use super::device::{self, Received};
use super::handover::{self, AdoptError, Inherited, Kept};
use super::mountpoint::{self, Maker, MountError, Mountpoint};
use super::notices::{self, Notices, Nursery};
use super::pulse::{self, Pulse, Stamps, Stuck};
use super::vigil::Vigil;
use super::{page_cache, root_watch, warm_up};
use crate::fs::{
    CastoreFs, Ledger, NodeCount, OpenCount, Options, Passthrough, Reads, Waiting, WarmUpCount,
    Workers,
};
use crate::store::Store;
use crate::transport::init::{self, Peer};
use crate::transport::requests::{self, Counters, RequestCounts, RequestTimes};

/// How long the kernel may take to say hello.
const INIT_PATIENCE: Duration = Duration::from_secs(20);
/// Spare workers, at most, beside the usual ones: each holds a request that waits for a far store.
const MOST_SPARES: usize = 256;

/// How long a worker that has answered stays awake for the next request. Going to sleep and being
/// woken costs 25 µs of a machine that is otherwise idle (a virtual one, 2 cores), more than nearly
/// every answer: a program that makes one small request after the other is served in 30 µs instead of
/// 55 µs each. For that 20 µs are enough; a walk, for which the kernel makes the inodes of a listing
/// before it asks for the next, comes back later: with 200 µs a cold `find` takes 0.76 of the time.
/// Who comes back again and again is kept awake for by other means ([`Vigil`]).
const LOOK_OUT: Duration = Duration::from_micros(200);

/// Cores that may all spin for the sake of one walk; where there are more, only if told to.
const FEW_CORES: usize = 8;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Whether users other than the one who mounts can see it.
    pub allow_other: bool,
    /// Workers that read requests. More are started while these wait for a far store.
    pub threads: usize,
    /// How far the kernel reads ahead of sequential readers, in KiB.
    pub read_ahead_kib: u32,
    /// Whether processors are kept from sleeping while a program asks one thing after the other,
    /// where this process may.
    pub stay_awake: bool,
    /// What log lines call it.
    pub name: Option<String>,
    /// What log lines call its store.
    pub store_name: Option<String>,
    /// Keep what a successor process needs to go on with the mount ([`Session::kept`]), and tell it
    /// this.
    pub tag: Option<String>,
    /// A descriptor of `/dev/fuse` that somebody else has opened, and perhaps mounted.
    pub device: Option<Arc<OwnedFd>>,
    /// Who notifies the kernel: see [`Nursery`] for what happens without.
    pub nursery: Option<Arc<Nursery>>,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            allow_other: false,
            threads: cores.clamp(2, 16),
            read_ahead_kib: 1024,
            stay_awake: (2..=FEW_CORES).contains(&cores),
            name: None,
            store_name: None,
            tag: None,
            device: None,
            nursery: None,
        }
    }
}

/// A mount that is being served.
pub struct Session {
    shared: Arc<Shared>,
    mountpoint: Mountpoint,
    ledger: Option<Arc<Ledger>>,
    /// Whether somebody else goes on with the mount.
    left: AtomicBool,
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone.
    Cleanly,
    /// It is out of the tree; programs that use it can finish.
    Lazily,
    /// Somebody else had unmounted it already.
    Already,
    /// Others have made it and only they may undo it. It ends with this process.
    NotOurs,
}

/// What the workers share.
pub(super) struct Shared {
    pub(super) device: Arc<OwnedFd>,
    pub(super) answerer: Answerer,
    pub(super) ended: AtomicBool,
    fs: Arc<CastoreFs>,
    counters: Counters,
    stamps: Stamps,
    /// Names the mount in what is logged while a request is answered.
    pub(super) span: tracing::Span,
    /// Whether a worker that stays awake leaves another core to whom it waits for.
    many_cores: bool,
    vigil: Option<Vigil>,
    pool: Arc<Pool>,
    nursery: Option<Arc<Nursery>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Set when INIT was answered: how that went.
    init: Option<Result<(), String>>,
    /// Workers that still run.
    running: usize,
}

/// Counts the workers, and starts spares.
#[derive(Default)]
struct Pool {
    shared: OnceLock<Weak<Shared>>,
    /// Workers that wait for a request.
    idle: AtomicUsize,
    /// Spare workers that run.
    spares: AtomicUsize,
    /// Whether a worker looks out for the next request.
    looking_out: AtomicBool,
    /// The thread whose request was answered last.
    last_asked: AtomicU32,
}

impl Session {
    /// Mounts `store` on `path` and starts to serve it. The mount answers when this returns.
    /// Requests that have to wait do so on `runtime`.
    pub fn mount(
        store: Arc<dyn Store>,
        path: &Path,
        options: Options,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, MountError> {
        let source = store.url().to_owned();
        let pool = Arc::new(Pool::default());
        let waiting = Waiting::new(runtime, pool.clone());
        let request = mountpoint::Request {
            source: &source,
            allow_other: mount.allow_other,
        };
        let (device, mountpoint) = match &mount.device {
            Some(device) => {
                let mountpoint = mountpoint::given(device, path, &request)?;
                (device.clone(), mountpoint)
            }
            None => {
                let (device, mountpoint) = mountpoint::mount(path, &request)?;
                (Arc::new(device), mountpoint)
            }
        };
        let has_opens = options.reads == Reads::Passthrough;
        let tag = mount.tag.as_deref();
        let ledger = tag.and_then(|tag| keep(&mountpoint, tag, has_opens));
        let passthrough = has_opens
            .then(|| Passthrough::new(Box::new(FuseDevice(device.clone())), ledger.clone()));
        let fs = CastoreFs::with_ledger(store, options, waiting, passthrough, ledger.clone());
        if ledger.is_none() {
            notices::leave_unkept(mount.nursery.as_deref(), &device);
        }
        let session = Self::new(device, mountpoint, fs, pool, ledger, mount);
        session
            .start(mount)
            .inspect_err(|_| drop(session.mountpoint.unmount(true)))?;
        Ok(session)
    }

    /// Goes on with a mount that another process left, of the same `store` and with the same
    /// `options`. Whoever holds it sees nothing but the pause.
    pub fn adopt(
        inherited: Inherited,
        store: Arc<dyn Store>,
        options: Options,
        mount: &MountOptions,
        runtime: Handle,
    ) -> Result<Self, AdoptError> {
        let pool = Arc::new(Pool::default());
        let waiting = Waiting::new(runtime, pool.clone());
        let mountpoint = inherited.mountpoint();
        let Inherited { device, ledger, .. } = inherited;
        let device = Arc::new(device);
        let backing = Box::new(FuseDevice(device.clone()));
        let fs = CastoreFs::adopt(store, options, waiting, Some(backing), ledger.clone())?;
        let session = Self::new(device, mountpoint, fs, pool, Some(ledger), mount);
        // Until it is known to work, a failure must not end the mount: the caller decides.
        session.leave();
        // Before anybody reads: what a worker of ours has read would be sent again as well.
        notices::resend(&session.shared.device).map_err(AdoptError::Resend)?;
        session.shared.start_workers(mount.threads)?;
        page_cache::start(&session.shared)?;
        root_watch::start(&session.shared)?;
        warm_up::start(&session.shared)?;
        session.left.store(false, Ordering::Relaxed);
        Ok(session)
    }

    fn new(
        device: Arc<OwnedFd>,
        mountpoint: Mountpoint,
        fs: CastoreFs,
        pool: Arc<Pool>,
        ledger: Option<Arc<Ledger>>,
        mount: &MountOptions,
    ) -> Self {
        let fs = Arc::new(fs);
        let shared = Arc::new(Shared {
            device,
            answerer: Answerer::new(fs.clone()),
            ended: AtomicBool::new(false),
            fs,
            counters: Counters::default(),
            stamps: Stamps::default(),
            span: match &mount.name {
                Some(name) => {
                    tracing::error_span!("mount", MOUNT = name, STORE = mount.store_name)
                }
                None => tracing::Span::none(),
            },
            many_cores: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
            vigil: mount.stay_awake.then(Vigil::new),
            pool: pool.clone(),
            nursery: mount.nursery.clone(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let _ = pool.shared.set(Arc::downgrade(&shared));
        Self {
            shared,
            mountpoint,
            ledger,
            left: AtomicBool::new(false),
        }
    }

    fn start(&self, mount: &MountOptions) -> Result<(), MountError> {
        let failed = |source| MountError::System {
            action: "serve",
            mountpoint: self.mountpoint.path().to_owned(),
            source,
        };
        self.shared.start_workers(mount.threads).map_err(failed)?;
        self.shared
            .wait_for_init()
            .map_err(|why| failed(io::Error::other(why)))?;
        self.mountpoint.set_read_ahead(mount.read_ahead_kib);
        page_cache::start(&self.shared).map_err(failed)?;
        root_watch::start(&self.shared).map_err(failed)?;
        warm_up::start(&self.shared).map_err(failed)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Requests so far.
    pub fn requests(&self) -> RequestCounts {
        self.shared.counters.now()
    }

    /// How long requests took, by kind.
    pub fn request_times(&self) -> BTreeMap<&'static str, RequestTimes> {
        self.shared.counters.times()
    }

    /// How bytes come to their readers, after what kernel and privilege allow.
    pub fn reads(&self) -> Reads {
        match self.shared.fs.passthrough() {
            Some(passthrough) if passthrough.is_enabled() => Reads::Passthrough,
            _ => Reads::PageCache,
        }
    }

    /// What is open, where the kernel asks before it opens.
    pub fn open_files(&self) -> Option<OpenCount> {
        let passthrough = self.shared.fs.passthrough()?;
        passthrough.is_enabled().then(|| passthrough.count())
    }

    /// Nodes that the kernel knows.
    pub fn nodes(&self) -> NodeCount {
        self.shared.fs.count()
    }

    /// Whether the mount is gone, with its last user.
    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Whether the mount is still where it was made.
    pub fn is_in_place(&self) -> bool {
        !self.has_ended() && self.mountpoint.is_mounted()
    }

    /// The store that is shown.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.shared.fs.store()
    }

    /// What a successor needs, if the mount was made for one.
    pub fn kept(&self) -> Option<Kept<'_>> {
        let ledger = self.ledger.as_ref()?;
        Some(Kept::new(&self.shared.device, ledger))
    }

    /// From now on somebody else is to go on with the mount: it stays when this session is dropped.
    pub fn leave(&self) {
        self.remember();
        self.left.store(true, Ordering::Relaxed);
    }

    /// How learning and fetching ahead fare, if the mount does that.
    pub fn warm_up_count(&self) -> Option<WarmUpCount> {
        self.shared.fs.warm_up_count()
    }

    /// Writes what was learned so far, if the mount learns ([`Options::warm_up`]).
    pub fn remember(&self) {
        self.shared.fs.remember();
    }

    /// Whether the workers have been stuck for `bound`, as far as `pulse` has seen it.
    pub fn check(&self, pulse: &mut Pulse, bound: Duration) -> Option<Stuck> {
        if self.has_ended() {
            return None;
        }
        let taken = self.requests().0.values().sum();
        let pending = device::has_request(&self.shared.device);
        pulse.look(&self.shared.stamps, pending, taken, Instant::now(), bound)
    }

    /// Takes the mount out of the tree; lazily if it is busy.
    pub fn unmount(&self) -> io::Result<Unmounted> {
        // While the kernel still knows its nodes.
        self.remember();
        if self.shared.ended.load(Ordering::Relaxed) || !self.mountpoint.is_mounted() {
            return Ok(Unmounted::Already);
        }
        match self.mountpoint.unmount(false) {
            Ok(()) => Ok(Unmounted::Cleanly),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                self.mountpoint.unmount(true)?;
                Ok(Unmounted::Lazily)
            }
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && self.mountpoint.made_by() == Maker::Others =>
            {
                Ok(Unmounted::NotOurs)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the mount is gone and its last user has finished.
    pub fn wait(&self) {
        let mut state = self.shared.state.lock();
        while state.running > 0 {
            self.shared.changed.wait(&mut state);
        }
    }
}

impl Drop for Session {
    /// A mount without workers hangs everyone who touches it, so it goes with the session.
    fn drop(&mut self) {
        if self.left.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.unmount() {
            let mountpoint = self.path().display();
            tracing::error!(%mountpoint, %error, "cannot unmount");
        }
    }
}

impl Shared {
    pub(super) fn fs(&self) -> &CastoreFs {
        &self.fs
    }

    /// A way to notify the kernel, for one thread.
    pub(super) fn notices(&self) -> io::Result<Notices> {
        Notices::new(self.device.clone(), self.nursery.as_deref())
    }

    fn start_workers(self: &Arc<Self>, count: usize) -> io::Result<()> {
        (0..count.max(1)).try_for_each(|_| self.start_worker(false))
    }

    fn start_worker(self: &Arc<Self>, spare: bool) -> io::Result<()> {
        let shared = self.clone();
        self.state.lock().running += 1;
        let work = move || {
            shared.work(spare);
            shared.worker_ended();
        };
        let started = std::thread::Builder::new()
            .name(if spare { "fuse-spare" } else { "fuse" }.into())
            .spawn(work);
        if started.is_err() {
            self.worker_ended();
        }
        started.map(drop)
    }

    fn worker_ended(&self) {
        self.state.lock().running -= 1;
        self.changed.notify_all();
    }

    /// Serves requests until the mount ends, or, as a spare, until others are idle again.
    fn work(&self, spare: bool) {
        let mut request = vec![0; device::REQUEST_BYTES];
        let mut reply = vec![0; device::REPLY_BYTES];
        let enrolled = self.stamps.enroll();
        // Whose request was answered last.
        let mut answered = None;
        let _in_span = self.span.enter();
        loop {
            let others = self.pool.idle.fetch_add(1, Ordering::Relaxed);
            if spare && others > 0 {
                self.pool.idle.fetch_sub(1, Ordering::Relaxed);
                self.pool.spares.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            if let Some(thread) = answered.take() {
                self.look_out(thread);
            }
            let received = device::receive(&self.device, &mut request);
            self.pool.idle.fetch_sub(1, Ordering::Relaxed);
            match received {
                Ok(Received::Request(length)) => {
                    enrolled.stamp.begin();
                    self.answer(&mut request[..length], &mut reply);
                    enrolled.stamp.end();
                    answered = device::header(&request).map(|header| header.pid);
                }
                Ok(Received::Nothing) => {}
                Ok(Received::Unmounted) => break,
                Err(error) => {
                    tracing::error!(%error, "cannot read from /dev/fuse");
                    break;
                }
            }
        }
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Stays awake for the next request of `thread`, which has just had an answer, if it is the one
    /// that asks: a program that asks one thing after the other. Where several ask there is always
    /// a request to be had.
    fn look_out(&self, thread: u32) {
        let pool = &self.pool;
        if !self.many_cores
            || pool.last_asked.swap(thread, Ordering::Relaxed) != thread
            || self.vigil.as_ref().is_some_and(Vigil::is_kept)
            || pool.looking_out.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let begin = Instant::now();
        let soon = loop {
            if device::has_request(&self.device) {
                break true;
            } else if begin.elapsed() >= LOOK_OUT {
                break false;
            }
        };
        pool.looking_out.store(false, Ordering::Relaxed);
        if let Some(vigil) = &self.vigil {
            vigil.saw(soon);
        }
    }

    fn answer(&self, request: &mut [u8], reply: &mut [u8]) {
        let Some(header) = device::header(request) else {
            tracing::error!(bytes = request.len(), "the kernel sent less than a header");
            return;
        };
        let _answering = self.counters.begin(&header);
        if init::is_init(&header) {
            return self.answer_init(&header, &request[size_of::<InHeader>()..]);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.fs.answering(
                || requests::name(header.opcode as usize),
                header.nodeid,
                || self.answerer.answer(&self.device, &header, request, reply),
            )
        }));
        // Whatever went wrong, the program must not wait for ever. If it has its answer already,
        // or was killed, the kernel says ENOENT to this one.
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                if device::reply_error(&self.device, header.unique, libc::EIO).is_ok() {
                    tracing::error!(opcode = header.opcode, %error, "a request was not answered");
                }
            }
            Err(_) => {
                let _ = device::reply_error(&self.device, header.unique, libc::EIO);
                tracing::error!(
                    opcode = header.opcode,
                    node = header.nodeid,
                    "a request panicked; this is a bug"
                );
            }
        }
    }

    fn answer_init(&self, header: &InHeader, body: &[u8]) {
        let passthrough = self.fs.passthrough();
        let peer = Peer::Kernel {
            passthrough: passthrough.is_some(),
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
        self.state.lock().init = Some(outcome);
        self.changed.notify_all();
    }

    fn wait_for_init(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        while state.init.is_none() {
            if self.changed.wait_for(&mut state, INIT_PATIENCE).timed_out() {
                return Err("the kernel sent no INIT".to_owned());
            }
        }
        state.init.clone().unwrap_or(Ok(()))
    }
}

/// A table that a successor can go on with. Without one the mount works, and ends with this process.
fn keep(mountpoint: &Mountpoint, tag: &str, has_opens: bool) -> Option<Arc<Ledger>> {
    let ledger = match has_opens {
        true => Ledger::create_with_open_files(),
        false => Ledger::create(),
    };
    let ledger = ledger.and_then(|ledger| {
        handover::describe(&ledger, mountpoint, tag)?;
        Ok(ledger)
    });
    let mountpoint = mountpoint.path().display();
    ledger
        .inspect_err(|error| {
            tracing::warn!(%mountpoint, %error, "no successor can go on with this mount");
        })
        .ok()
        .map(Arc::new)
}

/// Turns passthrough on if the kernel knows it and lets us; else says once why not.
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

impl Workers for Pool {
    fn wait_begins(&self) {
        pulse::set_waiting(true);
        let one_more = |spares| (spares < MOST_SPARES).then_some(spares + 1);
        if self.idle.load(Ordering::Relaxed) > 0
            || self
                .spares
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                .is_err()
        {
            return;
        }
        let shared = self.shared.get().and_then(Weak::upgrade);
        if let Some(shared) = shared
            && let Err(error) = shared.start_worker(true)
        {
            self.spares.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot start a spare worker");
        }
    }

    fn wait_ends(&self) {
        pulse::set_waiting(false);
    }
}
