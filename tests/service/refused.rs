//! `check-config` refuses whatever the daemon refuses, and the daemon whatever `check-config` does.

use super::*;

/// A certificate with its key.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// What `check-config` reports about the configuration; nothing if it accepts it.
fn checked(manager: &Manager, options: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_castore-fs"))
        .arg("check-config")
        .args(options)
        .arg(manager.join("config.toml"))
        .env("STATE_DIRECTORY", manager.join("state"))
        .env("RUNTIME_DIRECTORY", manager.path())
        .output()
        .unwrap();
    let reported = String::from_utf8(output.stderr).unwrap();
    (!output.status.success()).then_some(reported)
}

#[test]
fn check_config_and_the_daemon_refuse_the_same() {
    let mut manager = Manager::new("");
    let (own, other) = (certificate(), certificate());
    for (name, text) in [
        ("cert.pem", own.0.as_str()),
        ("key.pem", own.1.as_str()),
        ("other.pem", other.1.as_str()),
        ("no.pem", "no PEM at all"),
        ("empty", ""),
        ("tokens", "sesame read\n"),
        ("bad-tokens", "sesame write\n"),
    ] {
        fs::write(manager.join(name), text).unwrap();
    }
    let listen = |rest: &str| format!("[listen.l]\naddress = 'unix:@/l.sock'\n{rest}");
    let tls = |cert: &str, key: &str| {
        listen(&format!(
            "tls-cert-path = '@/{cert}'\ntls-key-path = '@/{key}'\n"
        ))
        .replace("unix:@/l.sock", "localhost:0")
    };
    let cache = |rest: &str| listen(&format!("protocol = 'binary-cache'\n{rest}"));
    // With files and without: whether it is refused, and what is printed.
    for (config, files_only, word) in [
        ("state-dir = 'relative'\n".to_owned(), false, "absolute"),
        ("sttae-dir = '/x'\n".to_owned(), false, "sttae-dir"),
        ("[log]\nlevel = 'loud'\n".to_owned(), false, "loud"),
        ("[stores.a]\nurl = 'lcoal:/x'\n".to_owned(), false, "lcoal"),
        (listen("store = 'none'\n"), false, "none"),
        (listen("tls-cert-path = '@/cert.pem'\n"), false, "tls-key"),
        (
            listen("[listen.m]\naddress = 'unix:@/l.sock'\n"),
            false,
            "listen.l",
        ),
        (listen("read-without-token = true\n"), false, "binary-cache"),
        ("[mounts.m]\npath = '@'\n".to_owned(), false, "hide"),
        (listen("token-file = '@/none'\n"), true, "@/none"),
        (listen("token-file = '@/empty'\n"), true, "@/empty"),
        (
            listen("token-file = '@/bad-tokens'\n"),
            true,
            "@/bad-tokens",
        ),
        (tls("no.pem", "key.pem"), true, "@/no.pem"),
        (tls("cert.pem", "no.pem"), true, "@/no.pem"),
        (tls("cert.pem", "none"), true, "@/none"),
        (tls("cert.pem", "other.pem"), true, "@/cert.pem"),
        (cache("secret-key-file = '@/none'\n"), true, "@/none"),
        (cache("secret-key-file = '@/no.pem'\n"), true, "@/no.pem"),
    ] {
        manager.configure(&config);
        let word = word.replace('@', manager.path().to_str().unwrap());
        let reported = checked(&manager, &[]).unwrap_or_else(|| panic!("it is accepted: {config}"));
        assert!(reported.contains(&word), "{config}: {reported}");
        let without = checked(&manager, &["--no-files"]);
        assert_eq!(without.is_none(), files_only, "{config}: {without:?}");
        let before = manager.log().len();
        manager.start();
        assert!(!manager.wait(), "the daemon takes it: {config}");
        let log = manager.log();
        assert!(
            log[before..].contains(&word),
            "{config}: {}",
            &log[before..]
        );
    }
    // And what both take.
    let good = tls("cert.pem", "key.pem") + "token-file = '@/tokens'\n";
    manager.configure(&good);
    assert_eq!(checked(&manager, &[]), None);
    assert_eq!(checked(&manager, &["--no-files"]), None);
    manager.start_and_wait();
    manager.signal(libc::SIGTERM);
    assert!(manager.wait(), "{}", manager.log());
}
