//! Clients that take what they can: whatever one does, the server lives and others are served.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use castore_fs::castore::{Digest, Directory, Name, Node, Root};
use castore_fs::proto::castore::services::blob_service_client::BlobServiceClient;
use castore_fs::proto::castore::services::directory_service_client::DirectoryServiceClient;
use castore_fs::proto::castore::v1::get_directory_request::ByWhat;
use castore_fs::proto::castore::v1::{BlobChunk, GetDirectoryRequest, ReadBlobRequest};
use castore_fs::proto::castore_fs::services::ingest_service_client::IngestServiceClient;
use castore_fs::proto::castore_fs::services::part_service_client::PartServiceClient;
use castore_fs::proto::castore_fs::v1::ingest_request::{Directories, Part, What};
use castore_fs::proto::castore_fs::v1::read_together_request::Wanted;
use castore_fs::proto::castore_fs::v1::{IngestRequest, MissingRequest, ReadTogetherRequest};
use castore_fs::store::{GrpcStore, LocalStore, Store};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{noise, wait_until};
use kit::manager::Manager;
use kit::skip::skip;

/// Connections of a hostile client at once, beside silent ones, and calls on each.
const CONNECTIONS: usize = 12;
const CALLS: u64 = 60;
/// Its connections with answers that it never takes, and those on each.
const UNREAD_CONNECTIONS: usize = 60;
const UNREAD: usize = 100;
/// As many of them as begin at once, at least.
const BEGUN: u64 = 1400;
/// Threads of a server of two processors, for which no upload has one.
const MOST_THREADS: usize = 128;
/// Longer than anything here takes on a busy machine.
const HANGS: Duration = Duration::from_secs(60);

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

/// A store with one blob, of 8 MiB, and a tree of directories.
pub(super) fn store_in(dir: &Path) -> (LocalStore, Vec<u8>, Digest) {
    let store = LocalStore::open(&dir.join("store")).unwrap();
    let blob = noise(1, 8 << 20);
    let ingest = store.ingest().unwrap();
    ingest.put_blobs(&[(Digest::of(&blob), &blob)]).unwrap();
    let leaves = (0..2000).map(|number| {
        let name = Name::new(format!("leaf-{number}").as_bytes()).unwrap();
        let target = format!("{number}");
        let target = castore_fs::castore::SymlinkTarget::new(target.as_bytes()).unwrap();
        let leaf = Directory::from_entries(vec![(name.clone(), Node::Symlink { target })]).unwrap();
        ingest.put_directory(&leaf).unwrap();
        (name, leaf.node())
    });
    let mount_root = Directory::from_entries(leaves.collect()).unwrap();
    ingest.put_directory(&mount_root).unwrap();
    let root = Root {
        name: Name::new(b"tree").unwrap(),
        node: mount_root.node(),
    };
    ingest.put_root(&root, None).unwrap();
    ingest.commit().unwrap();
    (store, blob, mount_root.digest())
}

/// `castore-fs serve`, with a log.
pub(super) struct Serving {
    child: Child,
    pub(super) port: u16,
    log: PathBuf,
}

impl Serving {
    pub(super) fn start(
        dir: &Path,
        before: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::as_what("--listen", dir, before)
    }

    /// As a binary cache.
    pub(super) fn binary_cache(dir: &Path) -> Self {
        Self::as_what("--binary-cache", dir, || Ok(()))
    }

