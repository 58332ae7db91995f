//! The stores of the configuration.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::PathBuf;

use serde::Deserialize;

use super::Config;
use crate::binary_cache::{CacheAddress, ClosureMode};
use crate::nix::PublicKey;
use crate::quantity::{Size, TimeSpan};
use crate::store::{CacheOptions, MemberOrder, RootPattern, shown_url};
use crate::stores::{NamedStore, StorePlan};

/// A store has exactly one of `url`, `cache`, `binary-cache`, `mirrors`, `filter` and `join`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreConfig {
    /// Where it is: `local:/PATH` for a directory, `memory:` for this process's memory,
    /// `grpc+https://HOST:PORT`, `grpc+http://HOST:PORT` or `grpc+unix:/PATH` for one on a gRPC
    /// server, `objectstore+s3://BUCKET/PATH` and the like for one in an object store,
    /// `blobs=URL&directories=URL&path-infos=URL` for a snix store, with `redb:/PATH` for its files.
    pub url: Option<String>,
    /// The file with the bearer token for a gRPC server. Secrets are never part of this file.
    pub token_file: Option<PathBuf>,
    /// For `grpc+https`: trust the certificate authorities in this file (PEM) instead of the
    /// system's.
    pub tls_ca_cert_path: Option<PathBuf>,
    /// For `grpc+https`: present the certificate in this file (PEM) to the server.
    pub tls_client_cert_path: Option<PathBuf>,
    /// For `grpc+https`: the key of that certificate (PEM).
    pub tls_client_key_path: Option<PathBuf>,
    /// For upstreams with chunk lists and without proofs: when bytes are returned.
    pub verify: Option<VerifyConfig>,
    /// A local store that keeps what is read from others.
    pub cache: Option<CacheConfig>,
    /// Nix binary caches, unpacked into a local store as their paths are looked up.
    pub binary_cache: Option<BinaryCacheConfig>,
    /// Several stores with the same content, for when one of them fails or is slow.
    pub mirrors: Option<MirrorsConfig>,
    /// Some of the roots of another store, by name.
    pub filter: Option<FilterConfig>,
    /// Several stores as one, by their names in this file. Of roots of the same name the first
    /// store's is shown. It is read-only; its members may be writable.
    pub join: Option<Vec<String>>,
}

/// When bytes of a blob are returned for which a server has only a chunk list. (A castore-fs server
/// proves every part, and this has no effect.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum VerifyConfig {
    /// Once the whole blob is there and matches its digest. The default.
    Root,
    /// As soon as their chunk matches the server's list. If the whole blob does not match its
    /// digest in the end, it is no longer read, and the log reports it.
    Chunks,
}

/// What is read from the upstreams stays in the local store, across restarts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CacheConfig {
    /// The local store: the name of a store whose URL is `local:/PATH`.
    #[serde(rename = "near")]
    pub local: String,
    /// The upstream: the names of one store, or of several with the same content, best first.
    /// (Several with different content are a `join`.)
    #[serde(rename = "far")]
    pub upstream: Vec<String>,
    /// How much the local store may take on its disk. Without it, there is no limit.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub size: Option<Size>,
    /// How much stays free on that disk, regardless of `size`.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub keep_free: Option<Size>,
    /// How long the upstream's answer for a root's name holds, and a listing of its roots, unless the
    /// upstream reports changes.
    #[cfg_attr(test, schemars(with = "String", default = "roots_max_age_text"))]
    #[serde(default = "roots_max_age")]
    pub roots_max_age: TimeSpan,
}

/// Nix binary caches. A lookup of `<hash>-<name>` fetches the narinfo, checks name and signature,
/// and unpacks the NAR into a local store; once its size and hash are right, the path is visible.
/// The first lookup of a path waits for its whole NAR. Names that no cache has are absent for an
/// hour.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BinaryCacheConfig {
    /// The address: `https://HOST[/PATH]`, `http://…` or `file:///DIR`; several, as a list, are
    /// asked in the order of their `Priority`, which `?priority=N` overrides.
    #[cfg_attr(test, schemars(with = "String"))]
    #[serde(deserialize_with = "one_or_several")]
    pub url: Vec<String>,
    /// The local store for unpacked paths: the name of a store whose URL is `local:/PATH`.
    pub into: String,
    /// Public keys, `NAME:BASE64`. A path needs a signature by one of them, unless it is
    /// content-addressed.
    #[serde(default)]
    pub trusted_public_keys: Vec<String>,
    /// Whether a path needs such a signature.
    #[serde(default = "yes")]
    pub require_signatures: bool,
    /// What is prefetched of the paths that a path refers to.
    #[serde(default)]
    pub closure: ClosurePrefetch,
    /// A netrc(5) file with login and password.
    pub netrc_file: Option<PathBuf>,
    /// A file with a bearer token.
    pub token_file: Option<PathBuf>,
    /// How much the local store may take on its disk. Without it, there is no limit. The least
    /// recently used goes first, and is fetched again when it is read.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub size: Option<Size>,
    /// How much stays free on that disk, regardless of `size`.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub keep_free: Option<Size>,
}

