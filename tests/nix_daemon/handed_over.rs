//! Connections go on in the next process.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use castore_fs::server::{ConnectionHolder, HandOver};

use crate::bench::{Daemon, add, limits, local};
use crate::client::{Bytes, Client};
use kit::manager::Manager;
use kit::model::file;
use kit::patience::wait_until;
use kit::written::path;

/// What systemd's descriptor store does.
#[derive(Clone, Default)]
struct DescriptorHolder(Arc<Mutex<HashMap<String, OwnedFd>>>);

impl ConnectionHolder for DescriptorHolder {
    fn hold(&self, name: &str, descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
        let descriptor = descriptor.try_clone_to_owned()?;
        self.0.lock().unwrap().insert(name.to_owned(), descriptor);
        Ok(())
    }

    fn forget(&self, name: &str) {
        self.0.lock().unwrap().remove(name);
    }
}

impl DescriptorHolder {
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
    fn passed_descriptors(&self) -> HandOver {
        let kept = self.0.lock().unwrap();
        let remaining = kept
            .iter()
            .map(|(name, socket)| (name.clone(), socket.try_clone().unwrap()));
        HandOver::new(Box::new(self.clone()), remaining.collect())
    }
}

#[test]
fn a_connection_continues_in_the_next_process_and_one_that_waits_for_an_answer_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (dep, app) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &app, &file("top"), &[&dep]);
    let (plan, socket) = (local(&store), dir.path().join("socket"));
    let holder = DescriptorHolder::default();
    let start = || Daemon::with_connections(&plan, &socket, limits(), holder.passed_descriptors());
    let hand_over = holder.passed_descriptors();
    let first = Daemon::with_connections(&plan, &socket, limits(), hand_over.clone());
    let mut quiet = Client::with_version(&socket, 0x124);
    assert!(quiet.is_valid(&app.absolute()));
    let mut asking = Client::connect(&socket);
    holder.within_a_minute(2);
    // The beginning of a request, which is lost with the process.
    asking.send(Bytes::default().word(1));
    std::thread::sleep(Duration::from_secs(1));
    hand_over.hand_over();
    drop(first);
    assert_eq!(holder.count(), 2);
    let second = start();
    assert!(quiet.is_valid(&app.absolute()));
    // In its own version: no times of processors.
    quiet.ask(46, Bytes::default().texts(&[&app.absolute()]).word(0));
    assert_eq!(quiet.word(), 1);
    assert_eq!((quiet.text(), quiet.word()), (app.absolute(), 2));
    assert_eq!(quiet.text(), "");
    assert_eq!([(); 5].map(|()| quiet.word()), [0; 5]);
    assert!(asking.is_closed());
    holder.within_a_minute(1);
    drop(quiet);
    holder.within_a_minute(0);
    drop(second);
    // A listener that ends for good closes them.
    let third = start();
    let mut last = Client::connect(&socket);
    holder.within_a_minute(1);
    drop(third);
    assert!(last.is_closed());
    assert_eq!(holder.count(), 0);
}

#[test]
fn the_socket_of_systemd_serves_before_between_and_after_the_processes() {
    let mut service = Manager::new(
        "[stores.disk]\nurl = 'local:@/store'\n\
         [listen.nix]\nstore = 'disk'\naddress = 'systemd:sock'\nprotocol = 'nix-daemon'\n",
    );
    let app = path('1', "top");
    add(&service.join("store"), &app, &file("top"), &[]);
    let socket = service.join("nix.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let connect = |service: &mut Manager| {
        // Before there is a process.
        let early = Client::silent(&socket);
        service.give("sock", listener.try_clone().unwrap().into());
        service.start_and_wait();
        let mut early = early.shake_hands(0x126);
        assert!(early.is_valid(&app.absolute()));
        assert!(Client::connect(&socket).is_valid(&app.absolute()));
        early
    };
    let kept = |service: &Manager| {
        let kept = service.kept().into_iter();
        kept.filter(|name| name.starts_with("nix.")).count()
    };
    let mut first = connect(&mut service);
    wait_until("the connection is kept", || kept(&service) == 1);
    // A stop, and not a restart: connections end, and the socket, which is systemd's, does not.
    service.signal(libc::SIGTERM);
    assert!(service.wait(), "{}", service.log());
    assert!(first.is_closed());
    wait_until("no connection is kept", || kept(&service) == 0);
    let mut second = connect(&mut service);
    wait_until("the connection is kept again", || kept(&service) == 1);
    service.kill();
    let _third = connect(&mut service);
    assert!(second.is_valid(&app.absolute()));
}
