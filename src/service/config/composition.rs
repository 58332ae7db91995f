//! Checks of stores that the grammar cannot express: their addresses, and the existence of their
//! members.

use std::collections::BTreeMap;

use super::problem::{ConfigProblem, ConfigText, UnreadKeys, nearest};
use super::{Config, DEFAULT_STORE, StoreConfig};
use crate::store::RootPattern;
use crate::stores;

/// The keys of which a store has exactly one.
const KINDS: &str = "url, cache, binary-cache, mirrors, filter, join";

/// All errors of the stores of `config`.
pub(super) fn check(
    config: &Config,
    source: &ConfigText<'_>,
    unread: &UnreadKeys,
    problems: &mut Vec<ConfigProblem>,
) {
    for (name, store) in &config.stores {
        let mut report = |key: &[&str], what: String| {
            let key: Vec<&str> = ["stores", name]
                .into_iter()
                .chain(key.iter().copied())
                .collect();
            problems.push(source.at(&key, what));
        };
        if !store.kinds().is_empty() || unread.is_complete(&["stores", name]) {
            kind(store, &mut report);
        }
        url(store, &mut report);
        binary_cache(store, &mut report);
        members(config, name, store, &mut report);
        patterns(store, &mut report);
    }
    local_store(config, source, problems);
    cycles(config, source, problems);
}

/// A store has exactly one kind.
fn kind(store: &StoreConfig, report: &mut impl FnMut(&[&str], String)) {
    let kinds = store.kinds();
    let mut kinds = kinds.iter();
    let Some(first) = kinds.next() else {
        return report(&[], format!("a store needs one of {KINDS}"));
    };
    for another in kinds {
        let what = format!("the store has {first:?} already: it needs exactly one of {KINDS}");
        report(&[another], what);
    }
}

fn url(store: &StoreConfig, report: &mut impl FnMut(&[&str], String)) {
    let url = store.url.as_deref().unwrap_or_default();
    let (scheme, path) = url.split_once(':').unwrap_or((url, ""));
    let is_absolute = path.strip_prefix("//").unwrap_or(path).starts_with('/');
    if scheme == "local" && !is_absolute {
        let what = "local: needs an absolute path";
        return report(&["url"], what.to_owned());
    }
    if store.url.is_some()
        && let Err(what) = stores::check_url(url)
    {
        return report(&["url"], what);
    }
    let upstream = scheme.starts_with("grpc+") || scheme.starts_with("objectstore+");
    if store.verify.is_some() && !upstream {
        let what = "`verify` applies only to grpc+ and objectstore+ stores";
        report(&["verify"], what.to_owned());
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
            report(&[key], what.to_owned());
        }
    }
}

/// The addresses of binary caches, their keys, and the files that they name.
fn binary_cache(store: &StoreConfig, report: &mut impl FnMut(&[&str], String)) {
    let Some(binary_cache) = &store.binary_cache else {
        return;
    };
    if binary_cache.url.is_empty() {
        report(
            &["binary-cache", "url"],
            "this must name a binary cache".to_owned(),
        );
    }
    if let Err(what) = binary_cache.addresses() {
        report(&["binary-cache", "url"], what);
    }
    let files = [
        ("netrc-file", &binary_cache.netrc_file),
        ("token-file", &binary_cache.token_file),
    ];
    for (key, file) in files {
        if file.as_ref().is_some_and(|file| !file.is_absolute()) {
            report(
                &["binary-cache", key],
                "this must be an absolute path".to_owned(),
            );
        }
    }
}

/// The members of stores exist.
fn members(
    config: &Config,
    name: &str,
    store: &StoreConfig,
    report: &mut impl FnMut(&[&str], String),
) {
    for (key, names) in store.members() {
        let fewest = if key[0] == "mirrors" { 2 } else { 1 };
        if names.len() < fewest {
            let many = if fewest == 1 {
                "a store"
            } else {
                "several stores"
            };
            report(key, format!("this must name {many}"));
        }
        for (at, member) in names.iter().enumerate() {
            if *member == name {
                report(key, "a store cannot be made of itself".to_owned());
            } else if let Some(what) = bad_store(config, Some(member)) {
                report(key, what);
            } else if names[..at].contains(member) {
                report(key, format!("{member:?} is named twice"));
            }
        }
    }
    if let Some(cache) = &store.cache
        && cache.upstream.contains(&cache.local)
    {
        let local_store = &cache.local;
        report(
            &["cache", "far"],
            format!("{local_store:?} is the cache's local store"),
        );
    }
}

/// The error in naming the store `named`.
pub(super) fn bad_store(config: &Config, named: Option<&str>) -> Option<String> {
    let names: Vec<&str> = match config.stores.is_empty() {
        true => vec![DEFAULT_STORE],
        false => config.stores.keys().map(String::as_str).collect(),
    };
    match named {
        None if names.len() == 1 => None,
        None => Some(format!(
            "there are several stores ({}): say which",
            names.join(", ")
        )),
        Some(named) if names.contains(&named) => None,
        Some(named) => Some(match nearest(named, &names) {
            Some(nearest) => format!("there is no store {named:?}; did you mean {nearest:?}?"),
            None => format!(
                "there is no store {named:?}; there are {}",
                names.join(", ")
            ),
        }),
    }
}

fn patterns(store: &StoreConfig, report: &mut impl FnMut(&[&str], String)) {
    let Some(filter) = &store.filter else { return };
    if filter.roots.is_empty() {
        report(
            &["filter", "roots"],
            "this must name roots, as in [\"app-*\"]".to_owned(),
        );
    }
    for text in &filter.roots {
        if let Err(why) = RootPattern::parse(text) {
            report(
                &["filter", "roots"],
                format!("{text:?} is not a pattern: {why}"),
            );
        }
    }
}

/// The local stores of caches and binary caches are in directories, and no two in the same.
fn local_store(config: &Config, source: &ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
    let mut caches: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, store) in &config.stores {
        let cache = store
            .cache
            .as_ref()
            .map(|cache| (["cache", "near"], &cache.local));
        let unpacked = store.binary_cache.as_ref();
        let unpacked = unpacked.map(|cache| (["binary-cache", "into"], &cache.into));
        let Some(([kind, key], local_store_name)) = cache.or(unpacked) else {
            continue;
        };
        let Some(local_store) = config.stores.get(local_store_name) else {
            continue;
        };
        // A store of no kind is a mistake of its own.
        if local_store.kinds().is_empty() {
            continue;
        }
        let key = ["stores", name, kind, key];
        let url = local_store.url.as_deref().unwrap_or_default();
        if !url.starts_with("local:") {
            let what = format!(
                "a cache needs a local store, and {local_store_name:?} is none: its url has to be local:/PATH"
            );
            problems.push(source.at(&key, what));
        } else if let Some(other) = caches.insert(url, name) {
            let what = format!("the cache {other:?} has this local store already");
            problems.push(source.at(&key, what));
        }
    }
}

/// No store is made of itself, through any members. A cycle is reported once, at its first name.
fn cycles(config: &Config, source: &ConfigText<'_>, problems: &mut Vec<ConfigProblem>) {
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
