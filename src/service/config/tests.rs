//! Reading configurations, right and wrong.

use std::path::Path;

use super::*;
use crate::stores::StorePlan;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("test.toml"), text).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ConfigProblem::to_string).collect();
        lines.join("\n")
    })
}

#[test]
fn an_empty_file_means_the_embedded_store() {
    let config = parse("state-dir = \"/srv/state\"").unwrap();
    let stores = config.all_stores();
    assert_eq!(
        stores[DEFAULT_STORE].url.as_deref(),
        Some("local:/srv/state")
    );
    assert_eq!(config.store_of(None), DEFAULT_STORE);
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn a_token_file_becomes_part_of_the_url_that_is_opened() {
    let text = "[stores.a]\nurl = 'grpc+https://host?stall-timeout=3'\ntoken-file = '/a b'\n";
    let config = parse(text).unwrap();
    assert_eq!(
        config.stores["a"].full_url().unwrap(),
        "grpc+https://host?stall-timeout=3&token-file=%2Fa+b"
    );
    let text = "[stores.a]\nurl = 'objectstore+s3://bucket'\nverify = 'chunks'\n";
    let url = parse(text).unwrap().stores["a"].full_url().unwrap();
    assert_eq!(url, "objectstore+s3://bucket?verify=chunks");
    assert_eq!(crate::stores::check_url(&url), Ok(()));
    let text = "[stores.a]\nurl = 'grpc+https://host'\ntls-ca-cert-path = '/ca'\n\
                tls-client-cert-path = '/c'\ntls-client-key-path = '/k'\n";
    let url = parse(text).unwrap().stores["a"].full_url().unwrap();
    assert_eq!(crate::stores::check_url(&url), Ok(()), "{url}");
    assert!(url.ends_with("&tls-client-key-path=%2Fk"), "{url}");
}

#[test]
fn an_owner_is_an_id() {
    for section in ["mounts.m]\npath = '/m'", "virtiofs.v]\nsocket = '/s'"] {
        for key in ["uid", "gid"] {
            let with = |id: u32| parse(&format!("[{section}\n{key} = {id}\n")).map(drop);
            assert_eq!(with(u32::MAX - 1), Ok(()));
            let reported = with(u32::MAX).unwrap_err();
            assert!(
                reported.contains("4294967295 is no user or group id"),
                "{reported}"
            );
            assert!(reported.contains(key), "{reported}");
        }
    }
}

#[test]
fn a_mount_has_defaults() {
    let config = parse("[stores.a]\nurl = 'memory:'\n[mounts.m]\npath = '/srv/m'").unwrap();
    let mount = &config.mounts["m"];
    assert!(mount.list_root == ListRootConfig::All && mount.allow_other && !mount.xattr);
    assert_eq!(mount.names, RequestedNames::Any);
    assert_eq!(mount.when_unreachable, WhenUnreachableConfig::Error);
    assert_eq!(mount.read_ahead, Size(1 << 20));
    assert_eq!(config.store_of(mount.store.as_deref()), "a");
}

#[test]
fn a_mount_below_a_nix_store_lists_nothing_and_asks_for_store_paths() {
    let config = parse(
        "[mounts.m]\npath = '/srv/m'\nlist-root = 'empty'\nnames = 'store-paths'\n\
         when-unreachable = 'absent'\n[mounts.n]\npath = '/srv/n'\nlist-root = false\n",
    );
    let config = config.unwrap();
    let mount = &config.mounts["m"];
    assert_eq!(mount.list_root.listing(), RootListing::Nothing);
    assert_eq!(mount.names, RequestedNames::StorePaths);
    assert_eq!(mount.when_unreachable, WhenUnreachableConfig::Absent);
    assert_eq!(config.mounts["n"].list_root.listing(), RootListing::Refused);
}

#[test]
fn a_mistake_is_reported_with_line_key_and_the_nearest_spelling() {
    for (text, reported) in [
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
            "[mounts.m]\npath = '/m'\nmount-options = ['noexec', 'colour=red']\n",
            "test.toml:3: mounts.m.mount-options: \"colour=red\" is no option of mount(8) that every \
             file system has; those of castore-fs are set otherwise",
        ),
        (
            "[mounts.m]\npath = 'm'\n",
            "test.toml:2: mounts.m.path: this must be the absolute path of a directory other than /",
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
            "[log]\notlp = 'localhost:4317'\n",
            "test.toml:2: log.otlp: \"localhost:4317\" is not a collector's address: write \
             http://HOST:PORT or https://HOST:PORT",
        ),
        (
            "[listen.l]\naddress = 'nowhere'\n",
            "test.toml:2: listen.l.address: \"nowhere\" is not an address: write unix:/PATH or HOST:PORT",
        ),
        (
            "[stores.a]\nurl = 'local:here'\n",
            "test.toml:2: stores.a.url: local: needs an absolute path",
        ),
        (
            "[stores.'a b']\nurl = 'memory:'\n",
            "test.toml:1: stores.a b: a name is 1 to 100 letters, digits, dashes, underscores, dots \
             or @",
        ),
        (
            "[stores.a]\nurl = 'memory:'\ntoken-file = '/t'\n",
            "test.toml:3: stores.a.token-file: only a gRPC server accepts a token",
        ),
        (
            "[stores.a]\nurl = 'memory:'\nverify = 'chunks'\n",
            "test.toml:3: stores.a.verify: `verify` applies only to grpc+ and objectstore+ stores",
        ),
        (
            "[listen.l]\naddress = '[::]:8000'\ntoken-file = '/t'\n",
            "test.toml:3: listen.l.token-file: tokens would be sent unencrypted: give tls-cert-path \
             and tls-key-path, or listen on unix:/PATH",
        ),
        (
            "[listen.l]\naddress = '[::]:8000'\ntls-cert-path = '/c'\n",
            "test.toml:3: listen.l.tls-cert-path: a certificate needs its key: \
             tls-key-path",
        ),
        (
            "[listen.l]\naddress = '[::]:8000'\ntls-client-ca-path = 'ca'\n",
            "test.toml:3: listen.l.tls-client-ca-path: this must be an absolute path\n\
             test.toml:3: listen.l.tls-client-ca-path: client certificates need TLS: give \
             tls-cert-path and tls-key-path",
        ),
        (
            "[virtiofs.v]\nsocket = '/s'\nsocket-mode = 'rw'\n",
            "test.toml:3: virtiofs.v.socket-mode: \"rw\" is no mode: write three octal digits, as in \
             \"660\"",
        ),
        (
            "[mounts.m]\npath = '/m'\nlist-root = 'nothing'\n",
            "test.toml:3: mounts.m.list-root: string \"nothing\" does not fit here: write true, false \
             or \"empty\"",
        ),
        (
            "drain = 20\n",
            "test.toml:1: drain: integer `20` does not fit here: write a length of time such as \"30s\"",
        ),
        (
            "[mounts.m]\npath = '/m'\nroot = 'tree'\nwhen-unreachable = 'absent'\n",
            "test.toml:4: mounts.m.when-unreachable: this controls lookups of roots, and with \
             `root` there are none",
        ),
        (
            "[mounts.m]\nlist-root = true\n",
            "test.toml:1: mounts.m: missing field `path`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), reported, "{text}");
    }
    assert!(parse("[mounts").unwrap_err().starts_with("test.toml:1: "));
}

const DISK: &str = "[stores.disk]\nurl = 'local:/d'\n[stores.up]\nurl = 'grpc+https://u'\n";

#[test]
fn stores_are_made_of_stores() {
    let config = parse(&format!(
        "{DISK}[stores.other]\nurl = 'grpc+https://o'\n\
         [stores.main]\n\
         cache = {{ near = 'disk', far = ['up', 'other'], size = '200GiB', keep-free = '10GiB' }}\n\
         [stores.some]\nfilter = {{ store = 'main', roots = ['app-*'] }}\n\
         [stores.all]\njoin = ['some', 'fast']\n\
         [stores.fast]\nmirrors = {{ of = ['up', 'other'], order = 'fastest' }}\n"
    ))
    .unwrap();
    let all = config.plan("all").unwrap().plan;
    assert_eq!(
        all.identity(),
        "join(filter(cache(mirrors(grpc+https://u, grpc+https://o)), [\"app-*\"]), \
         mirrors(grpc+https://u, grpc+https://o))"
    );
    let StorePlan::Cache {
        options, upstream, ..
    } = config.plan("main").unwrap().plan
    else {
        panic!("a cache");
    };
    assert_eq!(options.size, Some(200 << 30));
    assert_eq!(options.keep_free, Some(10 << 30));
    assert_eq!(upstream.name, "main/far");
    assert_eq!(config.plans().len(), 7);
}

#[test]
fn binary_caches_are_one_or_several() {
    let key = "k:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
    let text = format!(
        "[stores.disk]\nurl = 'local:/d'\n\
         [stores.nixos.binary-cache]\nurl = 'https://cache.nixos.org'\ninto = 'disk'\n\
         trusted-public-keys = ['{key}']\nsize = '20GiB'\nclosure = 'narinfos'\n"
    );
    let several = text.replace(
        "'https://cache.nixos.org'",
        "['https://a?priority=1', 'file:///srv/b']",
    );
    for (text, shown) in [
        (&text, "nix+https://cache.nixos.org"),
        (&several, "nix+https://a, nix+file:///srv/b"),
    ] {
        let config = Config::parse("test.toml".as_ref(), text).unwrap();
        let plan = config.plan("nixos").unwrap().plan;
        let identity = plan.identity().replace(&format!(" {key}"), "");
        assert_eq!(identity, format!("binary-cache({shown})"));
        let StorePlan::BinaryCache {
            caches,
            into,
            closure,
            options,
        } = plan
        else {
            panic!("a binary cache");
        };
        assert_eq!(caches[0].trusted_public_keys[0].to_string(), key);
        assert_eq!(into.name, "disk");
        assert_eq!(closure, crate::binary_cache::ClosureMode::Narinfos);
        assert_eq!(options.size, Some(20 << 30));
    }
}

#[test]
fn a_mistake_in_a_composition_is_reported_with_line_key_and_the_nearest_spelling() {
    for (text, reported) in [
        (
            "[stores.main]\n",
            "5: stores.main: a store needs one of \
             url, cache, binary-cache, mirrors, filter, join",
        ),
        (
            "[stores.main]\nbinary-cache = { url = 'https://h', into = 'disk' }\n",
            "6: stores.main.binary-cache.url: \"https://h\": no key is trusted to sign its paths: add \
             trusted-public-keys=NAME:BASE64, or require-signatures=false",
        ),
        (
            "[stores.main]\nbinary-cache = { url = 'https://h', into = 'disk', \
             trusted-public-keys = ['x'] }\n",
            "6: stores.main.binary-cache.url: trusted-public-keys: not a public key: expected \
             NAME:BASE64 with 32 bytes after the colon",
        ),
        (
            "[stores.main]\nbinary-cache = { url = 'https://me:secret@h', into = 'disk' }\n",
            "6: stores.main.binary-cache.url: \"https://***@h\": it contains a user name or password; \
             put them into a netrc file and name it with netrc-file=",
        ),
        (
            "[stores.main]\nbinary-cache = { url = 'https://h', into = 'up', \
             require-signatures = false }\n",
            "6: stores.main.binary-cache.into: a cache needs a local store, and \"up\" is none: its \
             url has to be local:/PATH",
        ),
        (
            "[stores.main]\nurl = 'memory:'\njoin = ['disk']\n",
            "7: stores.main.join: the store has \"url\" already: it needs exactly one of url, cache, \
             binary-cache, mirrors, filter, join",
        ),
        (
            "[stores.main]\ncache = { near = 'dsik', far = ['up'] }\n",
            "6: stores.main.cache.near: there is no store \"dsik\"; did you mean \"disk\"?",
        ),
        (
            "[stores.main]\ncache = { near = 'disk', fra = ['up'] }\n",
            "6: stores.main.cache.fra: \"fra\" is not known here; did you mean \"far\"?",
        ),
        (
            "[stores.main]\n[stores.main.cache]\nnear = 'disk'\nfar = [\n'u',\n]\n",
            "8: stores.main.cache.far: there is no store \"u\"; did you mean \"up\"?",
        ),
        (
            "[stores.main]\ncache = { near = 'up', far = ['disk'] }\n",
            "6: stores.main.cache.near: a cache needs a local store, and \"up\" is none: its url has \
             to be local:/PATH",
        ),
        (
            "[stores.a]\ncache = { near = 'disk', far = ['up'] }\n\
             [stores.b]\ncache = { near = 'disk', far = ['up'] }\n",
            "8: stores.b.cache.near: the cache \"a\" has this local store already",
        ),
        (
            "[stores.main]\ncache = { near = 'disk', far = ['disk'] }\n",
            "6: stores.main.cache.far: \"disk\" is the cache's local store",
        ),
        (
            "[stores.main]\ncache = { near = 'disk', far = [] }\n",
            "6: stores.main.cache.far: this must name a store",
        ),
        (
            "[stores.main]\nmirrors = { of = ['up'] }\n",
            "6: stores.main.mirrors.of: this must name several stores",
        ),
        (
            "[stores.main]\nmirrors = { of = ['up', 'up'] }\n",
            "6: stores.main.mirrors.of: \"up\" is named twice",
        ),
        (
            "[stores.main]\nmirrors = { of = ['up', 'disk'], order = 'fast' }\n",
            "6: stores.main.mirrors.order: \"fast\" is not known here; did you mean \"fastest\"?",
        ),
        (
            "[stores.main]\nfilter = { store = 'up', roots = ['[a'] }\n",
            "6: stores.main.filter.roots: \"[a\" is not a pattern: unclosed character class; missing ']'",
        ),
        (
            "[stores.main]\njoin = ['main']\n",
            "6: stores.main.join: a store cannot be made of itself",
        ),
        (
            "[stores.a]\njoin = ['b']\n[stores.b]\njoin = ['up', 'c']\n[stores.c]\njoin = ['a']\n\
             [stores.d]\njoin = ['c']\n",
            "5: stores.a: this store is made of itself: a of b of c of a",
        ),
        (
            "[stores.main]\nurl = 'grpc+https://u?stal-timeout=3'\n",
            "6: stores.main.url: there is no parameter \"stal-timeout\"; there are wait-connect, \
             tls-ca-cert-path, tls-client-cert-path, tls-client-key-path, token-file, \
             connect-timeout, first-byte-timeout, stall-timeout, verify, cache, spool",
        ),
        (
            "[stores.main]\nurl = 'grpc+https://me:secret@u'\n",
            "6: stores.main.url: secrets do not belong into a URL: use token-file=PATH",
        ),
        (
            "[stores.main]\nurl = 'objectstore+s3://b/p?secret_access_key=hunter2'\n",
            "6: stores.main.url: \"secret_access_key\" is a secret and belongs into the environment or \
             a credentials-file, not into a URL",
        ),
        (
            "[stores.main]\nurl = 'objectstore+s3://hunter2@b/p'\n",
            "6: stores.main.url: a user or password is a secret and belongs into the environment or a \
             credentials-file, not into a URL",
        ),
        (
            "[stores.main]\nurl = 'nope+https://me:hunter2@u?x=hunter2'\n",
            "6: stores.main.url: its scheme \"nope+https\" is none of local:, memory:, \
             grpc+{http,https,unix}:, objectstore+{file,s3,gs,az,http,https}:, \
             nix+{https,http,file}: and redb:",
        ),
        (
            "[log]\notlp = 'ftp://me:hunter2@u'\n",
            "6: log.otlp: \"ftp://***@u\" is not a collector's address: write http://HOST:PORT or \
             https://HOST:PORT",
        ),
        (
            "[metrics]\naddress = 'http://me:hunter2@u'\n",
            "6: metrics.address: \"http://***@u\" is not an address: write unix:/PATH or HOST:PORT",
        ),
        (
            "[stores]\nmain = 'grpc+https://me:hunter2@u'\n",
            "6: stores.main: string \"grpc+https://***@u\" does not fit here: write a table with keys below it",
        ),
        (
            "[stores.main]\njoin = 'up'\n",
            "6: stores.main.join: string \"up\" does not fit here: write a list, as in [\"a\", \"b\"]",
        ),
        (
            "[listen.a]\nstore = 'disk'\naddress = 'unix:/s'\n[listen.b]\nstore = 'disk'\naddress = 'unix:/s'\n",
            "10: listen.b.address: listen.a is at this address already",
        ),
        (
            "[stores.main]\nurl = 'grpc+http://u'\ntoken-file = '/t'\n",
            "7: stores.main.token-file: a token would be sent unencrypted: use grpc+https or grpc+unix",
        ),
        (
            "[stores.main]\nurl = 'grpc+https://u'\ntls-client-key-path = '/k'\n",
            "7: stores.main.tls-client-key-path: a key needs its certificate: \
             tls-client-cert-path",
        ),
        (
            "[stores.main]\nurl = 'grpc+unix:/s'\ntls-ca-cert-path = '/k'\n",
            "7: stores.main.tls-ca-cert-path: only grpc+https uses certificates",
        ),
        (
            "[stores.main]\nurl = 'grpc+https://u'\ntls-ca-cert-path = 'k'\n",
            "7: stores.main.tls-ca-cert-path: this must be an absolute path",
        ),
    ] {
        let text = format!("{DISK}{text}");
        assert_eq!(
            parse(&text).unwrap_err(),
            format!("test.toml:{reported}"),
            "{text}"
        );
    }
}

#[test]
fn what_the_daemon_would_refuse_is_refused_by_the_file() {
    let long = "x".repeat(108);
    for (text, reported) in [
        (
            "[log]\nlevel = 'castore_fs=nonsense'\n".to_owned(),
            "log.level: error parsing level",
        ),
        (
            "[virtiofs.v]\nsocket = '/s'\nroot = 'a/..'\n".to_owned(),
            "virtiofs.v.root: \"a/..\" is no NAME[/PATH]",
        ),
        (
            "[mounts.m]\npath = '/m'\nroot = ''\n".to_owned(),
            "mounts.m.root: ",
        ),
        (
            format!("[virtiofs.v]\nsocket = '/{long}'\n"),
            "virtiofs.v.socket: the path of a unix",
        ),
        (
            format!("[listen.l]\naddress = 'unix:/{long}'\n"),
            "listen.l.address: the path of a",
        ),
        (
            format!("[control]\nsocket = '/{long}'\n"),
            "control.socket: the path of a unix socket",
        ),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.contains(reported), "{text}: {error}");
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let reported = parse("[mounts.m]\nstore = 'x'\npath = 'm'\nthreads = 0\n").unwrap_err();
    assert_eq!(reported.lines().count(), 3, "{reported}");
}

#[test]
fn mistakes_that_the_toml_reader_finds_are_reported_together() {
    let text = "[mounts.m]\npath = 3\nlst-root = true\nthreads = 'two'\n[mount.n]\npath = '/n'\n\
                [control]\nsocket = [\n  1,\n]\n[mounts.n]\n";
    let reported = parse(text).unwrap_err();
    let lines: Vec<_> = reported
        .lines()
        .map(|line| line.split(": ").take(2))
        .collect();
    let lines: Vec<_> = lines
        .into_iter()
        .map(|it| it.collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines,
        [
            "test.toml:2 mounts.m.path",
            "test.toml:3 mounts.m.lst-root",
            "test.toml:4 mounts.m.threads",
            "test.toml:5 mount",
            "test.toml:8 control.socket",
            "test.toml:11 mounts.n",
        ],
        "{reported}"
    );
    // A file that is no TOML has one mistake.
    assert_eq!(
        parse("[mounts.m\npath = 3\n").unwrap_err().lines().count(),
        1
    );
}

#[test]
fn a_table_that_cannot_be_read_hides_no_mistake_of_another() {
    for (text, reported) in [
        (
            // A missing field before an unknown key, and what only the service knows to be wrong.
            "[mounts.n]\nstore = 'a'\n[log]\nlevel = 'loud'\ncolour = 1\n\
             [stores.a]\nurl = 'nope:'\n[mounts.o]\npath = 'o'\nstore = 'b'\n",
            "1 mounts.n, 4 log.level, 5 log.colour, 7 stores.a.url, 9 mounts.o.path, 10 mounts.o.store",
        ),
        (
            // The stores exist, so those that are made of them are right.
            "[stores.a]\nurl = 3\n[stores.b]\ncache = { near = 'a', far = ['c'] }\n\
             [stores.c.cache]\nnear = 'a'\n[mounts.m]\nstore = 'c'\npath = '/'\n",
            "2 stores.a.url, 5 stores.c.cache, 9 mounts.m.path",
        ),
        (
            // What another key of the table needs may be what could not be read.
            "[listen.l]\naddress = '[::]:1'\ntls-cert-path = '/c'\ntls-key-path = 1\n\
             [mounts.m]\npath = '/m'\nview = 'image'\nroto = 'tree'\nthreads = 0\n",
            "4 listen.l.tls-key-path, 8 mounts.m.roto, 9 mounts.m.threads",
        ),
        (
            "[mounts.m]\npath = 3\n[mounts.n]\npth = '/n'\n[mounts.o]\n[mounts.p]\n",
            "2 mounts.m.path, 4 mounts.n.pth, 5 mounts.o, 6 mounts.p",
        ),
    ] {
        let problems = Config::parse(Path::new("test.toml"), text).unwrap_err();
        let places = problems
            .iter()
            .map(|it| format!("{} {}", it.line.unwrap(), it.key));
        let places: Vec<_> = places.collect();
        assert_eq!(places.join(", "), reported, "{text}{problems:#?}");
    }
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
