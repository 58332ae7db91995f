//! The hand-over state of a guest, held by another process.
//!
//! **Problem.** QEMU connects to a virtiofs device once, when the machine is made, and cannot
//! reconnect under a running guest. So the connection must never close, whichever process reads it.
//!
//! **Mechanism.** The connection's descriptor, all messages of the setup (`message`), the requests
//! in flight (`inflight`) and the node table (`fs::InodeTable`) are held by a [`DescriptorHolder`], systemd or a
//! parent process, and the next process takes them over. The guest sees a pause, and then the
//! replies to its requests.
//!
//! **One descriptor holds them all**: the receiving end of a socket pair, into which everything is
//! sent as messages with descriptors, and from which no process receives. Its queue survives the
//! sender, each message whole or not at all, and the next process only peeks (`SO_PEEK_OFF`), so
//! that it may die meanwhile as well. When the list has become long a new one replaces it: the new
//! one is held first, then the old one is dropped. If both are found, the newer one counts.
//!
//! **Invariant: no message of the front end is lost or handled twice.** It is recorded before it is
//! taken from the connection, and counted as handled after its answer was sent. So after a death it
//! is either still in the connection or in the record, and the next process compares. Only between
//! the answer and the counting, two system calls apart, a death causes a second answer, and the
//! front end disconnects.
//!
//! **Entries**, version [`VERSION`], numbers in native order: `H`, the version (u32) and how many
//! messages were handled when the list began (u64), with the connection and the `inflight` file;
//! `S`, with the node table of the guest's session, or without if there is none; `m`, the setup, as
//! u8 descriptors, u32 length, the message, for each; `M`, a later message.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use thiserror::Error;

use super::inflight::InflightRecord;
use super::message::{self, FrontEndMessage, FrontEndSetup};
use crate::castore::Digest;
use crate::fs::{InodeTable, InodeTableError};

/// The version of the entries. Another one is not read.
const VERSION: u32 = 1;
/// Bytes of an entry, at most.
const ENTRY_BYTES: usize = 64 << 10;
/// Bytes and descriptors of an `m` entry at which the next one begins.
const FULL_BYTES: usize = 16 << 10;
const FULL_FILES: usize = 100;
/// Entries that are added before a new list is made.
const LONG: usize = 64;

/// Holds descriptors beyond this process's death.
pub trait DescriptorHolder: Send + Sync {
    /// Holds `descriptor` under `name` from now on.
    fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Drops what is held under `name`.
    fn forget(&self, name: &str);
}

/// Why a guest of the previous process cannot be taken over.
#[derive(Debug, Error)]
pub enum PreviousGuestError {
    /// A system call failed.
    #[error("the hand-over state of a guest: {0}")]
    System(#[from] io::Error),
    /// Written by another version of this program.
    #[error("the hand-over state of a guest has layout {found}, and this version knows {VERSION}")]
    Version {
        /// The version in the list.
        found: u32,
    },
    /// The contents are inconsistent.
    #[error("the hand-over state of a guest is damaged: {0}")]
    Damaged(&'static str),
}

/// A guest that the previous process handed over.
pub struct PreviousGuest {
    name: ListName,
    /// The connection of its front end.
    pub(super) front: OwnedFd,
    /// Its requests in flight.
    pub(super) inflight: Arc<InflightRecord>,
    /// Its setup.
    pub(super) setup: FrontEndSetup,
    /// Its node table, if it has mounted.
    pub(super) session: Option<Result<Arc<InodeTable>, InodeTableError>>,
    /// A message whose answer may not have been sent.
    pub(super) pending: Option<FrontEndMessage>,
}

/// The name of a list: its guest, and its number among the guest's lists.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ListName {
    guest: String,
    generation: u64,
}

impl ListName {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_nanos() as u64);
        Self {
            guest: format!("{now:x}{:x}", std::process::id()),
            generation: 0,
        }
    }

    fn next(&self) -> Self {
        Self {
            guest: self.guest.clone(),
            generation: self.generation + 1,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (guest, generation) = text.rsplit_once('-')?;
        Some(Self {
            guest: guest.to_owned(),
            generation: generation.parse().ok()?,
        })
    }

    fn text(&self) -> String {
        format!("{}-{}", self.guest, self.generation)
    }
}

