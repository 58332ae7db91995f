//! Whether standard output was closed when the program was started (`>&-`, some daemons and cron).
//!
//! Rust's runtime opens `/dev/null` in the place of a closed standard stream before `main`, so that
//! no file gets its number. From then on all output is lost without an error, and the case looks
//! like a redirection to `/dev/null`. So it is checked before that.

use std::sync::atomic::{AtomicBool, Ordering};

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The loader calls the functions in this section before the program's entry point.
#[used]
// SAFETY: the section holds pointers to functions of this type.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: reads a descriptor's flags, and touches no memory.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// Whether standard output was closed.
pub(super) fn stdout_was_closed() -> bool {
    WAS_CLOSED.load(Ordering::Relaxed)
}
