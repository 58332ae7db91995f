//! Calls into the kernel that may never return.
//!
//! A call that looks at a mount, or into the memory of a process, can wait for a server that has stopped:
//! `/proc/PID/maps` and `/proc/PID/cmdline` wait for a process that is in execve(2), and that waits for the
//! FLUSH of the files that it closes. So such a call has a thread of its own, which a signal that ends
//! this process ends as well, and nothing waits for it longer than it can afford.

use std::sync::mpsc;
use std::time::Duration;

/// What `call` gives, unless that takes longer than `patience`. `name` is for the thread.
pub(super) fn within<T: Send + 'static>(
    patience: Duration,
    name: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let spawned = thread.spawn(move || {
        let _ = sender.send(call());
    });
    spawned.ok()?;
    receiver.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_return_is_abandoned() {
        let (end, wait) = mpsc::channel::<()>();
        let stuck = move || wait.recv();
        assert!(within(Duration::from_millis(20), "stuck", stuck).is_none());
        drop(end);
        assert_eq!(within(Duration::from_secs(60), "quick", || 7), Some(7));
    }
}
