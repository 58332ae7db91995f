//! A store of ours as a binary cache, asked over plain HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use castore_fs::castore::{Digest, Root};
use castore_fs::nix::{self, NarinfoFile, NixHash, PublicKey, StorePath};
use castore_fs::server::{BinaryCacheOptions, Listener, ServerLimits, ServerOptions, serve};
use castore_fs::store::{LocalStore, Store};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use kit::http_client::HttpClient;
use kit::model::{Model, directory, file, program, symlink};
use kit::written::{nar, path, secret_key};

/// A binary cache of ours, with a client of it; stops when dropped.
pub(crate) struct Served {
    pub address: SocketAddr,
    client: HttpClient,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    pub(crate) fn start(store: Arc<dyn Store>, options: ServerOptions) -> Self {
        let listeners = Listener::bind("127.0.0.1:0").unwrap();
        let address = listeners[0].to_string().parse().unwrap();
        Self::on(store, listeners, options, address, HttpClient::tcp(address))
    }

    pub(crate) fn at_socket(store: Arc<dyn Store>, socket: &Path, options: ServerOptions) -> Self {
        let listeners = Listener::bind(&format!("unix:{}", socket.display())).unwrap();
        let nowhere = "0.0.0.0:0".parse().unwrap();
        Self::on(store, listeners, options, nowhere, HttpClient::unix(socket))
    }

    fn on(
        store: Arc<dyn Store>,
        listeners: Vec<Listener>,
        options: ServerOptions,
        address: SocketAddr,
        client: HttpClient,
    ) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::new().unwrap();
            let stopped = async {
                let _ = stopped.await;
            };
            let served = serve(store, listeners, options, stopped);
            runtime.block_on(served).unwrap();
            runtime.shutdown_timeout(Duration::from_millis(100));
        });
        Self {
            address,
            client,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The narinfo of `path`.
    pub(crate) fn narinfo(&self, path: &StorePath) -> NarinfoFile {
        let answer = self.get(&format!("/{}.narinfo", path.hash()));
        assert_eq!(answer.status, 200, "{answer:?}");
        NarinfoFile::parse(&answer.body).unwrap()
    }
}

impl Deref for Served {
    type Target = HttpClient;

    fn deref(&self) -> &HttpClient {
        &self.client
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A local store, with paths that a peer put there.
pub(crate) struct Kept {
    pub runtime: Runtime,
    pub dir: tempfile::TempDir,
    pub store: LocalStore,
}

impl Kept {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            runtime: Runtime::new().unwrap(),
            store: LocalStore::open(&dir.path().join("store")).unwrap(),
            dir,
        }
    }

    /// Puts `tree` as `path` that refers to `references`; gives its NAR.
    pub(crate) fn put(&self, path: &StorePath, tree: &Model, references: &[&StorePath]) -> Vec<u8> {
        let nar = nar(tree, &self.runtime);
        let mut narinfo = kit::written::narinfo(path, &nar, "none");
        narinfo.references = references.iter().map(|path| (*path).clone()).collect();
        narinfo.references.sort_by_key(StorePath::to_string);
        let node = tree.put_root(&self.store, "unnamed");
        let ingest = self.store.ingest().unwrap();
        let name = castore_fs::castore::Name::new(path.to_string().as_bytes()).unwrap();
        let root = Root {
            name,
            node: node.clone(),
        };
        ingest
            .put_root(&root, Some(&narinfo.path_info(node)))
            .unwrap();
        ingest.commit().unwrap();
        nar
    }

    pub(crate) fn serve(&self, options: ServerOptions) -> Served {
        Served::start(Arc::new(self.store.clone()), options)
    }
}

pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        drain: Duration::from_secs(2),
        binary_cache: Some(BinaryCacheOptions::default()),
        ..ServerOptions::default()
    }
}

pub(crate) fn tree() -> Model {
    directory([
        (
            "bin",
            directory([("hello", program("#!/bin/sh\necho hello\n"))]),
        ),
        ("empty", file("")),
        ("large", file(castore_noise(3 << 20))),
        ("link", symlink("bin/hello")),
    ])
}

/// Bytes that do not compress.
pub(crate) fn castore_noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as u8
        })
        .collect()
}

