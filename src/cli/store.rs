//! The store of a command: a URL, or the name of a store in a configuration file.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::server::BLOCKING_THREADS;
use crate::service::Config;
use crate::store::{self, Blocking, Cache, CacheOptions, GrpcStore, LocalStore, Store};
use crate::stores::{self, NamedStore, OpenStores, StoreNeeds, StorePlan};
use clap::Args;
use tokio::runtime::{self, Runtime};

use super::failure::{CommandFailure, failure, print_error};
use super::progress::print_note;
use super::units::size;

/// The configuration that names stores, where none is given: that of the service.
pub(super) const DEFAULT_CONFIG: &str = "/etc/castore-fs/config.toml";

/// The `--store` of every verb.
#[derive(Debug, Args)]
pub(super) struct StoreArguments {
    /// The store: local:PATH, grpc+{http,https,unix}:…, objectstore+{file,s3,gs,az,http,https}:…,
    /// nix+{https,http,file}:…, memory:, or store:NAME, which a configuration file describes
    ///
    /// A snix store is read as it lies on the disk as
    /// 'blobs=URL&directories=URL&path-infos=URL', where a URL can be redb:PATH.
    ///
    /// A store:NAME that is made of others is used through the running service, if there is one.
    ///
    /// Without it, the store of the configuration file, where root gives the command or --config names
    /// a file, if one store is no part of another there; its name is printed. Else local: in
    /// $XDG_DATA_HOME/castore-fs, by default ~/.local/share/castore-fs; for root /var/lib/castore-fs.
    #[arg(
        long,
        value_name = "URL",
        env = "CASTORE_FS_STORE",
        hide_env_values = true
    )]
    store: Option<String>,
    /// Ask Nix binary caches again for names that they did not have within the last hour
    #[arg(long)]
    refresh: bool,
    #[command(flatten)]
    config: ConfigArguments,
}

/// The `--config` of every verb that takes a store.
#[derive(Debug, Args)]
pub(super) struct ConfigArguments {
    /// The configuration file that describes store:NAME
    #[arg(
        long,
        value_name = "FILE",
        env = "CASTORE_FS_CONFIG",
        default_value = DEFAULT_CONFIG,
        hide_env_values = true
    )]
    config: PathBuf,
}

/// The `--cache` of verbs that continue to read from a store.
#[derive(Debug, Args)]
pub(super) struct CacheArguments {
    /// Keep what is read of the store in this directory, a local: store, across restarts
    ///
    /// For a store on another machine. Equal to `[stores.NAME] cache` of a configuration file.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How much the cache may take on its disk; without it, as much as there is
    ///
    /// What was used longest ago goes first.
    #[arg(long, value_name = "SIZE", requires = "cache", value_parser = size)]
    cache_size: Option<u64>,
}

/// A store that is not open yet.
pub(super) struct StoreLocation {
    named: NamedStore,
    /// Its description, also if it is used through the running service.
    described: StorePlan,
}

/// A store and the runtime that it waits on.
pub(super) struct CommandStore {
    pub(super) store: Blocking,
    /// The same store, with its description.
    pub(super) described: stores::OpenedStore,
    pub(super) runtime: Runtime,
    /// The caches among the stores that it is made of. A process that ends without dropping the store
    /// flushes them, so that what was read is on their disks.
    pub(super) caches: Vec<Cache>,
}

impl CommandStore {
    /// The directory of the store, if it is a local one.
    pub(super) fn local_dir(&self) -> Option<&Path> {
        self.described.local.as_ref().map(LocalStore::dir)
    }
}

impl StoreArguments {
    /// Whether `url` is the one in the arguments.
    pub(super) fn is(&self, url: &OsStr) -> bool {
        self.store.as_deref().is_some_and(|store| url == store)
    }

    /// The configuration file, given or by default.
    pub(super) fn configuration_file(&self) -> &Path {
        &self.config.config
    }

    /// The configuration file that describes the store, if it is one of those.
    pub(super) fn configuration(&self) -> Option<&Path> {
        let named = self.store.as_deref()?.starts_with("store:");
        named.then_some(self.config.config.as_path())
    }

    /// Opens an existing store, to read from it.
    pub(super) fn open(&self) -> Result<CommandStore, CommandFailure> {
        let place = self.place()?;
        place.must_exist()?;
        place.open_or_make()
    }

    /// Opens the store; makes it if it does not exist.
    pub(super) fn open_or_make(&self) -> Result<CommandStore, CommandFailure> {
        self.place()?.open_or_make()
    }

    /// Opens the store to read from it, through the cache that `cache` describes, if it does.
    pub(super) fn open_cached(
        &self,
        cache: &CacheArguments,
    ) -> Result<CommandStore, CommandFailure> {
        let place = self.place()?;
        place.must_exist()?;
        match &cache.cache {
            None => place.open_or_make(),
            Some(directory) => place
                .with_cache(directory, cache.cache_size)?
                .open_or_make(),
        }
    }