impl PreviousGuest {
    /// The guests of those `lists` that `holder` returned, by their names. A guest that cannot be
    /// taken over is dropped, and the reason is logged.
    pub fn read(lists: Vec<(String, OwnedFd)>, holder: &dyn DescriptorHolder) -> Vec<Self> {
        let mut newest: Vec<(ListName, OwnedFd)> = Vec::new();
        for (text, list) in lists {
            let Some(name) = ListName::parse(&text) else {
                tracing::warn!(
                    name = text,
                    "a descriptor that was handed over is not a guest's"
                );
                holder.forget(&text);
                continue;
            };
            match newest
                .iter_mut()
                .find(|(other, _)| other.guest == name.guest)
            {
                Some(other) if other.0.generation < name.generation => {
                    holder.forget(&other.0.text());
                    *other = (name, list);
                }
                Some(_) => holder.forget(&name.text()),
                None => newest.push((name, list)),
            }
        }
        let read = |(name, list): (ListName, OwnedFd)| match Self::of(name.clone(), &list) {
            Ok(previous) => Some(previous),
            Err(error) => {
                tracing::error!(
                    %error,
                    "cannot take over a guest of the previous process; restart the guest"
                );
                holder.forget(&name.text());
                None
            }
        };
        newest.into_iter().filter_map(read).collect()
    }

    /// Digest and size of the directory that the sessions of `guests` show, if their device was
    /// configured to show `shows` ([`DeviceOptions::shows`](super::DeviceOptions)). What a session
    /// shows is in use, and so is still in the store when its name is gone.
    pub fn mount_root<'a>(
        guests: impl IntoIterator<Item = &'a Self>,
        shows: &str,
    ) -> Option<(Digest, u64)> {
        guests.into_iter().find_map(|previous| {
            let inode_table = previous.session.as_ref()?.as_ref().ok()?;
            let is_same = inode_table.about().ok()? == shows.as_bytes();
            is_same.then(|| inode_table.mount_root().ok().flatten())?
        })
    }

    /// Drops its lists at the holder.
    pub(super) fn forget(&self, holder: &dyn DescriptorHolder) {
        holder.forget(&self.name.text());
    }

    fn of(name: ListName, list: &OwnedFd) -> Result<Self, PreviousGuestError> {
        let mut entries = entries(list)?.into_iter();
        let damaged = PreviousGuestError::Damaged;
        let (head, files) = entries.next().ok_or(damaged("it is empty"))?;
        let begin = || {
            let rest = head.strip_prefix(b"H")?;
            let (version, begun) = rest.split_first_chunk()?;
            Some((u32::from_ne_bytes(*version), begun))
        };
        let (version, begun) = begin().ok_or(damaged("it has no beginning"))?;
        if version != VERSION {
            return Err(PreviousGuestError::Version { found: version });
        }
        let begun = begun.try_into().map(u64::from_ne_bytes);
        let begun = begun.map_err(|_| damaged("its beginning has another length"))?;
        let Ok([front, inflight]) = <[OwnedFd; 2]>::try_from(files) else {
            return Err(damaged("the connection is not there"));
        };
        let (inflight, handled) = match InflightRecord::open(inflight) {
            Ok(inflight) => {
                let handled = inflight.handled();
                (inflight, handled)
            }
            Err(error) => {
                tracing::error!(%error, "the requests in flight of a guest are unreadable");
                (InflightRecord::take_over_blindly()?, u64::MAX)
            }
        };
        let mut previous = Self {
            name,
            front,
            inflight: Arc::new(inflight),
            setup: FrontEndSetup::default(),
            session: None,
            pending: None,
        };
        let mut number = begun;
        for (entry, files) in entries {
            match entry.split_first() {
                Some((b'm', rest)) => previous.note_all(rest, files).ok_or(damaged("a setup"))?,
                Some((b'M', bytes)) => {
                    number += 1;
                    let message = FrontEndMessage {
                        bytes: bytes.to_vec(),
                        files: files.into(),
                    };
                    match number <= handled {
                        true => previous.setup.note(message),
                        false => previous.pending = Some(message),
                    }
                }
                Some((b'S', _)) => {
                    previous.session = files.into_iter().next().map(open_inode_table)
                }
                _ => return Err(damaged("an entry of no known kind")),
            }
        }
        Ok(previous)
    }

    fn note_all(&mut self, mut rest: &[u8], files: Vec<OwnedFd>) -> Option<()> {
        let mut files = files.into_iter();
        while let Some((count, after)) = rest.split_first() {
            let (length, after) = after.split_first_chunk()?;
            let (bytes, after) = after.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
            rest = after;
            let files: Arc<[OwnedFd]> = files.by_ref().take(usize::from(*count)).collect();
            if files.len() != usize::from(*count) {
                return None;
            }
            self.setup.note(FrontEndMessage {
                bytes: bytes.to_vec(),
                files,
            });
        }
        Some(())
    }
}

