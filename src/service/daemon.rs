//! The running service.
//!
//! One thread owns everything and does one thing after another: start, serve until a signal comes,
//! reload, stop. Requests are answered by the mounts' own workers, sockets by the async runtime;
//! both see what this thread has set up through [`PublishedState`], which it replaces as a whole.
//!
//! **A start is all or nothing.** READY is sent when every mount has answered INIT and every socket
//! is bound. If something fails before, new mounts are removed, and those of the previous process
//! stay for the next try. Only a store that cannot be opened is an exception: its own mounts and
//! endpoints are missing, and a reload makes them.
//!
//! **A reload is a difference.** A wrong file is refused as a whole and the old one stays.
//! Otherwise stores, mounts and listeners that are the same as before are not touched. A mount that
//! fails is reported; the others are not affected.
//!
//! **A stop is not a restart.** At a stop mounts are unmounted; busy ones leave the tree and are
//! served until their users have finished, for [`Config::drain`] at most. For a restart, or at a
//! sudden death, they stay, and the next process takes them over. If that process cannot start and
//! is stopped, it unmounts them instead.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::runtime::Runtime;

use super::claim::StateClaim;
use super::config::{self, Config};
use super::control::{self, ControlState, Prefetches};
use super::endpoints::{NotServed, RunningEndpoints};
use super::mounts::{self, RunningMounts, ServiceContext, StartError};
use super::rates::RateHistory;
use super::reloads::ReloadHistory;
use super::signals::{self, SignalEvent};
use super::sockets::{self, ServedSocket, ServiceSocketError, StatusSource};
use super::systemd::PassedDescriptors;
use super::view::PublishedState;
use super::watchdog::{self, WatchedMounts};
use super::{log, log_rate_limiter, panics, systemd};
use crate::profile::Profiles;
use crate::quantity::count;
use crate::server::BLOCKING_THREADS;
use crate::store::Cache;
use crate::stores::{self, OpenStores};
use crate::transport::fuse::ForkServer;

/// How often the status line is updated, and the existence of mounts checked.
const TICK: Duration = Duration::from_secs(2);
/// By how much systemd's timeout is extended while programs still use a mount.
const EXTENSION: Duration = Duration::from_secs(10);

/// How long a process that could not start delays its end.
const RETRY: Duration = Duration::from_secs(1);