    /// Another store, of the same configuration.
    pub(super) fn other(&self, url: &str) -> Result<StoreLocation, CommandFailure> {
        self.config.place(url)
    }

    /// The store of the arguments, or the default one.
    pub(super) fn place(&self) -> Result<StoreLocation, CommandFailure> {
        let place = match &self.store {
            Some(url) => self.config.place(url),
            None => self.config.default_place(),
        }?;
        if self.refresh {
            place.described.forget_absent_names()?;
        }
        Ok(place)
    }
}

impl ConfigArguments {
    /// The store of commands that name none: for root, and for all where a file was named, the one that
    /// the configuration file describes, if there is such a file and it describes one; else the user's own.
    fn default_place(&self) -> Result<StoreLocation, CommandFailure> {
        let named = self.config != Path::new(DEFAULT_CONFIG);
        if !(named || rustix::process::geteuid().is_root() && self.config.exists()) {
            return self.place(&default_url()?);
        }
        let file = self.config.display();
        let stores = load(&self.config)?.outer_stores();
        if let [store] = &stores[..] {
            print_note(&format!("using store:{} of {file}", store.name));
            return self.place(&format!("store:{}", store.name));
        }
        let url = default_url()?;
        print_note(&format!(
            "using {url}: {file} describes several stores, which --store store:NAME chooses from"
        ));
        self.place(&url)
    }

    /// The store that `url` names, which may be `store:NAME`.
    pub(super) fn place(&self, url: &str) -> Result<StoreLocation, CommandFailure> {
        let (named, described) = match url.strip_prefix("store:") {
            Some(name) => find(name, &self.config)?,
            None => {
                let plan = StorePlan::Url(url.to_owned());
                let name = url.to_owned();
                (
                    NamedStore {
                        name,
                        plan: plan.clone(),
                    },
                    plan,
                )
            }
        };
        Ok(StoreLocation { named, described })
    }
}

/// Reads a configuration file; returns what is wrong with it.
fn load(file: &Path) -> Result<Config, CommandFailure> {
    Config::load(file).map_err(|problems| {
        problems
            .iter()
            .for_each(|problem| print_error(&problem.to_string()));
        CommandFailure::Reported
    })
}

/// The store `name` of the configuration `file`: as the running service has it, if that is made of
/// others and lets us; and what it is made of.
fn find(name: &str, file: &Path) -> Result<(NamedStore, StorePlan), CommandFailure> {
    let config = load(file)?;
    let named = config.plan(name).ok_or_else(|| {
        let names = config.all_stores().into_keys().collect::<Vec<_>>();
        failure(format!(
            "{} describes no store {name:?}; it has {}",
            file.display(),
            names.join(", ")
        ))
    })?;
    let described = named.plan.clone();
    let Some(socket) = config.store_socket(&named.plan) else {
        return Ok((named, described));
    };
    let named = match UnixStream::connect(&socket) {
        Ok(_) => NamedStore {
            name: named.name,
            plan: StorePlan::Url(format!("grpc+unix:{}", socket.display())),
        },
        Err(_) => named,
    };
    Ok((named, described))
}

impl StoreLocation {
    /// The store with a cache in `directory` of at most `size` bytes.
    fn with_cache(self, directory: &Path, size: Option<u64>) -> Result<Self, CommandFailure> {
        if let Some(dir) = self.dir() {
            return Err(failure(format!(
                "{} is on this machine already: --cache is for stores that are not",
                dir.display()
            )));
        }
        // The process may change to another directory.
        let directory = std::path::absolute(directory)?;
        let path = directory.to_str().ok_or_else(|| {
            failure(format!(
                "--cache {}: the path is not UTF-8",
                directory.display()
            ))
        })?;
        let url = format!("local:{path}");
        // A service goes on without a cache that it cannot open; a command that was given one fails.
        if let Err(error @ store::Error::Io { .. }) = store::open_local(&url) {
            return Err(failure(format!("--cache {path} cannot be used: {error}")));
        }
        let options = CacheOptions {
            size,
            ..CacheOptions::default()
        };
        let plan = StorePlan::Cache {
            local_store: Box::new(NamedStore {
                name: url.clone(),
                plan: StorePlan::Url(url),
            }),
            upstream: Box::new(self.named),
            options,
        };
        let named = NamedStore {
            name: "the cache".to_owned(),
            plan: plan.clone(),
        };
        let described = plan;
        Ok(Self { named, described })
    }

    /// Whether it is used through the running service.
    fn is_of_service(&self) -> bool {
        self.named.plan != self.described
    }

    /// Its URL, or its name in a configuration: `store:NAME`.
    fn shown(&self) -> String {
        match &self.described {
            StorePlan::Url(url) if *url == self.named.name => store::shown_url(url),
            _ => format!("store:{}", self.named.name),
        }
    }

