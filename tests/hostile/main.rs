//! Endpoints that claim wrong sizes, never end, drip, hang and reset: their cost, counted in bytes
//! and calls, and the absence of delays for all other requests.

mod answers;
mod bucket;
mod clients;
mod endpoint;
mod floods;
mod soak;
mod stuck;

use castore_fs::castore::{Digest, Directory, Name, Node, NodeRef, SymlinkTarget};
use castore_fs::store::{Error, GrpcStore, MemoryStore, Store};
use endpoint::{Habit, HostileServer};
use kit::noise::noise;
use kit::patience::wait_until;

fn with_blobs(blobs: &[&[u8]]) -> MemoryStore {
    let store = MemoryStore::new();
    let ingest = store.ingest().unwrap();
    for blob in blobs {
        ingest.put_blobs(&[(Digest::of(blob), blob)]).unwrap();
    }
    ingest.commit().unwrap();
    store
}

fn client(server: &HostileServer, query: &str) -> GrpcStore {
    GrpcStore::open(&format!("{}?{query}", server.url())).unwrap()
}

/// An answer that carries nothing, or a byte now and then, ends by the stall deadline, and so does the
/// call: nothing more is received.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_progress_ends() {
    let blob = noise(1, 100_000);
    let digest = Digest::of(&blob);
    let server = HostileServer::start(&with_blobs(&[&blob]), Habit::Honest);
    for habit in [Habit::Empty, Habit::Drips] {
        server.be(habit);
        let client = client(&server, "stall-timeout=2");
        let error = client.read(&digest, 100_000, 0, 10).await.unwrap_err();
        match habit {
            Habit::Drips => assert!(matches!(error, Error::Timeout { .. }), "{error}"),
            _ => assert!(error.to_string().contains("without content"), "{error}"),
        }
        // What was on its way when the call was cancelled was sent by then.
        let sent = parking_lot::Mutex::new(u64::MAX);
        wait_until("the call ends", || {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            let now = server.sent();
            std::mem::replace(&mut *sent.lock(), now) == now
        });
    }
}

/// An endpoint that begins every answer and ends none opens its circuit breaker: one reader waits for a
/// deadline, the next ones do not.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_stalls_in_the_middle_is_not_waited_for_again_and_again() {
    const READERS: u64 = 10;
    let blobs: Vec<_> = (0..READERS).map(|seed| noise(seed, 100_000)).collect();
    let all: Vec<_> = blobs.iter().map(|blob| &blob[..]).collect();
    let server = HostileServer::start(&with_blobs(&all), Habit::Honest);
    let client = client(&server, "stall-timeout=0.5");
    // The client finds out which services there are.
    client
        .read(&Digest::of(&blobs[0]), 100_000, 0, 10)
        .await
        .unwrap();
    server.be(Habit::Stalls);
    let before = server.calls();
    for blob in &blobs[1..] {
        let error = client
            .read(&Digest::of(blob), 100_000, 0, 10)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
    let calls = server.calls() - before;
    assert!(calls < READERS / 2, "{calls} calls");
    server.be(Habit::Honest);
    let mut tries = 0;
    while client
        .read(&Digest::of(&blobs[1]), 100_000, 0, 10)
        .await
        .is_err()
    {
        tries += 1;
        assert!(tries < 300, "the breaker stays open");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A size claimed by a node costs nothing: neither memory nor the temporary directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_size_costs_nothing() {
    let server = HostileServer::start(&with_blobs(&[b"small"]), Habit::Endless);
    let client = client(&server, "spool=16");
    let digest = Digest::of(b"no such content");
    for size in [1 << 62, u64::MAX, (4 << 40) + 1, 17 << 20] {
        let error = client.read(&digest, size, 0, 4096).await.unwrap_err();
        assert!(error.to_string().contains("stated size of"), "{error}");
        let error = client.group_table(&digest, size).await.unwrap_err();
        assert!(error.to_string().contains("stated size of"), "{error}");
        client.will_need(&[(digest, size)]);
    }
    assert_eq!(server.sent(), 0, "messages of blobs");
    // A fetch ends where the blob is longer than its stated size.
    let error = client.read(&digest, 12 << 20, 0, 4096).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    // A sole message may be read ahead into the windows of HTTP/2, which are as large as they are.
    assert!(server.sent() < (12 + 64) * 16 + 100, "{}", server.sent());
}

/// The temporary directory is bounded: blobs without readers make room for others.
#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_share_the_temporary_directory() {
    let blobs: Vec<_> = (0..3).map(|seed| noise(seed, 10 << 20)).collect();
    let all: Vec<_> = blobs.iter().map(|blob| &blob[..]).collect();
    let server = HostileServer::start(&with_blobs(&all), Habit::Honest);
    let client = client(&server, "spool=16&cache=1");
    for _ in 0..2 {
        for blob in &blobs {
            let read = client.read(&Digest::of(blob), 10 << 20, 5 << 20, 100).await;
            assert_eq!(read.unwrap().unwrap(), blob[5 << 20..][..100]);
        }
    }
}

/// The bounds of the caches count the bytes of a part, so it must not hold the blob that it came with.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_blob_that_comes_whole_holds_its_own_bytes_only() {
    const PART: usize = 256 << 10;
    let blob = noise(1, 6 << 20);
    let server = HostileServer::start(&with_blobs(&[&blob]), Habit::Honest);
    let client = client(&server, "cache=1");
    let read = async |part: u64| {
        let offset = part * PART as u64;
        let read = client.read(&Digest::of(&blob), 6 << 20, offset, PART).await;
        read.unwrap().unwrap()
    };
    let first = read(0).await;
    // What the cache of the client, of 1 MiB, has of it makes room for others.
    for part in 8..24 {
        read(part).await;
    }
    let first = first.try_into_mut().expect("a part that only the test has");
    assert!(first.capacity() < 2 * PART, "{} bytes", first.capacity());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_list_of_roots_ends() {
    let server = HostileServer::start(&MemoryStore::new(), Habit::Endless);
    let error = client(&server, "").roots().await.unwrap_err().to_string();
    assert!(error.contains("lists more than"), "{error}");
}

/// A server that reports one change of its roots after the other, a thousand a second.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_the_roots_are_acted_on_a_hundred_times_a_second() {
    let server = HostileServer::start(&MemoryStore::new(), Habit::Endless);
    let client = client(&server, "");
    let version = || client.roots_version().unwrap();
    let begun = version();
    wait_until("the changes are heard of", || version() > begun);
    let (before, started) = (version(), std::time::Instant::now());
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let acted = version() - before;
    // The rest of a second at each end.
    let most = 100 * (started.elapsed().as_secs() + 2);
    assert!((1..=most).contains(&acted), "{acted} instead of {most}");
}

