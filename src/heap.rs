//! Giving free memory of the heap back to the system.
//!
//! glibc gives back what is free at the top of each arena. Fetched blobs lie for moments between index pages
//! and Directories that stay: after a walk that fetched 540 MB, most of the heap was free, and in memory
//! nevertheless.

/// Gives all free pages of the heap back. Takes milliseconds: for moments without work.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the locks of malloc and changes free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
