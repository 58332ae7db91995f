//! Whether the stores of a configuration are reachable from here: `check-config --online`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::try_join_all;

use super::Config;
use crate::binary_cache::{self, CacheAddress};
use crate::castore::Digest;
use crate::store::advice::split_advice;
use crate::store::{self, Error, Store};
use crate::stores::{self, StorePlan};

/// A store that was sent a request.
#[derive(Clone, Debug)]
pub struct CheckedStore {
    /// Its name.
    pub name: String,
    /// The outcome.
    pub outcome: ProbeOutcome,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// It answered, within this time.
    Answered(Duration),
    /// It does not exist yet: the service makes it.
    ToBeMade,
    /// It did not answer.
    Failed {
        /// The error.
        why: String,
        /// Its likely cause, if there is one.
        advice: Option<&'static str>,
    },
}

/// Asks every store of `config` that has a URL, all at once, whether it has a blob, and every Nix binary
/// cache for its `nix-cache-info`. Takes `patience` at most. Nothing is made or changed.
pub fn check_reachability(config: &Config, patience: Duration) -> io::Result<Vec<CheckedStore>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut asked = BTreeMap::new();
    for named in config.plans() {
        let (shown, probe) = match named.plan {
            StorePlan::Url(url) if binary_cache::is_url(&url) => {
                let address = stores::binary_cache_address(&url);
                (
                    store::shown_url(&url),
                    StoreProbe::BinaryCaches(address.map(|one| vec![one])),
                )
            }
            StorePlan::BinaryCache { caches, .. } => {
                let shown: Vec<_> = caches.iter().map(|cache| cache.shown.clone()).collect();
                (shown.join(" "), StoreProbe::BinaryCaches(Ok(caches)))
            }
            StorePlan::Url(url) => (store::shown_url(&url), StoreProbe::Url(url)),
            _ => continue,
        };
        let answer = async move { tokio::time::timeout(patience, probe.send()).await };
        let answer = runtime.spawn(answer.boxed());
        asked.insert(named.name, (shown, answer));
    }
    let mut reached = Vec::new();
    for (name, (shown, answer)) in asked {
        let outcome = match runtime.block_on(answer) {
            Ok(Ok(Ok(outcome))) => outcome,
            Ok(Ok(Err(error))) => failed(&error),
            Ok(Err(_)) => failed(&Error::Timeout {
                store: shown,
                after: patience,
            }),
            Err(error) => return Err(io::Error::other(error)),
        };
        reached.push(CheckedStore { name, outcome });
    }
    // Requests that still hang are not waited for.
    runtime.shutdown_background();
    Ok(reached)
}

/// How a store is asked.
enum StoreProbe {
    Url(String),
    BinaryCaches(Result<Vec<CacheAddress>, Error>),
}

impl StoreProbe {
    async fn send(self) -> Result<ProbeOutcome, Error> {
        match self {
            Self::Url(url) => ask(url).await,
            Self::BinaryCaches(addresses) => {
                let began = Instant::now();
                try_join_all(addresses?.into_iter().map(binary_cache::probe)).await?;
                Ok(ProbeOutcome::Answered(began.elapsed()))
            }
        }
    }
}

async fn ask(url: String) -> Result<ProbeOutcome, Error> {
    if stores::must_exist(&url).is_err() {
        return Ok(ProbeOutcome::ToBeMade);
    }
    let began = Instant::now();
    // Opening may connect, which blocks.
    let opened = tokio::task::spawn_blocking(move || stores::open(&url)).await;
    let store: Arc<dyn Store> = match opened {
        Ok(opened) => opened?,
        Err(crashed) => std::panic::resume_unwind(crashed.into_panic()),
    };
    // Any answer will do.
    store
        .has_blob(&Digest::of(b"castore-fs check-config --online"))
        .await?;
    Ok(ProbeOutcome::Answered(began.elapsed()))
}

fn failed(error: &Error) -> ProbeOutcome {
    let why = error.to_string();
    // The store's own advice knows more.
    match split_advice(&why) {
        Some((why, advice)) => ProbeOutcome::Failed {
            why: why.to_owned(),
            advice: Some(advice),
        },
        None => ProbeOutcome::Failed {
            advice: advice(error),
            why,
        },
    }
}

