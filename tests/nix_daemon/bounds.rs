//! What a client can take of the server.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use castore_fs::server::ServerLimits;
use castore_fs::store::{LocalStore, ValidPath};
use castore_fs::stores::QuestionLimits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bench::{Daemon, Program, add, binary_cache, described, limits, local};
use crate::client::{Bytes, Client};
use kit::model::file;
use kit::web::{Web, WebFaults};
use kit::written::{path, secret_key, write};

struct Bench {
    _dir: tempfile::TempDir,
    daemon: Daemon,
    valid: String,
}

fn bench(limits: ServerLimits) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (dep, app) = (path('0', "dep"), path('1', "top"));
    add(&store, &dep, &file("dep"), &[]);
    add(&store, &app, &file("top"), &[&dep]);
    let daemon = Daemon::start(&local(&store), &dir.path().join("socket"), limits);
    Bench {
        _dir: dir,
        daemon,
        valid: app.absolute(),
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
        let refused = client.result().unwrap_err();
        assert!(
            refused.starts_with("castore-fs refuses this request: "),
            "{refused}"
        );
        assert!(client.is_closed());
    }
    assert!(Client::connect(&bench.daemon.socket).is_valid(&bench.valid));
}

#[test]
fn a_request_over_the_bounds_gets_its_error_after_it_was_sent_to_its_end() {
    let bench = bench(limits());
    let absent = format!("/nix/store/{}-absent", "0".repeat(32));
    let wanted = vec![&absent[..]; 400_000];
    let requests = [
        (31, Bytes::default().texts(&wanted).word(0)),
        (1, Bytes::default().text(&"x".repeat(8 << 20))),
        // One that castore-fs does not know.
        (99, Bytes::default().text(&"x".repeat(8 << 20))),
    ];
    for (code, fields) in requests {
        let mut client = Client::connect(&bench.daemon.socket);
        assert!(client.is_valid(&bench.valid));
        let refused = client.try_ask(code, fields).unwrap_err();
        assert!(refused.starts_with("castore-fs "), "{refused}");
        assert!(client.is_closed());
    }
}

