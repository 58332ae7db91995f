//! `castore-fs profile`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use crate::profile::Profiles;
use crate::quantity::count;
use crate::service::{
    ControlRequest, ControlResult, ProfileDone, ProfileRequest, ProfileStatus,
    obey_profile_request, send_request,
};
use clap::{Args, Subcommand};
use data_encoding::BASE64;

use super::control::{ControlArguments, not_that};
use super::failure::{CommandFailure, failure, print_error};
use super::output::Output;

/// The longest file that is read, in bytes: no profile is longer.
const MOST_BYTES: u64 = 9 << 20;

/// List, export, import and remove the access profiles of mounts and guests
///
/// A profile lists the files that are read first below a root. The next cold mount of that root, or
/// of another version of it, in a guest or not, prefetches them in that order if it has
/// `warmup = "learn"`; docs/warmup.md has the details. Without --directory the running service is used.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  castore-fs profile list
  castore-fs profile export tree > tree.profile
  castore-fs profile import --directory image/var/lib/castore-fs/profiles tree.profile
  castore-fs profile rm tree")]
pub(super) struct ProfileVerb {
    #[command(subcommand)]
    verb: ProfileAction,
}

#[derive(Debug, Subcommand)]
enum ProfileAction {
    /// List the profiles: for each the number of files, and of their extents of up to 1 MiB
    List {
        #[command(flatten)]
        place: ProfileLocation,
        /// One JSON object a profile
        #[arg(long)]
        json: bool,
    },
    /// Write a profile, with the recordings up to now, to standard output
    Export {
        #[command(flatten)]
        place: ProfileLocation,
        /// One JSON object: `name`, and in `profile` the profile, in base64
        #[arg(long)]
        json: bool,
        /// The root's name, or the `root` of the mount
        name: String,
    },
    /// Store a profile, replacing that of its root
    ///
    /// Mounts use it from the next one on. A mount that is recording the same root writes its recording in
    /// front of what was imported.
    Import {
        #[command(flatten)]
        place: ProfileLocation,
        /// Store it for this root, instead of the one in the profile
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        /// One JSON object: the profile
        #[arg(long)]
        json: bool,
        /// A file from `castore-fs profile export`; - is standard input
        file: PathBuf,
    },
    /// Remove profiles
    Rm {
        #[command(flatten)]
        place: ProfileLocation,
        /// One JSON object: `removed`, a list of the names
        #[arg(long)]
        json: bool,
        /// The roots' names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// Where the profiles are: with the running service, or in a directory.
#[derive(Debug, Args)]
struct ProfileLocation {
    #[command(flatten)]
    control: ControlArguments,
    /// The directory with the profiles, if not the running service's: `profiles` in its state
    /// directory
    #[arg(long, value_name = "PATH", conflicts_with = "socket")]
    directory: Option<PathBuf>,
}

impl ProfileLocation {
    fn ask(&self, request: ProfileRequest) -> Result<ProfileDone, CommandFailure> {
        if let Some(directory) = &self.directory {
            let profiles = Profiles::new(directory.clone());
            return obey_profile_request(&profiles, request).map_err(failure);
        }
        match send_request(
            &self.control.socket()?,
            &ControlRequest::Profile(request),
            |_| {},
        )? {
            ControlResult::Profile(done) => Ok(done),
            other => Err(not_that(&other)),
        }
    }
}

impl ProfileVerb {
    pub(super) fn run(self) -> Result<(), CommandFailure> {
        match self.verb {
            ProfileAction::List { place, json } => list(&place, json),
            ProfileAction::Export { place, json, name } => export(&place, json, name),
            ProfileAction::Import {
                place,
                name,
                json,
                file,
            } => import(&place, name, json, &file),
            ProfileAction::Rm { place, json, names } => remove(&place, json, names),
        }
    }
}

fn list(place: &ProfileLocation, json: bool) -> Result<(), CommandFailure> {
    let done = place.ask(ProfileRequest::List)?;
    let ProfileDone::Listed { profiles, bad } = done else {
        return Err(unexpected(done));
    };
    let mut output = Output::open()?;
    for profile in &profiles {
        match json {
            true => output.json(profile)?,
            false => output.line(&line(profile))?,
        }
    }
    output.flush()?;
    bad.iter().for_each(|what| print_error(what));
    match bad.is_empty() {
        true => Ok(()),
        false => Err(CommandFailure::Reported),
    }
}

fn line(profile: &ProfileStatus) -> String {
    let files = count(profile.files, "file", "files");
    let extents = count(profile.extents, "extent", "extents");
    format!("{}: {files}, {extents}", profile.name)
}

fn remove(place: &ProfileLocation, json: bool, names: Vec<String>) -> Result<(), CommandFailure> {
    for name in &names {
        let name = name.clone();
        match place.ask(ProfileRequest::Remove { name })? {
            ProfileDone::Removed(_) => {}
            other => return Err(unexpected(other)),
        }
    }
    if json {
        let mut output = Output::open()?;
        output.json(&serde_json::json!({ "removed": names }))?;
        output.flush()?;
    }
    Ok(())
}

fn export(place: &ProfileLocation, json: bool, name: String) -> Result<(), CommandFailure> {
    let done = place.ask(ProfileRequest::Export { name: name.clone() })?;
    let ProfileDone::Exported(profile) = done else {
        return Err(unexpected(done));
    };
    let bytes = BASE64.decode(profile.as_bytes());
    let bytes =
        bytes.map_err(|error| failure(format!("the service's answer is wrong: {error}")))?;
    let mut output = Output::open()?;
    match json {
        true => output.json(&serde_json::json!({ "name": name, "profile": profile }))?,
        false => output.write_all(&bytes)?,
    }
    output.flush()?;
    Ok(())
}

fn import(
    place: &ProfileLocation,
    name: Option<String>,
    json: bool,
    file: &PathBuf,
) -> Result<(), CommandFailure> {
    let shown = file.display();
    let mut bytes = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => io::stdin().lock().take(MOST_BYTES).read_to_end(&mut bytes),
        false => File::open(file).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut bytes)),
    };
    read.map_err(|error| failure(format!("cannot read {shown}: {error}")))?;
    // The service checks the profile too, but its error could not name this file.
    crate::profile::Profile::decode(&bytes)
        .map_err(|error| failure(format!("the profile {shown}: {error}")))?;
    let profile = BASE64.encode(&bytes);
    let done = place.ask(ProfileRequest::Import { profile, name })?;
    let ProfileDone::Imported(profile) = done else {
        return Err(unexpected(done));
    };
    let mut output = Output::open()?;
    match json {
        true => output.json(&profile)?,
        false => output.line(&line(&profile))?,
    }
    output.flush()?;
    Ok(())
}

fn unexpected(done: ProfileDone) -> CommandFailure {
    not_that(&ControlResult::Profile(done))
}