    /// Whether it is a Nix binary cache.
    pub(super) fn is_binary_cache(&self) -> bool {
        match &self.described {
            StorePlan::BinaryCache { .. } => true,
            StorePlan::Url(url) => crate::binary_cache::is_url(url),
            _ => false,
        }
    }

    /// Fails if the store would have to be made.
    pub(super) fn must_exist(&self) -> Result<(), CommandFailure> {
        Ok(self.named.plan.must_exist()?)
    }

    /// The directory of the store, if it is a local one.
    pub(super) fn dir(&self) -> Option<PathBuf> {
        match &self.named.plan {
            StorePlan::Url(url) => store::local_dir(url).map(Path::to_owned),
            _ => None,
        }
    }

    /// The URL of the store, if it is an object store.
    pub(super) fn bucket_url(&self) -> Option<&str> {
        match &self.named.plan {
            StorePlan::Url(url) => url.starts_with("objectstore+").then_some(url),
            _ => None,
        }
    }

    /// Opens an existing local store.
    pub(super) fn open_dir(&self) -> Result<LocalStore, CommandFailure> {
        self.must_exist()?;
        let local = match &self.named.plan {
            StorePlan::Url(url) => store::open_local(url)?,
            _ => None,
        };
        local.ok_or_else(|| {
            let members = self.described.members();
            let names = members.iter().map(|member| format!("store:{}", member.name));
            let names = names.collect::<Vec<_>>().join(", ");
            let hint = match members.is_empty() {
                true => String::new(),
                false => format!("; --store names one that it is made of: {names}"),
            };
            failure(format!(
                "gc works only on local stores (local:PATH) and object stores (objectstore+URL), and {} is \
                 neither{hint}",
                self.shown()
            ))
        })
    }

    /// Opens the store with a runtime of its own; makes it if it does not exist.
    pub(super) fn open_or_make(self) -> Result<CommandStore, CommandFailure> {
        let runtime = runtime::Builder::new_multi_thread()
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .build()?;
        let mut caches = Vec::new();
        let described = self.open_described(&runtime, &mut caches)?;
        Ok(CommandStore {
            store: Blocking::new(described.store.clone(), runtime.handle().clone()),
            described,
            runtime,
            caches,
        })
    }

    /// Opens the store, to be used with `runtime`; makes it if it does not exist.
    pub(super) fn open(self, runtime: &Runtime) -> Result<Arc<dyn Store>, CommandFailure> {
        Ok(self.open_described(runtime, &mut Vec::new())?.store)
    }

    fn open_described(
        self,
        runtime: &Runtime,
        caches: &mut Vec<Cache>,
    ) -> Result<stores::OpenedStore, CommandFailure> {
        let _inside = runtime.enter();
        if let StorePlan::Url(url) = &self.named.plan
            && !crate::binary_cache::is_url(url)
        {
            let local = store::open_local(url)?;
            return Ok(stores::OpenedStore {
                store: match &local {
                    Some(local) => Arc::new(local.clone()),
                    // The name of the service's socket says nothing.
                    None if self.is_of_service() => {
                        Arc::new(GrpcStore::open_named(url, self.shown())?)
                    }
                    None => stores::open(url)?,
                },
                plan: self.named.plan,
                local,
                cache: None,
                binary_caches: None,
                without_cache: false,
            });
        }
        let mut opened = stores::open_all(std::slice::from_ref(&self.named), &OpenStores::new())?;
        caches.extend(opened.values().filter_map(|opened| opened.cache.clone()));
        let opened = opened.remove(&self.named.name);
        opened.ok_or_else(|| failure("the store was not opened; this is a bug"))
    }

    /// The system resources that reading the store needs.
    pub(super) fn needs(&self) -> StoreNeeds {
        self.named.plan.needs()
    }
}

/// The default directory for data.
pub(super) fn default_dir() -> Result<PathBuf, CommandFailure> {
    let dir = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        let set = |name| {
            let path = std::env::var_os(name).map(PathBuf::from);
            // The XDG specification: paths that are not absolute are to be ignored.
            path.filter(|path| path.is_absolute())
        };
        set("XDG_DATA_HOME")
            .or_else(|| Some(set("HOME")?.join(".local/share")))
            .ok_or_else(|| failure("neither XDG_DATA_HOME nor HOME is set"))?
    };
    Ok(dir.join("castore-fs"))
}

fn default_url() -> Result<String, CommandFailure> {
    let path = default_dir().map_err(|_| {
        failure(
            "there is no default store, since neither XDG_DATA_HOME nor HOME is set: \
             give one with --store local:PATH",
        )
    })?;
    match path.to_str() {
        Some(path) => Ok(format!("local:{path}")),
        None => Err(failure(format!(
            "the default store {} is not UTF-8: give another with --store local:PATH",
            path.display()
        ))),
    }
}
