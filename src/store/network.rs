//! The runtime that talks to remote stores.
//!
//! One for the process, started when the first remote store is opened, and apart from any runtime
//! that a caller has: a fetch goes on when the reader who started it goes away, others may be
//! waiting for it too, and a store can be asked from threads that know no runtime.

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
    // Two threads may get here at once: one runtime is kept, the other has nothing to do and goes.
    if let Err(spare) = RUNTIME.set(runtime) {
        spare.shutdown_background();
    }
    Ok(RUNTIME.get().expect("it was just set").handle())
}