#[test]
fn every_user_may_connect_to_a_nix_daemon_unless_a_mode_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    add(&store, &path('0', "dep"), &file("dep"), &[]);
    for (name, arguments, mode) in [
        ("open", &[][..], 0o666),
        ("closed", &["--socket-mode", "640"], 0o640),
    ] {
        let socket = dir.path().join(name);
        let _server = Program::start(&store, &socket, arguments);
        let permissions = socket.metadata().unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{name}");
    }
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
    let bench = bench(ServerLimits {
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
    let refused = slow.result().unwrap_err();
    assert!(refused.contains("did not come in whole"), "{refused}");
    for client in [&mut silent, &mut half, &mut slow, &mut started] {
        assert!(client.is_closed());
    }
    // Its request comes later than all of them were cut off.
    assert!(quiet.is_valid(&bench.valid));
}

#[test]
fn silent_connections_lock_no_client_out() {
    let bench = bench(ServerLimits {
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
fn data_after_a_refused_operation_are_skipped_and_bounded() {
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

/// Whether the server ends the connection though the client reads nothing.
fn is_closed(client: &Client) -> bool {
    let mut polled = [PollFd::new(&client.0, PollFlags::empty())];
    let patience = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&patience)).unwrap();
    polled[0].revents().contains(PollFlags::HUP)
}

#[test]
fn a_client_that_does_not_take_its_answer_is_cut_off_and_a_slow_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (store, large) = (dir.path().join("store"), path('0', "large"));
    let nar = add(&store, &large, &file(vec![7; 4 << 20]), &[]);
    let limits = ServerLimits {
        silence: Duration::from_secs(2),
        ..limits()
    };
    let socket = dir.path().join("socket");
    let daemon = Daemon::start(&local(&store), &socket, limits);
    let begun = || {
        let mut client = Client::connect(&daemon.socket);
        client.ask(38, Bytes::default().text(&large.absolute()));
        client
    };
    let (mut stuck, mut slow) = (begun(), begun());
    // It takes longer than a piece may, all in all.
    let taken: Vec<u8> = (0..4)
        .flat_map(|_| {
            std::thread::sleep(Duration::from_secs(1));
            slow.bytes(1 << 20)
        })
        .collect();
    assert!(taken == nar[..4 << 20]);
    assert!(slow.bytes(nar.len() - (4 << 20)) == nar[4 << 20..]);
    assert!(slow.is_valid(&large.absolute()));
    assert!(is_closed(&stuck), "it stays open for ever");
    // What was on its way.
    let mut rest = Vec::new();
    let _ = stuck.0.read_to_end(&mut rest);
    assert!(rest.len() < nar.len() && nar.starts_with(&rest));
}

#[test]
fn a_question_that_leads_to_too_many_paths_or_references_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let leaves: Vec<_> = ('a'..='d').map(|hash| path(hash, "leaf")).collect();
    for leaf in &leaves {
        add(&store, leaf, &file("leaf"), &[]);
    }
    let (few, many) = (path('1', "few"), path('2', "many"));
    add(&store, &few, &file("few"), &[&leaves[0]]);
    let all: Vec<_> = leaves.iter().collect();
    add(&store, &many, &file("many"), &all);
    for (questions, socket) in [
        (
            QuestionLimits {
                paths: 3,
                ..QuestionLimits::default()
            },
            "paths",
        ),
        (
            QuestionLimits {
                references: 3,
                ..QuestionLimits::default()
            },
            "references",
        ),
    ] {
        let socket = dir.path().join(socket);
        let daemon = Daemon::with_questions(&local(&store), &socket, questions);
        let mut client = Client::connect(&daemon.socket);
        let is_valid = Bytes::default().text(&many.absolute());
        let refused = client.try_ask(1, is_valid).unwrap_err();
        assert!(refused.contains("paths or"), "{refused}");
        // The same connection has answers to smaller questions.
        assert!(client.is_valid(&few.absolute()));
        for leaf in &leaves {
            assert!(client.is_valid(&leaf.absolute()));
        }
    }
}

#[test]
fn a_local_store_has_any_number_of_valid_paths() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut all: Vec<String> = Vec::new();
    for hash in '0'..='9' {
        let leaf = path(hash, "leaf");
        add(&store, &leaf, &file("leaf"), &[]);
        all.push(leaf.absolute());
    }
    let questions = QuestionLimits {
        paths: 5,
        ..QuestionLimits::default()
    };
    let socket = dir.path().join("socket");
    let daemon = Daemon::with_questions(&local(&store), &socket, questions);
    let mut client = Client::connect(&daemon.socket);
    assert_eq!(client.ask(23, Bytes::default()).texts(), all);
}

#[test]
fn a_question_with_a_long_chain_of_slow_answers_has_a_deadline_and_the_next_one_continues() {
    let dir = tempfile::tempdir().unwrap();
    let written = tempfile::tempdir().unwrap();
    let chain: Vec<_> = ('0'..='9').map(|hash| path(hash, "link")).collect();
    for (index, link) in chain.iter().enumerate() {
        let before: Vec<_> = index
            .checked_sub(1)
            .map(|at| &chain[at])
            .into_iter()
            .collect();
        let (narinfo, nar) = described(link, &file("link"), &before);
        write(written.path(), &narinfo, &nar);
    }
    let web = Web::serve(written.path());
    web.set_faults(WebFaults {
        delay: Duration::from_millis(300),
        ..WebFaults::default()
    });
    let key = secret_key("test-1", 1).public();
    let url = format!("nix+http://{}?trusted-public-keys={key}", web.address);
    let plan = binary_cache(&url, &dir.path().join("disk"));
    let questions = QuestionLimits {
        total: Duration::from_secs(1),
        ..QuestionLimits::default()
    };
    let daemon = Daemon::with_questions(&plan, &dir.path().join("socket"), questions);
    let mut client = Client::connect(&daemon.socket);
    let is_valid = || Bytes::default().text(&chain[9].absolute());
    let mut failures = 0;
    while let Err(why) = client.try_ask(1, is_valid()) {
        assert!(why.contains("1 s") || why.contains("1s"), "{why}");
        failures += 1;
        assert!(failures < 10, "each question begins anew");
    }
    assert_eq!(client.word(), 1);
    assert!(failures > 0);
    let requests = web.take_requests();
    let narinfos = requests.iter().filter(|one| one.ends_with(".narinfo"));
    // One that was under way at the deadline may be requested again.
    assert!(narinfos.count() <= chain.len() + failures, "{requests:?}");
}