fn open_inode_table(memory: OwnedFd) -> Result<Arc<InodeTable>, InodeTableError> {
    InodeTable::open(memory).map(Arc::new)
}

/// All entries of a list, which remain in it.
fn entries(list: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<OwnedFd>)>> {
    let from: libc::c_int = 0;
    // SAFETY: the value is an int, as the option requires, and lives through the call.
    let outcome = unsafe {
        libc::setsockopt(
            list.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const from).cast(),
            size_of_val(&from) as libc::socklen_t,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut entries = Vec::new();
    loop {
        let mut bytes = Vec::new();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match message::receive(list, &mut bytes, ENTRY_BYTES, flags) {
            Ok(_) if bytes.is_empty() => return Ok(entries),
            Ok(files) => entries.push((bytes, files)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(entries),
            Err(error) => return Err(error),
        }
    }
}

/// The record of a guest that is being served.
pub(super) struct GuestRecord {
    inflight: Arc<InflightRecord>,
    /// Nothing without a holder.
    held: Mutex<Option<HeldRecord>>,
}

struct HeldRecord {
    holder: Arc<dyn DescriptorHolder>,
    name: ListName,
    /// The sending end of the list.
    list: OwnedFd,
    /// Entries that were added to it.
    added: usize,
    front: OwnedFd,
    setup: FrontEndSetup,
    session: Option<Arc<InodeTable>>,
}

impl GuestRecord {
    /// A record without a holder.
    pub(super) fn own() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            inflight: Arc::new(InflightRecord::create()?),
            held: Mutex::new(None),
        }))
    }

    /// The record of a guest whose front end has just connected.
    pub(super) fn new(
        holder: Arc<dyn DescriptorHolder>,
        front: BorrowedFd<'_>,
    ) -> io::Result<Arc<Self>> {
        let inflight = Arc::new(InflightRecord::create()?);
        let held = HeldRecord {
            holder,
            name: ListName::new(),
            list: front.try_clone_to_owned()?,
            added: 0,
            front: front.try_clone_to_owned()?,
            setup: FrontEndSetup::default(),
            session: None,
        };
        let record = Self {
            inflight,
            held: Mutex::new(Some(held)),
        };
        record.begin_list(&mut record.held.lock(), None, None);
        Ok(Arc::new(record))
    }

    /// The record of a guest that the previous process handed over; returns also its unanswered message.
    pub(super) fn take_over(
        holder: Arc<dyn DescriptorHolder>,
        previous: &PreviousGuest,
    ) -> io::Result<Arc<Self>> {
        let before = previous.name.text();
        let held = HeldRecord {
            holder,
            name: previous.name.next(),
            list: previous.front.try_clone()?,
            added: 0,
            front: previous.front.try_clone()?,
            setup: previous.setup.clone(),
            session: previous
                .session
                .as_ref()
                .and_then(|session| session.as_ref().ok().cloned()),
        };
        let record = Self {
            inflight: previous.inflight.clone(),
            held: Mutex::new(Some(held)),
        };
        let pending = previous.pending.as_ref();
        record.begin_list(&mut record.held.lock(), Some(before), pending);
        Ok(Arc::new(record))
    }

    /// The guest's requests in flight.
    pub(super) fn inflight(&self) -> &Arc<InflightRecord> {
        &self.inflight
    }

    /// Whether a holder has it.
    pub(super) fn is_held(&self) -> bool {
        self.held.lock().is_some()
    }

    /// Records a message of the front end.
    pub(super) fn arrived(&self, message: &FrontEndMessage) {
        let mut held = self.held.lock();
        if let Some(open) = held.as_mut() {
            let entry = [b"M", message.bytes.as_slice()].concat();
            let added = open.add(&entry, &message.files);
            self.unless_failed(&mut held, added);
        }
    }

    /// The message was handled, and its answer sent.
    pub(super) fn handled(&self, message: FrontEndMessage) {
        let mut held = self.held.lock();
        if let Some(open) = held.as_mut() {
            open.setup.note(message);
            self.inflight.set_handled(self.inflight.handled() + 1);
            self.shorten(&mut held);
        }
    }

    /// Records that the guest has a session with this node table from here on, or none.
    pub(super) fn session(&self, session: Option<&Arc<InodeTable>>) {
        let mut held = self.held.lock();
        if let Some(open) = held.as_mut() {
            let files: Vec<_> = session
                .iter()
                .map(|inode_table| inode_table.memory())
                .collect();
            let added = message::send(&open.list, b"S", &files, SendFlags::DONTWAIT);
            open.added += 1;
            open.session = session.cloned();
            self.unless_failed(&mut held, added);
            self.shorten(&mut held);
        }
    }

    /// The guest has disconnected.
    pub(super) fn end(&self) {
        if let Some(held) = self.held.lock().take() {
            held.holder.forget(&held.name.text());
        }
    }

    /// Makes a list with the whole state, gives it to the holder, and drops the one before.
    fn begin_list(
        &self,
        held: &mut Option<HeldRecord>,
        before: Option<String>,
        pending: Option<&FrontEndMessage>,
    ) {
        let Some(open) = held.as_mut() else { return };
        let holder = open.holder.clone();
        let begun = open.begin(&self.inflight, pending);
        self.unless_failed(held, begun);
        if let Some(before) = before {
            holder.forget(&before);
        }
    }

    fn shorten(&self, held: &mut Option<HeldRecord>) {
        if let Some(open) = held.as_mut()
            && open.added > LONG
        {
            let before = open.name.text();
            open.name = open.name.next();
            self.begin_list(held, Some(before), None);
        }
    }

    /// An incomplete record is worse than none.
    fn unless_failed(&self, held: &mut Option<HeldRecord>, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            tracing::error!(
                %error,
                "cannot record the setup of a guest; it will not outlive this process"
            );
            if let Some(held) = held.take() {
                held.holder.forget(&held.name.text());
            }
        }
    }
}

