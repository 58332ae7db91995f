//! A long way to a server: so many milliseconds there and back, so many bytes a second, and cut
//! when a test wants it.
//!
//! It stands between a client and a server as a TCP proxy. What comes in at one end is queued as on
//! a wire: it leaves when all before it has, at the link's pace, and arrives half a round trip later.
//! All connections share the link; each direction is one of its own. As much is under way as the
//! link holds and a small buffer more: then its sender has to wait, as it would in front of a router.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, watch};

/// Bytes that wait in front of the link, beside those that are on it.
const BUFFER: usize = 256 << 10;
/// The pace of an unlimited link: more than this machine moves.
const UNLIMITED: u64 = 100 << 30;

/// What a way is like.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// There and back.
    pub round_trip: Duration,
    /// Each way.
    pub bytes_per_second: Option<u64>,
}

/// A way, for as long as it lives.
pub struct Link {
    address: SocketAddr,
    up: Arc<Lane>,
    down: Arc<Lane>,
    cut: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

/// One direction.
struct Lane {
    terms: Terms,
    free_at: std::sync::Mutex<Instant>,
    carried: AtomicU64,
}

impl Link {
    pub fn to(target: SocketAddr, terms: Terms) -> Self {
        // Of its own, so that a busy test does not lengthen the way.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        let (up, down) = (Lane::new(terms), Lane::new(terms));
        let (there, back) = (up.clone(), down.clone());
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((local_store, _)) = listener.accept().await {
                if *is_cut.borrow() {
                    continue;
                }
                let Ok(upstream) = TcpStream::connect(target).await else {
                    continue;
                };
                local_store.set_nodelay(true).unwrap();
                upstream.set_nodelay(true).unwrap();
                let (local_store_reads, local_store_writes) = local_store.into_split();
                let (upstream_reads, upstream_writes) = upstream.into_split();
                let mut is_cut = is_cut.clone();
                let (there, back) = (there.clone(), back.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = there.carry(local_store_reads, upstream_writes) => {}
                        () = back.carry(upstream_reads, local_store_writes) => {}
                        _ = is_cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Self {
            address,
            up,
            down,
            cut,
            runtime: Some(runtime),
        }
    }

    /// Where the way starts.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks every connection, and lets none come about.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets connections come about again.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }

    /// Bytes carried to the server, and back.
    pub fn carried(&self) -> (u64, u64) {
        let carried = |lane: &Lane| lane.carried.load(Ordering::Relaxed);
        (carried(&self.up), carried(&self.down))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Lane {
    fn new(terms: Terms) -> Arc<Self> {
        Arc::new(Self {
            terms,
            free_at: std::sync::Mutex::new(Instant::now()),
            carried: AtomicU64::new(0),
        })
    }

    /// When what is sent now arrives.
    fn arrival(&self, length: usize) -> Instant {
        let pace = self.terms.bytes_per_second.unwrap_or(UNLIMITED);
        let takes = Duration::from_secs_f64(length as f64 / pace as f64);
        let mut free_at = self.free_at.lock().unwrap();
        *free_at = (*free_at).max(Instant::now()) + takes;
        self.carried.fetch_add(length as u64, Ordering::Relaxed);
        *free_at + self.terms.round_trip / 2
    }

    async fn carry(&self, mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
        let pace = self.terms.bytes_per_second.unwrap_or(1 << 30) as f64;
        let on_it = (pace * self.terms.round_trip.as_secs_f64()) as usize;
        let room = Semaphore::new(on_it + BUFFER);
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let takes = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                let permit = room.acquire_many(length as u32).await.unwrap();
                permit.forget();
                let part = (self.arrival(length), buffer[..length].to_vec());
                if sender.send(part).is_err() {
                    return;
                }
            }
            drop(sender);
            std::future::pending().await
        };
        let gives = async {
            while let Some((due, part)) = receiver.recv().await {
                tokio::time::sleep_until(due.into()).await;
                room.add_permits(part.len());
                if to.write_all(&part).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = takes => {}
            () = gives => {}
        }
    }
}
