//! The vhost-user device that one connection of a front end drives.
//!
//! The crate speaks vhost-user and runs a thread for each queue; this says what the device can do,
//! and serves a queue when its thread is woken. A device lives as long as its connection: the next
//! one gets a new device, with a new guest.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::crew;
use super::endpoint::Tag;
use super::ring::{Memory, Ring};
use super::session::Guest;

/// Entries of a queue, at most.
const QUEUE_SIZE: usize = 1024;
/// Bytes of the tag in `struct virtio_fs_config`.
pub const TAG_BYTES: usize = 36;

/// A virtiofs device.
pub struct Device {
    guest: Arc<Guest>,
    /// Told to front ends that ask; others have it from their own command line.
    tag: Option<Tag>,
    request_queues: usize,
    /// By their number, once they were kicked.
    rings: Box<[OnceLock<Ring>]>,
    /// What ends the threads, until the crate takes it.
    exits: Mutex<Vec<Option<(EventConsumer, EventNotifier)>>>,
    /// The ends of these that the crate never closes.
    _exit_ends: Vec<OwnedFd>,
}

impl Device {
    /// A device for `guest` with one high-priority queue and `request_queues` others.
    pub fn new(guest: Arc<Guest>, tag: Option<Tag>, request_queues: usize) -> io::Result<Self> {
        let queues = 1 + request_queues;
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let exits = (0..queues).map(|_| new_event_consumer_and_notifier(flags));
        let exits: Vec<_> = exits.collect::<Result<_, _>>()?;
        let end = |(consumer, _): &(EventConsumer, _)| {
            // SAFETY: vhost-user-backend 0.22.0 turns every consumer that `exit_event` gives it
            // into a bare number, which it never closes, so that this is the one owner; `Drop`
            // does the same to those that it did not take. The version is pinned, and a test
            // counts descriptors.
            unsafe { OwnedFd::from_raw_fd(consumer.as_raw_fd()) }
        };
        Ok(Self {
            guest,
            tag,
            request_queues,
            rings: (0..queues).map(|_| OnceLock::new()).collect(),
            _exit_ends: exits.iter().map(end).collect(),
            exits: Mutex::new(exits.into_iter().map(Some).collect()),
        })
    }

    /// Drops whatever the guest still waits for: its front end has gone.
    pub fn disconnected(&self) {
        self.guest.dismiss();
        self.rings
            .iter()
            .filter_map(OnceLock::get)
            .for_each(Ring::abandon);
    }

    /// `struct virtio_fs_config`: the tag, and the number of request queues.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; TAG_BYTES];
        if let Some(tag) = &self.tag {
            config[..tag.as_bytes().len()].copy_from_slice(tag.as_bytes());
        }
        config.extend((self.request_queues as u32).to_le_bytes());
        config
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        1 + self.request_queues
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let config = match self.tag {
            Some(_) => VhostUserProtocolFeatures::CONFIG,
            // QEMU warns of a device that has a configuration to offer: it has its own.
            None => VhostUserProtocolFeatures::empty(),
        };
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | config
    }

    fn reset_device(&self) {
        self.guest.end_session();
    }

    fn set_event_idx(&self, _: bool) {
        // The rings were told.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.config();
        let start = offset as usize;
        let end = start.saturating_add(size as usize);
        config.get(start..end).unwrap_or_default().to_vec()
    }

    fn update_memory(&self, _: Memory) -> io::Result<()> {
        // The rings look it up for each request.
        Ok(())
    }

    /// A thread for each queue.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.num_queues()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exits.lock().get_mut(thread)?.take()
    }

    fn handle_event(
        &self,
        event: u16,
        _: EventSet,
        rings: &[Ring],
        thread: usize,
    ) -> io::Result<()> {
        // An error would end the queue's thread, and there is none that is worth it.
        if let (Some(ring), Some(known)) = (rings.get(usize::from(event)), self.rings.get(thread)) {
            known.get_or_init(|| ring.clone());
            crew::serve(ring, &self.guest);
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let exits = self.exits.get_mut().drain(..).flatten();
        for (consumer, _) in exits {
            // `_exit_ends` closes it.
            let _ = consumer.into_raw_fd();
        }
    }
}