#[test]
fn a_path_has_its_narinfo_its_nar_and_its_listing() {
    let kept = Kept::new();
    let (dep, app) = (path('0', "dep"), path('1', "top"));
    let nar = kept.put(&app, &tree(), &[&dep, &app]);
    let key = secret_key("ours-1", 7);
    let public = PublicKey::parse(&key.public().to_string()).unwrap();
    let mut options = options();
    options.binary_cache = Some(BinaryCacheOptions {
        priority: 7,
        secret_key: Some(Arc::new(key)),
        open_to_read: false,
    });
    let served = kept.serve(options);
    let info = served.get("/nix-cache-info");
    assert_eq!(
        info.text(),
        "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n"
    );
    assert_eq!(info.header("content-type"), Some("text/x-nix-cache-info"));

    let narinfo = served.narinfo(&app);
    assert_eq!(narinfo.path, app);
    assert_eq!(narinfo.references, [dep.clone(), app.clone()]);
    assert_eq!(narinfo.compression, "none");
    assert_eq!(narinfo.nar.size, nar.len() as u64);
    assert_eq!(narinfo.file_size, Some(nar.len() as u64));
    assert!(narinfo.is_signed_by(&[public]));
    let head = served.ask("HEAD", &format!("/{}.narinfo", app.hash()), &[]);
    let length = narinfo.to_text().len().to_string();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), Some(&*length));
    assert_eq!(head.header("content-type"), Some("text/x-nix-narinfo"));
    assert!(head.body.is_empty());

    let url = format!("/{}", narinfo.url);
    let whole = served.get(&url);
    assert_eq!((whole.status, &whole.body), (200, &nar));
    assert_eq!(whole.header("content-type"), Some("application/x-nix-nar"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(
        whole.header("content-length"),
        Some(&*nar.len().to_string())
    );
    let immutable = "public, max-age=31536000, immutable";
    assert_eq!(whole.header("cache-control"), Some(immutable));

    let listing = served.get(&format!("/{}.ls", app.hash()));
    assert_eq!(listing.header("content-type"), Some("application/json"));
    let listing: serde_json::Value = serde_json::from_slice(&listing.body).unwrap();
    let large = &listing["root"]["entries"]["large"];
    let offset = large["narOffset"].as_u64().unwrap() as usize;
    let large = castore_noise(3 << 20);
    assert_eq!(nar[offset..offset + large.len()], large);

    for absent in [
        format!("/{}.narinfo", dep.hash()),
        format!("/{}.ls", dep.hash()),
        "/nar/x.nar".to_owned(),
        "/realisations/x.doi".to_owned(),
        "/".to_owned(),
        // The NAR of a path has one address, with its hash.
        format!("/nar/{}-{}.nar", nix::encode_base32(&[0; 32]), app.hash()),
    ] {
        assert_eq!(served.get(&absent).status, 404, "{absent}");
    }
    assert_eq!(served.send("PUT", &url, &[], b"x").status, 403);
    assert_eq!(served.ask("DELETE", &url, &[]).status, 405);
}

#[test]
fn ranges_are_answered_and_compression_only_where_nothing_resumes() {
    let kept = Kept::new();
    let (small, large) = (path('1', "small"), path('2', "large"));
    let small_nar = kept.put(&small, &tree(), &[&small]);
    let text = "compressible ".repeat(2 << 20);
    let large_tree = directory([("text", file(text.into_bytes()))]);
    let large_nar = kept.put(&large, &large_tree, &[&large]);
    let served = kept.serve(options());
    let url = |path: &StorePath| format!("/{}", served.narinfo(path).url);
    let (small, large) = (url(&small), url(&large));
    // As Nix sends it.
    let accept = ("Accept-Encoding", "zstd, br, gzip, deflate, bzip2, xz");
    let compressed = served.ask("GET", &small, &[accept]);
    assert_eq!(compressed.header("content-encoding"), Some("zstd"));
    assert_eq!(compressed.header("accept-ranges"), None);
    assert_eq!(zstd::decode_all(&compressed.body[..]).unwrap(), small_nar);
    let plain = served.ask("GET", &large, &[accept]);
    assert_eq!(plain.header("content-encoding"), None);
    assert_eq!(plain.header("accept-ranges"), Some("bytes"));
    assert_eq!(plain.body, large_nar);
    let tag = plain.header("etag").unwrap();

    let size = small_nar.len();
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=100000-", 100_000..size),
        ("bytes=3000000-3000999", 3_000_000..3_001_000),
        ("bytes=-8", size - 8..size),
        ("bytes=5-99999999", 5..size),
    ] {
        let part = served.ask("GET", &small, &[accept, ("Range", range)]);
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.body, small_nar[expected.clone()], "{range}");
        let of = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
        assert_eq!(part.header("content-range"), Some(&*of));
    }
    let outside = served.ask("GET", &small, &[("Range", &format!("bytes={size}-"))]);
    assert_eq!(outside.status, 416);
    assert_eq!(
        outside.header("content-range"),
        Some(&*format!("bytes */{size}"))
    );
    // A range of another NAR than the one that the client began with is all of this one.
    let continued = |tag: &str| {
        let headers = [("Range", "bytes=8-15"), ("If-Range", tag)];
        served.ask("GET", &large, &headers)
    };
    assert_eq!(continued(tag).body, large_nar[8..16]);
    assert_eq!(continued("\"other\"").body, large_nar);
    for (wanted, status) in [
        (tag.to_owned(), 304),
        (format!("\"other\", W/{tag}"), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
    ] {
        let answer = served.ask("GET", &large, &[("If-None-Match", &wanted)]);
        assert_eq!(answer.status, status, "{wanted}");
        assert_eq!(answer.body.is_empty(), status == 304);
    }
    let head = served.ask("HEAD", &large, &[]);
    assert_eq!(
        head.header("content-length"),
        Some(&*large_nar.len().to_string())
    );
}

