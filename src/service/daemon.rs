//! The running service.
//!
//! One thread owns everything and does one thing after another: start, serve until a signal comes,
//! reload, stop. Requests are answered by the mounts' own workers, sockets by the async runtime;
//! both see what this thread has set up through [`View`], which it replaces as a whole.
//!
//! **A start is all or nothing.** READY is said when every mount has answered INIT and every socket
//! is bound. If something fails before, what was made goes, and what a predecessor left stays for
//! the next try.
//!
//! **A reload is a difference.** A new file that is wrong is refused as a whole and the old one stays.
//! Otherwise stores, mounts and listeners that are the same as before are not touched. A mount that
//! cannot be made then is reported and missing; the others are none the worse for it.
//!
//! **A stop is not a restart.** At a stop mounts are taken down; busy ones leave the tree and are
//! served until their users have finished, for [`Config::drain`] at most. When a successor comes,
//! or at a sudden death, they stay, and the successor goes on with them. If that cannot start and is told
//! to stop, nobody will: it takes them down instead.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::config::{self, Config};
use super::control::{self, Control, Prefetches};
use super::endpoints::{self, Device, EndpointError, Listening};
use super::mounts::{self, Host, Served, StartError, Wanted};
use super::sockets::{self, Ask, Serving, SocketError};
use super::status::ListenStatus;
use super::systemd::Passed;
use super::view::{View, ViewedDevice, ViewedMount};
use super::watchdog::{self, Watched};
use super::{log, panics, repeats, systemd};
use crate::profile::Profiles;
use crate::store::{self, OpenStores, Plan};
use crate::transport::fuse::{Nursery, Session, Unmounted};

/// How often the status line is looked at, and whether mounts are still there.
const TICK: Duration = Duration::from_secs(2);
/// How much more time systemd is asked for while users of a mount finish.
const EXTENSION: Duration = Duration::from_secs(10);

/// How long a process that could not start leaves systemd in peace.
const RETRY: Duration = Duration::from_secs(1);

