//! What the status and the metrics of a running service show: errors by errno, bytes, rates, failed reloads.

use std::io::Write as _;

use kit::patience::wait_until;

use super::*;

fn metrics(manager: &Manager) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(manager.join("metrics")).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The status as it is printed.
fn printed(manager: &Manager) -> String {
    let socket = manager.join("control").display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(["status", "--socket", &socket])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn reload(manager: &mut Manager) {
    let ready = manager.count("READY=1");
    manager.signal(libc::SIGHUP);
    manager.wait_for("READY=1", ready + 1);
}

#[test]
fn a_failed_reload_is_in_the_status_until_one_succeeds() {
    const GOOD: &str = "state-dir = '@/store'\n[metrics]\naddress = 'unix:@/metrics'\n";
    let mut manager = Manager::new(GOOD);
    manager.start_and_wait();
    assert!(metrics(&manager).contains("\ncastore_fs_last_reload_ok 1\n"));
    manager.configure(&format!("{GOOD}[log]\nlevel = 'loud'\n"));
    reload(&mut manager);
    let failure = manager.status()["reloads"]["failure"].clone();
    assert_eq!(failure["refused"], true, "{failure}");
    assert!(failure["problems"][0].as_str().unwrap().contains("loud"));
    let shown = printed(&manager);
    assert!(shown.contains("THE LAST RELOAD FAILED"), "{shown}");
    assert!(shown.contains("\"loud\" is no level"), "{shown}");
    let text = metrics(&manager);
    assert!(text.contains("\ncastore_fs_last_reload_ok 0\n"), "{text}");
    assert!(text.contains("castore_fs_reloads_total{outcome=\"failed\"} 1\n"));

    manager.configure(GOOD);
    reload(&mut manager);
    let reloads = manager.status()["reloads"].clone();
    assert_eq!(
        (&reloads["succeeded"], &reloads["failed"]),
        (&1.into(), &1.into())
    );
    assert!(reloads["failure"].is_null(), "{reloads}");
    assert!(!printed(&manager).contains("RELOAD"));
    // Every line of the log begins with its time.
    for line in manager.log().lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{line}");
        assert!(
            ["INFO", "WARN", "ERROR"]
                .iter()
                .any(|level| rest.trim_start().starts_with(level))
        );
    }
}

#[test]
fn errors_are_counted_by_errno_and_the_bytes_that_programs_got() {
    if !can_mount() {
        return;
    }
    let manager = Manager::new(&format!(
        "{ONE_MOUNT}[metrics]\naddress = 'unix:@/metrics'\n"
    ));
    let tree = manager.join("tree");
    make_tree(&tree, 1);
    manager.import(&tree, "tree");
    let mut manager = manager;
    manager.start_and_wait();
    let file = |number: usize| manager.join(&format!("mnt/tree/dir-0/file-{number}"));
    let read = fs::read(file(3)).unwrap();
    assert!(read == content(Path::new("dir-0"), 3));
    fs::metadata(manager.join("mnt/tree/no")).unwrap_err();
    let status = manager.status()["mounts"]["tree"].clone();
    assert!(
        status["read_bytes"].as_u64().unwrap() >= read.len() as u64,
        "{status}"
    );
    assert_eq!(
        status["errors"],
        serde_json::json!({}),
        "ENOENT is an answer"
    );
    assert_eq!(status["waits"], serde_json::json!({}), "all of it is here");

    // Every blob is damaged, and the directories are known.
    for pack in fs::read_dir(manager.join("store/packs")).unwrap() {
        let pack = pack.unwrap().path();
        let length = fs::metadata(&pack).unwrap().len() as usize;
        fs::write(&pack, vec![0; length]).unwrap();
    }
    let error = fs::read(file(7)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let errors = manager.status()["mounts"]["tree"]["errors"].clone();
    let count = errors["EIO"].as_u64().unwrap();
    assert!(
        count > 0 && errors.as_object().unwrap().len() == 1,
        "{errors}"
    );
    let text = metrics(&manager);
    for line in [
        format!(
            "castore_fs_errors_total{{transport=\"fuse\",name=\"tree\",errno=\"EIO\"}} {count}\n"
        ),
        "castore_fs_read_bytes_total{transport=\"fuse\",name=\"tree\"} ".to_owned(),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    let shown = printed(&manager);
    assert!(
        shown.contains(&format!("  errors: {count} EIO\n")),
        "{shown}"
    );
    assert!(shown.contains(" B of node table\n"), "{shown}");
    assert!(!shown.contains(" bytes"), "one unit for all sizes: {shown}");
}

#[test]
fn the_status_has_rates_and_the_share_of_reads_that_waited_for_nothing() {
    if !can_mount() {
        return;
    }
    let mut manager = service(1);
    manager.start_and_wait();
    let rate = || manager.status()["mounts"]["tree"]["rates"][0].clone();
    wait_until("there is a rate of reads", || {
        // Files that the kernel has not cached.
        drop_caches();
        for number in 0..20 {
            fs::read(manager.join(&format!("mnt/tree/dir-0/file-{number}"))).unwrap();
        }
        rate()["hit_ratio"].is_number()
    });
    let rate = rate();
    assert!(rate["seconds"].as_f64().unwrap() >= 1.0, "{rate}");
    assert!(
        rate["requests_per_second"].as_f64().unwrap() > 0.0,
        "{rate}"
    );
    assert!(
        rate["read_bytes_per_second"].as_f64().unwrap() > 0.0,
        "{rate}"
    );
    assert_eq!(rate["hit_ratio"], 1.0, "{rate}");
    let shown = printed(&manager);
    assert!(shown.contains(" requests/s, "), "{shown}");
    assert!(shown.contains("hit ratio 100 %"), "{shown}");
}