#[test]
fn what_is_not_known_of_a_path_is_not_served_as_if_it_were_nothing() {
    let kept = Kept::new();
    // As an import leaves it, and as a hash that was computed from the contents does.
    tree().put_root(&kept.store, &path('1', "imported").to_string());
    let computed = path('2', "computed");
    let described = NarinfoFile {
        references_known: false,
        ..kit::written::narinfo(&computed, &nar(&tree(), &kept.runtime), "none")
    };
    let ingest = kept.store.ingest().unwrap();
    let node = tree().put(&*ingest);
    let info = described.path_info(node.clone());
    ingest.put_root(&computed.root(node), Some(&info)).unwrap();
    ingest.commit().unwrap();
    let served = kept.serve(options());
    for digit in ['1', '2'] {
        let answer = served.get(&format!("/{}.narinfo", path(digit, "x").hash()));
        assert_eq!(answer.status, 404);
        assert!(
            answer.text().contains("refers to is not known"),
            "{answer:?}"
        );
    }
    // One that names itself by its contents needs nothing else.
    let nar = nar(&tree(), &kept.runtime);
    let hash = castore_fs::nix::NarHash {
        size: nar.len() as u64,
        sha256: Sha256::digest(&nar).into(),
    };
    let source = nix::content_addressed("source", &hash).unwrap();
    let root = source.root(tree().put_root(&kept.store, "unnamed"));
    let ingest = kept.store.ingest().unwrap();
    let info = nix::PathInfo::content_addressed(&root, &hash);
    ingest.put_root(&root, Some(&info)).unwrap();
    ingest.commit().unwrap();
    let narinfo = served.narinfo(&source);
    assert!(narinfo.address_gives_path());
    assert_eq!(
        NixHash::Sha256(narinfo.nar.sha256),
        NixHash::Sha256(hash.sha256)
    );
}

#[test]
fn five_hundred_narinfos_are_asked_for_at_once() {
    let kept = Kept::new();
    let hash = |number: usize| nix::encode_base32(&Sha256::digest(number.to_string())[..20]);
    let paths: Vec<StorePath> = (0..500)
        .map(|number| format!("{}-n{number}", hash(number)).parse().unwrap())
        .collect();
    for path in &paths {
        kept.put(path, &file("x"), &[path]);
    }
    let served = kept.serve(options());
    std::thread::scope(|scope| {
        let asking: Vec<_> = paths
            .iter()
            .map(|path| scope.spawn(|| served.narinfo(path).path == *path))
            .collect();
        assert!(asking.into_iter().all(|asked| asked.join().unwrap()));
    });
}

