//! The state behind the lock of [`Passthrough`](super::Passthrough), and in the hand-over state.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::{FileHandle, OpenCount, OpenReply};
use crate::castore::Digest;
use crate::fs::node_id::NodeId;
use crate::fs::nodes::{InodeTable, InodeTableError, OpenFile, PreviousOpenFiles, Registration};

pub(super) struct PassthroughTable {
    registered: HashMap<Digest, RegisteredFile>,
    /// Digests whose last user closed, the longest ago first. An entry that was opened again since
    /// is obsolete and is skipped.
    idle: VecDeque<Digest>,
    most_idle: usize,
    /// Records for registrations that are free, and how many there are in all.
    free_records: Vec<u32>,
    records: u32,
    /// By the handles' places.
    files: Vec<HandleSlot>,
    free: Vec<u32>,
    /// Inodes that are open through the page cache, and how often.
    cached: HashMap<NodeId, u32>,
    inode_table: Option<Arc<InodeTable>>,
}

struct RegisteredFile {
    id: u32,
    /// Its record.
    place: u32,
    opens: u32,
    /// How many entries it has in the queue of idle ones.
    queued: u32,
}

#[derive(Default)]
struct HandleSlot {
    generation: u32,
    file: Option<OpenFile>,
}

impl PassthroughTable {
    pub(super) fn new(inode_table: Option<Arc<InodeTable>>, most_idle: usize) -> Self {
        Self {
            registered: HashMap::new(),
            idle: VecDeque::new(),
            most_idle,
            free_records: Vec::new(),
            records: 0,
            files: Vec::new(),
            free: Vec::new(),
            cached: HashMap::new(),
            inode_table,
        }
    }

    /// What the previous process handed over in `inode_table`, without what is open in nodes that the kernel
    /// does not know.
    pub(super) fn take_over(
        inode_table: Arc<InodeTable>,
        most_idle: usize,
        previous: &PreviousOpenFiles,
        is_known: impl Fn(NodeId) -> bool,
    ) -> Result<Self, InodeTableError> {
        let mut table = Self::new(Some(inode_table), most_idle);
        let mut is_free = vec![true; previous.places as usize];
        table.records = previous.places;
        for registration in &previous.registered {
            if let Some(free) = is_free.get_mut(registration.place as usize) {
                *free = false;
            }
            let registered = RegisteredFile {
                id: registration.id,
                place: registration.place,
                opens: 0,
                queued: 0,
            };
            let digest = registration.digest;
            if table.registered.insert(digest, registered).is_some() {
                return Err(InodeTableError::Damaged("a file is registered twice"));
            }
        }
        let records = 0..previous.places;
        let free = records.filter(|place| is_free.get(*place as usize) == Some(&true));
        table.free_records = free.collect();
        for (place, (generation, file)) in previous.files.iter().enumerate() {
            let mut file = file.clone();
            if let Some(open) = &file
                && !is_known(open.node)
            {
                table.persist(|inode_table| inode_table.note_closed(place as u32));
                file = None;
            }
            match &file {
                Some(open) => table.count_open(open)?,
                None => table.free.push(place as u32),
            }
            table.files.push(HandleSlot {
                generation: *generation,
                file,
            });
        }
        for registration in &previous.registered {
            table.note_idle(&registration.digest);
        }
        Ok(table)
    }

    fn persist(&self, what: impl FnOnce(&InodeTable)) {
        if let Some(inode_table) = &self.inode_table {
            what(inode_table);
        }
    }

    /// The file that the request `unique` has opened, if it has.
    pub(super) fn opened_by(&self, unique: u64, node: NodeId) -> Option<OpenReply> {
        let mut files = self.files.iter().enumerate();
        files.find_map(|(place, HandleSlot { generation, file })| {
            let file = file.as_ref()?;
            (file.request == unique && file.node == node).then(|| OpenReply {
                handle: FileHandle::new(place as u32, *generation),
                backing: file.backing,
            })
        })
    }

    /// Opens `node` in the way in which it is open already, or by an existing registration.
    pub(super) fn open_as_others(
        &mut self,
        request: u64,
        node: NodeId,
        digest: &Digest,
    ) -> Option<OpenReply> {
        let backing = match self.cached.contains_key(&node) {
            true => None,
            false => Some(self.registered.get(digest)?.id),
        };
        Some(self.open(OpenFile {
            node,
            request,
            digest: *digest,
            backing,
        }))
    }

