//! Connections go on in the next process.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use castore_fs::server::{ConnectionKeeper, HandOver};

use crate::bench::{Daemon, add, limits, local};
use crate::client::{Bytes, Client};
use crate::written::path;
use kit::model::file;

/// What systemd's descriptor store does.
#[derive(Clone, Default)]
struct Keeper(Arc<Mutex<HashMap<String, OwnedFd>>>);

impl ConnectionKeeper for Keeper {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
        let descriptor = descriptor.try_clone_to_owned()?;
        self.0.lock().unwrap().insert(name.to_owned(), descriptor);
        Ok(())
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap().remove(name);
    }
}

impl Keeper {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn within_a_minute(&self, count: usize) {
        for _ in 0..600 {
            if self.count() == count {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{} connections are kept, not {count}", self.count());
    }

    /// What the next process is started with.
    fn passed_on(&self) -> HandOver {
        let kept = self.0.lock().unwrap();
        let left = kept
            .iter()
            .map(|(name, socket)| (name.clone(), socket.try_clone().unwrap()));
        HandOver::new(Box::new(self.clone()), left.collect())
    }
}

#[test]
fn a_connection_goes_on_in_the_next_process_and_one_that_waits_for_an_answer_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let (dep, top) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &top, &file("top"), &[&dep]);
    let (plan, socket) = (local(&store), folder.path().join("socket"));
    let keeper = Keeper::default();
    let start = || Daemon::with_connections(&plan, &socket, limits(), keeper.passed_on());
    let hand_over = keeper.passed_on();
    let first = Daemon::with_connections(&plan, &socket, limits(), hand_over.clone());
    let mut quiet = Client::with_version(&socket, 0x124);
    assert!(quiet.is_valid(&top.absolute()));
    let mut asking = Client::connect(&socket);
    keeper.within_a_minute(2);
    // The beginning of a request, which is lost with the process.
    asking.send(Bytes::default().word(1));
    std::thread::sleep(Duration::from_secs(1));
    hand_over.leave();
    drop(first);
    assert_eq!(keeper.count(), 2);
    let second = start();
    assert!(quiet.is_valid(&top.absolute()));
    // In its own version: no times of processors.
    quiet.ask(46, Bytes::default().texts(&[&top.absolute()]).word(0));
    assert_eq!(quiet.word(), 1);
    assert_eq!((quiet.text(), quiet.word()), (top.absolute(), 2));
    assert_eq!(quiet.text(), "");
    assert_eq!([(); 5].map(|()| quiet.word()), [0; 5]);
    assert!(asking.is_closed());
    keeper.within_a_minute(1);
    drop(quiet);
    keeper.within_a_minute(0);
    drop(second);
    // A listener that ends for good closes them.
    let third = start();
    let mut last = Client::connect(&socket);
    keeper.within_a_minute(1);
    drop(third);
    assert!(last.is_closed());
    assert_eq!(keeper.count(), 0);
}
