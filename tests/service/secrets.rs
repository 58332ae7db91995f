//! Secrets are in the files that the configuration names, and nowhere else: in no log of any level, no
//! output of `status` and `check-config`, no metrics, no arguments, no error of a program.

use std::io::Write as _;
use std::net::TcpStream;

use kit::patience::wait_until;

use super::*;

/// In every secret of this test.
const MARK: &str = "hunter2";

const CONFIG: &str = "[log]\nlevel = 'trace'\n[metrics]\naddress = 'METRICS'\n\
    [stores.disk]\nurl = 'local:@/store'\n\
    [stores.bucket]\n\
    url = 'objectstore+s3://bucket/path?endpoint=http://127.0.0.1:1&region=r&credentials-file=@/keys'\n\
    [stores.server]\nurl = 'grpc+unix:@/l.sock'\ntoken-file = '@/token'\n\
    [stores.wrong]\nurl = 'grpc+unix:@/l.sock'\ntoken-file = '@/wrong'\n\
    [listen.l]\naddress = 'unix:@/l.sock'\nstore = 'disk'\ntoken-file = '@/tokens'\n\
    [listen.c]\naddress = 'unix:@/c.sock'\nstore = 'disk'\nprotocol = 'binary-cache'\n\
    secret-key-file = '@/nix-key'\ntoken-file = '@/tokens'\n\
    [mounts.bucket]\npath = '@/bucket'\nstore = 'bucket'\n\
    [mounts.server]\npath = '@/server'\nstore = 'server'\n\
    [mounts.wrong]\npath = '@/wrong-token'\nstore = 'wrong'\n";

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .args(arguments)
        .output()
        .unwrap();
    let reported = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&reported).into_owned()
}

#[test]
fn secrets_appear_in_no_log_status_metrics_or_error() {
    if !can_mount() {
        return;
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = free.local_addr().unwrap().to_string();
    drop(free);
    let mut manager = Manager::new(&CONFIG.replace("METRICS", &metrics));
    for (name, text) in [
        (
            "keys",
            format!(
                "aws_access_key_id = id\naws_secret_access_key = {MARK}-key\naws_session_token = {MARK}-s\n"
            ),
        ),
        ("token", format!("{MARK}-token\n")),
        ("wrong", format!("{MARK}-wrong\n")),
        ("tokens", format!("{MARK}-token read\n")),
        // Whatever is in a file that should have a key.
        ("nix-key", format!("{MARK}:not a key\n")),
    ] {
        let path = manager.join(name);
        fs::write(&path, text).unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, owner_only).unwrap();
    }
    let tree = manager.join("tree");
    make_tree(&tree, 1);
    manager.import(&tree, "tree");
    let config = manager.join("config.toml").display().to_string();
    let mut reported = vec![run(&["check-config", &config])];
    assert!(reported[0].contains("nix-key"), "{}", reported[0]);
    let text = kit::written::secret_key_text("cache", 7);
    fs::write(manager.join("nix-key"), format!("{text}\n")).unwrap();
    let key = text.split_once(':').unwrap().1;
    reported.push(run(&["check-config", "--online", &config]));
    manager.start_and_wait();
    // What can be read, and what fails in two ways.
    let file = manager.join("server/tree/dir-0/file-3");
    // The mount may have looked for its server, which is in the same process, before that listened.
    wait_until("the server is found", || file.exists());
    assert_eq!(fs::read(file).unwrap(), content(Path::new("dir-0"), 3));
    fs::read_dir(manager.join("bucket"))
        .and_then(|mut all| all.next().transpose())
        .unwrap_err();
    fs::metadata(manager.join("wrong-token/tree")).unwrap_err();
    fs::metadata(manager.join("bucket/tree")).unwrap_err();
    let control = manager.join("control").display().to_string();
    reported.push(run(&["status", "--socket", &control]));
    reported.push(run(&["status", "--json", "--socket", &control]));
    let keys = manager.join("keys").display().to_string();
    let bucket =
        "objectstore+s3://bucket/path?endpoint=http://127.0.0.1:1&region=r&credentials-file=";
    reported.push(run(&["ls", "--store", &format!("{bucket}{keys}")]));
    let wrong = format!(
        "grpc+unix:{}?token-file={}",
        manager.join("l.sock").display(),
        manager.join("wrong").display()
    );
    reported.push(run(&["ls", "--store", &wrong]));
    let mut stream = TcpStream::connect(&metrics).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    reported.push(text);
    reported.push(fs::read_to_string(format!("/proc/{}/cmdline", manager.pid())).unwrap());
    reported.push(manager.messages().join("\n"));
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
    reported.push(manager.log());
    for text in &reported {
        assert!(!text.is_empty());
        let at = text.find(MARK).or_else(|| text.find(key));
        let around = at.map(|at| &text[text.floor_char_boundary(at.saturating_sub(300))..]);
        assert!(around.is_none(), "{:.600}", around.unwrap());
    }
    assert!(
        manager.log().contains("TRACE"),
        "nothing was logged in detail"
    );
}
