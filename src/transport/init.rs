//! INIT: negotiation of versions and flags with a kernel, this machine's or a guest's.
//!
//! It is answered here and not by the crate, which knows neither the newer flags nor a small
//! `max_write`.

use fuse_backend_rs::abi::fuse_abi::{InHeader, InitOut, Opcode};

/// The newest protocol version that is supported: 7.45.
const MAJOR: u32 = 7;
const MINOR: u32 = 45;
/// The oldest kernel protocol that works: 7.31 (Linux 5.4) has every flag that is required.
const OLDEST_MINOR: u32 = 31;
/// The least the kernel allows: nothing is ever written, and request buffers stay at 8 KiB.
const MAX_WRITE: u32 = 4096;
/// Pages of a READ, at most: 1 MiB.
const MAX_PAGES: u16 = 256;
/// The most that the kernel may read ahead, in bytes; how far it does is the mount's
/// `read_ahead_kb`.
const MAX_READAHEAD: u32 = 16 << 20;
/// Requests that the kernel lets run in the background: readahead of many files at once.
const MAX_BACKGROUND: u16 = 1024;

/// Flags of INIT, by their names in the kernel's `fuse.h`.
mod flag {
    /// Several READs of one file at once.
    pub(super) const ASYNC_READ: u64 = 1 << 0;
    /// The page cache, and a directory's cached listing, is dropped when its mtime changes.
    pub(super) const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS.
    pub(super) const DO_READDIRPLUS: u64 = 1 << 13;
    /// ENOSYS to OPEN means "open everything".
    pub(super) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// Several LOOKUPs and READDIRs of one directory at once.
    pub(super) const PARALLEL_DIROPS: u64 = 1 << 18;
    /// Reads after an abort give ECONNABORTED.
    pub(super) const ABORT_ERROR: u64 = 1 << 21;
    /// Requests of up to `max_pages`.
    pub(super) const MAX_PAGES: u64 = 1 << 22;
    /// Symlinks are kept in the page cache.
    pub(super) const CACHE_SYMLINKS: u64 = 1 << 23;
    /// ENOSYS to OPENDIR means "open everything, and keep listings".
    pub(super) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// The page cache is dropped only by a notification.
    pub(super) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// There are flags beyond 32 bits.
    pub(super) const INIT_EXT: u64 = 1 << 30;
    /// OPEN can name a backing file.
    pub(super) const PASSTHROUGH: u64 = 1 << 37;
    /// No NFS export: node ids need no generation.
    pub(super) const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    /// Requests that were read and not answered can be sent again on demand.
    pub(super) const HAS_RESEND: u64 = 1 << 39;
    /// Id-mapped mounts (Linux 6.12). The kernel refuses a reply that has this unless the mount has
    /// `default_permissions`.
    pub(super) const ALLOW_IDMAP: u64 = 1 << 40;
}

/// What both transports request.
const WANTED: u64 = flag::ASYNC_READ
    | flag::DO_READDIRPLUS
    | flag::NO_OPEN_SUPPORT
    | flag::PARALLEL_DIROPS
    | flag::MAX_PAGES
    | flag::CACHE_SYMLINKS
    | flag::NO_OPENDIR_SUPPORT
    | flag::INIT_EXT
    | flag::NO_EXPORT_SUPPORT;

/// The peer, which determines what the transport can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KernelPeer {
    /// This machine's kernel: it accepts notifications of stale entries, and sends unanswered
    /// requests again on demand.
    Kernel {
        /// Whether to ask for backing files.
        passthrough: bool,
        /// Whether the kernel checks permissions by itself, by the mount's `default_permissions`.
        default_permissions: bool,
    },
    /// A guest's kernel: it accepts no notifications, and has to ask again.
    Guest,
}

impl KernelPeer {
    fn wanted(self) -> u64 {
        match self {
            KernelPeer::Kernel {
                passthrough,
                default_permissions,
            } => {
                let when = |condition: bool, flag: u64| if condition { flag } else { 0 };
                let notified = flag::ABORT_ERROR | flag::EXPLICIT_INVAL_DATA | flag::HAS_RESEND;
                WANTED
                    | notified
                    | when(passthrough, flag::PASSTHROUGH)
                    | when(default_permissions, flag::ALLOW_IDMAP)
            }
            // The kernel's virtiofs always checks permissions by itself.
            KernelPeer::Guest => WANTED | flag::AUTO_INVAL_DATA | flag::ALLOW_IDMAP,
        }
    }
}

/// Whether a request is INIT.
pub(super) fn is_init(header: &InHeader) -> bool {
    header.opcode == Opcode::Init as u32
}

/// The reply to the kernel, and what of it matters here.
pub(super) struct InitAnswer {
    /// The reply.
    pub reply: InitOut,
    /// Whether OPEN can name a backing file.
    pub passthrough: bool,
}