/// Bytes are never wrong, whatever the server does to them; and it is well again once it is honest.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_wrong_is_an_error_and_what_comes_right_is_not() {
    let blob = noise(3, 300_000);
    let digest = Digest::of(&blob);
    let server = HostileServer::start(&with_blobs(&[&blob]), Habit::Honest);
    for habit in [
        Habit::Flips,
        Habit::Truncates,
        Habit::Exceeds,
        Habit::Resets,
        Habit::Refuses,
    ] {
        server.be(habit);
        let client = client(&server, "");
        let read = client.read(&digest, 300_000, 7, 100).await;
        assert!(read.is_err(), "{habit:?}: {read:?}");
        server.be(Habit::Honest);
        // Its circuit breaker may be open for a moment.
        let mut again = client.read(&digest, 300_000, 7, 100).await;
        for _ in 0..100 {
            if again.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            again = client.read(&digest, 300_000, 7, 100).await;
        }
        assert_eq!(again.unwrap().unwrap(), blob[7..107], "{habit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_is_refused() {
    let (small, large) = (noise(4, 3 << 20), noise(5, 5 << 20));
    let server = HostileServer::start(&with_blobs(&[&small, &large]), Habit::Together);
    let client = client(&server, "");
    let read = |blob: &[u8]| {
        let (digest, size) = (Digest::of(blob), blob.len() as u64);
        let client = &client;
        async move { client.read(&digest, size, 0, 100).await }
    };
    assert_eq!(read(&small).await.unwrap().unwrap(), small[..100]);
    let error = read(&large).await.unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
}

/// A tree that never ends costs what was asked for, and one of very many Directories comes in parts.
#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_of_directories_has_an_end() {
    let store = MemoryStore::new();
    let ingest = store.ingest().unwrap();
    let children: Vec<_> = (0..(64 << 10) + 1000)
        .map(|number| {
            let name = Name::new(format!("{number}").as_bytes()).unwrap();
            let target = SymlinkTarget::new(format!("{number}").as_bytes()).unwrap();
            let entries = vec![(name.clone(), Node::Symlink { target })];
            let child = Directory::from_entries(entries).unwrap();
            ingest.put_directory(&child).unwrap();
            (name, child.node())
        })
        .collect();
    let mount_root = Directory::from_entries(children).unwrap();
    ingest.put_directory(&mount_root).unwrap();
    ingest.commit().unwrap();
    let server = HostileServer::start(&store, Habit::Honest);
    let honest = client(&server, "");
    for entry in mount_root.iter() {
        let NodeRef::Directory { digest, .. } = entry.node else {
            panic!("{entry:?}");
        };
        if server.calls() < 2 {
            honest
                .directory(&mount_root.digest())
                .await
                .unwrap()
                .unwrap();
        }
        assert!(honest.directory(&digest).await.unwrap().is_some());
    }
    let calls = server.calls();
    assert!(calls > 2, "{calls} calls: all came at once");
    server.be(Habit::Endless);
    let endless = client(&server, "");
    assert!(
        endless
            .directory(&mount_root.digest())
            .await
            .unwrap()
            .is_some()
    );
    // The call ends: no more is sent.
    let sent = parking_lot::Mutex::new(u64::MAX);
    wait_until("the call ends", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = server.sent();
        std::mem::replace(&mut *sent.lock(), now) == now
    });
}
