//! The vhost-user device that one connection of a front end configures.
//!
//! The crate parses messages and checks their form; this carries them out. A device lives as long
//! as its connection: the next connection gets a new device, with a new guest.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap, GuestRegionMmap};

use super::inflight::InflightRecord;
use super::queue_events::QueueEvents;
use super::queue_worker;
use super::ring::{MappedGuestMemory, Ring};
use super::session::Guest;

/// Entries of a queue, at most.
const QUEUE_SIZE: u16 = 1024;
/// Bytes of the tag in `struct virtio_fs_config`.
const TAG_BYTES: usize = 36;
/// Regions of memory that a front end can share.
const MEMORY_SLOTS: usize = 509;
/// Missing from front ends that do not enable queues.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The name by which a guest mounts: 1 to 36 bytes, none of them NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceTag(String);

/// An invalid tag.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a tag has 1 to {TAG_BYTES} bytes, none of them NUL")]
pub struct TagError;

impl DeviceTag {
    /// Checks `tag`.
    pub fn new(tag: &str) -> std::result::Result<Self, TagError> {
        match (1..=TAG_BYTES).contains(&tag.len()) && !tag.contains('\0') {
            true => Ok(Self(tag.to_owned())),
            false => Err(TagError),
        }
    }

    /// The bytes of the tag.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A virtiofs device.
pub(super) struct VirtiofsDevice {
    guest: Arc<Guest>,
    /// Returned to front ends that ask; others have it from their own command line.
    tag: Option<DeviceTag>,
    memory: MappedGuestMemory,
    /// Where the front end has mapped the guest's memory.
    places: Vec<GuestRegion>,
    /// The high-priority queue, and the others.
    rings: Vec<Ring>,
    features: u64,
}

/// Where a region of the guest's memory lies, for the front end and for the guest.
struct GuestRegion {
    front_end: u64,
    guest: u64,
    bytes: u64,
}

impl VirtiofsDevice {
    /// A device for `guest` with one high-priority queue and `request_queues` others, each with a
    /// thread of its own; what is taken from them is recorded in `inflight`.
    pub(super) fn new(
        guest: Arc<Guest>,
        tag: Option<DeviceTag>,
        request_queues: usize,
        inflight: &Arc<InflightRecord>,
    ) -> io::Result<Self> {
        let memory = MappedGuestMemory::new(GuestMemoryMmap::new());
        let ring = |queue| {
            let inflight = inflight.queue(queue);
            let ring = Ring::new(memory.clone(), QUEUE_SIZE, inflight, QueueEvents::new()?);
            ring.map_err(io::Error::other)
        };
        let rings: Vec<Ring> = (0..=request_queues).map(ring).collect::<io::Result<_>>()?;
        let device = Self {
            guest,
            tag,
            memory,
            places: Vec::new(),
            rings,
            features: 0,
        };
        for ring in &device.rings {
            let started = queue_worker::start(ring, &device.guest);
            started.inspect_err(|_| device.rings.iter().for_each(Ring::abandon))?;
        }
        Ok(device)
    }

    /// Its queues.
    pub(super) fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// `struct virtio_fs_config`: the tag, and the number of request queues.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; TAG_BYTES];
        if let Some(tag) = &self.tag {
            config[..tag.as_bytes().len()].copy_from_slice(tag.as_bytes());
        }
        config.extend((self.rings.len() as u32 - 1).to_le_bytes());
        config
    }

    fn ring(&self, number: u32) -> Result<&Ring> {
        self.rings.get(number as usize).ok_or(Error::InvalidParam)
    }

    /// The guest's address for an address of the front end.
    fn of_guest(&self, address: u64) -> Result<u64> {
        let found = self.places.iter().find_map(|place| {
            let offset = address.checked_sub(place.front_end)?;
            (offset < place.bytes).then_some(place.guest + offset)
        });
        found.ok_or(Error::InvalidParam)
    }

    fn set_enabled(&self, enabled: bool) {
        for ring in &self.rings {
            ring.set_enabled(enabled);
        }
    }
}

fn region(region: &VhostUserMemoryRegion, file: File) -> Result<(GuestRegionMmap, GuestRegion)> {
    let place = GuestRegion {
        front_end: region.user_addr,
        guest: region.guest_phys_addr,
        bytes: region.memory_size,
    };
    let start = GuestAddress(place.guest);
    let mapped = GuestRegionMmap::new(region.mmap_region(file)?, start);
    Ok((mapped.ok_or(Error::InvalidParam)?, place))
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

/// The error for features that are not offered.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered"))
}