/// The answer to the INIT request of `peer` whose body is `body`, or why there can be none.
pub(super) fn answer(body: &[u8], peer: KernelPeer) -> Result<InitAnswer, String> {
    let word = |index: usize| {
        let bytes = body.get(index * 4..index * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (major, minor) = (word(0).unwrap_or(0), word(1).unwrap_or(0));
    if major > MAJOR {
        // The kernel repeats INIT with the version of this reply.
        let reply = InitOut {
            major: MAJOR,
            minor: MINOR,
            ..InitOut::default()
        };
        return Ok(InitAnswer {
            reply,
            passthrough: false,
        });
    }
    if major < MAJOR || minor < OLDEST_MINOR {
        return Err(format!(
            "the kernel speaks FUSE {major}.{minor}; {MAJOR}.{OLDEST_MINOR} (Linux 5.4) is needed"
        ));
    }
    let mut offered = u64::from(word(3).unwrap_or(0));
    if offered & flag::INIT_EXT != 0 {
        offered |= u64::from(word(4).unwrap_or(0)) << 32;
    }
    let agreed = offered & peer.wanted();
    let mut reply = InitOut {
        major: MAJOR,
        minor: MINOR,
        max_readahead: MAX_READAHEAD,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: MAX_PAGES,
        ..InitOut::default()
    };
    let passthrough = agreed & flag::PASSTHROUGH != 0;
    if passthrough {
        // `max_stack_depth`: 1 allows backing files on any file system that is not stacked itself.
        reply.unused[0] = 1;
    }
    Ok(InitAnswer { reply, passthrough })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: KernelPeer = KernelPeer::Kernel {
        passthrough: false,
        default_permissions: true,
    };
    const BACKED: KernelPeer = KernelPeer::Kernel {
        passthrough: true,
        default_permissions: true,
    };

    fn request(minor: u32, flags: u64) -> Vec<u8> {
        [7, minor, 131_072, flags as u32, (flags >> 32) as u32]
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect()
    }

    #[test]
    fn both_sides_support_what_is_agreed_on() {
        let answer = answer(&request(45, u64::MAX), PLAIN).unwrap().reply;
        let flags = u64::from(answer.flags2) << 32 | u64::from(answer.flags);
        assert_eq!(flags, PLAIN.wanted());
        assert_eq!(answer.max_pages, 256);
    }

    #[test]
    fn offers_nothing_to_an_old_kernel_that_it_did_not_name() {
        let answer = answer(&request(31, flag::ASYNC_READ), BACKED)
            .unwrap()
            .reply;
        assert_eq!(u64::from(answer.flags), flag::ASYNC_READ);
        assert_eq!(answer.flags2, 0);
    }

    #[test]
    fn passthrough_is_agreed_on_only_where_it_is_wanted_and_known() {
        assert!(!answer(&request(45, u64::MAX), PLAIN).unwrap().passthrough);
        assert!(
            !answer(&request(36, flag::ASYNC_READ), BACKED)
                .unwrap()
                .passthrough
        );
        let agreed = answer(&request(45, u64::MAX), BACKED).unwrap();
        assert!(agreed.passthrough);
        assert_eq!(agreed.reply.unused[0], 1);
    }

    /// A kernel ends a connection that allows id-mapped mounts without checking permissions itself.
    #[test]
    fn id_mapped_mounts_are_allowed_only_where_the_kernel_checks_permissions() {
        let given = KernelPeer::Kernel {
            passthrough: false,
            default_permissions: false,
        };
        let allows = |peer| {
            let reply = answer(&request(45, u64::MAX), peer).unwrap().reply;
            u64::from(reply.flags2) << 32 & flag::ALLOW_IDMAP != 0
        };
        assert_eq!(
            [PLAIN, BACKED, KernelPeer::Guest, given].map(allows),
            [true, true, true, false]
        );
    }

    /// No notifications reach a guest: what is cached must expire, or change its mtime.
    #[test]
    fn a_guest_is_promised_only_what_virtiofs_can_do() {
        let reply = answer(&request(45, u64::MAX), KernelPeer::Guest)
            .unwrap()
            .reply;
        let flags = u64::from(reply.flags2) << 32 | u64::from(reply.flags);
        assert_ne!(flags & flag::AUTO_INVAL_DATA, 0);
        let never = flag::EXPLICIT_INVAL_DATA | flag::PASSTHROUGH | flag::HAS_RESEND;
        assert_eq!(flags & never, 0);
    }

    #[test]
    fn a_kernel_too_old_gets_an_error() {
        let why = answer(&request(12, 0), PLAIN).err().unwrap();
        assert!(why.contains("7.12"), "{why}");
    }

    /// The places of the fields that newer kernels added, which the crate only has as unused words.
    #[test]
    fn the_reply_has_the_kernels_layout() {
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(std::mem::offset_of!(InitOut, max_pages), 28);
        assert_eq!(std::mem::offset_of!(InitOut, flags2), 32);
        assert_eq!(std::mem::offset_of!(InitOut, unused), 36);
    }
}
