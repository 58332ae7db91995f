//! The signals of the service.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};

use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};

/// What a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalEvent {
    /// To stop: SIGTERM or SIGINT.
    Stop,
    /// To read the configuration again: SIGHUP.
    Reload,
}

/// From here to the end of the process a thread receives the signals.
pub(super) fn listen() -> io::Result<Receiver<SignalEvent>> {
    let (sender, receiver) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let listen = |kind, event, sender: Sender<SignalEvent>| -> io::Result<()> {
        let _inside = runtime.enter();
        let mut signals = signal(kind)?;
        runtime.spawn(
            async move {
                while signals.recv().await.is_some() {
                    // Fails only at the very end, when there is no receiver any more.
                    let _ = sender.send(event);
                }
            }
            .boxed(),
        );
        Ok(())
    };
    listen(SignalKind::terminate(), SignalEvent::Stop, sender.clone())?;
    listen(SignalKind::interrupt(), SignalEvent::Stop, sender.clone())?;
    listen(SignalKind::hangup(), SignalEvent::Reload, sender)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(receiver)
}
