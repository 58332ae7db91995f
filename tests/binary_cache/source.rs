//! A cache store whose upstream is a binary cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use castore_fs::binary_cache::{BinaryCaches, CacheAddress, ClosureMode};
use castore_fs::castore::{Node, Root};
use castore_fs::nix::{ContentAddress, NarinfoFile, SecretKey, StorePath};
use castore_fs::store::{Blocking, Cache, CacheOptions, Error, LocalStore, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use kit::model::{Model, directory, file, program, symlink};
use kit::web::{Web, WebFaults};
use kit::written::{compress, nar, narinfo, path, secret_key, write};

/// A binary cache on a server, and a store in which it ends up.
struct Bench {
    runtime: Runtime,
    written: TempDir,
    store: TempDir,
    web: Web,
    key: SecretKey,
}

impl Bench {
    fn new() -> Self {
        let written = tempfile::tempdir().unwrap();
        Self {
            runtime: Runtime::new().unwrap(),
            store: tempfile::tempdir().unwrap(),
            web: Web::serve(written.path()),
            key: secret_key("test-1", 1),
            written,
        }
    }

    fn url(&self) -> String {
        let address = self.web.address;
        format!(
            "nix+http://{address}?trusted-public-keys={}",
            self.key.public()
        )
    }

    fn open_urls(&self, urls: &[String], closure: ClosureMode) -> Cache {
        let into = LocalStore::open(&self.store.path().join("store")).unwrap();
        let addresses = urls.iter().map(|url| CacheAddress::parse(url).unwrap());
        let absent = self.store.path().join("absent");
        let upstream = BinaryCaches::new(addresses.collect(), into.clone(), closure, Some(absent));
        let options = CacheOptions {
            roots_max_age: Duration::MAX,
            keep_path_infos: true,
            ..CacheOptions::default()
        };
        Cache::new(into, Arc::new(upstream.unwrap()), options).unwrap()
    }

    fn open(&self) -> Cache {
        self.open_urls(&[self.url()], ClosureMode::Off)
    }

    fn blocking(&self, cache: &Cache) -> Blocking {
        Blocking::new(Arc::new(cache.clone()), self.runtime.handle().clone())
    }

    fn look_up(&self, cache: &Cache, path: &StorePath) -> Result<Option<Root>, Error> {
        self.blocking(cache).root(path.to_string().as_bytes())
    }

    /// Writes `tree` as `path`, signed, with these references.
    fn add(
        &self,
        path: &StorePath,
        tree: &Model,
        compression: &str,
        refs: &[&StorePath],
    ) -> Vec<u8> {
        let nar = nar(tree, &self.runtime);
        let mut narinfo = narinfo(path, &nar, compression);
        narinfo.references = refs.iter().map(|path| (*path).clone()).collect();
        narinfo.references.sort_by_key(StorePath::to_string);
        self.sign(&mut narinfo);
        write(self.written.path(), &narinfo, &nar);
        nar
    }

    fn sign(&self, narinfo: &mut NarinfoFile) {
        narinfo.signatures = vec![self.key.sign(&narinfo.fingerprint())];
    }

    /// Whether everything below `root` reads as it is in `tree`.
    fn assert_holds(&self, cache: &Cache, root: &Root, tree: &Model) {
        let store = castore_fs::store::MemoryStore::new();
        assert_eq!(tree.put_root(&store, "tree"), root.node);
        let problems = self.read_all(cache, &root.node);
        assert_eq!(problems, 0);
    }

    fn read_all(&self, cache: &Cache, node: &Node) -> usize {
        let store = self.blocking(cache);
        let path = castore_fs::tree::TreePath::new(b"x");
        let progress = castore_fs::tree::export::ExportProgress::default();
        let written =
            castore_fs::tree::nar::write_nar(&store, &path, node, std::io::sink(), &progress);
        usize::from(written.is_err())
    }
}

fn tree() -> Model {
    directory([
        (
            "bin",
            directory([("hello", program("#!/bin/sh\necho hello\n"))]),
        ),
        ("empty", file("")),
        (
            "large",
            file(
                (0..2_000_000u32)
                    .map(|n| (n.wrapping_mul(n) >> 7) as u8)
                    .collect::<Vec<_>>(),
            ),
        ),
        ("link", symlink("bin/hello")),
    ])
}

#[test]
fn a_path_comes_with_its_narinfo_and_nar_whatever_the_compression() {
    for compression in ["none", "xz", "zstd", "bzip2", "gzip"] {
        let bench = Bench::new();
        let (dep, app) = (path('0', "dep"), path('1', "top"));
        bench.add(&app, &tree(), compression, &[&dep, &app]);
        let cache = bench.open();
        let root = bench.look_up(&cache, &app).unwrap().unwrap();
        bench.assert_holds(&cache, &root, &tree());
        let requests = bench.web.take_requests();
        assert_eq!(
            requests,
            [
                "GET /nix-cache-info".to_owned(),
                format!("GET /{}.narinfo", app.hash()),
                format!("GET /nar/{}.nar.{compression}", app.hash()),
            ]
        );
        let info = bench.blocking(&cache).path_info(app.to_string().as_bytes());
        let info = info.unwrap().unwrap();
        let kept = NarinfoFile::of_path_info(&info, String::new()).unwrap();
        assert_eq!(kept.references, [dep, app.clone()]);
        assert_eq!(kept.signatures.len(), 1);
        assert_eq!(bench.web.take_requests().len(), 0);
        // After a restart without the server too.
        drop(cache);
        bench.web.set_faults(WebFaults {
            status: Some(("", 500)),
            ..WebFaults::default()
        });
        let cache = bench.open();
        let again = bench.look_up(&cache, &app).unwrap().unwrap();
        assert_eq!(again, root);
        assert_eq!(bench.read_all(&cache, &again.node), 0);
        assert!(
            bench
                .blocking(&cache)
                .path_info(app.to_string().as_bytes())
                .unwrap()
                .is_some()
        );
        assert_eq!(bench.web.take_requests().len(), 0);
    }
}

#[test]
fn nothing_unsigned_or_wrongly_signed_is_fetched() {
    let bench = Bench::new();
    let app = path('1', "top");
    let nar = bench.add(&app, &tree(), "none", &[]);
    let mut unsigned = narinfo(&app, &nar, "none");
    let mut other = unsigned.clone();
    other.signatures = vec![secret_key("test-1", 2).sign(&other.fingerprint())];
    let mut changed = unsigned.clone();
    bench.sign(&mut changed);
    changed.references = vec![path('2', "added")];
    // An address that does not give this path is no proof.
    let address = format!(
        "fixed:r:{}",
        castore_fs::nix::NixHash::Sha256(unsigned.nar.sha256)
    );
    let mut addressed = unsigned.clone();
    addressed.content_address = Some(ContentAddress::parse(&address).unwrap());
    for wrong in [&unsigned, &other, &changed, &addressed] {
        write(bench.written.path(), wrong, &nar);
        let error = bench.look_up(&bench.open(), &app).unwrap_err().to_string();
        assert!(error.contains("signature"), "{error}");
        let requests = bench.web.take_requests();
        assert!(!requests.iter().any(|request| request.contains("/nar/")));
    }
    // Where no signature is demanded, the hash still counts.
    let unchecked = [format!(
        "nix+http://{}?require-signatures=false",
        bench.web.address
    )];
    unsigned.nar.sha256[0] ^= 1;
    write(bench.written.path(), &unsigned, &nar);
    let cache = bench.open_urls(&unchecked, ClosureMode::Off);
    let error = bench.look_up(&cache, &app).unwrap_err().to_string();
    assert!(error.contains("NarHash"), "{error}");
    unsigned.nar.sha256[0] ^= 1;
    write(bench.written.path(), &unsigned, &nar);
    assert!(bench.look_up(&cache, &app).unwrap().is_some());
}

#[test]
fn a_content_addressed_path_proves_itself() {
    let bench = Bench::new();
    let nar = nar(&tree(), &bench.runtime);
    let recursive = |nar: &[u8]| {
        let mut info = narinfo(&path('1', "tree"), nar, "none");
        let address = format!(
            "fixed:r:{}",
            castore_fs::nix::NixHash::Sha256(info.nar.sha256)
        );
        let address = ContentAddress::parse(&address).unwrap();
        info.path = address.store_path("tree", &[]).unwrap().unwrap();
        info.url = format!("nar/{}.nar", info.path.hash());
        info.content_address = Some(address);
        info
    };
    let info = recursive(&nar);
    write(bench.written.path(), &info, &nar);
    let cache = bench.open();
    assert!(bench.look_up(&cache, &info.path).unwrap().is_some());
    // Text: the address is the file's hash, so that the contents have to be looked at.
    for right in [true, false] {
        use sha2::Digest;
        let bytes = if right { "text" } else { "forged" };
        let contents = kit::written::nar(&file(bytes), &bench.runtime);
        let hash = castore_fs::nix::NixHash::Sha256(sha2::Sha256::digest("text").into());
        let address = ContentAddress::parse(&format!("text:{hash}")).unwrap();
        let mut info = narinfo(&path('1', "text"), &contents, "none");
        info.path = address.store_path("text", &[]).unwrap().unwrap();
        info.content_address = Some(address);
        write(bench.written.path(), &info, &contents);
        let bench_store = tempfile::tempdir().unwrap();
        let into = LocalStore::open(bench_store.path()).unwrap();
        let address = CacheAddress::parse(&bench.url()).unwrap();
        let upstream = BinaryCaches::new(vec![address], into, ClosureMode::Off, None).unwrap();
        let found = bench
            .runtime
            .block_on(upstream.root(info.path.to_string().as_bytes()));
        assert_eq!(found.is_ok(), right, "{found:?}");
    }
}

#[test]
fn a_nar_that_does_not_match_its_narinfo_leaves_nothing() {
    let bench = Bench::new();
    let app = path('1', "top");
    let nar = bench.add(&app, &tree(), "none", &[]);
    let right = narinfo(&app, &nar, "none");
    let mut cases = Vec::new();
    let mut short = right.clone();
    short.nar.size -= 8;
    cases.push((short, nar.clone()));
    let mut long = right.clone();
    long.nar.size += 8;
    cases.push((long, nar.clone()));
    let mut claims = right.clone();
    claims.nar.size = 1 << 62;
    cases.push((claims, nar.clone()));
    cases.push((right.clone(), nar[..nar.len() - 8].to_vec()));
    cases.push((right.clone(), [&nar[..], &[0; 8]].concat()));
    cases.push((right.clone(), b"not a NAR".repeat(100)));
    let mut flipped = nar.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    cases.push((right.clone(), flipped));
    for (mut info, bytes) in cases {
        bench.sign(&mut info);
        write(bench.written.path(), &info, &bytes);
        let cache = bench.open();
        let error = bench.look_up(&cache, &app).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(
            cache.local_store().usage().unwrap().unwrap().blobs,
            0,
            "{error}"
        );
    }
    // A compressed file that unpacks to more than the narinfo states.
    let mut bomb = narinfo(&app, &nar, "zstd");
    bench.sign(&mut bomb);
    write(bench.written.path(), &bomb, &vec![0; 100 << 20]);
    assert!(bench.look_up(&bench.open(), &app).is_err());
    // The file is not there.
    std::fs::remove_file(bench.written.path().join(&bomb.url)).unwrap();
    let error = bench.look_up(&bench.open(), &app).unwrap_err().to_string();
    assert!(error.contains("not there"), "{error}");
}

#[test]
fn an_interrupted_download_continues_where_it_stopped() {
    for no_ranges in [false, true] {
        let bench = Bench::new();
        let app = path('1', "top");
        bench.add(&app, &tree(), "none", &[]);
        let length = 1_200_000;
        bench.web.set_faults(WebFaults {
            break_after: Some(length),
            no_ranges,
            ..WebFaults::default()
        });
        let cache = bench.open();
        let found = bench.look_up(&cache, &app);
        let asked: Vec<String> = bench.web.take_requests().split_off(2);
        let url = format!("GET /nar/{}.nar.none", app.hash());
        if no_ranges {
            // It never gets further, and gives up.
            assert!(found.is_err());
            continue;
        }
        bench.assert_holds(&cache, &found.unwrap().unwrap(), &tree());
        assert_eq!(asked, [url.clone(), format!("{url} bytes={length}-")]);
    }
}

#[test]
fn a_nar_that_a_busy_server_does_not_send_is_requested_five_times() {
    let bench = Bench::new();
    let app = path('1', "top");
    bench.add(&app, &tree(), "none", &[]);
    bench.web.set_faults(WebFaults {
        status: Some(("nar/", 503)),
        ..WebFaults::default()
    });
    let cache = bench.open();
    let error = bench.look_up(&cache, &app).unwrap_err().to_string();
    assert!(error.contains("HTTP status 503"), "{error}");
    let url = format!("GET /nar/{}.nar.none", app.hash());
    let asked = bench.web.take_requests();
    assert_eq!(asked.iter().filter(|asked| **asked == url).count(), 5);
}

#[test]
fn absent_names_are_requested_once_and_names_that_are_no_store_paths_never() {
    let bench = Bench::new();
    bench.add(&path('1', "top"), &tree(), "none", &[]);
    let gone = path('2', "gone");
    {
        let cache = bench.open();
        let names = [
            "tree",
            ".links",
            "x",
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-name",
        ];
        for name in names {
            assert!(
                bench
                    .blocking(&cache)
                    .root(name.as_bytes())
                    .unwrap()
                    .is_none()
            );
        }
        assert_eq!(bench.web.take_requests().len(), 0);
        assert!(bench.look_up(&cache, &gone).unwrap().is_none());
        assert_eq!(bench.web.take_requests().len(), 2, "with nix-cache-info");
        assert!(bench.look_up(&cache, &gone).unwrap().is_none());
        // Another name with the hash of a path that is there is not that path.
        assert!(
            bench
                .look_up(&cache, &path('1', "other"))
                .unwrap()
                .is_none()
        );
        bench.web.take_requests();
    }
    let cache = bench.open();
    assert!(bench.look_up(&cache, &gone).unwrap().is_none());
    assert_eq!(bench.web.take_requests().len(), 0, "over a restart");
}

#[test]
fn caches_are_asked_by_priority_and_absent_means_absent_in_all() {
    let (first, second) = (Bench::new(), Bench::new());
    let (both, late) = (path('1', "both"), path('2', "late"));
    for bench in [&first, &second] {
        bench.add(&both, &tree(), "none", &[]);
    }
    second.add(&late, &tree(), "none", &[]);
    let urls = [format!("{}&priority=50", second.url()), first.url()];
    let cache = first.open_urls(&urls, ClosureMode::Off);
    assert!(first.look_up(&cache, &both).unwrap().is_some());
    assert_eq!(second.web.take_requests(), ["GET /nix-cache-info"]);
    assert!(first.look_up(&cache, &late).unwrap().is_some());
    first.web.set_faults(WebFaults {
        status: Some((".narinfo", 500)),
        ..WebFaults::default()
    });
    let unknown = path('3', "unknown");
    assert!(
        first.look_up(&cache, &unknown).is_err(),
        "one did not answer"
    );
    first.web.set_faults(WebFaults::default());
    // The circuit breaker lets the next question through after a moment.
    let until = Instant::now() + Duration::from_secs(60);
    let found = loop {
        match first.look_up(&cache, &unknown) {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
            found => break found,
        }
    };
    assert!(found.unwrap().is_none());
}

#[test]
fn five_redirects_are_followed_and_a_sixth_is_refused_at_once() {
    let bench = Bench::new();
    let (local_store, endless) = (path('1', "near"), path('2', "endless"));
    for path in [&local_store, &endless] {
        bench.add(path, &file("contents"), "none", &[]);
    }
    let cache = bench.open();
    let requests = || {
        let requests = bench.web.take_requests();
        let of_narinfos = requests.iter().filter(|one| one.ends_with(".narinfo"));
        of_narinfos.count()
    };
    let redirects = |redirects| {
        bench.web.set_faults(WebFaults {
            redirects,
            ..WebFaults::default()
        });
    };
    redirects(5);
    assert!(bench.look_up(&cache, &local_store).unwrap().is_some());
    assert_eq!(requests(), 6);
    redirects(usize::MAX);
    let error = bench.look_up(&cache, &endless).unwrap_err().to_string();
    assert!(error.contains("too many redirects"), "{error}");
    assert_eq!(requests(), 6, "it was tried again");
}

#[test]
fn a_closure_comes_ahead_of_its_readers() {
    let bench = Bench::new();
    let paths: Vec<StorePath> = ('0'..='9').map(|digit| path(digit, "dep")).collect();
    for (number, this) in paths.iter().enumerate() {
        let next: Vec<&StorePath> = paths.get(number + 1).into_iter().collect();
        let contents = directory([("number", file(number.to_string()))]);
        bench.add(this, &contents, "zstd", &next);
    }
    let cache = bench.open_urls(&[bench.url()], ClosureMode::Fetch);
    bench.look_up(&cache, &paths[0]).unwrap().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let mut requests = Vec::new();
    while requests.len() < 21 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
        requests.extend(bench.web.take_requests());
    }
    assert_eq!(requests.len(), 21, "{requests:?}");
    for (number, this) in paths.iter().enumerate() {
        let root = bench.look_up(&cache, this).unwrap().unwrap();
        let contents = directory([("number", file(number.to_string()))]);
        bench.assert_holds(&cache, &root, &contents);
    }
    assert_eq!(bench.web.take_requests().len(), 0, "all of it was there");
    // Over a restart too.
    drop(cache);
    let cache = bench.open_urls(&[bench.url()], ClosureMode::Off);
    bench.look_up(&cache, &paths[9]).unwrap().unwrap();
    assert_eq!(bench.web.take_requests().len(), 0);
}