impl HeldRecord {
    fn add(&mut self, entry: &[u8], files: &[OwnedFd]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.added += 1;
        message::send(&self.list, entry, &files, SendFlags::DONTWAIT)
    }

    fn begin(
        &mut self,
        inflight: &InflightRecord,
        pending: Option<&FrontEndMessage>,
    ) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC;
        let (list, held) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        self.list = list;
        let mut head = vec![b'H'];
        head.extend(VERSION.to_ne_bytes());
        head.extend(inflight.handled().to_ne_bytes());
        let files = [self.front.as_fd(), inflight.memory()];
        message::send(&self.list, &head, &files, SendFlags::DONTWAIT)?;
        let (mut entry, mut files) = (vec![b'm'], Vec::new());
        for message in self.setup.messages() {
            if entry.len() > FULL_BYTES || files.len() > FULL_FILES {
                message::send(&self.list, &entry, &files, SendFlags::DONTWAIT)?;
                (entry, files) = (vec![b'm'], Vec::new());
            }
            entry.push(message.files.len() as u8);
            entry.extend((message.bytes.len() as u32).to_ne_bytes());
            entry.extend_from_slice(&message.bytes);
            files.extend(message.files.iter().map(AsFd::as_fd));
        }
        message::send(&self.list, &entry, &files, SendFlags::DONTWAIT)?;
        if let Some(session) = &self.session {
            message::send(&self.list, b"S", &[session.memory()], SendFlags::DONTWAIT)?;
        }
        self.added = 0;
        if let Some(message) = pending {
            let entry = [b"M", message.bytes.as_slice()].concat();
            let files = message.files.clone();
            self.add(&entry, &files)?;
        }
        self.holder.hold(&self.name.text(), held.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[derive(Default)]
    struct MemoryHolder(Mutex<BTreeMap<String, OwnedFd>>);

    impl DescriptorHolder for MemoryHolder {
        fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
            let descriptor = descriptor.try_clone_to_owned()?;
            self.0.lock().insert(name.to_owned(), descriptor);
            Ok(())
        }

        fn forget(&self, name: &str) {
            self.0.lock().remove(name);
        }
    }

