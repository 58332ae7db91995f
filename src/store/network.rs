//! The runtime for calls to upstreams.
//!
//! One for the process, started when the first upstream is opened, and separate from a caller's
//! runtime: a fetch continues when the reader that started it is dropped, other readers may be
//! waiting for it too, and a store can be used from threads without a runtime.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that move frames and hash what arrives.
const THREADS: usize = 2;

pub(crate) fn handle() -> io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("castore-net")
        .enable_all()
        .build()?;
    // Two threads may get here at once: one runtime is kept, the other is dropped.
    if let Err(spare) = RUNTIME.set(runtime) {
        spare.shutdown_background();
    }
    Ok(RUNTIME.get().expect("it was just set").handle())
}