/// What is prefetched of the paths that a path refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ClosurePrefetch {
    /// Narinfos and NARs.
    #[default]
    Fetch,
    /// Narinfos.
    Narinfos,
    /// Nothing.
    Off,
}

impl BinaryCacheConfig {
    /// The addresses, with their options.
    pub(super) fn addresses(&self) -> Result<Vec<CacheAddress>, String> {
        let addresses = self.url.iter().map(|url| self.address(url));
        addresses.collect()
    }

    fn address(&self, url: &str) -> Result<CacheAddress, String> {
        let shown = shown_url(url);
        let url = match url.starts_with("nix+") {
            true => url.to_owned(),
            false => format!("nix+{url}"),
        };
        let failed = |error: &dyn Display| format!("{shown:?}: {error}");
        let mut address = CacheAddress::parse(&url).map_err(|error| failed(&error))?;
        for key in &self.trusted_public_keys {
            let key = PublicKey::parse(key);
            let key = key.map_err(|error| format!("trusted-public-keys: {error}"))?;
            address.trusted_public_keys.push(key);
        }
        address.require_signatures &= self.require_signatures;
        address.netrc_file = address.netrc_file.or_else(|| self.netrc_file.clone());
        address.token_file = address.token_file.or_else(|| self.token_file.clone());
        address.check().map_err(|error| failed(&error))?;
        Ok(address)
    }
}

/// A string, or a list of strings.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a string, or a list of strings")]
    enum OneOrSeveral {
        One(String),
        Several(Vec<String>),
    }
    Ok(match OneOrSeveral::deserialize(from)? {
        OneOrSeveral::One(one) => vec![one],
        OneOrSeveral::Several(several) => several,
    })
}

fn yes() -> bool {
    true
}

/// Stores with the same content. A request goes to one of them, and to the next when the first
/// fails or takes long; a failing member gets no requests for a while; a member that sends wrong
/// bytes is asked last. A name or digest is absent only if all answer so. It is read-only; its
/// members may be writable.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MirrorsConfig {
    /// Their names in this file, best first.
    pub of: Vec<String>,
    /// The order in which members are asked.
    #[serde(default)]
    pub order: MirrorOrder,
}

/// The order in which members are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MirrorOrder {
    /// The first of the list as long as it is healthy.
    #[default]
    Listed,
    /// The one with the fastest answers.
    Fastest,
    /// All at once, and the first answer counts: the load of all for the speed of the fastest.
    Racing,
}

/// The roots of a store that have certain names. What is below them is not protected: a reader that
/// knows a digest can read it. Writable, under these names, if the store is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FilterConfig {
    /// The store, by its name in this file.
    pub store: String,
    /// Patterns of names: `*` any bytes, `?` one byte, `[a-z]` one of these, `{a,b}` a or b.
    pub roots: Vec<String>,
}

fn roots_max_age() -> TimeSpan {
    TimeSpan(CacheOptions::default().roots_max_age)
}

#[cfg(test)]
fn roots_max_age_text() -> String {
    let seconds = roots_max_age().0.as_secs();
    format!("{seconds}s")
}

impl StoreConfig {
    /// The store at `url`.
    pub fn at(url: String) -> Self {
        Self {
            url: Some(url),
            ..Self::default()
        }
    }

    /// Files that are named here and, as parameters, in the URL to open.
    pub(super) fn files(&self) -> [(&'static str, Option<&PathBuf>); 4] {
        [
            ("token-file", self.token_file.as_ref()),
            ("tls-ca-cert-path", self.tls_ca_cert_path.as_ref()),
            ("tls-client-cert-path", self.tls_client_cert_path.as_ref()),
            ("tls-client-key-path", self.tls_client_key_path.as_ref()),
        ]
    }

    /// The URL to open, if it has one: with parts that must not be logged.
    pub fn full_url(&self) -> Option<String> {
        let mut full = self.url.clone()?;
        let files = self.files().into_iter();
        let files = files.filter_map(|(name, path)| Some((name, path?.to_string_lossy())));
        let verify = self.verify.map(|verify| match verify {
            VerifyConfig::Root => ("verify", "root".into()),
            VerifyConfig::Chunks => ("verify", "chunks".into()),
        });
        for (name, value) in files.chain(verify) {
            let query: String = url::form_urlencoded::Serializer::new(String::new())
                .append_pair(name, &value)
                .finish();
            let separator = if full.contains('?') { '&' } else { '?' };
            full = format!("{full}{separator}{query}");
        }
        Some(full)
    }

    /// The keys of the kinds that the store has: exactly one, in a file without mistakes.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let kinds = [
            ("url", self.url.is_some()),
            ("cache", self.cache.is_some()),
            ("binary-cache", self.binary_cache.is_some()),
            ("mirrors", self.mirrors.is_some()),
            ("filter", self.filter.is_some()),
            ("join", self.join.is_some()),
        ];
        let set = kinds.into_iter().filter(|(_, is_set)| *is_set);
        set.map(|(key, _)| key).collect()
    }

    /// Its members, as in the file: the key, and the names of stores there.
    pub(super) fn members(&self) -> Vec<(&'static [&'static str], Vec<&str>)> {
        let mut members: Vec<(&'static [&'static str], Vec<&str>)> = Vec::new();
        if let Some(cache) = &self.cache {
            members.push((&["cache", "near"], vec![&cache.local]));
            let upstream = cache.upstream.iter().map(String::as_str).collect();
            members.push((&["cache", "far"], upstream));
        }
        if let Some(binary_cache) = &self.binary_cache {
            members.push((&["binary-cache", "into"], vec![&binary_cache.into]));
        }
        if let Some(mirrors) = &self.mirrors {
            let of = mirrors.of.iter().map(String::as_str).collect();
            members.push((&["mirrors", "of"], of));
        }
        if let Some(filter) = &self.filter {
            members.push((&["filter", "store"], vec![&filter.store]));
        }
        if let Some(join) = &self.join {
            members.push((&["join"], join.iter().map(String::as_str).collect()));
        }
        members
    }
}