/// The likely cause.
fn advice(error: &Error) -> Option<&'static str> {
    if matches!(error, Error::Timeout { .. }) {
        return Some("is that the right address, and does a firewall let this machine through?");
    }
    let text = error.to_string().to_lowercase();
    let reports = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if reports(&[
        "unauthenticated",
        "permissiondenied",
        "unauthorized",
        "401",
        "403",
    ]) {
        Some("are the token (token-file), the client certificate or the credentials right?")
    } else if reports(&["certificate", "unknownissuer", "tls", "handshake"]) {
        Some(
            "if an authority of your own signed the server's certificate, name it with tls-ca-cert-path",
        )
    } else if reports(&["refused", "no such file"]) {
        Some("is the server running, and is that its port or socket?")
    } else if reports(&["permission denied"]) {
        Some("may this user use that socket or directory? The service may run as another")
    } else if reports(&["dns", "lookup address", "name or service", "resolve"]) {
        Some("is the host's name right?")
    } else if reports(&["unimplemented", "http2", "protocol"]) {
        Some("is that a castore server? It does not respond like one")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn reached(text: &str, patience: Duration) -> Vec<CheckedStore> {
        let config = Config::parse(Path::new("test.toml"), text).unwrap();
        check_reachability(&config, patience).unwrap()
    }

    #[test]
    fn what_answers_what_is_to_be_made_and_what_is_wrong() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        let dir = tempfile::tempdir().unwrap();
        let silent = dir.path().join("silent");
        let _silent = std::os::unix::net::UnixListener::bind(silent).unwrap();
        let path = dir.path().display();
        let reached = reached(
            &format!(
                "[stores.a-memory]\nurl = 'memory:'\n\
             [stores.b-none]\nurl = 'local:{path}/store'\n\
             [stores.c-closed]\nurl = 'grpc+http://{closed}'\n\
             [stores.d-socket]\nurl = 'grpc+unix:{path}/socket'\n\
             [stores.e-silent]\nurl = 'grpc+unix:{path}/silent'\n\
             [stores.f-all]\njoin = ['a-memory', 'b-none']\n"
            ),
            Duration::from_millis(500),
        );
        assert_eq!(reached.len(), 5, "composed stores get no request");
        assert!(matches!(reached[0].outcome, ProbeOutcome::Answered(_)));
        assert_eq!(reached[1].outcome, ProbeOutcome::ToBeMade);
        assert!(!dir.path().join("store").exists(), "nothing is made");
        for (at, url) in [(2, closed.to_string()), (3, format!("{path}/socket"))] {
            let ProbeOutcome::Failed { why, advice } = &reached[at].outcome else {
                panic!("no answer");
            };
            assert!(why.contains(&url), "{why}");
            assert!(!why.contains("running"), "the advice is given twice: {why}");
            assert!(advice.unwrap().contains("running"), "{why}");
        }
        let ProbeOutcome::Failed { why, advice } = &reached[4].outcome else {
            panic!("nothing answers");
        };
        assert!(why.contains("did not answer within 500ms"), "{why}");
        assert!(advice.unwrap().contains("firewall"));
    }

    /// A server of one page, for any request.
    fn page(status: &'static str, body: &'static str) -> String {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap();
                assert!(head[..read].starts_with(b"GET /nix-cache-info "));
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all((head + body).as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn binary_caches_have_a_line_of_their_own() {
        let right = page("200 OK", "StoreDir: /nix/store\nPriority: 40\n");
        let (other, absent) = (
            page("200 OK", "StoreDir: /gnu/store\n"),
            page("404 Not Found", ""),
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let cache = |name: &str, address: &str| {
            format!(
                "[stores.{name}-local]\nurl = 'local:{path}/{name}'\n\
                 [stores.{name}.binary-cache]\nurl = 'http://{address}'\ninto = '{name}-local'\n\
                 require-signatures = false\n"
            )
        };
        let reached = reached(
            &format!(
                "{}{}{}",
                cache("a-right", &right),
                cache("b-other", &other),
                cache("c-absent", &absent),
            ),
            Duration::from_secs(60),
        );
        let of = |name: &str| {
            let mut found = reached.iter().filter(|one| one.name == name);
            found.next().unwrap().outcome.clone()
        };
        assert!(matches!(of("a-right"), ProbeOutcome::Answered(_)));
        for (name, what) in [
            ("b-other", "/gnu/store"),
            ("c-absent", "address of a binary cache"),
        ] {
            let ProbeOutcome::Failed { why, .. } = of(name) else {
                panic!("{name} answers");
            };
            assert!(why.contains(what), "{why}");
        }
        assert_eq!(of("a-right-local"), ProbeOutcome::ToBeMade);
        assert!(!dir.path().join("a-right").exists(), "nothing is made");
    }
}
