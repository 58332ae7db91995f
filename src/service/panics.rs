//! A panic that is not caught ends the process.
//!
//! A panic in a request is caught, answered with EIO and logged; so is one in a task of the async
//! runtime. A panic in one of the threads without which the service does not work, however, would
//! leave a service that looks alive: without the thread that follows the store's roots, or without
//! the one that owns the mounts, which would unmount them as it unwinds. That must be a crash like
//! any other, because the next process takes over after a crash.

use std::panic;
use std::process;
use std::thread;

/// The threads without which the service does not work.
const VITAL: &[&str] = &[
    "main",
    "signals",
    "watchdog",
    "page-cache-push",
    "root-watch",
];

/// From now on a panic in a vital thread aborts the process, once it was logged.
pub(super) fn abort_in_vital_threads() {
    let send_request = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        send_request(info);
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        let place = info.location().map(ToString::to_string);
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(thread = name, place, what, "a panic; this is a bug");
        if VITAL.contains(&name) {
            process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const VARIABLE: &str = "CASTORE_FS_TEST_PANIC_IN";

    /// How a process ended in which a thread of this name panicked: this test, run once more.
    fn end_after_a_panic_in(name: &str) -> process::ExitStatus {
        let test = "a_panic_ends_the_process_in_vital_threads_and_nowhere_else";
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("service::panics::tests::{test}")])
            .env(VARIABLE, name)
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&ran.stdout).contains("running 0 tests"));
        ran.status
    }

    #[test]
    fn a_panic_ends_the_process_in_vital_threads_and_nowhere_else() {
        if let Ok(name) = std::env::var(VARIABLE) {
            abort_in_vital_threads();
            let thread = thread::Builder::new().name(name);
            let panics = thread.spawn(|| panic!("as the test wants")).unwrap();
            assert!(panics.join().is_err());
            return;
        }
        for name in VITAL {
            let end = end_after_a_panic_in(name);
            assert_eq!(end.signal(), Some(libc::SIGABRT), "in {name}: {end}");
        }
        assert!(end_after_a_panic_in("fuse").success());
        assert!(end_after_a_panic_in("tokio-rt-worker").success());
    }
}