    /// Opens a file; its backing file is registered.
    pub(super) fn open(&mut self, file: OpenFile) -> OpenReply {
        let place = self.free.pop().unwrap_or_else(|| {
            self.files.push(HandleSlot::default());
            self.files.len() as u32 - 1
        });
        let backing = file.backing;
        let known = self.count_open(&file);
        debug_assert!(known.is_ok(), "registered under this lock");
        let at = &mut self.files[place as usize];
        at.generation = at.generation.wrapping_add(1);
        let generation = at.generation;
        if let Some(inode_table) = &self.inode_table {
            inode_table.note_open(place, generation, &file);
        }
        at.file = Some(file);
        OpenReply {
            handle: FileHandle::new(place, generation),
            backing,
        }
    }

    fn count_open(&mut self, file: &OpenFile) -> Result<(), InodeTableError> {
        match file.backing {
            None => *self.cached.entry(file.node).or_default() += 1,
            Some(backing) => match self.registered.get_mut(&file.digest) {
                Some(registered) if registered.id == backing => registered.opens += 1,
                _ => {
                    return Err(InodeTableError::Damaged(
                        "an open file's backing is unknown",
                    ));
                }
            },
        }
        Ok(())
    }

    /// Notes that the kernel knows the blob `digest` by the number `id` now.
    pub(super) fn register(&mut self, id: u32, digest: &Digest) {
        let place = self.free_records.pop().unwrap_or_else(|| {
            self.records += 1;
            self.records - 1
        });
        self.persist(|inode_table| {
            inode_table.note_registered(&Registration {
                place,
                id,
                digest: *digest,
            });
        });
        let registered = RegisteredFile {
            id,
            place,
            opens: 0,
            queued: 0,
        };
        self.registered.insert(*digest, registered);
    }

    /// Closes a file; returns whether it was open.
    pub(super) fn close(&mut self, handle: FileHandle) -> bool {
        let Some(at) = self.files.get_mut(handle.place() as usize) else {
            return false;
        };
        if at.generation != handle.generation() {
            return false;
        }
        let Some(file) = at.file.take() else {
            return false;
        };
        self.persist(|inode_table| inode_table.note_closed(handle.place()));
        self.free.push(handle.place());
        match file.backing {
            Some(_) => {
                if let Some(registered) = self.registered.get_mut(&file.digest) {
                    registered.opens = registered.opens.saturating_sub(1);
                }
                self.note_idle(&file.digest);
            }
            None => {
                if let Some(count) = self.cached.get_mut(&file.node) {
                    *count -= 1;
                    if *count == 0 {
                        self.cached.remove(&file.node);
                    }
                }
            }
        }
        true
    }

    fn note_idle(&mut self, digest: &Digest) {
        if let Some(registered) = self.registered.get_mut(digest)
            && registered.opens == 0
        {
            registered.queued += 1;
            self.idle.push_back(*digest);
        }
    }

    /// Takes out the registration that was unused the longest, if there are too many.
    pub(super) fn next_idle(&mut self) -> Option<Registration> {
        while self.idle.len() > self.most_idle {
            let digest = self.idle.pop_front()?;
            let Some(registered) = self.registered.get_mut(&digest) else {
                continue;
            };
            registered.queued -= 1;
            if registered.opens == 0 && registered.queued == 0 {
                let (id, place) = (registered.id, registered.place);
                self.registered.remove(&digest);
                return Some(Registration { place, id, digest });
            }
        }
        None
    }

    /// Notes that the registration from [`next_idle`](Self::next_idle) has ended.
    pub(super) fn ended(&mut self, registration: &Registration) {
        self.persist(|inode_table| inode_table.note_ended(registration.place));
        self.free_records.push(registration.place);
    }

    pub(super) fn count(&self) -> OpenCount {
        let files = self.files.len() - self.free.len();
        let cached: u32 = self.cached.values().sum();
        OpenCount {
            files,
            backed: files - cached as usize,
            registered: self.registered.len(),
        }
    }

    /// The numbers of what is registered.
    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.registered.values().map(|one| one.id).collect();
        ids.sort_unstable();
        ids
    }
}