    fn as_what(
        listen: &str,
        dir: &Path,
        before: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let (port, log) = (free_port(), dir.join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_castore-fs"));
        command
            .args(["serve", "--writable", "--keep-free=0B", "--store"])
            .arg(format!("local:{}", dir.join("store").display()))
            .args([listen, &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap());
        // SAFETY: it makes system calls and nothing else.
        unsafe { command.pre_exec(before) };
        let child = command.spawn().unwrap();
        wait_until("it listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { child, port, log }
    }

    pub(super) fn client(&self) -> GrpcStore {
        GrpcStore::open(&format!("grpc+http://127.0.0.1:{}?cache=1", self.port)).unwrap()
    }

    pub(super) fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Seconds of a processor that it has used.
    fn processor_time(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(path).unwrap();
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
        // utime and stime of proc_pid_stat(5), of 100 ticks a second.
        (ticks(11) + ticks(12)) / 100.0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_descriptors_logs_it_once_waits_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let (_, blob, _) = store_in(dir.path());
    let digest = Digest::of(&blob);
    let server = Serving::start(dir.path(), || Ok(()));
    let client = server.client();
    assert!(
        client
            .read(&digest, 8 << 20, 0, 100)
            .await
            .unwrap()
            .is_some()
    );
    let used = fs::read_dir(format!("/proc/{}/fd", server.child.id()))
        .unwrap()
        .count() as u64;
    let limit = |current| {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(4096),
        };
        prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();
    };
    limit(used + 3);
    let mut silent: Vec<_> = (0..30).map(|_| server.connect()).collect();
    let reported = || server.log().matches("cannot accept connections").count();
    wait_until("it is out of descriptors", || reported() > 0);
    let (began, before) = (Instant::now(), server.processor_time());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = server.processor_time() - before;
    assert!(
        spent < began.elapsed().as_secs_f64() / 4.0,
        "it spins: {spent} s"
    );
    // Every newcomer is accepted: an idle connection is closed for it, after a refusal each.
    let newcomer = server.client();
    let asked = tokio::time::timeout(HANGS, newcomer.root(b"tree")).await;
    assert!(asked.expect("locked out").unwrap().is_some());
    for _ in 0..10 {
        silent.push(server.connect());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(reported(), 1, "{}", server.log());
    limit(1024);
    let read = server.client().read(&digest, 8 << 20, 1 << 20, 100).await;
    assert_eq!(read.unwrap().unwrap(), blob[1 << 20..][..100]);
    drop(silent);
}

pub(super) async fn channel(port: u16) -> Channel {
    let url = format!("http://127.0.0.1:{port}");
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

/// Opens uploads of one byte that send no more, and leaves them so.
async fn leave_uploads(port: u16, connections: usize, each: usize) -> Vec<mpsc::Sender<BlobChunk>> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let channel = channel(port).await;
        for _ in 0..each {
            let (sender, receiver) = mpsc::channel(1);
            let data = Bytes::from_static(b"x");
            sender.send(BlobChunk { data }).await.unwrap();
            let mut client = BlobServiceClient::new(channel.clone());
            tokio::spawn(async move { client.put(ReceiverStream::new(receiver)).await });
            open.push(sender);
        }
    }
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn with_six_hundred_silent_uploads_readers_status_metrics_and_gc_work() {
    let port = free_port();
    let mut manager = Manager::new(&format!(
        "[stores.main]\nurl = 'local:@/store'\n[listen.all]\naddress = '127.0.0.1:{port}'\n\
         writable = true\n[metrics]\naddress = 'unix:@/metrics'\n"
    ));
    let (_, blob, _) = store_in(manager.path());
    manager.start_and_wait();
    let open = leave_uploads(port, 3, 200).await;
    // Each of them has begun once the client was asked for more than its first message.
    let began = async {
        for upload in &open {
            drop(upload.reserve().await);
        }
    };
    tokio::time::timeout(HANGS, began)
        .await
        .expect("uploads wait");
    let client = GrpcStore::open(&format!("grpc+http://127.0.0.1:{port}")).unwrap();
    let digest = Digest::of(&blob);
    let read = tokio::time::timeout(HANGS, client.read(&digest, 8 << 20, 0, 1000)).await;
    assert_eq!(
        read.expect("a reader waits").unwrap().unwrap(),
        blob[..1000]
    );
    let threads = fs::read_dir(format!("/proc/{}/task", manager.pid())).unwrap();
    let threads = threads.count();
    assert!(threads <= MOST_THREADS, "{threads} threads");
    let checked = tokio::task::spawn_blocking(move || {
        let status = manager.status();
        assert!(status.to_string().contains("all"), "{status}");
        let mut stream = std::os::unix::net::UnixStream::connect(manager.join("metrics")).unwrap();
        stream.set_read_timeout(Some(HANGS)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\ncastore_fs_uptime_seconds "), "{answer}");
        let collected = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(["gc", "--wait", "30s", "--store"])
            .arg(format!("local:{}", manager.join("store").display()))
            .output()
            .unwrap();
        assert!(collected.status.success(), "{collected:?}");
        manager
    });
    let _manager = checked.await.unwrap();
    assert!(
        open.iter().all(|upload| !upload.is_closed()),
        "an upload ended"
    );
}

/// A memory cgroup of its own, gone when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// One with this limit in bytes; nothing if there can be none here.
    fn new(limit: u64) -> Option<Self> {
        let name = format!("castore-fs-test-{}", std::process::id());
        let (first, unified) = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup");
        if fs::exists(format!("{unified}/cgroup.controllers")).ok()? {
            // Without effect where it is so already.
            let _ = fs::write(format!("{unified}/cgroup.subtree_control"), "+memory");
        }
        for (place, file) in [(first, "memory.limit_in_bytes"), (unified, "memory.max")] {
            let group = Path::new(place).join(&name);
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Self(group);
            if fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    fn tasks(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// What the kernel reports of processes that it killed in it.
    fn killed(&self) -> u64 {
        let reported = ["memory.oom_control", "memory.events"]
            .iter()
            .filter_map(|file| fs::read_to_string(self.0.join(file)).ok())
            .collect::<String>();
        let count = reported
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("the kernel counts").trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// What a client does that wants a server to end: everything at once, on several connections, and
/// again as soon as it was refused.
async fn torment(
    port: u16,
    digest: Digest,
    mount_root: Digest,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
) {
    let blob = Bytes::copy_from_slice(digest.as_bytes());
    let megabyte = Bytes::from(vec![7; 1 << 20]);
    let mut leaves_open = false;
    while !stop.load(Ordering::Relaxed) {
        leaves_open = !leaves_open;
        let Ok(channel) = Channel::from_shared(format!("http://127.0.0.1:{port}"))
            .unwrap()
            .connect()
            .await
        else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut running = tokio::task::JoinSet::new();
        for number in 0..CALLS {
            calls.fetch_add(1, Ordering::Relaxed);
            let (channel, blob, megabyte) = (channel.clone(), blob.clone(), megabyte.clone());
            running.spawn(async move {
                match number % 6 {
                    // Questions that are as large as can be sent.
                    0 => {
                        let digests = vec![Bytes::from(vec![1; 8 << 20])];
                        let mut client = PartServiceClient::new(channel);
                        let _ = client.missing(MissingRequest { digests }).await;
                    }
                    // Blobs, and closures, whose answers are not read.
                    1 => {
                        let mut client = BlobServiceClient::new(channel);
                        let answer = client.read(ReadBlobRequest { digest: blob }).await;
                        tokio::time::sleep(Duration::from_secs(3)).await;
                        drop(answer);
                    }
                    2 => {
                        let request = GetDirectoryRequest {
                            by_what: Some(ByWhat::Digest(Bytes::copy_from_slice(
                                mount_root.as_bytes(),
                            ))),
                            recursive: true,
                        };
                        let answer = DirectoryServiceClient::new(channel).get(request).await;
                        tokio::time::sleep(Duration::from_secs(3)).await;
                        drop(answer);
                    }
                    3 => {
                        let wanted = Wanted {
                            digest: blob,
                            size: 1 << 20,
                        };
                        let blobs = vec![wanted; 4096];
                        let mut client = PartServiceClient::new(channel);
                        let answer = client.read_together(ReadTogetherRequest { blobs }).await;
                        tokio::time::sleep(Duration::from_secs(3)).await;
                        drop(answer);
                    }
                    // Uploads that stop in the middle.
                    4 => {
                        let (sender, receiver) = mpsc::channel(4);
                        for _ in 0..3 {
                            let data = megabyte.clone();
                            let _ = sender.send(BlobChunk { data }).await;
                        }
                        let mut client = BlobServiceClient::new(channel);
                        let put = client.put(ReceiverStream::new(receiver));
                        let _ = tokio::time::timeout(Duration::from_secs(3), put).await;
                        drop(sender);
                    }
                    _ => {
                        let (sender, receiver) = mpsc::channel(80);
                        for number in 0..64 {
                            let data = megabyte.slice(..900_000);
                            let what = Some(What::Part(Part { blob: number, data }));
                            let _ = sender.send(IngestRequest { what }).await;
                        }
                        // What is no Directory, of as much as a Directory may have.
                        let length = if number == 5 { 60 << 20 } else { 1 << 20 };
                        let directories = vec![Bytes::from(vec![0x0a; length])];
                        let what = Some(What::Directories(Directories { directories }));
                        let _ = sender.send(IngestRequest { what }).await;
                        let mut client =
                            IngestServiceClient::new(channel).max_encoding_message_size(100 << 20);
                        let put = client.ingest(ReceiverStream::new(receiver));
                        let _ = tokio::time::timeout(Duration::from_secs(3), put).await;
                        drop(sender);
                    }
                }
            });
        }
        let _silent: Vec<_> = (0..10)
            .filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok())
            .collect();
        let all = async { while running.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(5), all).await;
        if leaves_open {
            // The connection is left alone, with all that it has, when this is dropped.
            running.detach_all();
        }
    }
}

/// Requests blobs and takes none of what comes, for as long as the result lives.
async fn leave_answers(port: u16, digest: Digest) -> tokio::task::JoinSet<()> {
    let mut open = tokio::task::JoinSet::new();
    let answered = Arc::new(AtomicU64::new(0));
    for _ in 0..UNREAD_CONNECTIONS {
        let channel = channel(port).await;
        for _ in 0..UNREAD {
            let digest = Bytes::copy_from_slice(digest.as_bytes());
            let mut client = BlobServiceClient::new(channel.clone());
            let answered = answered.clone();
            open.spawn(async move {
                let _answer = client.read(ReadBlobRequest { digest }).await;
                answered.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            });
        }
    }
    // The other calls wait.
    let begun = async {
        while answered.load(Ordering::Relaxed) < BEGUN {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(HANGS, begun).await.unwrap();
    open
}

/// A server with 512 MiB, a client that wants them all, and one that wants to work.
#[test]
fn in_512_mib_one_client_neither_stops_the_server_nor_starves_another() {
    let Some(cgroup) = Cgroup::new(512 << 20) else {
        return skip(
            "no memory cgroup can be made here: run as root, where /sys/fs/cgroup is writable",
        );
    };
    let dir = tempfile::tempdir().unwrap();
    let (_, blob, mount_root) = store_in(dir.path());
    let tasks = std::ffi::CString::new(cgroup.tasks().to_str().unwrap()).unwrap();
    let mut server = Serving::start(dir.path(), move || {
        // SAFETY: the path ends with a NUL, and these are system calls alone.
        unsafe {
            let file = libc::open(tasks.as_ptr(), libc::O_WRONLY);
            match file >= 0 && libc::write(file, c"0".as_ptr().cast(), 1) == 1 {
                true => Ok(()),
                false => Err(std::io::Error::last_os_error()),
            }
        }
    });
    let (stop, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let hostile = {
        let (stop, calls, port, digest) =
            (stop.clone(), calls.clone(), server.port, Digest::of(&blob));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let each = (0..CONNECTIONS)
                    .map(|_| torment(port, digest, mount_root, stop.clone(), calls.clone()));
                let _unread = leave_answers(port, digest).await;
                futures_util::future::join_all(each).await
            });
            runtime.shutdown_background();
        })
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let digest = Digest::of(&blob);
    for number in 0..30u64 {
        // It is new each time, and finds nothing in its memory.
        let client = server.client();
        let at = number * 200_000;
        let read = client.read(&digest, 8 << 20, at, 1000);
        let read = runtime.block_on(async { tokio::time::timeout(HANGS, read).await });
        let read = read.expect("a reader waits").unwrap();
        assert_eq!(read.unwrap(), blob[at as usize..][..1000]);
        let small = noise(1000 + number, 300_000);
        let ingest = client.ingest().unwrap();
        ingest.put_blobs(&[(Digest::of(&small), &small)]).unwrap();
        ingest.commit().unwrap();
        assert!(
            server.child.try_wait().unwrap().is_none(),
            "the server ended"
        );
    }
    stop.store(true, Ordering::Relaxed);
    hostile.join().unwrap();
    assert!(
        server.child.try_wait().unwrap().is_none(),
        "the server ended"
    );
    assert_eq!(
        cgroup.killed(),
        0,
        "after {} calls",
        calls.load(Ordering::Relaxed)
    );
    eprintln!("{} hostile calls", calls.load(Ordering::Relaxed));
    drop(server);
}