/// Why the service did not start.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error("{}", lines(.0))]
    Config(Vec<config::Problem>),
    /// A store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// A mount cannot be made.
    #[error("the mount {name:?}: {source}")]
    Mount {
        /// Its name in the configuration.
        name: String,
        /// Why.
        source: Box<StartError>,
    },
    /// A listener or device cannot be had.
    #[error("the {kind} {name:?}: {source}")]
    Endpoint {
        /// What it is.
        kind: &'static str,
        /// Its name in the configuration.
        name: String,
        /// Why.
        source: Box<EndpointError>,
    },
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The log cannot be had.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The system refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried: a verb.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn lines(problems: &[config::Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// What the signals ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Stop,
    Reload,
}

/// Something that others connect to, as it was wanted.
struct Running<C, R> {
    config: C,
    store: String,
    plan: Plan,
    running: R,
}

struct Daemon {
    file: PathBuf,
    config: Config,
    runtime: Runtime,
    host: Host,
    started: Instant,
    prefetches: Prefetches,
    stores: OpenStores,
    mounts: BTreeMap<String, Served>,
    /// Out of the tree and still used.
    leaving: Vec<Arc<Session>>,
    listeners: BTreeMap<String, Running<config::Listen, Listening>>,
    devices: BTreeMap<String, Running<config::Virtiofs, Device>>,
    /// What a predecessor left of guests, by device, until that device is started.
    left_guests: BTreeMap<String, Vec<(String, OwnedFd)>>,
    /// What systemd's socket units passed on.
    sockets: Vec<(String, OwnedFd)>,
    control: Option<Serving>,
    metrics: Option<Serving>,
    view: Arc<Mutex<View>>,
    watched: Arc<Watched>,
    said: String,
}

/// Runs the service that `file` describes until it is told to stop.
pub fn run(file: &Path) -> Result<(), DaemonError> {
    let failed = |action| move |source| DaemonError::System { action, source };
    let started = Instant::now();
    let passed = systemd::passed().map_err(failed("take what systemd passed on"))?;
    // Before there are threads.
    let nursery = Nursery::start().map_err(failed("start a process for notifications"))?;
    let events = listen_to_signals().map_err(failed("listen to signals"))?;
    let left = mounts::places(&passed.mounts);
    let outcome = serve(file, started, passed, nursery, &events);
    if outcome.is_err() && systemd::is_there() {
        // systemd starts it again at once, which is right after a crash.
        systemd::status("cannot start");
        if events.recv_timeout(RETRY) == Ok(Event::Stop) && !systemd::is_restart() {
            mounts::end_unserved(left);
        }
    }
    outcome
}

fn serve(
    file: &Path,
    started: Instant,
    mut passed: Passed,
    nursery: Nursery,
    events: &Receiver<Event>,
) -> Result<(), DaemonError> {
    let failed = |action| move |source| DaemonError::System { action, source };
    let config = Config::load(file).map_err(DaemonError::Config)?;
    let _spans = log::start(&config.log)?;
    panics::abort_in_vital_threads();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(failed("start threads"))?;
    let mut daemon = Daemon {
        file: file.to_owned(),
        host: Host {
            runtime: runtime.handle().clone(),
            nursery: Arc::new(nursery),
            devices: Arc::new(Mutex::new(std::mem::take(&mut passed.devices))),
            slow_requests: Some(config.log.slow_requests.0).filter(|span| !span.is_zero()),
            profiles: Arc::new(Profiles::new(config.profiles())),
        },
        config,
        runtime,
        started,
        prefetches: Prefetches::default(),
        stores: BTreeMap::new(),
        mounts: BTreeMap::new(),
        leaving: Vec::new(),
        listeners: BTreeMap::new(),
        devices: BTreeMap::new(),
        left_guests: std::mem::take(&mut passed.guests),
        sockets: std::mem::take(&mut passed.sockets),
        control: None,
        metrics: None,
        view: Arc::default(),
        watched: Arc::default(),
        said: String::new(),
    };
    if let Err(error) = daemon.start(std::mem::take(&mut passed.mounts)) {
        daemon.give_up_start();
        return Err(error);
    }
    watchdog::start(daemon.watched.clone()).map_err(failed("start a thread"))?;
    daemon.said = daemon.line();
    systemd::ready(&daemon.said);
    let pause = started.elapsed().as_millis() as u64;
    tracing::info!(milliseconds = pause, "ready: {}", daemon.said);
    daemon.serve(events);
    daemon.stop(events);
    Ok(())
}

/// Signals are heard from here to the end of the process, by a thread of their own.
fn listen_to_signals() -> io::Result<Receiver<Event>> {
    let (sender, receiver) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let listen = |kind, event, sender: Sender<Event>| -> io::Result<()> {
        let _inside = runtime.enter();
        let mut signals = signal(kind)?;
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                // Fails only at the very end, when nobody listens any more.
                let _ = sender.send(event);
            }
        });
        Ok(())
    };
    listen(SignalKind::terminate(), Event::Stop, sender.clone())?;
    listen(SignalKind::interrupt(), Event::Stop, sender.clone())?;
    listen(SignalKind::hangup(), Event::Reload, sender)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(receiver)
}

impl Daemon {
    fn start(&mut self, left: BTreeMap<String, systemd::KeptPair>) -> Result<(), DaemonError> {
        self.stores = self.open_stores(&self.config)?;
        let mut left = left;
        for (name, wanted) in self.wanted(&self.config, &self.stores) {
            self.start_mount(&name, wanted, left.remove(&name))
                .map_err(|source| DaemonError::Mount {
                    name,
                    source: source.into(),
                })?;
        }
        for (name, left) in left {
            mounts::end_left(&name, left);
        }
        self.start_endpoints()?;
        for (device, guests) in std::mem::take(&mut self.left_guests) {
            tracing::warn!(device, "the device of guests is no more; they end");
            systemd::forget_guests(&device, &guests);
        }
        self.refresh();
        let handle = self.runtime.handle().clone();
        let (view, learning) = (self.view.clone(), self.view.clone());
        let control = Control {
            ask: self.ask(),
            stores: Arc::new(move || view.lock().stores.clone()),
            prefetches: self.prefetches.clone(),
            profiles: self.host.profiles.clone(),
            remember: Arc::new(move || {
                let view = learning.lock().clone();
                view.remember();
            }),
        };
        let socket = self.config.control_socket();
        self.control = Some(control::serve(&socket, control, &handle)?);
        self.metrics = self.start_metrics(&self.config)?;
        Ok(())
    }