    impl MemoryHolder {
        fn lists(&self) -> Vec<(String, OwnedFd)> {
            let held = self.0.lock();
            let lists = held.iter();
            lists
                .map(|(name, list)| (name.clone(), list.try_clone().unwrap()))
                .collect()
        }
    }

    fn message(request: u32, body: &[u32]) -> FrontEndMessage {
        let words = [request, 1, body.len() as u32 * 4];
        let words = words.iter().chain(body);
        FrontEndMessage::new(words.flat_map(|word| word.to_ne_bytes()).collect(), vec![])
    }

    fn reported(previous: &PreviousGuest) -> usize {
        previous.setup.messages().count()
    }

    #[test]
    fn the_next_process_finds_the_setup_and_the_unanswered_message() {
        let holder = Arc::new(MemoryHolder::default());
        let (front, _other) = UnixStream::pair().unwrap();
        let record = GuestRecord::new(holder.clone(), front.as_fd()).unwrap();
        // Number of entries, of queue after queue; often enough for several lists.
        for round in 0..3 * LONG as u32 {
            let message = message(8, &[round % 5, 1 << (round % 9)]);
            record.arrived(&message);
            record.handled(message);
        }
        record.session(Some(&Arc::new(InodeTable::create().unwrap())));
        record.arrived(&message(11, &[0, 0]));
        assert_eq!(holder.0.lock().len(), 1, "one list at a time");
        // A reader that dies takes nothing away from the next one.
        for _ in 0..2 {
            let previous = PreviousGuest::read(holder.lists(), &*holder).pop().unwrap();
            assert_eq!(reported(&previous), 5);
            assert!(matches!(previous.session, Some(Ok(_))));
            assert_eq!(previous.pending.unwrap().bytes, message(11, &[0, 0]).bytes);
        }
        let previous = PreviousGuest::read(holder.lists(), &*holder).pop().unwrap();
        let record = GuestRecord::take_over(holder.clone(), &previous).unwrap();
        record.handled(previous.pending.unwrap());
        let next = PreviousGuest::read(holder.lists(), &*holder).pop().unwrap();
        assert_eq!(reported(&next), 5);
        assert!(next.pending.is_none());
        record.end();
        assert!(holder.0.lock().is_empty());
    }

    /// A death after the new list was held and before the old one was dropped.
    #[test]
    fn of_two_lists_the_newer_counts() {
        let holder = Arc::new(MemoryHolder::default());
        let (front, _other) = UnixStream::pair().unwrap();
        let record = GuestRecord::new(holder.clone(), front.as_fd()).unwrap();
        let (old, list) = holder.lists().pop().unwrap();
        let previous = PreviousGuest::read(holder.lists(), &*holder).pop().unwrap();
        let _next = GuestRecord::take_over(holder.clone(), &previous).unwrap();
        holder.hold(&old, list.as_fd()).unwrap();
        let previous = PreviousGuest::read(holder.lists(), &*holder);
        assert_eq!(previous.len(), 1);
        assert_eq!(previous[0].name.generation, 1);
        assert_eq!(holder.0.lock().len(), 1);
        drop(record);
    }

    #[test]
    fn an_unreadable_list_is_dropped_and_logged() {
        let holder = MemoryHolder::default();
        let flags = SocketFlags::CLOEXEC;
        for entry in [
            &b"H\xff\xff\xff\xff01234567"[..],
            b"H",
            b"M",
            b"X1234567890123",
        ] {
            let kind = SocketType::SEQPACKET;
            let (send, list) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
            message::send(&send, entry, &[], SendFlags::DONTWAIT).unwrap();
            holder.hold("1-0", list.as_fd()).unwrap();
            assert!(PreviousGuest::read(holder.lists(), &holder).is_empty());
            assert!(holder.0.lock().is_empty());
        }
        holder
            .hold("what", UnixStream::pair().unwrap().0.as_fd())
            .unwrap();
        assert!(PreviousGuest::read(holder.lists(), &holder).is_empty());
        assert!(holder.0.lock().is_empty());
    }
}
