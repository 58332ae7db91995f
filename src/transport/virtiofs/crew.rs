//! The threads of a queue: its worker, and spares that stand in while it waits.
//!
//! A queue has one worker, which sleeps until the guest kicks the queue, and serves what there is
//! in place. One request that waits for a far store must not keep the others from being taken: a
//! worker that is about to wait calls a spare, which takes its place, and which may call another.
//! At any moment one thread of a queue is ready to take requests, as long as there are spares to
//! be had; a spare that is not needed rests for a while, and then ends.
//!
//! All of them listen on one edge-triggered epoll, which tells one of them of every kick, and nobody
//! ever reads a kick: there is nothing to learn from how many there were.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, epoll, eventfd};

use super::ring::{Ring, Took};
use super::session::Guest;
use crate::fs::Workers;

/// Spares of a queue, at most: each holds a request that waits for a far store.
const MOST_SPARES: usize = 64;
/// How long a spare rests before it ends.
const REST: Duration = Duration::from_secs(2);
/// How long a spare listens in one go before it looks whether it is needed.
const LISTEN: Duration = Duration::from_millis(250);
/// How long to wait when there is no listening.
const PAUSE: Duration = Duration::from_millis(250);

/// The threads of a queue.
#[derive(Debug)]
pub struct Crew {
    kicks: OwnedFd,
    /// Among the kicks, and always to be heard once the connection has ended.
    end: OwnedFd,
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Debug)]
struct State {
    /// Threads that take requests, or will once there are some.
    ready: usize,
    /// Spares, whatever they do.
    spares: usize,
    /// Spares that rest.
    resting: usize,
    /// Resting spares that were called and have not noticed yet.
    called: usize,
    /// The connection has ended.
    dismissed: bool,
}

/// What a spare does next.
enum Next {
    Serve,
    Listen,
    End,
}

impl Crew {
    /// A queue's threads: so far none, and the worker counts as ready.
    pub fn new() -> io::Result<Self> {
        let kicks = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&kicks, &end, data, epoll::EventFlags::IN)?;
        Ok(Self {
            kicks,
            end,
            state: Mutex::new(State {
                ready: 1,
                spares: 0,
                resting: 0,
                called: 0,
                dismissed: false,
            }),
            called: Condvar::new(),
        })
    }

    /// The queue is kicked through another descriptor from here on.
    pub fn kick_changes(&self, old: Option<BorrowedFd<'_>>, new: Option<BorrowedFd<'_>>) {
        if let Some(old) = old {
            // Fails if it was not there, which is as well.
            let _ = epoll::delete(&self.kicks, old);
        }
        if let Some(new) = new {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(&self.kicks, new, epoll::EventData::new_u64(0), flags) {
                tracing::warn!(%error, "cannot listen for a queue's kicks");
            }
        }
    }

    /// Ends the spares, each once it is done.
    pub fn dismiss(&self) {
        self.state.lock().dismissed = true;
        self.called.notify_all();
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
    }

    /// Starts the worker of `ring`, whose crew this is.
    pub fn start_worker(ring: &Ring, guest: &Arc<Guest>) -> io::Result<()> {
        let (ring, guest) = (ring.clone(), guest.clone());
        let work = move || {
            let crew = ring.crew();
            while !crew.state.lock().dismissed {
                if crew.listen(None) {
                    serve(&ring, &guest);
                }
            }
        };
        let thread = std::thread::Builder::new().name("virtiofs-queue".into());
        thread.spawn(work).map(drop)
    }

    /// The calling thread is about to wait: another has to be ready.
    fn wait_begins(&self, ring: &Ring, guest: &Arc<Guest>) {
        let mut state = self.state.lock();
        state.ready -= 1;
        if state.ready > 0 || state.dismissed {
            return;
        }
        if state.resting > state.called {
            state.called += 1;
            state.ready += 1;
            self.called.notify_one();
        } else if state.spares < MOST_SPARES {
            state.spares += 1;
            state.ready += 1;
            drop(state);
            self.start_spare(ring.clone(), guest.clone());
        }
    }

    fn wait_ends(&self) {
        self.state.lock().ready += 1;
    }

    fn start_spare(&self, ring: Ring, guest: Arc<Guest>) {
        let work = move || ring.crew().stand_in(&ring, &guest);
        let thread = std::thread::Builder::new().name("virtiofs-spare".into());
        if let Err(error) = thread.spawn(work) {
            tracing::warn!(%error, "cannot start a spare worker");
            let mut state = self.state.lock();
            state.spares -= 1;
            state.ready -= 1;
        }
    }

    /// The life of a spare.
    fn stand_in(&self, ring: &Ring, guest: &Arc<Guest>) {
        loop {
            serve(ring, guest);
            loop {
                match self.next() {
                    Next::Serve => break,
                    Next::End => return,
                    Next::Listen if self.listen(Some(LISTEN)) => break,
                    Next::Listen => {}
                }
            }
        }
    }

    fn next(&self) -> Next {
        let mut state = self.state.lock();
        if state.ready > 1 && !state.dismissed {
            state.ready -= 1;
            state.resting += 1;
            let until = Instant::now() + REST;
            while state.called == 0 && !state.dismissed {
                if self.called.wait_until(&mut state, until).timed_out() {
                    break;
                }
            }
            state.resting -= 1;
            if state.called == 0 {
                state.spares -= 1;
                return Next::End;
            }
            // Whoever called has counted this thread as ready.
            state.called -= 1;
            return Next::Serve;
        }
        if state.dismissed {
            state.ready -= 1;
            state.spares -= 1;
            return Next::End;
        }
        Next::Listen
    }

    /// Waits for a kick; whether there was one.
    fn listen(&self, patience: Option<Duration>) -> bool {
        let mut events = Vec::with_capacity(1);
        let patience = patience.map(|patience| rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: patience.subsec_nanos().into(),
        });
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.kicks, spare, patience.as_ref()) {
            Ok(count) => count > 0,
            Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot listen for a queue's kicks");
                std::thread::sleep(PAUSE);
                true
            }
        }
    }
}

