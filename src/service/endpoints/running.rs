//! The running endpoints: started, kept and ended by the configuration.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use thiserror::Error;
use tokio::runtime::Handle;

use super::{EndpointError, ServedDevice, ServedListener, serve_guests};
use crate::server::{Capacity, ServerLimits};
use crate::service::config::{self, Config};
use crate::service::mounts::ServiceContext;
use crate::service::status::ListenStatus;
use crate::service::systemd;
use crate::service::view::ViewedDevice;
use crate::stores::{OpenStores, OpenedStore, StorePlan};

/// An endpoint cannot be made.
#[derive(Debug, Error)]
#[error("the {kind} {name:?}: {source}")]
pub struct NotServed {
    /// Its kind.
    kind: &'static str,
    /// Its name in the configuration.
    name: String,
    /// The error.
    source: Box<EndpointError>,
}

/// The running endpoints, by name.
pub(crate) struct RunningEndpoints {
    listeners: BTreeMap<String, RunningEndpoint<config::ListenConfig, ServedListener>>,
    devices: BTreeMap<String, RunningEndpoint<config::VirtiofsConfig, ServedDevice>>,
    /// The guests of the previous process, by device, until that device is started.
    previous_guests: BTreeMap<String, Vec<(String, OwnedFd)>>,
    /// The connections of Nix of the previous process, by listener, until that is started.
    previous_connections: BTreeMap<String, Vec<(String, OwnedFd)>>,
    /// The sockets that systemd's socket units passed on.
    sockets: Vec<(String, OwnedFd)>,
    /// What all listeners take together.
    capacity: Capacity,
}

/// An endpoint, with its configuration.
struct RunningEndpoint<C, R> {
    config: C,
    store: String,
    plan: StorePlan,
    running: R,
}

impl<C: PartialEq, R> RunningEndpoint<C, R> {
    /// Whether it has the present configuration `wanted`, and of which store.
    fn is_as(&self, wanted: Option<(&C, String)>, stores: &OpenStores) -> bool {
        wanted.is_some_and(|(config, store)| {
            let opened = stores.get(&store);
            *config == self.config
                && store == self.store
                && opened.is_some_and(|opened| opened.plan == self.plan)
        })
    }
}

impl RunningEndpoints {
    /// None yet, with the guests, connections and sockets that were passed on.
    pub(crate) fn new(
        previous_guests: BTreeMap<String, Vec<(String, OwnedFd)>>,
        previous_connections: BTreeMap<String, Vec<(String, OwnedFd)>>,
        sockets: Vec<(String, OwnedFd)>,
    ) -> Self {
        Self {
            previous_guests,
            previous_connections,
            sockets,
            listeners: BTreeMap::new(),
            devices: BTreeMap::new(),
            capacity: Capacity::new(&ServerLimits::default()),
        }
    }

    /// Starts those of `config` that do not run. Returns the first failure; the others are not
    /// affected.
    pub(crate) fn start(
        &mut self,
        config: &Config,
        stores: &OpenStores,
        context: &ServiceContext,
    ) -> Result<(), NotServed> {
        let mut first = Ok(());
        for (name, listen) in config.all_listeners() {
            let (sockets, capacity) = (&self.sockets, &self.capacity);
            let opened = stores.get(&config.store_of(listen.store.as_deref()));
            if listen.protocol == config::ListenProtocol::NixDaemon
                && opened.is_some_and(|opened| opened.without_cache)
            {
                tracing::error!(
                    LISTEN = name,
                    "the store is not served to Nix until its local store can be opened and the configuration \
                     is read again: nothing that Nix was given as valid would be kept"
                );
                continue;
            }
            let previous_connections = &mut self.previous_connections;
            let start = |opened: &OpenedStore, _: &str| {
                let previous = previous_connections.remove(&name).unwrap_or_default();
                ServedListener::start(
                    &name,
                    &listen,
                    opened,
                    sockets,
                    previous,
                    capacity,
                    &context.runtime,
                )
            };
            let store = config.store_of(listen.store.as_deref());
            let running = &mut self.listeners;
            let started = start_missing(running, "listener", &name, &listen, store, stores, start);
            first = first.and(started);
        }
        for (name, virtiofs) in &config.virtiofs {
            let previous_guests = &mut self.previous_guests;
            let start = |opened: &OpenedStore, store: &str| {
                let previous = previous_guests.remove(name).unwrap_or_default();
                // Names the device in the log of a guest's request.
                let span = tracing::error_span!("device", DEVICE = name, STORE = store);
                let (store, plan) = (opened.store.clone(), &opened.plan);
                span.in_scope(|| serve_guests(name, virtiofs, store, plan, previous, context))
            };
            let store = config.store_of(virtiofs.store.as_deref());
            let (running, kind) = (&mut self.devices, "virtiofs device");
            let started = start_missing(running, kind, name, virtiofs, store, stores, start);
            first = first.and(started);
        }
        first
    }