    /// What a predecessor left stays for the next try; what was made goes.
    fn give_up_start(&mut self) {
        for (name, served) in &self.mounts {
            if served.adopted {
                served.session.leave();
            } else {
                systemd::forget(name);
            }
        }
        for device in self.devices.values() {
            device.running.endpoint.leave();
        }
    }

    /// The stores of `config`: those that are open already and the same, and new ones.
    fn open_stores(&self, config: &Config) -> Result<OpenStores, DaemonError> {
        let _inside = self.runtime.enter();
        Ok(store::open_all(&config.plans(), &self.stores)?)
    }

    fn wanted(&self, config: &Config, stores: &OpenStores) -> BTreeMap<String, Wanted> {
        let mut all = BTreeMap::new();
        for (name, mount) in &config.mounts {
            let store = config.store_of(mount.store.as_deref());
            // Checked when the configuration was read: a mount's store is there.
            if let Some(opened) = stores.get(&store) {
                let wanted = Wanted {
                    config: mount.clone(),
                    store,
                    plan: opened.plan.clone(),
                };
                all.insert(name.clone(), wanted);
            }
        }
        all
    }

    fn start_mount(
        &mut self,
        name: &str,
        wanted: Wanted,
        left: Option<systemd::KeptPair>,
    ) -> Result<(), StartError> {
        let Some(opened) = self.stores.get(&wanted.store) else {
            return Ok(());
        };
        let store = opened.store.clone();
        let (served, outside) = wanted.start(name, store, left, &self.host)?;
        self.leaving.extend(outside);
        self.mounts.insert(name.to_owned(), served);
        Ok(())
    }

    /// Starts the listeners and devices of the configuration that do not run.
    fn start_endpoints(&mut self) -> Result<(), DaemonError> {
        let handle = self.runtime.handle().clone();
        let mut first = Ok(());
        for (name, config) in self.config.all_listeners() {
            let store = self.config.store_of(config.store.as_deref());
            let Some(opened) = self.stores.get(&store) else {
                continue;
            };
            if self.listeners.contains_key(&name) {
                continue;
            }
            let started =
                Listening::start(&name, &config, opened.store.clone(), &self.sockets, &handle);
            match started {
                Ok(running) => {
                    let plan = opened.plan.clone();
                    let running = Running {
                        config,
                        store,
                        plan,
                        running,
                    };
                    self.listeners.insert(name, running);
                }
                Err(source) => {
                    first = first.and(Err(DaemonError::Endpoint {
                        kind: "listener",
                        name,
                        source: source.into(),
                    }));
                }
            }
        }
        for (name, config) in self.config.virtiofs.clone() {
            let store = self.config.store_of(config.store.as_deref());
            let Some(opened) = self.stores.get(&store) else {
                continue;
            };
            if self.devices.contains_key(&name) {
                continue;
            }
            let left = self.left_guests.remove(&name).unwrap_or_default();
            let store_of = opened.store.clone();
            // Names the device in what is logged while a guest's request is answered.
            let span = tracing::error_span!("device", DEVICE = name, STORE = store);
            let serve = || {
                endpoints::serve_guests(&name, &config, store_of, &opened.plan, left, &self.host)
            };
            match span.in_scope(serve) {
                Ok(running) => {
                    let plan = opened.plan.clone();
                    let running = Running {
                        config,
                        store,
                        plan,
                        running,
                    };
                    self.devices.insert(name, running);
                }
                Err(source) => {
                    first = first.and(Err(DaemonError::Endpoint {
                        kind: "virtiofs device",
                        name,
                        source: source.into(),
                    }));
                }
            }
        }
        first
    }