/// Why the service did not start.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The configuration is wrong.
    #[error("{}", lines(.0))]
    Config(Vec<config::ConfigProblem>),
    /// Another service uses the state directory.
    #[error(
        "another castore-fs daemon uses the state directory {}: stop that, or give this one another \
         (state-dir)",
        .0.display()
    )]
    StateInUse(PathBuf),
    /// A store cannot be opened.
    #[error(transparent)]
    Store(#[from] stores::OpenError),
    /// A mount cannot be made.
    #[error("the mount {name:?}: {source}")]
    Mount {
        /// Its name in the configuration.
        name: String,
        /// The error.
        source: Box<StartError>,
    },
    /// A listener or device cannot be made.
    #[error(transparent)]
    Endpoint(#[from] NotServed),
    /// A socket cannot be made.
    #[error(transparent)]
    Socket(#[from] ServiceSocketError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// The action: a verb.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

fn lines(problems: &[config::ConfigProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

struct RunningDaemon {
    file: PathBuf,
    config: Config,
    runtime: Runtime,
    context: ServiceContext,
    started: Instant,
    prefetches: Prefetches,
    stores: OpenStores,
    mounts: RunningMounts,
    endpoints: RunningEndpoints,
    control: Option<ServedSocket>,
    metrics: Option<ServedSocket>,
    view: Arc<Mutex<PublishedState>>,
    watched: Arc<WatchedMounts>,
    rates: Arc<RateHistory>,
    reloads: Arc<ReloadHistory>,
    status_line: String,
}

/// Runs the service that `file` describes until it is stopped.
pub fn run(file: &Path) -> Result<(), DaemonError> {
    let failed = |action| move |source| DaemonError::System { action, source };
    let started = Instant::now();
    let passed_descriptors =
        systemd::passed_descriptors().map_err(failed("take what systemd passed on"))?;
    // Before there are threads.
    let fork_server = ForkServer::start().map_err(failed("start a process for notifications"))?;
    let fork_server = Arc::new(fork_server);
    let events = signals::listen().map_err(failed("listen to signals"))?;
    let previous = mounts::previous_mounts(&passed_descriptors.mounts, &fork_server);
    let outcome = serve(file, started, passed_descriptors, fork_server, &events);
    if outcome.is_err() && systemd::is_there() {
        // systemd starts it again at once, which is right after a crash.
        systemd::status("cannot start");
        if events.recv_timeout(RETRY) == Ok(SignalEvent::Stop) && !systemd::is_restart() {
            mounts::end_unserved(previous);
        }
    }
    outcome
}

fn serve(
    file: &Path,
    started: Instant,
    mut passed_descriptors: PassedDescriptors,
    fork_server: Arc<ForkServer>,
    events: &Receiver<SignalEvent>,
) -> Result<(), DaemonError> {
    let failed = |action| move |source| DaemonError::System { action, source };
    let config = Config::load(file).map_err(DaemonError::Config)?;
    let _spans = log::start(&config.log)?;
    panics::abort_in_vital_threads();
    // Before anything is mounted, or taken over from a service that may still run.
    let _claim = claim(&config)?;
    let control = control::listen(&config.control_socket())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(failed("start threads"))?;
    let mut daemon = RunningDaemon {
        file: file.to_owned(),
        context: ServiceContext {
            runtime: runtime.handle().clone(),
            fork_server,
            devices: Arc::new(Mutex::new(std::mem::take(&mut passed_descriptors.devices))),
            slow_requests: Some(config.log.slow_requests.0).filter(|span| !span.is_zero()),
            profiles: Arc::new(Profiles::new(config.profiles())),
            images: Arc::default(),
            protected_files: config.protected_files(file),
        },
        config,
        runtime,
        started,
        prefetches: Prefetches::default(),
        stores: BTreeMap::new(),
        mounts: RunningMounts::default(),
        endpoints: RunningEndpoints::new(
            std::mem::take(&mut passed_descriptors.guests),
            std::mem::take(&mut passed_descriptors.connections),
            std::mem::take(&mut passed_descriptors.sockets),
        ),
        control: None,
        metrics: None,
        view: Arc::default(),
        watched: Arc::default(),
        rates: Arc::default(),
        reloads: Arc::default(),
        status_line: String::new(),
    };
    if let Err(error) = daemon.start(std::mem::take(&mut passed_descriptors.mounts), control) {
        daemon.give_up_start();
        return Err(error);
    }
    watchdog::start(daemon.watched.clone()).map_err(failed("start a thread"))?;
    daemon.sample();
    daemon.status_line = daemon.line();
    systemd::ready(&daemon.status_line);
    let pause = started.elapsed().as_millis() as u64;
    tracing::info!(milliseconds = pause, "ready: {}", daemon.status_line);
    daemon.serve(events);
    daemon.stop(events);
    Ok(())
}

fn claim(config: &Config) -> Result<StateClaim, DaemonError> {
    let claim = StateClaim::take(&config.profiles());
    claim.map_err(|_| DaemonError::StateInUse(config.state_dir()))
}

impl RunningDaemon {
    fn start(
        &mut self,
        mut previous: BTreeMap<String, systemd::PreviousMount>,
        control: control::ControlSocket,
    ) -> Result<(), DaemonError> {
        self.stores = self.open_stores(&self.config, &mut Vec::new())?;
        self.context.images.set(self.config.image_closures());
        let wanted = RunningMounts::wanted(&self.config, &self.stores);
        // First those that exist and that no process serves: paths that are checked for a new one
        // may be below them. Then from the root down.
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_by_key(|(name, wanted)| {
            (!previous.contains_key(name), wanted.config.path.clone())
        });
        for (name, wanted) in wanted {
            let previous = previous.remove(&name);
            self.mounts
                .start(&name, wanted, previous, &self.stores, &self.context)
                .map_err(|source| DaemonError::Mount {
                    name,
                    source: source.into(),
                })?;
        }
        for (name, previous) in previous {
            mounts::end_previous(&name, previous, &self.context.fork_server);
        }
        self.endpoints
            .start(&self.config, &self.stores, &self.context)?;
        self.endpoints.forget_previous();
        self.refresh();
        let handle = self.runtime.handle().clone();
        let (view, recording) = (self.view.clone(), self.view.clone());
        let answers = ControlState {
            ask: self.ask(),
            stores: Arc::new(move || view.lock().stores.clone()),
            prefetches: self.prefetches.clone(),
            profiles: self.context.profiles.clone(),
            remember: Arc::new(move || {
                let view = recording.lock().clone();
                view.remember();
            }),
        };
        self.control = Some(control::serve(control, answers, &handle)?);
        self.metrics = self.start_metrics(&self.config)?;
        Ok(())
    }

    /// Mounts of the previous process stay for the next try; new ones are removed.
    fn give_up_start(&mut self) {
        self.mounts.give_up();
        self.endpoints.hand_over();
    }

    /// The stores of `config`: those that are open already and the same, and new ones. A store that
    /// cannot be opened affects its own mounts and endpoints and no others; but if it was open
    /// before, another description of it is refused. What is missing then is added to `missing`.
    fn open_stores(
        &self,
        config: &Config,
        missing: &mut Vec<String>,
    ) -> Result<OpenStores, DaemonError> {
        let _inside = self.runtime.enter();
        let (stores, failed) = stores::open_each(&config.plans(), &self.stores);
        for (name, error) in failed {
            if self.stores.contains_key(&name) {
                return Err(error.into());
            }
            missing.push(error.to_string());
            tracing::error!(
                STORE = name,
                "cannot open {error}; what is to be mounted or served of it is not, until the \
                 configuration is read again"
            );
        }
        Ok(stores)
    }

    fn start_metrics(&self, config: &Config) -> Result<Option<ServedSocket>, DaemonError> {
        let Some(address) = &config.metrics.address else {
            return Ok(None);
        };
        let serving = sockets::metrics(address, self.ask(), self.runtime.handle())?;
        Ok(Some(serving))
    }

    /// Serves until it is stopped.
    fn serve(&mut self, events: &Receiver<SignalEvent>) {
        loop {
            match events.recv_timeout(TICK) {
                Ok(SignalEvent::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(SignalEvent::Reload) => self.reload(),
                Err(RecvTimeoutError::Timeout) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        self.mounts.notice_ends();
        log_rate_limiter::report();
        self.refresh();
        self.sample();
        let line = self.line();
        if line != self.status_line {
            systemd::status(&line);
            self.status_line = line;
        }
    }

    fn reload(&mut self) {
        systemd::reloading();
        match self.try_reload() {
            Ok(missing) => {
                tracing::info!("the configuration was read again");
                self.reloads.note(Ok(missing));
            }
            Err(error) => {
                let problems: Vec<_> = error.to_string().lines().map(str::to_owned).collect();
                for problem in &problems {
                    tracing::error!("{problem}");
                }
                tracing::error!("the new configuration is refused; the old one stays");
                self.reloads.note(Err(problems));
            }
        }
        self.refresh();
        self.status_line = self.line();
        systemd::ready(&self.status_line);
    }

    /// Reads the configuration again; returns what is missing of it.
    fn try_reload(&mut self) -> Result<Vec<String>, DaemonError> {
        let config = Config::load(&self.file).map_err(DaemonError::Config)?;
        let mut not_there = Vec::new();
        let stores = self.open_stores(&config, &mut not_there)?;
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
        if config.profiles() != self.context.profiles.dir() {
            tracing::warn!("that profiles are kept in another directory takes a restart");
        }
        let wanted = RunningMounts::wanted(&config, &stores);
        let missing = self.mounts.stop_others(wanted);
        self.endpoints
            .stop_others(&config, &stores, self.runtime.handle());
        // A device ends when the last reference to it is dropped.
        self.refresh();
        self.stores = stores;
        self.config = config;
        self.context.images.set(self.config.image_closures());
        self.context.protected_files = self.config.protected_files(&self.file);
        let (stores, context) = (&self.stores, &self.context);
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort_by_key(|(_, wanted)| wanted.config.path.clone());
        for (name, wanted) in missing {
            if let Err(error) = self.mounts.start(&name, wanted, None, stores, context) {
                tracing::error!(MOUNT = name, %error, "cannot mount");
                not_there.push(format!("the mount {name:?}: {error}"));
            }
        }
        if let Err(error) = self.endpoints.start(&self.config, stores, context) {
            tracing::error!(%error, "not everything of the new configuration is served");
            not_there.push(error.to_string());
        }
        Ok(not_there)
    }

    /// Ends the service, or hands the mounts over.
    fn stop(mut self, events: &Receiver<SignalEvent>) {
        let restart = systemd::is_restart();
        systemd::stopping(match restart {
            true => "leaving the mounts to the next process",
            false => "unmounting",
        });
        self.mounts.end(restart);
        self.endpoints.end(restart, self.runtime.handle());
        self.refresh();
        let deadline = Instant::now() + self.config.drain.0;
        loop {
            self.mounts.notice_ends();
            let remaining = deadline.saturating_duration_since(Instant::now());
            if self.mounts.leaving() == 0 || remaining.is_zero() {
                break;
            }
            systemd::status(&format!(
                "unmounted; waiting up to {} s for programs that still use {}",
                remaining.as_secs() + 1,
                count(self.mounts.leaving() as u64, "mount", "mounts")
            ));
            systemd::extend(EXTENSION);
            let wait = remaining.min(Duration::from_millis(500));
            if events.recv_timeout(wait) == Ok(SignalEvent::Stop) {
                break;
            }
        }
        self.mounts.drop_connections();
        self.control = None;
        self.metrics = None;
        // Workers hold the stores until the process ends, so that no store is closed before.
        let caches = self
            .stores
            .values()
            .filter_map(|store| store.cache.as_ref());
        caches.for_each(Cache::flush);
        // Workers that wait in read() need no notification: they end with the process. Until then
        // they and other threads may use the runtime, and would panic without it.
        std::mem::forget(self.runtime);
    }

    fn line(&self) -> String {
        (self.ask())().line()
    }

    /// Publishes the present state.
    fn refresh(&self) {
        let view = PublishedState {
            stores: self.stores.clone(),
            mounts: self.mounts.viewed(),
            devices: self.endpoints.viewed_devices(),
            listen: self.endpoints.viewed_listeners(),
            leaving: self.mounts.leaving() as u64,
        };
        let sessions = view.mounts.iter();
        let watched = sessions.map(|(name, viewed)| (name.clone(), viewed.session.clone()));
        self.watched.set(watched.collect());
        *self.view.lock() = view;
    }

    /// Samples the counters, for rates.
    fn sample(&self) {
        let view = self.view.lock().clone();
        self.rates.add(view.sample());
    }

    fn ask(&self) -> StatusSource {
        let (view, started) = (self.view.clone(), self.started);
        let (prefetches, rates) = (self.prefetches.clone(), self.rates.clone());
        let reloads = self.reloads.clone();
        Arc::new(move || {
            let view = view.lock().clone();
            view.status(started, prefetches.status(), &rates, reloads.status())
        })
    }
}
