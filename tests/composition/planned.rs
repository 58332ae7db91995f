//! From descriptions to stores.

use std::sync::Arc;

use castore_fs::castore::Digest;
use castore_fs::store::{CacheOptions, EndpointState, MemberOrder, Store};
use castore_fs::stores::{NamedStore, OpenStores, StorePlan, open_all, open_each};

fn named(name: &str, plan: StorePlan) -> NamedStore {
    NamedStore {
        name: name.to_owned(),
        plan,
    }
}

fn memory(name: &str) -> NamedStore {
    named(name, StorePlan::Url("memory:".to_owned()))
}

fn mirrors(name: &str, members: &[&NamedStore]) -> NamedStore {
    let members = members.iter().copied().cloned().collect();
    let order = MemberOrder::Listed;
    named(name, StorePlan::Mirrors { members, order })
}

fn is_same(a: &OpenStores, b: &OpenStores, name: &str) -> bool {
    Arc::ptr_eq(&a[name].store, &b[name].store)
}

#[test]
fn a_changed_description_opens_what_changed_and_keeps_the_rest() {
    let (a, b, c) = (memory("a"), memory("b"), memory("c"));
    let main = mirrors("main", &[&a, &b]);
    let before = open_all(&[a.clone(), b.clone(), main.clone()], &OpenStores::new()).unwrap();
    // A member is opened once, however many stores it is part of.
    let same = open_all(&[main, a.clone(), b.clone()], &before).unwrap();
    for name in ["a", "b", "main"] {
        assert!(is_same(&before, &same, name), "{name}");
    }
    let main = mirrors("main", &[&a, &b, &c]);
    let after = open_all(&[a, b, c, main], &before).unwrap();
    assert!(is_same(&before, &after, "a") && is_same(&before, &after, "b"));
    assert!(!is_same(&before, &after, "main"));
    let members = after["main"].store.health().members;
    assert_eq!(members.len(), 3);
    // A change deep down is a change.
    let a = named("a", StorePlan::Url("memory://".to_owned()));
    let main = mirrors("main", &[&a, &memory("b"), &memory("c")]);
    let again = open_all(&[a, main], &after).unwrap();
    assert!(!is_same(&after, &again, "main") && is_same(&after, &again, "b"));
}

#[test]
fn a_store_that_cannot_be_opened_is_named() {
    let bad = named("upstream", StorePlan::Url("grpc+http://a/path".to_owned()));
    let main = mirrors("main", &[&memory("a"), &bad]);
    let error = open_all(&[main], &OpenStores::new()).unwrap_err();
    assert_eq!(error.name, "upstream");
    let cache = StorePlan::Cache {
        local_store: Box::new(memory("a")),
        upstream: Box::new(memory("b")),
        options: CacheOptions::default(),
    };
    let error = open_all(&[named("main", cache)], &OpenStores::new()).unwrap_err();
    assert!(error.to_string().contains("local:PATH"), "{error}");
}

#[test]
fn a_cache_uses_the_local_store_that_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let local_store = format!("local:{}", dir.path().join("near").display());
    let cache = named(
        "main",
        StorePlan::Cache {
            local_store: Box::new(named("disk", StorePlan::Url(local_store))),
            upstream: Box::new(memory("far")),
            options: CacheOptions {
                size: Some(1 << 30),
                ..CacheOptions::default()
            },
        },
    );
    let needs = cache.plan.needs();
    assert_eq!(needs.write, [dir.path().join("near")]);
    cache.plan.must_exist().unwrap();
    assert!(!dir.path().join("near").exists(), "only looked");
    let stores = open_all(&[cache], &OpenStores::new()).unwrap();
    let main = stores["main"].cache.as_ref().unwrap();
    assert_eq!(main.status().limit, Some(1 << 30));
    assert!(stores["disk"].local.is_some() && stores["disk"].cache.is_none());
    assert_eq!(main.local_store().url(), stores["disk"].store.url());
}

#[tokio::test]
async fn an_upstream_is_measured() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("grpc+http://{}", listener.local_addr().unwrap());
    drop(listener);
    let upstream = named("far", StorePlan::Url(url));
    let stores = open_all(&[upstream, memory("here")], &OpenStores::new()).unwrap();
    assert_eq!(stores["here"].store.health().endpoint, None);
    let upstream = &stores["far"].store;
    let before = upstream.health().endpoint.unwrap();
    assert_eq!((before.state, before.requests), (EndpointState::Unknown, 0));
    assert_eq!(upstream.usage().unwrap(), None, "unknown is not empty");
    upstream.directory(&Digest::of(b"x")).await.unwrap_err();
    let after = upstream.health().endpoint.unwrap();
    assert_eq!((after.state, after.in_flight), (EndpointState::Failing, 0));
    // The call for a notice of changed roots counts as well, if its failure came first.
    assert!(matches!(after.requests, 1 | 2), "{after:?}");
    assert_eq!(after.failures, after.requests);
    assert!(after.last_failure.unwrap().contains("refused"));
}

#[test]
fn what_is_needed_is_what_all_of_it_needs() {
    let disk = named("disk", StorePlan::Url("local:/srv/a".to_owned()));
    let upstream = named("far", StorePlan::Url("grpc+https://example.org".to_owned()));
    let both = mirrors("both", &[&disk, &upstream]);
    let needs = both.plan.needs();
    assert!(needs.network && needs.dirs.contains(&"/srv/a".into()));
    assert_eq!(
        both.plan.urls(),
        ["local:/srv/a", "grpc+https://example.org"]
    );
}

#[test]
fn a_store_that_cannot_be_opened_keeps_no_other_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad");
    drop(castore_fs::store::LocalStore::open(&bad).unwrap());
    std::fs::write(bad.join("index.redb"), [7; 20_000]).unwrap();
    let bad = named("bad", StorePlan::Url(format!("local:{}", bad.display())));
    let both = mirrors("both", &[&memory("a"), &bad]);
    let (open, failed) = open_each(&[bad, both, memory("b")], &OpenStores::new());
    assert!(open.contains_key("b") && !open.contains_key("both"));
    assert_eq!(failed.keys().collect::<Vec<_>>(), ["bad", "both"]);
    let error = failed["both"].to_string();
    assert!(error.contains("castore-fs verify --repair"), "{error}");
}