#[test]
fn narinfos_of_references_are_requested_in_parallel_and_no_nar_where_none_is_wanted() {
    let bench = Bench::new();
    let digits = ('0'..='9').chain(('a'..='z').filter(|digit| !"eotu".contains(*digit)));
    let deps: Vec<StorePath> = digits.take(20).map(|digit| path(digit, "dep")).collect();
    for dep in &deps {
        bench.add(dep, &file("dep"), "none", &[]);
    }
    let app = path('z', "top");
    bench.add(&app, &tree(), "none", &deps.iter().collect::<Vec<_>>());
    let delay = Duration::from_millis(300);
    bench.web.set_faults(WebFaults {
        delay,
        ..WebFaults::default()
    });
    let cache = bench.open_urls(&[bench.url()], ClosureMode::Narinfos);
    bench.look_up(&cache, &app).unwrap().unwrap();
    let began = Instant::now();
    let mut requests = Vec::new();
    while requests.len() < 23 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
        requests.extend(bench.web.take_requests());
    }
    assert_eq!(requests.len(), 23, "{requests:?}");
    let took = began.elapsed();
    assert!(took < delay * 10, "one after the other: {took:?}");
    // Nothing follows them.
    std::thread::sleep(delay * 2);
    assert_eq!(bench.web.take_requests().len(), 0);
    let nars = requests.iter().filter(|request| request.contains("/nar/"));
    assert_eq!(nars.count(), 1, "{requests:?}");
}

