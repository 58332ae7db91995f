//! Checks of stores that the grammar cannot express: their addresses, and the existence of their
//! members.

use std::collections::BTreeMap;

use super::check::bad_store;
use super::problem::{Problem, Source};
use super::{Config, Store};
use crate::store::Pattern;
use crate::stores;

/// The keys of which a store has exactly one.
const KINDS: &str = "url, cache, binary-cache, mirrors, filter, join";

/// All errors of the stores of `config`.
pub fn check(config: &Config, source: &Source<'_>, problems: &mut Vec<Problem>) {
    for (name, store) in &config.stores {
        let mut say = |key: &[&str], what: String| {
            let key: Vec<&str> = ["stores", name]
                .into_iter()
                .chain(key.iter().copied())
                .collect();
            problems.push(source.at(&key, what));
        };
        kind(store, &mut say);
        url(store, &mut say);
        binary_cache(store, &mut say);
        members(config, name, store, &mut say);
        patterns(store, &mut say);
    }
    near(config, source, problems);
    cycles(config, source, problems);
}

/// A store has exactly one kind.
fn kind(store: &Store, say: &mut impl FnMut(&[&str], String)) {
    let given = [
        ("url", store.url.is_some()),
        ("cache", store.cache.is_some()),
        ("binary-cache", store.binary_cache.is_some()),
        ("mirrors", store.mirrors.is_some()),
        ("filter", store.filter.is_some()),
        ("join", store.join.is_some()),
    ];
    let mut given = given.iter().filter(|(_, is_given)| *is_given);
    let Some((first, _)) = given.next() else {
        return say(&[], format!("a store needs one of {KINDS}"));
    };
    for (another, _) in given {
        let what = format!("the store has {first:?} already: it needs exactly one of {KINDS}");
        say(&[another], what);
    }
}

fn url(store: &Store, say: &mut impl FnMut(&[&str], String)) {
    let url = store.url.as_deref().unwrap_or_default();
    let (scheme, path) = url.split_once(':').unwrap_or((url, ""));
    let is_absolute = path.strip_prefix("//").unwrap_or(path).starts_with('/');
    if scheme == "local" && !is_absolute {
        let what = "local: needs an absolute path";
        return say(&["url"], what.to_owned());
    }
    if store.url.is_some()
        && let Err(what) = stores::check_url(url)
    {
        return say(&["url"], what);
    }
    let far = scheme.starts_with("grpc+") || scheme.starts_with("objectstore+");
    if store.verify.is_some() && !far {
        let what = "`verify` applies only to grpc+ and objectstore+ stores";
        say(&["verify"], what.to_owned());
    }
    for (key, path) in store.files() {
        let Some(path) = path else { continue };
        let what = match key {
            "token-file" if !scheme.starts_with("grpc+") => "only a gRPC server accepts a token",
            "token-file" if scheme == "grpc+http" => {
                "a token would be sent unencrypted: use grpc+https or grpc+unix"
            }
            "token-file" => "",
            _ if scheme != "grpc+https" => "only grpc+https uses certificates",
            "tls-client-cert-path" if store.tls_client_key_path.is_none() => {
                "a certificate needs its key: tls-client-key-path"
            }
            "tls-client-key-path" if store.tls_client_cert_path.is_none() => {
                "a key needs its certificate: tls-client-cert-path"
            }
            _ => "",
        };
        let what = match what {
            "" if !path.is_absolute() => "this must be an absolute path",
            what => what,
        };
        if !what.is_empty() {
            say(&[key], what.to_owned());
        }
    }
}

/// The addresses of binary caches, their keys, and the files that they name.
fn binary_cache(store: &Store, say: &mut impl FnMut(&[&str], String)) {
    let Some(binary_cache) = &store.binary_cache else {
        return;
    };
    if binary_cache.url.is_empty() {
        say(
            &["binary-cache", "url"],
            "this must name a binary cache".to_owned(),
        );
    }
    if let Err(what) = binary_cache.addresses() {
        say(&["binary-cache", "url"], what);
    }
    let files = [
        ("netrc-file", &binary_cache.netrc_file),
        ("token-file", &binary_cache.token_file),
    ];
    for (key, file) in files {
        if file.as_ref().is_some_and(|file| !file.is_absolute()) {
            say(
                &["binary-cache", key],
                "this must be an absolute path".to_owned(),
            );
        }
    }
}

