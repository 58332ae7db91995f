//! Reading configurations, right and wrong.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("test.toml"), text).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
        lines.join("\n")
    })
}

#[test]
fn an_empty_file_means_the_embedded_store() {
    let config = parse("state-dir = \"/srv/state\"").unwrap();
    let stores = config.all_stores();
    assert_eq!(stores[DEFAULT_STORE].url, "local:/srv/state");
    assert_eq!(config.store_of(None), DEFAULT_STORE);
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn a_token_file_becomes_part_of_the_url_that_is_opened() {
    let text = "[stores.a]\nurl = 'grpc+https://host?stall-timeout=3'\ntoken-file = '/a b'\n";
    let config = parse(text).unwrap();
    assert_eq!(
        config.stores["a"].full_url(),
        "grpc+https://host?stall-timeout=3&token-file=%2Fa+b"
    );
}

#[test]
fn a_mount_has_defaults() {
    let config = parse("[stores.a]\nurl = 'memory:'\n[mounts.m]\npath = '/srv/m'").unwrap();
    let mount = &config.mounts["m"];
    assert!(mount.list_root && mount.allow_other && !mount.xattr);
    assert_eq!(mount.read_ahead, Size(1 << 20));
    assert_eq!(config.store_of(mount.store.as_deref()), "a");
}

#[test]
fn a_mistake_is_told_with_line_key_and_the_nearest_spelling() {
    for (text, said) in [
        (
            "[stores.a]\nurl = 'memory:'\n\n[mounts.m]\npath = '/m'\nlst-root = true\n",
            "test.toml:6: mounts.m.lst-root: \"lst-root\" is not known here; did you mean \"list-root\"?",
        ),
        (
            "[mount.m]\npath = '/m'\n",
            "test.toml:1: mount: \"mount\" is not known here; did you mean \"mounts\"?",
        ),
        (
            "[stores.disk]\nurl = 'memory:'\n[mounts.m]\nstore = 'dsik'\npath = '/m'\n",
            "test.toml:4: mounts.m.store: there is no store \"dsik\"; did you mean \"disk\"?",
        ),
        (
            "[mounts.m]\npath = '/m'\nread-ahead = '1 parsec'\n",
            "test.toml:3: mounts.m.read-ahead: \"1 parsec\" is no size: write a number and a unit, \
             as in \"512MiB\"",
        ),
        (
            "[mounts.m]\npath = '/m'\nreads = 'pass'\n",
            "test.toml:3: mounts.m.reads: \"pass\" is not known here; did you mean \"passthrough\"?",
        ),
        (
            "[mounts.m]\npath = 'm'\n",
            "test.toml:2: mounts.m.path: this must be the absolute path of a folder other than /",
        ),
        (
            "[mounts.a]\npath = '/m'\n[mounts.b]\npath = '/m/'\n",
            "test.toml:4: mounts.b.path: the mount \"a\" is at this place already",
        ),
        (
            "[stores.a]\nurl = 'memory:'\n[stores.b]\nurl = 'memory:'\n[mounts.m]\npath = '/m'\n",
            "test.toml:5: mounts.m.store: there are several stores (a, b): say which",
        ),
        (
            "[listen.l]\naddress = 'nowhere'\n",
            "test.toml:2: listen.l.address: \"nowhere\" is no address: write unix:/PATH or HOST:PORT",
        ),
        (
            "[stores.a]\nurl = 'local:here'\n",
            "test.toml:2: stores.a.url: write local: and an absolute path: a service has no folder \
             to start from",
        ),
        (
            "[stores.'a b']\nurl = 'memory:'\n",
            "test.toml:1: stores.a b: a name is 1 to 100 letters, digits, dashes, underscores, dots \
             or @",
        ),
        (
            "[stores.main]\ncache = { near = 'disk' }\n",
            "test.toml:2: stores.main.cache: stores made of other stores (\"cache\") are not part of \
             this version",
        ),
        (
            "[stores.a]\nurl = 'memory:'\ntoken-file = '/t'\n",
            "test.toml:3: stores.a.token-file: only a gRPC server wants a token",
        ),
        (
            "[virtiofs.v]\nsocket = '/s'\nsocket-mode = 'rw'\n",
            "test.toml:3: virtiofs.v.socket-mode: \"rw\" is no mode: write three octal digits, as in \
             \"660\"",
        ),
        (
            "[mounts.m]\nlist-root = true\n",
            "test.toml:1: mounts.m: missing field `path`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), said, "{text}");
    }
    assert!(parse("[mounts").unwrap_err().starts_with("test.toml:1: "));
}

#[test]
fn every_mistake_is_told_at_once() {
    let said = parse("[mounts.m]\nstore = 'x'\npath = 'm'\nthreads = 0\n").unwrap_err();
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let problems = Config::load(Path::new("/no/such.toml")).unwrap_err();
    assert!(
        problems[0]
            .to_string()
            .starts_with("/no/such.toml: cannot be read: ")
    );
}