#[test]
fn many_readers_share_one_download() {
    let bench = Bench::new();
    let app = path('1', "top");
    bench.add(&app, &tree(), "xz", &[]);
    bench.web.set_faults(WebFaults {
        delay: Duration::from_millis(100),
        ..WebFaults::default()
    });
    let cache = bench.open();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(bench.look_up(&cache, &app).unwrap().is_some()));
        }
    });
    assert_eq!(bench.web.take_requests().len(), 3);
}

#[test]
fn logins_come_from_files_and_go_to_their_server_only() {
    let bench = Bench::new();
    let app = path('1', "top");
    bench.add(&app, &tree(), "none", &[]);
    let netrc = bench.store.path().join("netrc");
    std::fs::write(&netrc, "machine 127.0.0.1 login me password secret\n").unwrap();
    bench.web.set_faults(WebFaults {
        authorization: Some("Basic bWU6c2VjcmV0".to_owned()),
        ..WebFaults::default()
    });
    let error = bench.look_up(&bench.open(), &app).unwrap_err().to_string();
    assert!(error.contains("netrc-file"), "{error}");
    let url = format!("{}&netrc-file={}", bench.url(), netrc.display());
    let cache = bench.open_urls(&[url], ClosureMode::Off);
    assert!(bench.look_up(&cache, &app).unwrap().is_some());
    assert!(!format!("{cache:?}").contains("secret"));
}