    /// Ends the listeners and devices that are not as `config` with `stores` wants them.
    fn stop_endpoints(&mut self, config: &Config, stores: &OpenStores) {
        let handle = self.runtime.handle().clone();
        let same_store = |store: &String, before: &Plan| {
            stores
                .get(store)
                .is_some_and(|opened| opened.plan == *before)
        };
        let wanted = config.all_listeners();
        let listeners = std::mem::take(&mut self.listeners);
        for (name, listener) in listeners {
            let same = wanted.get(&name).is_some_and(|wanted| {
                *wanted == listener.config
                    && config.store_of(wanted.store.as_deref()) == listener.store
                    && same_store(&listener.store, &listener.plan)
            });
            match same && !listener.running.has_ended() {
                true => drop(self.listeners.insert(name, listener)),
                false => listener.running.stop(&handle),
            }
        }
        let devices = std::mem::take(&mut self.devices);
        for (name, device) in devices {
            let same = config.virtiofs.get(&name).is_some_and(|wanted| {
                *wanted == device.config
                    && config.store_of(wanted.store.as_deref()) == device.store
                    && same_store(&device.store, &device.plan)
            });
            match same {
                true => drop(self.devices.insert(name, device)),
                false => device.running.remove_socket(),
            }
        }
    }

    fn start_metrics(&self, config: &Config) -> Result<Option<Serving>, DaemonError> {
        let Some(address) = &config.metrics.address else {
            return Ok(None);
        };
        let serving = sockets::metrics(address, self.ask(), self.runtime.handle())?;
        Ok(Some(serving))
    }