impl VhostUserBackendReqHandlerMut for VirtiofsDevice {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.set_enabled(false);
        self.features = 0;
        self.guest.end_session();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_features()? != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.rings
            .iter()
            .for_each(|ring| ring.set_event_idx(event_idx));
        if features & PROTOCOL_FEATURES == 0 {
            // Such a front end cannot enable them.
            self.set_enabled(true);
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let config = match self.tag {
            Some(_) => VhostUserProtocolFeatures::CONFIG,
            // QEMU warns about a device that offers a configuration: it has its own.
            None => VhostUserProtocolFeatures::empty(),
        };
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | config)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        // The crate stores the agreed features, and refuses others.
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_SLOTS as u64)
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let buffers = regions.iter().zip(files);
        let buffers = buffers.map(|(buffer, file)| region(buffer, file));
        let (buffers, places): (Vec<_>, _) =
            buffers.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let memory = GuestMemoryMmap::from_regions(buffers).map_err(failed)?;
        self.exchange(memory);
        self.places = places;
        Ok(())
    }

    fn add_mem_region(&mut self, buffer: &VhostUserSingleMemoryRegion, file: File) -> Result<()> {
        if self.places.len() >= MEMORY_SLOTS {
            return Err(Error::InvalidParam);
        }
        let (mapped, place) = region(buffer, file)?;
        let memory = self.memory.memory().insert_region(Arc::new(mapped));
        self.exchange(memory.map_err(failed)?);
        self.places.push(place);
        Ok(())
    }

    fn remove_mem_region(&mut self, buffer: &VhostUserSingleMemoryRegion) -> Result<()> {
        let start = GuestAddress(buffer.guest_phys_addr);
        let memory = self.memory.memory();
        let (memory, _) = memory
            .remove_region(start, buffer.memory_size)
            .map_err(failed)?;
        self.exchange(memory);
        self.places.retain(|place| place.guest != start.0);
        Ok(())
    }

    fn set_vring_num(&mut self, queue: u32, entries: u32) -> Result<()> {
        match u16::try_from(entries) {
            Ok(entries @ 1..=QUEUE_SIZE) if entries.is_power_of_two() => {
                self.ring(queue)?.set_entries(entries);
                Ok(())
            }
            _ => Err(Error::InvalidParam),
        }
    }

    fn set_vring_addr(
        &mut self,
        queue: u32,
        _: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let [table, available, used] = [table, available, used].map(|place| self.of_guest(place));
        self.ring(queue)?
            .set_places(table?, available?, used?)
            .map_err(failed)
    }

    fn set_vring_base(&mut self, queue: u32, base: u32) -> Result<()> {
        self.ring(queue)?.set_base(base as u16);
        Ok(())
    }

    fn get_vring_base(&mut self, queue: u32) -> Result<VhostUserVringState> {
        let base = self.ring(queue)?.stop();
        Ok(VhostUserVringState::new(queue, base.into()))
    }

    fn set_vring_kick(&mut self, queue: u8, kick: Option<File>) -> Result<()> {
        self.ring(queue.into())?.set_kick(kick);
        Ok(())
    }

    fn set_vring_call(&mut self, queue: u8, call: Option<File>) -> Result<()> {
        self.ring(queue.into())?.set_call(call);
        Ok(())
    }

    fn set_vring_err(&mut self, queue: u8, _: Option<File>) -> Result<()> {
        // No failure here needs an error.
        self.ring(queue.into()).map(drop)
    }

    fn set_vring_enable(&mut self, queue: u32, enable: bool) -> Result<()> {
        if self.features & PROTOCOL_FEATURES == 0 {
            return Err(Error::InvalidParam);
        }
        self.ring(queue)?.set_enabled(enable);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let config = self.config();
        let start = offset as usize;
        let end = start.saturating_add(size as usize);
        Ok(config.get(start..end).unwrap_or_default().to_vec())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        not_offered()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        not_offered()
    }
}

impl VirtiofsDevice {
    /// Later requests are looked up in `memory`.
    fn exchange(&self, memory: GuestMemoryMmap) {
        let lock = self.memory.lock();
        lock.unwrap_or_else(|poisoned| poisoned.into_inner())
            .replace(memory);
    }
}