#[test]
fn contents_that_were_let_go_of_are_fetched_again() {
    let bench = Bench::new();
    let (one, two) = (path('1', "one"), path('2', "two"));
    bench.add(&one, &tree(), "none", &[]);
    bench.add(&two, &directory([("x", file("y"))]), "none", &[]);
    let cache = bench.open();
    let root = bench.look_up(&cache, &one).unwrap().unwrap();
    bench.look_up(&cache, &two).unwrap().unwrap();
    cache.drop_cache().unwrap();
    assert_eq!(cache.local_store().usage().unwrap().unwrap().blobs, 0);
    bench.web.take_requests();
    bench.assert_holds(&cache, &root, &tree());
    let requests = bench.web.take_requests();
    assert!(
        requests.iter().any(|request| request.contains("/nar/1111")),
        "{requests:?}"
    );
}

#[test]
fn a_cache_in_a_directory_is_read_without_a_server() {
    let bench = Bench::new();
    let app = path('1', "top");
    let nar = bench.add(&app, &tree(), "zstd", &[]);
    let directory = bench.written.path().display();
    let url = format!(
        "nix+file://{directory}?trusted-public-keys={}",
        bench.key.public()
    );
    let cache = bench.open_urls(&[url], ClosureMode::Off);
    let root = bench.look_up(&cache, &app).unwrap().unwrap();
    bench.assert_holds(&cache, &root, &tree());
    assert!(bench.look_up(&cache, &path('2', "gone")).unwrap().is_none());
    let mut outside = narinfo(&path('3', "outside"), &nar, "none");
    outside.url = "nar/../../secret".to_owned();
    bench.sign(&mut outside);
    let text = outside.to_text();
    let name = format!("{}.narinfo", outside.path.hash());
    std::fs::write(bench.written.path().join(name), text).unwrap();
    let error = bench
        .look_up(&cache, &outside.path)
        .unwrap_err()
        .to_string();
    assert!(error.contains("leads out"), "{error}");
    assert!(compress(b"x", "none") == b"x");
}