    /// Ends the guests and connections that the previous process handed over of devices and listeners
    /// that no longer exist.
    pub(crate) fn forget_previous(&mut self) {
        for (listener, connections) in std::mem::take(&mut self.previous_connections) {
            systemd::forget_connections(&listener, &connections);
        }
        for (device, guests) in std::mem::take(&mut self.previous_guests) {
            tracing::warn!(device, "virtiofs device removed; disconnecting its guests");
            systemd::forget_guests(&device, &guests);
        }
    }

    /// Ends those that `config` with `stores` does not have, and removes those that have ended by
    /// themselves.
    pub(crate) fn stop_others(&mut self, config: &Config, stores: &OpenStores, runtime: &Handle) {
        let wanted = config.all_listeners();
        for (name, listener) in std::mem::take(&mut self.listeners) {
            let of = |wanted: &'_ config::ListenConfig| config.store_of(wanted.store.as_deref());
            let wanted = wanted.get(&name).map(|wanted| (wanted, of(wanted)));
            match listener.is_as(wanted, stores) && !listener.running.has_ended() {
                true => drop(self.listeners.insert(name, listener)),
                false => listener.running.stop(runtime),
            }
        }
        for (name, device) in std::mem::take(&mut self.devices) {
            let of = |wanted: &'_ config::VirtiofsConfig| config.store_of(wanted.store.as_deref());
            let wanted = config.virtiofs.get(&name);
            match device.is_as(wanted.map(|wanted| (wanted, of(wanted))), stores) {
                true => drop(self.devices.insert(name, device)),
                false => device.running.remove_socket(),
            }
        }
    }

    /// Ends all of them; their guests are handed over if there will be a next process.
    pub(crate) fn end(&mut self, has_next_process: bool, runtime: &Handle) {
        for (_, listener) in std::mem::take(&mut self.listeners) {
            if has_next_process {
                listener.running.hand_over();
            }
            listener.running.stop(runtime);
        }
        for device in std::mem::take(&mut self.devices).into_values() {
            match has_next_process {
                true => device.running.endpoint.hand_over(),
                false => {
                    device.running.remove_socket();
                    device.running.endpoint.poison();
                }
            }
        }
    }

    /// From now on the next process serves the guests and the connections of Nix.
    pub(crate) fn hand_over(&self) {
        for listener in self.listeners.values() {
            listener.running.hand_over();
        }
        for device in self.devices.values() {
            device.running.endpoint.hand_over();
        }
    }

    /// The devices, for the status.
    pub(crate) fn viewed_devices(&self) -> BTreeMap<String, ViewedDevice> {
        let viewed =
            |device: &RunningEndpoint<config::VirtiofsConfig, ServedDevice>| ViewedDevice {
                socket: device.config.socket.clone(),
                store: device.store.clone(),
                endpoint: device.running.endpoint.clone(),
            };
        let devices = self.devices.iter();
        devices
            .map(|(name, device)| (name.clone(), viewed(device)))
            .collect()
    }

    /// The listeners that have a name, for the status.
    pub(crate) fn viewed_listeners(&self) -> BTreeMap<String, ListenStatus> {
        let status =
            |listener: &RunningEndpoint<config::ListenConfig, ServedListener>| ListenStatus {
                address: listener.config.address.clone(),
                store: listener.store.clone(),
                writable: listener.config.writable,
            };
        let listeners = self.listeners.iter();
        listeners
            .filter(|(_, listener)| !listener.config.unnamed)
            .map(|(name, listener)| (name.clone(), status(listener)))
            .collect()
    }
}

/// Starts the endpoint `name` of `store`, unless it runs.
fn start_missing<C: Clone, R>(
    running: &mut BTreeMap<String, RunningEndpoint<C, R>>,
    kind: &'static str,
    name: &str,
    config: &C,
    store: String,
    stores: &OpenStores,
    start: impl FnOnce(&OpenedStore, &str) -> Result<R, EndpointError>,
) -> Result<(), NotServed> {
    // Checked when the configuration was read: an endpoint's store is there.
    let Some(opened) = stores.get(&store) else {
        return Ok(());
    };
    if running.contains_key(name) {
        return Ok(());
    }
    let started = start(opened, &store).map_err(|source| NotServed {
        kind,
        name: name.to_owned(),
        source: source.into(),
    })?;
    let started = RunningEndpoint {
        config: config.clone(),
        store,
        plan: opened.plan.clone(),
        running: started,
    };
    running.insert(name.to_owned(), started);
    Ok(())
}
