//! Stores made of stores, from a configuration file to a mount and a command line.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use castore_fs::castore::Digest;
use kit::collector::{Collector, reported};
use kit::manager::Manager;
use kit::mounted::can_mount;

const DIRS: usize = 20;

fn castore_fs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(arguments)
        .output()
        .unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = castore_fs(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory with a directory for each number, in each of which is a file with the number.
fn make_tree(at: &Path) {
    for number in 0..DIRS {
        let dir = at.join(format!("dir-{number}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), contents(number)).unwrap();
    }
}

fn contents(number: usize) -> String {
    format!("{number} ").repeat(100_000)
}

/// A server of a store with `tree` in it, in a process of its own.
struct Server(Child);

impl Server {
    fn start(dir: &Path, name: &str) -> Self {
        let tree = dir.join("tree");
        if !tree.exists() {
            make_tree(&tree);
        }
        let store = format!("local:{}/store-{name}", dir.display());
        let tree = tree.to_str().unwrap();
        succeeds(&["import", "--store", &store, "--name", "tree", tree]);
        let socket = format!("unix:{}/{name}", dir.display());
        let child = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
            .args(["serve", "--store", &store, "--listen", &socket])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child);
        let began = Instant::now();
        while UnixStream::connect(dir.join(name)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "no server");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a child of this process, which was not waited for.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const TWO: &str = "[stores.a]\nurl = 'grpc+unix:@/a?first-byte-timeout=5'\n\
                   [stores.b]\nurl = 'grpc+unix:@/b'\n\
                   [stores.main]\nmirrors = { of = ['a', 'b'] }\n";
const TREE: &str = "[mounts.tree]\nstore = 'main'\npath = '@/mnt'\n";
const OTHER: &str = "[stores.here]\nurl = 'memory:'\n\
                     [mounts.other]\nstore = 'here'\npath = '@/other'\n";

fn reload(manager: &mut Manager) {
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
}

fn metrics(socket: PathBuf) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_mount_of_mirrors_reads_on_when_one_hangs_and_when_it_dies() {
    if !can_mount() {
        return;
    }
    let mut manager = Manager::new(&format!(
        "{TWO}{TREE}{OTHER}[metrics]\naddress = 'unix:@/metrics'\n"
    ));
    let first = Server::start(manager.path(), "a");
    let _second = Server::start(manager.path(), "b");
    manager.start_and_wait();
    let mnt = manager.join("mnt");
    let read = |number: usize| {
        let began = Instant::now();
        let read = fs::read_to_string(mnt.join(format!("tree/dir-{number}/file"))).unwrap();
        assert!(read == contents(number), "dir-{number}");
        began.elapsed()
    };
    read(0);
    let member = |manager: &Manager| manager.status()["stores"]["main"]["members"][0].clone();
    assert_eq!(member(&manager)["state"], "up");
    first.signal(libc::SIGSTOP);
    for number in 1..10 {
        let took = read(number);
        // Its deadline is five seconds.
        assert!(took < Duration::from_secs(4), "{number}: {took:?}");
    }
    assert_ne!(member(&manager)["state"], "up");
    assert!(member(&manager)["hedges"].as_u64().unwrap() > 0);
    drop(first);
    for number in 10..DIRS {
        assert!(read(number) < Duration::from_secs(4), "{number}");
    }
    let status = manager.status();
    assert_eq!(status["stores"]["main"]["kind"], "mirrors");
    assert_eq!(
        status["stores"]["main"]["of"],
        serde_json::json!(["a", "b"])
    );
    assert_eq!(status["stores"]["b"]["endpoint"]["state"], "up");
    assert!(status["stores"]["b"]["blobs"].is_null(), "not known");
    let bytes = status["stores"]["b"]["endpoint"]["bytes_in"].as_u64();
    assert!(bytes.unwrap() > contents(10).len() as u64);
    let lookups = &status["mounts"]["tree"]["latencies"]["LOOKUP"];
    assert!(lookups["p95_micros"].as_u64().unwrap() > 0);
    assert!(status["mounts"]["tree"]["waits"]["READ"].as_u64() >= Some(1));
    let metrics = metrics(manager.join("metrics"));
    for line in [
        "castore_fs_endpoint_up{store=\"b\"} 1",
        "castore_fs_endpoint_call_seconds_count{store=\"b\"} ",
        "castore_fs_request_waits_total{transport=\"fuse\",name=\"tree\",kind=\"READ\"} ",
        "castore_fs_mirror_state{store=\"main\",member=\"b\",state=\"up\"} 1",
        "castore_fs_mirror_state{store=\"main\",member=\"a\",state=\"up\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let socket = manager.join("control");
    let shown = succeeds(&["status", "--socket", socket.to_str().unwrap()]);
    assert!(shown.contains("store main: mirrors of a, b"), "{shown}");
    assert!(shown.contains("gets no requests for a while"), "{shown}");

    // A reload without the dead one touches nothing but the mount of what it was part of.
    let device = |path: &str| fs::metadata(manager.join(path)).unwrap().dev();
    let other = device("other");
    manager.configure(&format!(
        "[stores.b]\nurl = 'grpc+unix:@/b'\n\
         [stores.main]\nfilter = {{ store = 'b', roots = ['t*'] }}\n{TREE}{OTHER}"
    ));
    reload(&mut manager);
    let device = |path: &str| fs::metadata(manager.join(path)).unwrap().dev();
    assert_eq!(device("other"), other);
    read(3);
    let stores = manager.status()["stores"].clone();
    assert!(stores["a"].is_null() && stores["main"]["kind"] == "filter");
    // `b` stayed open, so its counters do too.
    assert!(stores["b"]["endpoint"]["bytes_in"].as_u64() >= bytes);
}

#[test]
fn a_collector_receives_which_fetches_a_request_caused() {
    if !can_mount() {
        return;
    }
    let collector = Collector::start();
    let mut manager = Manager::new(&format!(
        "[stores.a]\nurl = 'grpc+unix:@/a'\n[stores.disk]\nurl = 'local:@/disk'\n\
         [stores.main]\ncache = {{ near = 'disk', far = ['a'] }}\n{TREE}\
         [log]\nslow-requests = '0s'\notlp = '{}'\n",
        collector.url()
    ));
    let _server = Server::start(manager.path(), "a");
    manager.start_and_wait();
    let file = manager.join("mnt/tree/dir-7/file");
    assert!(fs::read_to_string(file).unwrap() == contents(7));
    // Sends what it still has.
    manager.signal(libc::SIGTERM);
    assert!(manager.wait());
    let spans = collector.spans();
    let digest = Digest::of(contents(7).as_bytes()).to_string();
    let of_file = |name: &str| {
        let found = spans.iter().find(|span| {
            span.name == name && reported(&span.attributes).get("DIGEST") == Some(&digest)
        });
        found.unwrap_or_else(|| panic!("no {name} of {digest} in {spans:#?}"))
    };
    let (read, fetch) = (of_file("READ"), of_file("fetch blob"));
    assert_eq!(fetch.trace_id, read.trace_id);
    assert_eq!(fetch.parent_span_id, read.span_id);
    assert!(read.parent_span_id.is_empty());
    assert!(read.start_time_unix_nano <= fetch.start_time_unix_nano);
    assert!(read.end_time_unix_nano >= fetch.start_time_unix_nano);
    let endpoint = format!("grpc+unix:{}", manager.join("a").display());
    for span in [read, fetch] {
        let reported = reported(&span.attributes);
        assert_eq!((&*reported["MOUNT"], &*reported["STORE"]), ("tree", "main"));
        // A request waits for the mount's store, which asks the endpoint.
        assert!(reported["ENDPOINT"].contains(&endpoint), "{reported:?}");
    }
    assert_eq!(reported(&fetch.attributes)["ENDPOINT"], endpoint);
    let reported = reported(&read.attributes);
    assert_eq!(reported["PATH"], "/tree/dir-7/file");
    assert!(reported["ENDPOINT_MS"].parse::<f64>().unwrap() > 0.0);
    // Other requests vary, and those in flight at the end are not exported.
    for span in &spans {
        let outer = spans
            .iter()
            .find(|outer| outer.span_id == span.parent_span_id);
        assert!(
            outer.is_none_or(|outer| outer.trace_id == span.trace_id),
            "{spans:#?}"
        );
    }
    assert!(spans.len() > 2, "{spans:#?}");
}

#[test]
fn a_command_line_takes_the_name_of_a_composed_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    make_tree(&path.join("tree"));
    let [one, two] = ["one", "two"].map(|name| format!("local:{}/{name}", path.display()));
    let tree = path.join("tree");
    for (store, name) in [(&one, "app-1"), (&one, "hidden"), (&two, "lib-1")] {
        succeeds(&[
            "import",
            "--store",
            store,
            "--name",
            name,
            tree.to_str().unwrap(),
        ]);
    }
    let config = path.join("config.toml");
    let text = format!(
        "[stores.one]\nurl = '{one}'\n[stores.two]\nurl = '{two}'\n\
         [stores.apps]\nfilter = {{ store = 'one', roots = ['app-*'] }}\n\
         [stores.all]\njoin = ['apps', 'two']\n\
         [stores.same]\nmirrors = {{ of = ['one', 'one-again'] }}\n\
         [stores.one-again]\nurl = '{one}'\n"
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let listed = succeeds(&["ls", "--store", "store:all", "--config", config]);
    assert_eq!(listed, "app-1\nlib-1\n");
    let file = "lib-1/dir-7/file";
    let read = succeeds(&["cat", "--config", config, "--store", "store:all", file]);
    assert!(read == contents(7));
    let listed = succeeds(&["ls", "--store", "store:same", "--config", config]);
    assert_eq!(listed, "app-1\nhidden\n");
    succeeds(&["verify", "--store", "store:all", "--config", config]);
    let three = format!("local:{}/three", path.display());
    let copy = [
        "copy",
        "--config",
        config,
        "--from",
        "store:all",
        "--to",
        &three,
        "--all",
    ];
    succeeds(&copy);
    assert_eq!(succeeds(&["ls", "--store", &three]), "app-1\nlib-1\n");
    for (arguments, reported) in [
        (
            ["ls", "--store", "store:al", "--config", config],
            "describes no store \"al\"; it has all, apps, one, one-again, same, two",
        ),
        (
            ["ls", "--store", "store:all", "--config", "/no/such.toml"],
            "/no/such.toml: cannot be read",
        ),
    ] {
        let output = castore_fs(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && stderr.contains(reported),
            "{stderr}"
        );
    }
    let tree = tree.to_str().unwrap();
    let import = ["import", "--config", config, "--store", "store:all", tree];
    let stderr = String::from_utf8(castore_fs(&import).stderr).unwrap();
    assert!(stderr.contains("write to one of apps, two"), "{stderr}");
    // Through the filter it goes, under the right name.
    let import = [
        "import",
        "--config",
        config,
        "--store",
        "store:apps",
        tree,
        "--name",
    ];
    assert!(
        castore_fs(&[&import[..], &["app-2"]].concat())
            .status
            .success()
    );
    let refused = castore_fs(&[&import[..], &["other"]].concat());
    assert!(!refused.status.success());
    let listed = succeeds(&["ls", "--store", "store:apps", "--config", config]);
    assert_eq!(listed, "app-1\napp-2\n");
}

#[test]
fn check_config_online_reports_which_stores_answer() {
    let dir = tempfile::tempdir().unwrap();
    let _server = Server::start(dir.path(), "a");
    let path = dir.path().display();
    let config = dir.path().join("config.toml");
    let text = format!(
        "[stores.up]\nurl = 'grpc+unix:{path}/a'\n\
         [stores.down]\nurl = 'grpc+unix:{path}/no-server'\n\
         [stores.new]\nurl = 'local:{path}/new'\n\
         [stores.nix.binary-cache]\nurl = 'file://{path}/none'\ninto = 'new'\n\
         require-signatures = false\n"
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    succeeds(&["check-config", config]);
    let output = castore_fs(&["check-config", "--online", config]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.contains("up: ok, ") && stdout.contains("new: ok, "),
        "{stdout}"
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("down: ") && stderr.contains("/no-server"),
        "{stderr}"
    );
    assert!(stderr.contains("is the server running"), "{stderr}");
    assert!(stderr.contains("nix: nix+file://"), "{stderr}");
    // Nothing but the lines of the two that fail.
    let mut lines = stderr.lines();
    assert!(
        lines.all(|line| line.starts_with("castore-fs: ")),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    let output = castore_fs(&["check-config", "--online", "--json", config]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let states: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| format!("{} {}", line["store"], line["state"]))
        .collect();
    assert_eq!(
        states,
        [
            "\"down\" \"fails\"",
            "\"new\" \"to-be-made\"",
            "\"nix\" \"fails\"",
            "\"up\" \"answers\"",
        ]
    );
    assert!(output.stderr.is_empty() && output.status.code() == Some(1));
    assert!(!dir.path().join("new").exists());
}

#[test]
fn commands_pin_and_prefetch_in_the_cache_of_a_running_service() {
    let mut manager = Manager::new(
        "[stores.near]\nurl = 'local:@/near'\n[stores.far]\nurl = 'grpc+unix:@/far'\n\
         [stores.main]\ncache = { near = 'near', far = ['far'] }\n\
         [listen.l]\nstore = 'main'\naddress = 'unix:@/castore.sock'\n",
    );
    let server = Server::start(manager.path(), "far");
    manager.start_and_wait();
    let control = manager.join("control").display().to_string();
    let send_request = |words: &[&str]| succeeds(&[words, &["--socket", &control]].concat());
    let tree = manager.join("tree").display().to_string();
    let upstream = format!("local:{}", manager.join("store-far").display());
    // An impossible request is refused, with the name.
    let refused = |words: &[&str]| {
        let output = castore_fs(&[words, &["--socket", &control]].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let reported = refused(&["prefetch", "nothing"]);
    assert!(reported.contains("no root of that name"), "{reported}");
    let reported = refused(&["pin", "--store", "near", "tree"]);
    let expected = "there is no cache named \"near\"; there is main";
    assert!(reported.contains(expected), "{reported}");

    succeeds(&["import", "--store", &upstream, "--name", "again", &tree]);
    let fetched = send_request(&["prefetch", "tree", "--json"]);
    let fetched: serde_json::Value = serde_json::from_str(&fetched).unwrap();
    assert_eq!(fetched["blobs"], DIRS, "{fetched}");
    assert_eq!(fetched["total_blobs"], DIRS, "{fetched}");
    assert_eq!(send_request(&["pin", "tree"]), "tree\n");
    assert_eq!(
        send_request(&["pin", "--json", "/nix/store/tree"]),
        "{\"name\":\"tree\"}\n"
    );
    let shown = send_request(&["status", "--roots"]);
    assert!(shown.contains("\n  pinned: tree\n"), "{shown}");
    assert!(shown.contains("\n  root tree: 100 % cached, "), "{shown}");
    let status = send_request(&["status", "--roots", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let root = &status["stores"]["main"]["roots"]["shares"][0];
    assert_eq!(root["cached_bytes"], root["known_bytes"], "{root}");
    assert_eq!(
        (&root["name"], &root["pinned"]),
        (&"tree".into(), &true.into())
    );
    assert_eq!(
        status["stores"]["main"]["cache"]["pins"],
        serde_json::json!(["tree"])
    );
    send_request(&["drop-cache"]);
    // A pinned root is readable without the upstream; after its removal it is not.
    drop(server);
    let cat = |number: usize| {
        let url = format!("grpc+unix:{}", manager.join("castore.sock").display());
        let file = format!("tree/dir-{number}/file");
        castore_fs(&["cat", "--store", &url, &file])
    };
    for number in 0..DIRS {
        let read = cat(number);
        let right = read.stdout == contents(number).as_bytes();
        assert!(
            right,
            "{}: {}",
            read.status,
            String::from_utf8_lossy(&read.stderr)
        );
    }
    assert_eq!(manager.status()["prefetches"], serde_json::json!([]));
    assert_eq!(send_request(&["unpin", "tree"]), "");
    let dropped = send_request(&["drop-cache", "--json"]);
    let dropped: serde_json::Value = serde_json::from_str(&dropped).unwrap();
    assert_eq!(dropped["blobs"], DIRS, "{dropped}");
    assert!(!cat(0).status.success());
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
}

#[test]
fn command_lines_use_the_stores_of_a_running_service_and_do_without_when_it_is_gone() {
    let mut manager = Manager::new(
        "[stores.near]\nurl = 'local:@/near'\n[stores.other]\nurl = 'local:@/other'\n\
         [stores.far]\nurl = 'grpc+unix:@/far'\n\
         [stores.main]\ncache = { near = 'near', far = ['far'] }\n\
         [stores.same]\ncache = { near = 'other', far = ['far'] }\n\
         [listen.l]\nstore = 'main'\naddress = 'unix:@/castore.sock'\n",
    );
    let server = Server::start(manager.path(), "far");
    manager.start_and_wait();
    let config = manager.join("config.toml").display().to_string();
    let on = |store: &str, words: &[&str]| {
        succeeds(&[words, &["--config", &config, "--store", store]].concat())
    };
    assert_eq!(on("store:main", &["ls"]), "tree\n");
    let cat = |store, number: usize| {
        let file = format!("tree/dir-{number}/file");
        assert!(on(store, &["cat", &file]) == contents(number));
    };
    cat("store:main", 1);
    cat("store:same", 2);
    let status = manager.status();
    let listeners = status["listen"].as_object().unwrap();
    assert_eq!(listeners.keys().collect::<Vec<_>>(), ["l"]);
    // The service has cached what they read, and serves it without the upstream.
    drop(server);
    cat("store:main", 1);
    cat("store:same", 2);
    // An error names the store as the command did, and its advice is given once.
    let none = ["stat", "--config", &config, "--store", "store:main", "none"];
    let error = String::from_utf8(castore_fs(&none).stderr).unwrap();
    let start = "castore-fs: store:main: looking up root \"none\" failed: grpc+unix:";
    assert!(error.starts_with(start), "{error}");
    assert!(!error.contains("stores/"), "{error}");
    assert_eq!(error.matches("is the server running").count(), 1, "{error}");
    // The configuration names the control socket.
    let status = succeeds(&["status", "--config", &config]);
    assert!(
        status.contains(": serving 0 mounts, 1 listener\n"),
        "{status}"
    );
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    assert_eq!(fs::read_dir(manager.join("stores")).unwrap().count(), 0);
    let is_there = |store: &str, number: usize| {
        let file = format!("tree/dir-{number}/file");
        let read = castore_fs(&["cat", "--config", &config, "--store", store, &file]);
        read.status.success()
    };
    // Without the service, each has only what its own local store has: nothing.
    assert!(is_there("store:main", 1) && is_there("store:main", 2));
    assert!(!is_there("store:same", 2));
}
