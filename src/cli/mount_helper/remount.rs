//! `mount -o remount` on a mount of castore-fs.
//!
//! Flags of the mount change at once. Options of castore-fs do not: the process that serves the
//! mount was started with them. An option with another value than that process has is refused by
//! its name, and one with the same value is accepted, since mount(8) repeats the options of fstab.

use crate::transport::fuse::{ExistingMount, GenericOptions};
use clap::Parser;

use super::{HelperArguments, HelperRefusal};
use crate::cli::mount::MountCommand;
use crate::cli::{CliArguments, Command};

/// Changes the mount to `wanted`; only checks that if it is `fake`.
pub(super) fn remount(wanted: &HelperArguments, fake: bool) -> Result<(), HelperRefusal> {
    let place = wanted.directory.display();
    let mount = ExistingMount::find(&wanted.directory)
        .map_err(|error| HelperRefusal::failure(error.to_string()))?;
    if let Some(changed) = changed_option(wanted, &mount)? {
        return Err(HelperRefusal::failure(format!(
            "cannot change {changed} of the mount on {place}: that is fixed while it is mounted; \
             unmount it and mount it again"
        )));
    }
    let mut options = GenericOptions::default();
    for option in wanted.generic.iter().filter(|option| *option != "remount") {
        options.add(option);
    }
    if wants_to_write(wanted, &options, &mount) {
        return Err(HelperRefusal::failure(format!(
            "cannot remount {place} read-write: what castore-fs mounts cannot be written to"
        )));
    }
    if fake {
        return Ok(());
    }
    let remounted = mount.remount(&options);
    remounted.map_err(|error| HelperRefusal::failure(error.to_string()))
}

/// The option of castore-fs or of FUSE that differs from the mount's, if there is one.
fn changed_option(
    wanted: &HelperArguments,
    mount: &ExistingMount,
) -> Result<Option<String>, HelperRefusal> {
    for option in &wanted.fuse {
        if !mount.has_fuse_option(option) {
            return Ok(Some(format!("the option {option:?}")));
        }
    }
    let has_others = mount.has_fuse_option("allow_other");
    for option in &wanted.ours {
        if option == "allow_other" && !has_others || option == "no-allow_other" && has_others {
            return Ok(Some(format!("the option {option:?}")));
        }
    }
    // A process that has ended may have served another mount with the same number: the one that was
    // started on this directory comes first.
    let mut servers: Vec<Box<MountCommand>> = (mount.servers_arguments().into_iter())
        .filter_map(|arguments| match CliArguments::try_parse_from(arguments) {
            Ok(CliArguments {
                verb: Command::Mount(server),
            }) => Some(server),
            _ => None,
        })
        .collect();
    servers.sort_by_key(|server| !server.is_on(&wanted.directory));
    let server = servers.into_iter().next();
    let is_same_store = wanted.url == *mount.source()
        || server
            .as_ref()
            .is_some_and(|server| server.is_of(&wanted.url));
    if !is_same_store {
        return Ok(Some(format!("the store ({})", wanted.url.display())));
    }
    let ours = wanted.ours.iter().map(String::as_str);
    let ours: Vec<&str> = ours
        .filter(|option| !option.ends_with("allow_other"))
        .collect();
    let Some(first) = ours.first() else {
        return Ok(None);
    };
    let Some(server) = server else {
        return Err(HelperRefusal::failure(format!(
            "cannot compare the option {first:?} with those of the mount: no process of \
             castore-fs mount that can be seen from here serves it; if it is a mount of the service, \
             change the configuration and reload that"
        )));
    };
    let asked = wanted_mount(wanted)?;
    let changed = ours.into_iter().find(|option| {
        let key = option.split('=').next().unwrap_or(option);
        asked.differs(&server, key)
    });
    Ok(changed.map(|option| format!("the option {option:?}")))
}

/// The mount that would be made.
fn wanted_mount(wanted: &HelperArguments) -> Result<Box<MountCommand>, HelperRefusal> {
    let program = std::iter::once("castore-fs".into());
    let parsed = CliArguments::try_parse_from(program.chain(wanted.arguments()));
    match parsed {
        Ok(CliArguments {
            verb: Command::Mount(mount),
        }) => Ok(mount),
        Ok(_) => Err(HelperRefusal::failure("these are not arguments of a mount")),
        Err(error) => Err(HelperRefusal::failure(error.to_string().trim().to_owned())),
    }
}

/// Whether `rw` is meant. mount(8) puts it before all options that do not contain `ro`, so that it
/// has no meaning there; unless it is the only one, or comes before what mount(8) has read from the
/// mount itself, which would contain `ro`.
fn wants_to_write(
    wanted: &HelperArguments,
    options: &GenericOptions,
    mount: &ExistingMount,
) -> bool {
    let last = |name| wanted.generic.iter().rposition(|option| option == name);
    let Some(at) = last("rw") else { return false };
    if last("ro").is_some_and(|ro| ro > at) {
        return false;
    }
    at > 0 || !wanted.fuse.is_empty() || *options == GenericOptions::default() || mount.has(options)
}
