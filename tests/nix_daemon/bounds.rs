//! What a client can take of the server.

use std::io::Write;
use std::time::Duration;

use castore_fs::server::Limits;

use crate::bench::{Daemon, add, limits, local};
use crate::client::{Bytes, Client};
use crate::written::path;
use kit::model::file;

struct Bench {
    _folder: tempfile::TempDir,
    daemon: Daemon,
    valid: String,
}

fn bench(limits: Limits) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let (dep, top) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &top, &file("top"), &[&dep]);
    let daemon = Daemon::start(&local(&store), &folder.path().join("socket"), limits);
    Bench {
        _folder: folder,
        daemon,
        valid: top.absolute(),
    }
}

#[test]
fn claims_over_the_bounds_end_the_connection_before_their_bytes_come() {
    let bench = bench(limits());
    let claims = [
        // A long text, and many texts.
        Bytes::default().word(1).word((1 << 20) + 1),
        Bytes::default().word(1).word(u64::MAX),
        Bytes::default().word(31).word(1 << 21),
        Bytes::default().word(31).word(u64::MAX),
        // Zeros that are none.
        {
            let mut bytes = Bytes::default().word(1).word(1);
            bytes.0.extend(*b"x1234567");
            bytes
        },
    ];
    for claim in claims {
        let mut client = Client::connect(&bench.daemon.socket);
        client.send(claim);
        assert!(client.is_closed());
    }
    assert!(Client::connect(&bench.daemon.socket).is_valid(&bench.valid));
}

#[test]
fn a_request_of_a_hundred_thousand_paths_is_answered() {
    let bench = bench(limits());
    let mut client = Client::connect(&bench.daemon.socket);
    let absent: Vec<String> = (0..100_000)
        .map(|n| format!("/nix/store/{:0>32}-absent", n))
        .collect();
    let mut wanted: Vec<&str> = absent.iter().map(String::as_str).collect();
    wanted.push(&bench.valid);
    let valid = client
        .ask(31, Bytes::default().texts(&wanted).word(0))
        .texts();
    assert_eq!(valid, [&bench.valid[..]]);
}

#[test]
fn a_handshake_or_a_request_that_does_not_end_is_cut_off_and_quiet_is_not() {
    let bench = bench(Limits {
        first_call: Duration::from_secs(2),
        silence: Duration::from_secs(2),
        ..limits()
    });
    let mut quiet = Client::connect(&bench.daemon.socket);
    let mut silent = Client::silent(&bench.daemon.socket);
    let mut half = Client::silent(&bench.daemon.socket);
    half.send(Bytes::default().word(0x6e69_7863));
    assert_eq!((half.word(), half.word()), (0x6478_696f, 0x126));
    let mut slow = Client::connect(&bench.daemon.socket);
    slow.send(Bytes::default().word(1).word(50));
    let mut started = Client::connect(&bench.daemon.socket);
    started.0.write_all(&[1, 0]).unwrap();
    for client in [&mut silent, &mut half, &mut slow, &mut started] {
        assert!(client.is_closed());
    }
    // Its request comes later than all of them were cut off.
    assert!(quiet.is_valid(&bench.valid));
}

#[test]
fn silent_connections_lock_no_client_out() {
    let bench = bench(Limits {
        connections: 8,
        ..limits()
    });
    let silent: Vec<Client> = (0..20)
        .map(|_| Client::silent(&bench.daemon.socket))
        .collect();
    let mut client = Client::connect(&bench.daemon.socket);
    assert!(client.is_valid(&bench.valid));
    drop(silent);
}

#[test]
fn data_behind_a_refused_operation_are_skipped_and_bounded() {
    let bench = bench(limits());
    let mut client = Client::connect(&bench.daemon.socket);
    // As Nix does: frames until it has read the error.
    let refused = client.try_ask(44, Bytes::default().word(0).word(0));
    assert!(refused.is_err());
    let mut frames = Bytes::default();
    for _ in 0..10 {
        frames = frames.word(100_000);
        frames.0.extend(vec![7; 100_000]);
    }
    client.send(frames.word(0));
    assert!(client.is_valid(&bench.valid));
    assert!(
        client
            .try_ask(44, Bytes::default().word(0).word(0))
            .is_err()
    );
    client.send(Bytes::default().word(1 << 40));
    assert!(client.is_closed());
}