#[test]
fn metadata_of_few_paths_are_requested_at_once_and_a_server_that_hangs_costs_one_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let written = tempfile::tempdir().unwrap();
    let wanted: Vec<_> = ('0'..='9').map(|hash| path(hash, "wanted")).collect();
    for wanted in &wanted {
        let (narinfo, nar) = described(wanted, &file("wanted"), &[]);
        write(written.path(), &narinfo, &nar);
    }
    let web = Web::serve(written.path());
    let key = secret_key("test-1", 1).public();
    let url = format!("nix+http://{}?trusted-public-keys={key}", web.address);
    let plan = binary_cache(&url, &dir.path().join("disk"));
    let questions = QuestionLimits {
        requests: 3,
        patience: Duration::from_secs(3),
        ..QuestionLimits::default()
    };
    let socket = dir.path().join("socket");
    let daemon = Daemon::with_questions(&plan, &socket, questions);
    let mut client = Client::connect(&daemon.socket);
    // With one, everything is known of the cache itself.
    assert!(client.is_valid(&wanted[0].absolute()));
    web.set_faults(WebFaults {
        delay: Duration::from_secs(600),
        ..WebFaults::default()
    });
    web.take_requests();
    let names: Vec<String> = wanted.iter().map(|path| path.absolute()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let valid = Bytes::default().texts(&names).word(0);
    let began = Instant::now();
    assert_eq!(client.ask(31, valid).texts(), [names[0]]);
    // One after the other they take 27 s.
    assert!(began.elapsed() < Duration::from_secs(15));
    let requests = web.take_requests();
    let narinfos = requests.iter().filter(|one| one.ends_with(".narinfo"));
    assert_eq!(narinfos.count(), 3, "{requests:?}");
}

#[test]
fn clients_that_ask_for_all_paths_and_take_none_cost_a_part_of_it_each() {
    let dir = tempfile::tempdir().unwrap();
    let (directory, socket) = (dir.path().join("store"), dir.path().join("socket"));
    let (info, _) = described(&path('0', "one"), &file("x"), &[]);
    let store = LocalStore::open(&directory).unwrap();
    let paths: Vec<ValidPath> = (0..8000)
        .map(|number| {
            let mut info = info.clone();
            info.path = format!("{number:032}-of-eight-thousand").parse().unwrap();
            ValidPath::new(info, None)
        })
        .collect();
    assert!(store.add_valid_paths(&paths, &[]).unwrap());
    drop(store);
    let program = Program::start(&directory, &socket, &[]);
    let mut first = Client::connect(&socket);
    assert_eq!(first.ask(23, Bytes::default()).texts().len(), paths.len());
    let before = program.peak_memory();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(&socket)).collect();
    for client in &mut clients {
        client.send(Bytes::default().word(23));
    }
    // They have been answered as far as they will be.
    assert_eq!(first.ask(23, Bytes::default()).texts().len(), paths.len());
    std::thread::sleep(Duration::from_secs(2));
    let more = program.peak_memory() - before;
    assert!(more < 100 << 20, "{more} bytes for 100 clients");
    // One that takes its answer late gets all of it.
    let last = clients.last_mut().unwrap();
    last.result().unwrap();
    assert_eq!(last.texts().len(), paths.len());
}

#[test]
fn an_error_repeats_the_beginning_of_a_long_text() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    add(&store, &path('0', "dep"), &file("dep"), &[]);
    let daemon = Daemon::start(&local(&store), &dir.path().join("socket"), limits());
    let mut client = Client::connect(&daemon.socket);
    let long = format!("/nix/store/{}", "\u{1}".repeat(500_000));
    let failure = client.try_ask(1, Bytes::default().text(&long));
    let failure = failure.unwrap_err();
    assert!(
        failure.len() < 2000 && failure.contains("is no path"),
        "{failure}"
    );
}