thread_local! {
    /// The queue that this thread serves, and for whom.
    static SERVED: RefCell<Option<(Ring, Arc<Guest>)>> = const { RefCell::new(None) };
}

/// Serves what the queue holds, until it is empty.
pub fn serve(ring: &Ring, guest: &Arc<Guest>) {
    let Some(mut buffers) = guest.buffers() else {
        // The guest waits: better than a wrong answer. Its next kick tries again.
        return;
    };
    SERVED.set(Some((ring.clone(), guest.clone())));
    let _in_span = guest.span().enter();
    'more: loop {
        ring.want_kicks(false);
        loop {
            match ring.take(&mut buffers.request) {
                Took::Request { ticket, room } => {
                    guest.answer(&mut buffers, room, |reply| ring.reply(ticket, reply));
                }
                Took::Malformed(why) => guest.complain(&why.to_string()),
                Took::Nothing => break,
                Took::Stopped => break 'more,
                Took::Broken => {
                    guest.complain("its ring contradicts itself");
                    break 'more;
                }
            }
        }
        // What came before the guest knew that we want to be kicked has no kick.
        if !ring.want_kicks(true) {
            break;
        }
    }
    SERVED.set(None);
    guest.keep(buffers);
}

/// The crew of the queue that the calling thread serves.
pub struct CurrentCrew;

impl CurrentCrew {
    fn with(work: impl FnOnce(&Ring, &Arc<Guest>)) {
        // Taken out for the moment, so that nothing that `work` calls can find it borrowed.
        if let Some((ring, guest)) = SERVED.with(|served| served.borrow().clone()) {
            work(&ring, &guest);
        }
    }
}

impl Workers for CurrentCrew {
    fn wait_begins(&self) {
        Self::with(|ring, guest| ring.crew().wait_begins(ring, guest));
    }

    fn wait_ends(&self) {
        Self::with(|ring, _| ring.crew().wait_ends());
    }
}