impl Config {
    /// The stores, the implied one included, with their members.
    pub fn plans(&self) -> Vec<NamedStore> {
        let stores = self.all_stores();
        stores.keys().filter_map(|name| self.plan(name)).collect()
    }

    /// The stores that are no part of another one: those that users of the machine mean.
    pub fn outer_stores(&self) -> Vec<NamedStore> {
        let plans = self.plans();
        let mut members = HashSet::new();
        let mut remaining: Vec<_> = plans
            .iter()
            .flat_map(|named| named.plan.members())
            .collect();
        while let Some(member) = remaining.pop() {
            if members.insert(member.name.clone()) {
                remaining.extend(member.plan.members());
            }
        }
        let outer = plans.into_iter();
        outer
            .filter(|named| !members.contains(&named.name))
            .collect()
    }

    /// The store `name`, if there is one.
    pub fn plan(&self, name: &str) -> Option<NamedStore> {
        self.plan_below(name, &mut Vec::new())
    }

    /// `above` are the names of the stores that this one becomes part of: a store that is made of
    /// itself, which [`Config::parse`] refuses, does not exist.
    fn plan_below(&self, name: &str, above: &mut Vec<String>) -> Option<NamedStore> {
        if above.iter().any(|above| above == name) {
            return None;
        }
        let store = self.all_stores().remove(name)?;
        above.push(name.to_owned());
        let mut plan_of = |name: &String| self.plan_below(name, above);
        let plan = if let Some(cache) = &store.cache {
            let mut upstream: Vec<NamedStore> = cache
                .upstream
                .iter()
                .map(&mut plan_of)
                .collect::<Option<_>>()?;
            StorePlan::Cache {
                local_store: Box::new(plan_of(&cache.local)?),
                upstream: Box::new(match upstream.len() {
                    1 => upstream.remove(0),
                    // No name that a file can give.
                    _ => NamedStore {
                        name: format!("{name}/far"),
                        plan: StorePlan::Mirrors {
                            members: upstream,
                            order: MemberOrder::Listed,
                        },
                    },
                }),
                options: CacheOptions {
                    size: cache.size.map(|size| size.0),
                    keep_free: cache.keep_free.map(|size| size.0),
                    roots_max_age: cache.roots_max_age.0,
                    ..CacheOptions::default()
                },
            }
        } else if let Some(binary_cache) = &store.binary_cache {
            StorePlan::BinaryCache {
                caches: binary_cache.addresses().ok()?,
                into: Box::new(plan_of(&binary_cache.into)?),
                closure: match binary_cache.closure {
                    ClosurePrefetch::Fetch => ClosureMode::Fetch,
                    ClosurePrefetch::Narinfos => ClosureMode::Narinfos,
                    ClosurePrefetch::Off => ClosureMode::Off,
                },
                options: CacheOptions {
                    size: binary_cache.size.map(|size| size.0),
                    keep_free: binary_cache.keep_free.map(|size| size.0),
                    ..CacheOptions::default()
                },
            }
        } else if let Some(mirrors) = &store.mirrors {
            StorePlan::Mirrors {
                members: mirrors.of.iter().map(plan_of).collect::<Option<_>>()?,
                order: match mirrors.order {
                    MirrorOrder::Listed => MemberOrder::Listed,
                    MirrorOrder::Fastest => MemberOrder::Fastest,
                    MirrorOrder::Racing => MemberOrder::Racing,
                },
            }
        } else if let Some(filter) = &store.filter {
            let patterns = filter
                .roots
                .iter()
                .map(|text| RootPattern::parse(text).ok());
            StorePlan::Filter {
                of: Box::new(plan_of(&filter.store)?),
                roots: patterns.collect::<Option<_>>()?,
            }
        } else if let Some(join) = &store.join {
            StorePlan::Join {
                members: join.iter().map(plan_of).collect::<Option<_>>()?,
            }
        } else {
            StorePlan::Url(store.full_url()?)
        };
        above.pop();
        Some(NamedStore {
            name: name.to_owned(),
            plan,
        })
    }
}