#[test]
fn silent_connections_to_a_cache_are_closed() {
    let kept = Kept::new();
    let mut options = options();
    options.limits = ServerLimits {
        first_call: Duration::from_millis(600),
        ..ServerLimits::default()
    };
    let served = kept.serve(options);
    let mut silent = TcpStream::connect(served.address).unwrap();
    let mut begun = TcpStream::connect(served.address).unwrap();
    begun
        .write_all(b"GET /nix-cache-info HTTP/1.1\r\nHost")
        .unwrap();
    for stream in [&mut silent, &mut begun] {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut rest = Vec::new();
        // Closed or reset, but not left open.
        match stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    // One that comes byte by byte has no more time.
    let mut dripping = TcpStream::connect(served.address).unwrap();
    let mut head = b"GET /nix-cache-info HTTP/1.1\r\nX-Drip: ".to_vec();
    head.resize(4000, b'x');
    let taken = head.iter().take_while(|byte| {
        std::thread::sleep(Duration::from_millis(20));
        dripping.write_all(&[**byte]).is_ok()
    });
    assert!(taken.count() < head.len(), "it continues");
    // A head without an end is not taken, nor one that is a little too long and comes in one piece.
    for (length, status) in [(64 << 10, 431), (20_480, 431), (17_000, 431), (15_000, 200)] {
        let long = "x".repeat(length);
        let answer = served.ask("GET", "/nix-cache-info", &[("X-Long", &long)]);
        assert_eq!(answer.status, status, "{length}");
    }
}

#[test]
fn a_nar_whose_contents_are_gone_breaks_off() {
    let kept = Kept::new();
    let app = path('1', "top");
    let nar = kept.put(&app, &tree(), &[&app]);
    let large = Digest::of(&castore_noise(3 << 20));
    let large = data_encoding::HEXLOWER.encode(large.as_bytes());
    let served = kept.serve(options());
    let url = format!("/{}", served.narinfo(&app).url);
    let blob = kept.dir.path().join("store/blobs").join(&large[..2]);
    std::fs::remove_file(blob.join(&large[2..])).unwrap();
    // What is missing may be found before the head of the answer is sent.
    let answer = (0..100).find_map(|_| served.client.try_get(&url));
    let answer = answer.expect("an answer that begins");
    assert_eq!(answer.status, 200);
    assert!(answer.body.len() < nar.len());
    // Ranges before it and after it are there.
    let last = served.ask("GET", &url, &[("Range", "bytes=-8")]);
    assert_eq!(last.body, nar[nar.len() - 8..]);
}

/// What is compressed on its way is bounded by its size, and by the memory for answers.
#[test]
fn few_nars_are_compressed_at_once_and_none_that_is_long() {
    let kept = Kept::new();
    let head = kept.put(&path('1', "short"), &file("12345678"), &[]).len() - 8;
    let (longest, longer) = (path('2', "longest"), path('3', "longer"));
    kept.put(&longest, &file(vec![7; (16 << 20) - head]), &[&longest]);
    kept.put(&longer, &file(vec![7; (16 << 20) - head + 8]), &[&longer]);
    let noise = path('4', "noise");
    // Longer than what sockets take, so that none ends.
    kept.put(&noise, &file(castore_noise(15 << 20)), &[&noise]);
    let accept = ("Accept-Encoding", "zstd");
    let served = kept.serve(options());
    for (path, encoding) in [(&longest, Some("zstd")), (&longer, None)] {
        let url = format!("/{}", served.narinfo(path).url);
        let answer = served.ask("GET", &url, &[accept]);
        assert_eq!(answer.header("content-encoding"), encoding, "{url}");
    }
    drop(served);
    let limits = ServerLimits {
        response_memory: 8 << 20,
        ..ServerLimits::default()
    };
    let served = kept.serve(ServerOptions {
        limits,
        ..options()
    });
    let url = format!("/{}", served.narinfo(&noise).url);
    let mut open = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(served.address).unwrap();
        let asked = format!("GET {url} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: zstd\r\n\r\n");
        stream.write_all(asked.as_bytes()).unwrap();
        // Nothing is read after the head of the answer.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        open.push((stream, head.contains("content-encoding: zstd")));
    }
    let compressed = open.iter().filter(|(_, compressed)| *compressed).count();
    // Each takes a MiB, and one client leaves a quarter.
    assert!((1..=6).contains(&compressed), "{compressed}");
}