/// The members of stores exist.
fn members(config: &Config, name: &str, store: &Store, say: &mut impl FnMut(&[&str], String)) {
    for (key, names) in store.members() {
        let fewest = if key[0] == "mirrors" { 2 } else { 1 };
        if names.len() < fewest {
            let many = if fewest == 1 {
                "a store"
            } else {
                "several stores"
            };
            say(key, format!("this must name {many}"));
        }
        for (at, member) in names.iter().enumerate() {
            if *member == name {
                say(key, "a store cannot be made of itself".to_owned());
            } else if let Some(what) = bad_store(config, Some(member)) {
                say(key, what);
            } else if names[..at].contains(member) {
                say(key, format!("{member:?} is named twice"));
            }
        }
    }
    if let Some(cache) = &store.cache
        && cache.far.contains(&cache.near)
    {
        let near = &cache.near;
        say(
            &["cache", "far"],
            format!("{near:?} is the cache's local store"),
        );
    }
}

fn patterns(store: &Store, say: &mut impl FnMut(&[&str], String)) {
    let Some(filter) = &store.filter else { return };
    if filter.roots.is_empty() {
        say(
            &["filter", "roots"],
            "this must name roots, as in [\"app-*\"]".to_owned(),
        );
    }
    for text in &filter.roots {
        if let Err(why) = Pattern::parse(text) {
            say(
                &["filter", "roots"],
                format!("{text:?} is not a pattern: {why}"),
            );
        }
    }
}

/// The local stores of caches and binary caches are in directories, and no two in the same.
fn near(config: &Config, source: &Source<'_>, problems: &mut Vec<Problem>) {
    let mut caches: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, store) in &config.stores {
        let cache = store
            .cache
            .as_ref()
            .map(|cache| (["cache", "near"], &cache.near));
        let unpacked = store.binary_cache.as_ref();
        let unpacked = unpacked.map(|cache| (["binary-cache", "into"], &cache.into));
        let Some(([kind, key], near_name)) = cache.or(unpacked) else {
            continue;
        };
        let Some(near) = config.stores.get(near_name) else {
            continue;
        };
        let key = ["stores", name, kind, key];
        let url = near.url.as_deref().unwrap_or_default();
        if !url.starts_with("local:") {
            let what = format!(
                "a cache needs a local store, and {near_name:?} is none: its url has to be local:/PATH"
            );
            problems.push(source.at(&key, what));
        } else if let Some(other) = caches.insert(url, name) {
            let what = format!("the cache {other:?} has this local store already");
            problems.push(source.at(&key, what));
        }
    }
}

/// No store is made of itself, through any members. A cycle is reported once, at its first name.
fn cycles(config: &Config, source: &Source<'_>, problems: &mut Vec<Problem>) {
    for name in config.stores.keys() {
        let mut path = vec![name.as_str()];
        if let Some(cycle) = cycle_from(config, &mut path)
            && cycle.len() > 1
            && cycle.iter().min() == Some(&name.as_str())
        {
            let mut cycle = cycle;
            cycle.push(name);
            let what = format!("this store is made of itself: {}", cycle.join(" of "));
            problems.push(source.at(&["stores", name], what));
        }
    }
}

/// A path from the first store of `path` on, over the last, back to the first.
fn cycle_from<'a>(config: &'a Config, path: &mut Vec<&'a str>) -> Option<Vec<&'a str>> {
    let last = config.stores.get(*path.last()?)?;
    let members: Vec<&str> = last
        .members()
        .into_iter()
        .flat_map(|(_, names)| names)
        .collect();
    for member in members {
        if path.first() == Some(&member) {
            return Some(path.clone());
        }
        if !path.contains(&member) {
            path.push(member);
            let found = cycle_from(config, path);
            path.pop();
            if found.is_some() {
                return found;
            }
        }
    }
    None
}