    /// Serves until it is told to stop.
    fn serve(&mut self, events: &Receiver<Event>) {
        loop {
            match events.recv_timeout(TICK) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Event::Reload) => self.reload(),
                Err(RecvTimeoutError::Timeout) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        self.leaving.retain(|session| !session.has_ended());
        let gone: Vec<String> = self
            .mounts
            .iter()
            .filter(|(_, served)| !served.session.is_in_place())
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(served) = self.mounts.remove(&name) {
                tracing::warn!(
                    MOUNT = name,
                    path = %served.session.path().display(),
                    "somebody else has unmounted it; a reload mounts it again"
                );
                systemd::forget(&name);
                served.session.leave();
                self.leaving.push(served.session);
            }
        }
        repeats::tell();
        self.refresh();
        let line = self.line();
        if line != self.said {
            systemd::status(&line);
            self.said = line;
        }
    }

    fn reload(&mut self) {
        systemd::reloading();
        match self.try_reload() {
            Ok(()) => tracing::info!("the configuration was read again"),
            Err(error) => {
                for line in error.to_string().lines() {
                    tracing::error!("{line}");
                }
                tracing::error!("the new configuration is refused; the old one stays");
            }
        }
        self.refresh();
        self.said = self.line();
        systemd::ready(&self.said);
    }

    fn try_reload(&mut self) -> Result<(), DaemonError> {
        let config = Config::load(&self.file).map_err(DaemonError::Config)?;
        let stores = self.open_stores(&config)?;
        if config.metrics != self.config.metrics {
            // The old socket goes first: both may be the same.
            self.metrics = None;
            self.metrics = self.start_metrics(&config).inspect_err(|_| {
                self.metrics = self.start_metrics(&self.config).unwrap_or_default();
            })?;
        }
        if (&config.control, &config.log) != (&self.config.control, &self.config.log) {
            tracing::warn!("changes of the control socket and of the log take a restart");
        }
        if config.profiles() != self.host.profiles.folder() {
            tracing::warn!("that profiles are kept in another folder takes a restart");
        }
        let mut wanted = self.wanted(&config, &stores);
        let old: Vec<String> = self.mounts.keys().cloned().collect();
        for name in old {
            let same = |served: &Served| wanted.get(&name) == Some(&served.wanted);
            if self.mounts.get(&name).is_some_and(same) {
                wanted.remove(&name);
            } else if let Some(served) = self.mounts.remove(&name) {
                self.take_down(&name, served.session);
            }
        }
        self.stop_endpoints(&config, &stores);
        // A device ends when the last of its users lets go of it.
        self.refresh();
        self.stores = stores;
        self.config = config;
        for (name, wanted) in wanted {
            if let Err(error) = self.start_mount(&name, wanted, None) {
                tracing::error!(MOUNT = name, %error, "cannot mount");
            }
        }
        if let Err(error) = self.start_endpoints() {
            tracing::error!(%error, "not everything of the new configuration is served");
        }
        Ok(())
    }

    /// Takes a mount out of the tree; while it is used it is served on.
    fn take_down(&mut self, name: &str, session: Arc<Session>) {
        let path = session.path().display().to_string();
        match session.unmount() {
            Ok(Unmounted::Lazily) => {
                tracing::info!(
                    MOUNT = name,
                    path,
                    "unmounted, and served until its last user has finished"
                );
                self.leaving.push(session.clone());
            }
            Ok(Unmounted::Cleanly | Unmounted::Already) => {
                tracing::info!(MOUNT = name, path, "unmounted");
            }
            Ok(Unmounted::NotOurs) => tracing::info!(
                MOUNT = name,
                path,
                "mounted by others, who have to unmount it; nobody serves it now"
            ),
            Err(error) => tracing::error!(MOUNT = name, path, %error, "cannot unmount"),
        }
        systemd::forget(name);
    }

    /// Ends the service, or leaves the mounts to a successor.
    fn stop(mut self, events: &Receiver<Event>) {
        let restart = systemd::is_restart();
        systemd::stopping(match restart {
            true => "leaving the mounts to a successor",
            false => "unmounting",
        });
        for (name, served) in std::mem::take(&mut self.mounts) {
            if restart && served.session.kept().is_some() {
                served.session.leave();
                tracing::info!(MOUNT = name, "left to a successor");
            } else {
                self.take_down(&name, served.session);
            }
        }
        let handle = self.runtime.handle().clone();
        for (_, listener) in std::mem::take(&mut self.listeners) {
            listener.running.stop(&handle);
        }
        for device in std::mem::take(&mut self.devices).into_values() {
            match restart {
                true => device.running.endpoint.leave(),
                false => {
                    device.running.remove_socket();
                    device.running.endpoint.break_off();
                }
            }
        }
        self.refresh();
        let deadline = Instant::now() + self.config.drain.0;
        loop {
            self.leaving.retain(|session| !session.has_ended());
            let left = deadline.saturating_duration_since(Instant::now());
            if self.leaving.is_empty() || left.is_zero() {
                break;
            }
            systemd::status(&format!(
                "unmounted; waiting up to {} s for programs that still use {} mounts",
                left.as_secs() + 1,
                self.leaving.len()
            ));
            systemd::extend(EXTENSION);
            let wait = left.min(Duration::from_millis(500));
            if events.recv_timeout(wait) == Ok(Event::Stop) {
                break;
            }
        }
        for session in &self.leaving {
            let path = session.path().display();
            tracing::warn!(%path, "still in use; what is open on it ends now");
            session.leave();
        }
        self.control = None;
        self.metrics = None;
        // Workers that wait in read() need not be told: they end with the process.
        self.runtime.shutdown_background();
    }

    fn line(&self) -> String {
        (self.ask())().line()
    }

    /// Shows others what there is now.
    fn refresh(&self) {
        let viewed = |served: &Served| ViewedMount {
            path: served.wanted.config.path.clone(),
            store: served.wanted.store.clone(),
            session: served.session.clone(),
            adopted: served.adopted,
        };
        let mounts = self.mounts.iter();
        let view = View {
            stores: self.stores.clone(),
            mounts: mounts
                .map(|(name, served)| (name.clone(), viewed(served)))
                .collect(),
            devices: self
                .devices
                .iter()
                .map(|(name, device)| {
                    let viewed = ViewedDevice {
                        socket: device.config.socket.clone(),
                        store: device.store.clone(),
                        endpoint: device.running.endpoint.clone(),
                    };
                    (name.clone(), viewed)
                })
                .collect(),
            listen: self
                .listeners
                .iter()
                .filter(|(_, listener)| !listener.config.unnamed)
                .map(|(name, listener)| {
                    let status = ListenStatus {
                        address: listener.config.address.clone(),
                        store: listener.store.clone(),
                        writable: listener.config.writable,
                    };
                    (name.clone(), status)
                })
                .collect(),
            leaving: self.leaving.len() as u64,
        };
        let sessions = view.mounts.iter();
        let watched = sessions.map(|(name, viewed)| (name.clone(), viewed.session.clone()));
        self.watched.set(watched.collect());
        *self.view.lock() = view;
    }

    fn ask(&self) -> Ask {
        let (view, started) = (self.view.clone(), self.started);
        let prefetches = self.prefetches.clone();
        Arc::new(move || {
            let view = view.lock().clone();
            view.status(started, prefetches.status())
        })
    }
}
