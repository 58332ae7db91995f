//! A listener with `protocol = "binary-cache"`: what the daemon makes of its keys, from outside of the
//! process. What is served, and what is refused, is in `tests/binary_cache`.

use std::net::{SocketAddr, TcpListener};

use castore_fs::nix::{NarinfoFile, PublicKey};
use kit::http_client::HttpClient;
use kit::model::{directory, file, program};
use kit::written::{Upload, nar, path, secret_key, secret_key_text};

use super::*;

/// One listener that is written to, for which clients need a token, and one for all who read.
const CONFIG: &str = "[stores.disk]\nurl = 'local:@/store'\n\
    [listen.write]\naddress = 'unix:@/write.sock'\nstore = 'disk'\nprotocol = 'binary-cache'\n\
    writable = true\ntoken-file = '@/tokens'\nread-without-token = true\npriority = 7\n\
    [listen.read]\naddress = 'ADDRESS'\nstore = 'disk'\nprotocol = 'binary-cache'\n\
    secret-key-file = '@/nix-key'\n";

/// An address on which nothing listens.
fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

#[test]
fn a_configured_binary_cache_serves_takes_uploads_and_keeps_a_nar_over_restarts() {
    let address = free_address();
    let mut manager = Manager::new(&CONFIG.replace("ADDRESS", &address.to_string()));
    for (name, text) in [
        ("tokens", "writing read add\nreading read\n".to_owned()),
        ("nix-key", secret_key_text("fleet-1", 5)),
    ] {
        let path = manager.join(name);
        fs::write(&path, text).unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, owner_only).unwrap();
    }
    manager.start_and_wait();
    let status = manager.status();
    assert_eq!(status["listen"]["write"]["writable"], true);
    assert_eq!(status["listen"]["read"]["writable"], false);

    let reading = HttpClient::tcp(address);
    let anyone = HttpClient::unix(&manager.join("write.sock"));
    let bearer = |token: &str| anyone.with_header("Authorization", &format!("Bearer {token}"));
    let writing = bearer("writing");
    for (client, priority) in [(&reading, 30), (&anyone, 7)] {
        let info = client.get("/nix-cache-info");
        let expected = format!("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: {priority}\n");
        assert_eq!((info.status, info.text()), (200, expected));
    }

    let tree = directory([
        (
            "bin",
            directory([("hello", program("#!/bin/sh\necho hello\n"))]),
        ),
        ("data", file(vec![7; 300_000])),
    ]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let nar = nar(&tree, &runtime);
    let key = PublicKey::parse(&secret_key("fleet-1", 5).public().to_string()).unwrap();
    for (digit, is_killed) in [('1', false), ('2', true)] {
        let path = path(digit, "uploaded");
        let upload = Upload::new(&path, &nar, ["zstd", "xz"][usize::from(is_killed)]);
        for (client, refusal) in [
            (&anyone, 403),
            (&bearer("reading"), 403),
            (&bearer("other"), 401),
            // No upload comes by this one, whatever its client shows.
            (&reading.with_header("Authorization", "Bearer writing"), 403),
        ] {
            assert_eq!(upload.put_nar(client).status, refusal);
            assert_eq!(upload.put_narinfo(client).status, refusal);
        }
        assert_eq!(upload.put_nar(&writing).status, 201);
        let at = format!("/{}.narinfo", path.hash());
        assert_eq!(reading.get(&at).status, 404, "its narinfo has not come");

        match is_killed {
            true => manager.kill(),
            false => {
                manager.signal(libc::SIGTERM);
                assert!(manager.wait(), "{}", manager.log());
            }
        }
        manager.start_and_wait();
        assert!(upload.has_nar(&writing), "its NAR is gone");
        assert_eq!(reading.get(&at).status, 404);
        let put = upload.put_narinfo(&writing);
        assert_eq!(put.status, 201, "{put:?}");

        let got = reading.get(&at);
        assert_eq!(got.header("content-type"), Some("text/x-nix-narinfo"));
        let narinfo = NarinfoFile::parse(&got.body).unwrap();
        assert_eq!(
            (&narinfo.path, narinfo.nar),
            (&path, upload.narinfo.nar),
            "{got:?}"
        );
        assert!(narinfo.is_signed_by(std::slice::from_ref(&key)));
        let by_the_other = NarinfoFile::parse(&anyone.get(&at).body).unwrap();
        assert!(by_the_other.signatures.is_empty(), "it has no key");
        let head = reading.ask("HEAD", &at, &[]);
        assert_eq!((head.status, head.body.len()), (200, 0));
        let length = got.body.len().to_string();
        assert_eq!(head.header("content-length"), Some(&*length));

        let url = format!("/{}", narinfo.url);
        let whole = reading.get(&url);
        assert_eq!((whole.status, &whole.body), (200, &nar));
        for (range, part) in [
            ("bytes=1000-1999", 1000..2000),
            ("bytes=200000-", 200_000..nar.len()),
        ] {
            let answer = reading.ask("GET", &url, &[("Range", range)]);
            assert_eq!((answer.status, &answer.body[..]), (206, &nar[part.clone()]));
            let of = format!("bytes {}-{}/{}", part.start, part.end - 1, nar.len());
            assert_eq!(answer.header("content-range"), Some(&*of));
        }
    }
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
}
